"""A network as a guest uses it: logits, predictions, features, kernels, gradients, a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import alexnet_jax
from alexnet_jax.cli.main import main
from alexnet_jax.errors import UsageError
from alexnet_jax.model.columns import merge_towers
from alexnet_jax.model.tower import draw_parameters
from alexnet_jax.training.predictions import Predictions
from tests.reference import grouped_network
from tests.support import random_params, three_layers, tiny_config

ROOT = Path(__file__).parents[2]


def lively(config, **given):
    """A network whose signal reaches the end."""
    net = alexnet_jax.create(config=config, **given)
    crop = config.data.crop_size
    return net.replace({"params": jax.tree.map(np.float32, random_params(net.tower, crop))})


def in_float64():
    """The digits network in float64, with windows of LRN across the seam."""
    config = tiny_config().copy_and_resolve_references()
    config.model.compute_dtype, config.model.lrn.across_towers = "float64", True
    net = alexnet_jax.create(config=config)
    return net.replace({"params": random_params(net.tower, 32)})


@pytest.fixture(scope="module")
def net():
    config = tiny_config()
    config.evaluate.batch_size = 4
    return lively(config)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (6, 40, 37, 3), np.uint8)


def reference(net, images, layer="fc8"):
    """The single column with grouped convolutions, up to a layer, of the centre by hand."""
    crops = (images[:, 4:36, 2:34].astype(np.float32) - 78.0) / 64
    model = net.config.model.copy_and_resolve_references()
    order = model.layer_order
    model.layer_order = order[: order.index(layer) + 1]
    return grouped_network(model, merge_towers(net.params, net.tower.layers), crops, {})


# ----------------------------------------------------------------- a new network


def test_a_network_is_created_from_names_of_fields():
    net = alexnet_jax.create(
        config="quickstart", towers=1, num_classes=7, dropout_rate=0.25, lrn_size=3, seed=5
    )
    model = net.config.model
    assert (model.towers, model.num_classes, model.dropout.rate, model.lrn.size) == (1, 7, 0.25, 3)
    assert net.params["fc8"]["kernel"].shape == (1, 512, 7) and net.config.seed == 5
    drawn = draw_parameters(net.tower, 5, 32)
    jax.tree.map(np.testing.assert_array_equal, net.params, drawn)
    assert repr(net).startswith("Network(1 tower, ") and repr(net).endswith(", 7 classes)")


def test_a_network_has_the_names_of_its_classes():
    net = alexnet_jax.create(config="quickstart", class_names=["cat", "dog"])
    assert net.class_names == ("cat", "dog") and net.config.model.num_classes == 2
    with pytest.raises(UsageError, match="class_names are 2, and the network has 3 classes"):
        alexnet_jax.create(config="quickstart", class_names=["cat", "dog"], num_classes=3)


def test_a_preset_without_its_data_set_subtracts_the_mean_of_each_colour():
    net = alexnet_jax.create("source", width=1 / 16, num_classes=10)
    assert net.config.data.mean == "image"
    np.testing.assert_allclose(net.inputs.mean, net.config.data.channel_mean)
    assert net.layers == ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def test_what_was_given_is_not_changed():
    config = tiny_config()
    before = config.to_json()
    net = alexnet_jax.create(config=config, num_classes=3)
    assert config.to_json() == before
    assert net.config.model.layers.fc8.features == 3


@pytest.mark.parametrize(
    "given,says",
    [
        ({"droput_rate": 0.1}, "droput_rate: no such field of a network; did you mean dropout_r"),
        ({"preset": "papr"}, "preset 'papr'"),
        ({"towers": 0}, r"config\.model\.towers = 0"),
        ({"config": "quikstart"}, "did you mean quickstart"),
    ],
)
def test_a_mistake_is_one_line(given, says):
    with pytest.raises(UsageError, match=says) as error:
        alexnet_jax.create(**given)
    assert "\n" not in str(error.value)


# ------------------------------------------- logits, features and kernels of one column


@pytest.mark.parametrize("of", [np.uint8, np.float32, jnp.bfloat16, np.int64])
def test_logits_are_those_of_the_single_column(net, images, of):
    expected = reference(net, images)
    logits = net(images.astype(of))
    assert logits.dtype == jnp.float32 and logits.shape == (6, 10)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_pure_function_has_outputs_of_layers_too(net, images):
    expected = reference(net, images, "fc6")
    found = net.apply(net.variables, images, "fc6")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_grey_images_are_those_with_three_equal_colours(net, images):
    grey = images[..., 0]
    coloured = np.repeat(grey[..., None], 3, -1)
    for given in (grey, grey[..., None]):
        np.testing.assert_array_equal(net(given), net(coloured))
        np.testing.assert_array_equal(net.features(given, "fc6"), net.features(coloured, "fc6"))


@pytest.mark.parametrize(
    ("placement", "layer"),
    [("vmap", "conv5"), ("vmap", "fc7"), ("vmap", "fc8"), ("pmap", "fc7"), ("mesh", "conv1")],
)
def test_features_are_those_of_the_single_column(net, images, placement, layer):
    """Six images in batches of four, under each placement."""
    other = lively(net.config, placement=placement)
    expected = reference(net, images, layer)
    found = other.features(images, layer)
    assert isinstance(found, np.ndarray) and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_kernels_are_those_of_both_towers_side_by_side(net):
    first, second = net.params["conv1"]["kernel"]
    kernels = net.kernels("conv1")
    assert kernels.shape == (*first.shape[:3], 2 * first.shape[3])
    np.testing.assert_array_equal(kernels[..., : first.shape[3]], first)
    np.testing.assert_array_equal(kernels[..., first.shape[3] :], second)


@pytest.mark.parametrize(
    "images,says",
    [
        (np.zeros((3, 32, 32), np.uint8)[0], r"uint8 \[32, 32\]: give \[N, H, W, 3\]"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \[32, 32, 3\]"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"\[1, 3, 32, 32\]"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"\[0, 32, 32, 3\]"),
        (np.zeros((1, 32, 32, 3), complex), "complex128"),
        (np.zeros((1, 31, 32, 3), np.uint8), "31 x 32 pixels: give at least 32"),
    ],
)
def test_images_of_another_kind_are_named(net, images, says):
    for use in (net, net.predict, lambda x: net.features(x, "fc7"), lambda x: net.gradient(x, 0)):
        with pytest.raises(UsageError, match=says):
            use(images)


def test_what_is_not_there_is_named(net, images):
    layers = "layer 'fc9': the layers are conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8"
    for use in (net.kernels, lambda name: net.features(images, name)):
        with pytest.raises(UsageError, match=layers):
            use("fc9")
    for classes, says in ((10, "go from 10 to 10: give 0 to 9"), ([1], r"int64 \(1,\)"),
                          (0.5, "float64"), (-1, "-1")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            net.gradient(images, classes)
    with pytest.raises(UsageError, match="views = 2: give one of 1, 9, 10"):
        net.predict(images, views=2)


# ------------------------------------------------------------------------ derivatives


def test_the_gradient_is_the_whole_derivative(images):
    """By finite differences in float64, in random directions; zero outside the crop."""
    with jax.enable_x64(True):
        net, rng = in_float64(), np.random.default_rng(2)
        whole, classes = images.astype(np.float64), np.array([3, 1, 4, 1, 5, 9])
        gradient = np.asarray(net.gradient(whole, classes))
        assert gradient.shape == images.shape and gradient.dtype == np.float64
        outside = np.ones(images.shape, bool)
        outside[:, 4:36, 2:34] = False
        assert not gradient[outside].any() and gradient[~outside].any()
        for _ in range(3):
            step = 1e-5 * rng.normal(size=images.shape)
            ahead, behind = net(whole + step), net(whole - step)
            difference = np.take_along_axis(np.asarray(ahead - behind), classes[:, None], 1)[:, 0]
            along = (gradient * 2 * step).sum((1, 2, 3))
            np.testing.assert_allclose(along, difference, rtol=1e-5)
        one = np.asarray(net.gradient(whole[:1], 3))
        np.testing.assert_allclose(one, gradient[:1], rtol=1e-9, atol=1e-12)


def test_every_transformation_of_jax_finds_the_same_derivative(images):
    """Forward and reverse, of images and of all towers' variables, against differences."""
    with jax.enable_x64(True):
        net, rng = in_float64(), np.random.default_rng(3)
        point = (net.variables, images[:2].astype(np.float64))
        direction = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), point)
        apply = jax.jit(net.apply)
        logits, forward = jax.jvp(apply, point, direction)

        def moved(size):
            return apply(*jax.tree.map(lambda x, d: x + size * d, point, direction))

        difference = (moved(1e-7) - moved(-1e-7)) / 2e-7
        np.testing.assert_allclose(forward, difference, rtol=1e-5, atol=1e-6 * abs(forward).max())

        weights = rng.normal(size=logits.shape)
        backward = jax.vjp(apply, *point)[1](weights)
        products = jax.tree.map(lambda g, d: (g * d).sum(), backward, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), (forward * weights).sum())

        def one(image):
            return net(image[None])[0, 7]

        np.testing.assert_allclose(
            jax.vmap(jax.grad(one))(point[1]), net.gradient(point[1], 7), rtol=1e-9, atol=1e-12
        )


def test_the_last_bias_is_the_mean_of_the_towers_copies(images):
    net = alexnet_jax.create(config=three_layers())
    gradient = jax.grad(lambda variables: net.apply(variables, images).sum())(net.variables)
    np.testing.assert_allclose(gradient["params"]["fc3"]["bias"], np.full((2, 10), 6 / 2))


def test_dropout_is_that_of_its_key(net, images):
    once, again = (net.apply(net.variables, images, dropout_key=jax.random.key(i)) for i in (0, 0))
    other = net.apply(net.variables, images, dropout_key=jax.random.key(1))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other) and not np.allclose(once, net(images))


# ------------------------------------------------------------------------- predictions


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Six squares of the right size in one folder."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{number}.png")
    return root, pixels


@pytest.mark.parametrize(("placement", "views"), [("vmap", 1), ("pmap", 10)])
def test_arrays_files_and_the_verb_have_the_same_predictions(
    net, photographs, placement, views, tmp_path, capsys
):
    root, pixels = photographs
    other = lively(net.config, placement=placement)
    of_arrays = other.predict(pixels, views)
    for given in (str(root), root, f"{root}/*.png", [root / f"{i}.png" for i in range(6)]):
        of_files = other.predict(given, views=views)
        np.testing.assert_allclose(of_files.probabilities, of_arrays.probabilities, atol=1e-6)
    assert of_files.images == tuple(f"{root}/{i}.png" for i in range(6))
    if views == 1:
        expected = jax.nn.softmax(net(pixels))
        np.testing.assert_allclose(of_arrays.probabilities, expected, atol=1e-6)
    other.save(tmp_path / "net.safetensors")
    capsys.readouterr()
    typed = [
        f"--weights={tmp_path / 'net.safetensors'}",
        f"--views={views}",
        "--format=json",
        str(root),
    ]
    assert main(["predict", *typed]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == list(of_files.images)
    for row, best in zip(rows, of_files, strict=True):
        assert [found["class"] for found in row["best"]] == [name for name, _ in best]
        np.testing.assert_allclose(
            [found["probability"] for found in row["best"]], [p for _, p in best], atol=1e-6
        )


def test_predictions_name_what_they_are_about():
    rows = np.float32([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    found = Predictions(("a.jpg", "b/c.jpg"), rows, ("cat", "dog", "cow"))
    assert found.labels.tolist() == [1, 0] and found.names == ["dog", "cat"]
    assert [name for name, _ in found[0]] == ["dog", "cow", "cat"]
    assert [p for _, p in found[0]] == pytest.approx([0.7, 0.2, 0.1])
    assert repr(found) == "a.jpg     70.0 %  dog\nb/c.jpg   50.0 %  cat"
    numbered = Predictions(("a.jpg",), rows[:1], ("cat", "n01443537", "cow"))
    assert numbered[0][0][0] == "n01443537 goldfish"
    assert repr(numbered) == "a.jpg   70.0 %  goldfish"
    many = Predictions(tuple(f"image {i}" for i in range(12)), np.float32([[1.0]] * 12), ("x",))
    assert repr(many).splitlines()[9:] == ["image 9  100.0 %  x", "... and 2 more"]


def test_a_program_is_compiled_once_for_a_shape_of_batch(net, images):
    other = lively(net.config)
    rounds = []
    for _ in range(2):
        other(images), other.predict(images), other.features(images, "fc7")
        other.gradient(images, 1)
        rounds.append([*other._steps.values(), other._logits, other._gradient])
    assert len(rounds[0]) == 4 and all(a is b for a, b in zip(*rounds, strict=True))
    assert [compiled._cache_size() for compiled in rounds[1]] == [1] * 4


def test_what_was_saved_is_loaded_as_it_was(net, images, tmp_path):
    for path in (tmp_path / "net.safetensors", str(tmp_path / "net.onnx")):
        assert net.save(path) == Path(path)
        np.testing.assert_array_equal(alexnet_jax.load(path)(images), net(images))
    with pytest.raises(UsageError, match=r"net\.npz: use one of \.safetensors, \.onnx"):
        net.save(tmp_path / "net.npz")


# --------------------------------------------------------------------------------- runs


def short(placement="vmap", **fields):
    config = three_layers()
    config.placement, config.batch_size, config.num_epochs = placement, 16, 2.0
    config.log_every_steps = 1
    config.evaluate.every_epochs = 1.0
    config.update_from_flattened_dict(fields)
    return config


def pictures(count, seed=0):
    """Images of which a bar shows the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = rng.integers(0, 64, (count, 32, 32, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 160
    return images, labels


def losses(result):
    return [event.loss for event in result.log if event.kind == "training"]


def test_a_run_on_arrays_is_the_same_on_one_device_and_on_two(tmp_path):
    runs = [
        alexnet_jax.train(
            short(placement), tmp_path / placement, data=pictures(160),
            validation=pictures(40, 1), test=pictures(30, 2), optimizer=optax.adam(2e-3),
        )
        for placement in ("vmap", "pmap")
    ]  # fmt: skip
    one, two = runs
    assert len(losses(one)) == 20
    np.testing.assert_allclose(losses(one), losses(two), rtol=1e-4)
    assert one.metrics["test"]["top1_error"] < 0.7  # It learns; a guess is 0.9.
    assert {split: m["num_examples"] for split, m in one.metrics.items()} == {
        "validation": 40, "test": 30,
    }  # fmt: skip
    assert one.metrics["test"]["loss"] == pytest.approx(two.metrics["test"]["loss"], rel=1e-3)
    # What was measured is what the network says.
    images, labels = pictures(30, 2)
    wrong = one.net.predict(images).labels != labels
    assert one.metrics["test"]["top1_error"] == pytest.approx(wrong.mean())
    assert one.net.class_names == tuple("0123456789")
    assert f"test error {wrong.mean():.4f}" in repr(one)


def test_a_run_on_arrays_resumes_to_the_bit(tmp_path):
    def run(workdir, epochs):
        return alexnet_jax.train(
            short(num_epochs=epochs), str(tmp_path / workdir), data=pictures(160),
            class_names=list("abcdefghij"), optimizer=optax.adam(1e-3),
        )  # fmt: skip

    whole, first = run("whole", 2.0), run("parts", 1.0)
    parts = run("parts", 2.0)
    assert len(losses(first)) == 9 + 9  # A tenth is held out; the log is read again.
    assert losses(parts) == losses(whole)
    jax.tree.map(np.testing.assert_array_equal, parts.net.variables, whole.net.variables)
    assert whole.net.class_names == tuple("abcdefghij")
    assert set(whole.metrics) == {"validation"}


def test_a_run_with_an_optimizer_of_ones_own_makes_its_steps(tmp_path):
    """With a rate of 0 nothing is learned, whatever the configuration says."""
    config = short(num_epochs=1.0)
    net = alexnet_jax.train(config, tmp_path, data=pictures(64), optimizer=optax.sgd(0.0)).net
    drawn = alexnet_jax.create(config=config)
    jax.tree.map(np.testing.assert_array_equal, net.variables, drawn.variables)


def test_a_mean_image_is_that_of_the_arrays(tmp_path):
    images, labels = pictures(64)
    config = short(**{"data.mean": "image", "data.validation_fraction": 0.0,
                      "evaluate.splits": ("train",)})  # fmt: skip
    net = alexnet_jax.train(config, tmp_path, data=(images, labels)).net
    np.testing.assert_allclose(net.inputs.mean, images.mean(0), atol=1e-3)


def test_a_run_on_arrays_needs_what_it_trains_on(tmp_path):
    with pytest.raises(UsageError, match="without data: give data as well"):
        alexnet_jax.train(short(), tmp_path, validation=pictures(10))
    with pytest.raises(UsageError, match="labels are from 0 to 9: give 0 to 4"):
        alexnet_jax.train(short(**{"model.num_classes": 5}), tmp_path, data=pictures(100))


def test_the_configuration_of_a_run_stays_that_of_the_caller(tmp_path):
    config = short(num_epochs=1.0)
    before = config.to_json()
    alexnet_jax.train(config, tmp_path, data=pictures(64), optimizer=optax.sgd(0.01))
    assert config.to_json() == before


# ------------------------------------------------------------------- wherever it is used

SCRIPT = """
import sys
if "late" in sys.argv:
    import jax.numpy as jnp
    jnp.ones(3).sum()
import asyncio, signal, tempfile, threading
import numpy as np
import alexnet_jax
from tests.training.test_library import pictures, short

def work(workdir):
    net = alexnet_jax.create(config=short())
    images, labels = pictures(64)
    net(images), net.predict(images), net.features(images, "fc2"), net.gradient(images, 3)
    result = alexnet_jax.train(short(num_epochs=1.0), workdir, data=(images, labels))
    print(result.net(images).shape, net.config.model.towers)

folder = tempfile.mkdtemp()
work(folder + "/here")
if "late" in sys.argv:
    sys.exit()
thread = threading.Thread(target=work, args=(folder + "/thread",))
thread.start()
thread.join()

async def program():
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
    work(folder + "/async")
    await asyncio.to_thread(work, folder + "/to_thread")
    signal.raise_signal(signal.SIGUSR1)
    await asyncio.wait_for(asked.wait(), 30)  # Signals still reach the program's own loop.

asyncio.run(program())
"""


@pytest.mark.parametrize("when", ["first", "again", "late"])
def test_nothing_alarming_is_printed_wherever_it_runs(when, tmp_path_factory):
    """In a script, a thread and an asyncio program; with a full cache; after JAX has started."""
    cache = tmp_path_factory.getbasetemp() / "library-cache"
    names = ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:alexnet_jax", "-c", SCRIPT, when],
        cwd=ROOT,
        env=environment | {"XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("(64, 10) 2") == (1 if when == "late" else 4)
    # Progress is all there is on the terminal.
    starts = ("step ", "vmap, 1 cpu device; ")
    assert [line for line in done.stderr.splitlines() if not line.startswith(starts)] == []


def test_a_network_counts_the_bias_that_towers_share_once():
    # 60,965,224 with 1,000 classes (docs/network.md): 4,097 fewer for each class that is not there.
    net = alexnet_jax.create(towers=2, num_classes=10)
    assert "56,909,194 parameters" in repr(net) and 60_965_224 - 990 * 4097 == 56_909_194
