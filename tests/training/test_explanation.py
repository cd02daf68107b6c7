"""One image through a network: against brute force, NumPy and networks that are built otherwise."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import alexnet_jax
from alexnet_jax.config import table
from alexnet_jax.config.table import layer_row
from alexnet_jax.data.sources import open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.training.explanation import exciting
from tests import numpy_reference
from tests.support import random_params, tiny_config

NAMES = ("ant", "bee", "cat", "dog", "eel", "fly", "gnu", "hen", "ibis", "n01440764 tench")


def small(towers=2, crop=20, **then):
    """Two convolutions with all kinds of operations, and two dense layers."""
    config = tiny_config()
    config.unlock()
    classes = config.model.get_oneway_ref("num_classes")
    rows = {
        "conv1": layer_row("conv", 8, 5, stride=2,
                           then=("activation", "max_pool", "lrn")),
        "conv2": layer_row("conv", 8, 3, padding=(1, 1), exchange="inputs", then=("activation",)),
        "conv3": layer_row("conv", 8, 3, padding=(1, 1), then=("activation", "max_pool")),
        "fc4": layer_row("dense", 12, exchange="inputs", then=("activation", "dropout")),
        "fc5": layer_row("dense", classes, exchange="partial_sums", then=()),
    }  # fmt: skip
    for name, operations in then.items():
        rows[name].then = operations
    config.model.update(width=1.0, towers=towers, layer_order=tuple(rows))
    config.model.dropout.rescaled_in_training = False
    config.model.layers = ConfigDict(rows)
    config.model.lrn.alpha = 0.5
    config.data.update(image_size=max(crop, 24), crop_size=crop)
    return config.lock()


def lively(config, **given):
    net = alexnet_jax.create(config=config, **given)
    crop = config.data.crop_size
    return net.replace({"params": jax.tree.map(np.float32, random_params(net.tower, crop))})


@pytest.fixture(scope="module")
def net():
    return lively(small(), class_names=NAMES)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(5).integers(0, 256, (26, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def found(net, image):
    return net.explain(image, classes=["tench", 2])


def test_feature_maps_are_those_of_features(net, image, found):
    assert [walk.name for walk in found.layers] == list(net.layers)
    for walk in found.layers:
        expected = net.features(image[None], walk.name)[0]
        np.testing.assert_allclose(walk.output, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rescaled", [False, True])
def test_an_operation_that_passes_values_unchanged_is_no_change(image, rescaled):
    config = small().copy_and_resolve_references()
    config.model.dropout.rescaled_in_training = rescaled
    layers = lively(config).explain(image).layers
    names = [stage.name for stage in layers[3].changes]
    assert names == ["dense", "activation", "dropout"][: 2 if rescaled else 3]
    assert layers[0].changes == layers[0].stages


def test_each_operation_follows_from_the_one_before(found, net):
    conv1, fc4 = found.layers[0], found.layers[3]
    assert [s.name for s in conv1.stages] == ["conv", "activation", "max_pool", "lrn"]
    values = [np.float64(stage.values)[None] for stage in conv1.stages]
    kernel = net.kernels("conv1")
    crop = (np.float64(found.crop)[None] - 78.0) / 64
    bias = net.params["conv1"]["bias"].reshape(-1)
    by_hand = numpy_reference.conv(crop, kernel, 2, (0, 0)) + bias
    np.testing.assert_allclose(values[0], by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values[1], np.maximum(values[0], 0))
    np.testing.assert_array_equal(values[2], numpy_reference.pool(values[1], 3, 2, np.max))
    towers = [numpy_reference.lrn(x, 5, 2, 0.5, 0.75) for x in np.split(values[2], 2, -1)]
    np.testing.assert_allclose(values[3], np.concatenate(towers, -1), rtol=1e-5)
    assert [s.name for s in fc4.stages] == ["dense", "activation", "dropout"]
    np.testing.assert_allclose(fc4.stages[2].values, fc4.stages[1].values / 2)


def test_shapes_and_counts_are_those_of_the_table_and_the_arithmetic_is_right(net, found):
    rows = table.count(net.config.model, 20)
    assert tuple(walk.count for walk in found.layers) == rows
    for walk in found.layers:
        assert walk.stages[0].shape == walk.count.out_shape
        assert walk.stages[-1].shape == walk.count.next_shape
        for stage in walk.stages:
            assert stage.values.shape == stage.shape
            side = stage.shape[0]
            for equation in filter(None, stage.arithmetic.split("; ")):
                left, _, right = equation.partition(" = ")
                names = {"ceil": lambda x: -int(-x // 1), "floor": lambda x: int(x // 1)}
                assert eval(left, names) == int(right)
            assert not stage.arithmetic or stage.arithmetic.endswith(f" = {side}")
    texts = [stage.arithmetic for stage in found.layers[0].stages]
    assert texts == ["floor((20 - 5) / 2) + 1 = 8", "", "ceil((8 - 3) / 2) + 1 = 4", ""]
    padded = dataclasses.replace(rows[0].layer, padding=(0, 1))
    assert table.conv_text(20, padded) == "20 + 1 = 21; (21 - 5) / 2 + 1 = 9"


def test_the_strongest_channels_of_each_tower_come_first(found):
    for walk in found.layers:
        peaks = walk.output.reshape(-1, walk.output.shape[-1]).max(0)
        per = len(peaks) // walk.towers
        for tower, chosen in enumerate(walk.strongest(3)):
            own = range(tower * per, (tower + 1) * per)
            assert chosen.tolist() == sorted(own, key=lambda c: -peaks[c])[:3]
    assert [walk.towers for walk in found.layers] == [2, 2, 2, 2, 1]


def test_the_crop_and_the_five_answers_are_those_of_predict(net, image, found):
    np.testing.assert_array_equal(found.crop, image[3:23, 2:22])
    assert found.corner == (3, 2)
    expected = net.predict(image[None])
    np.testing.assert_allclose(found.probabilities, expected.probabilities[0], rtol=1e-5)
    best = [(name, pytest.approx(p, rel=1e-5)) for name, p in expected[0]]
    assert [(name, p) for _, name, p in found.best] == best
    assert repr(found).startswith("Explanation(image: ") and "conv1, conv2" in repr(found)


def test_occlusion_is_one_forward_pass_for_each_square(net, image, found):
    occlusion = found.occlusion
    assert occlusion.size == 2 and occlusion.places.tolist() == list(range(19))
    best = found.classes[0]
    for i, j in [(0, 0), (0, 18), (7, 11), (18, 3), (18, 18)]:
        covered = np.float32(image)
        covered[3 + i : 5 + i, 2 + j : 4 + j] = 78.0  # the mean
        p = net.predict(covered[None]).probabilities[0]
        np.testing.assert_allclose(occlusion.probabilities[i, j], p, rtol=1e-4, atol=1e-6)
        fall = net.predict(image[None]).probabilities[0] - p
        assert found.drop(best)[i, j] == pytest.approx(fall[best], abs=1e-5)


def test_the_squares_cover_every_pixel():
    """Also where steps of half a square do not end at the border, as for crops of 227."""
    from alexnet_jax.training.explanation import _places

    for crop in (1, 3, 24, 27, 32, 224, 227):
        size, places = _places(crop)
        assert size == max(crop // 8, 1) and places[0] == 0 and places[-1] + size == crop
        assert np.diff(places, prepend=0).max() <= size


def test_the_gradient_map_is_the_largest_finite_difference_of_a_pixel(image):
    config = small().copy_and_resolve_references()
    config.model.compute_dtype = "float64"
    with jax.enable_x64(True):
        net = alexnet_jax.create(config=config)
        net = net.replace({"params": random_params(net.tower, 20)})
        found = net.explain(np.float64(image), classes=[3])
        places = [(y, x, c) for y, x in [(4, 5), (11, 12), (18, 0)] for c in range(3)]
        pixels = np.tile(np.float64(found.crop), (2, len(places), 1, 1, 1))
        for i, place in enumerate(places):
            pixels[:, i][:, *place] += (1e-4, -1e-4)
        high, low = np.split(np.asarray(net(pixels.reshape(-1, 20, 20, 3))), 2)
    assert set(found.gradients) == set(found.classes) and 3 in found.classes
    for label in found.classes:
        slopes = np.abs(high - low)[:, label].reshape(3, 3).max(1) / 2e-4
        for slope, (y, x, _) in zip(slopes, places[::3], strict=True):
            assert found.gradients[label][y, x] == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_classes_are_named_or_numbered(net, image, found):
    best = int(found.probabilities.argmax())
    assert found.classes == tuple(dict.fromkeys([best, 9, 2]))
    assert found.name(9) == "tench"
    with pytest.raises(UsageError, match=r"^class 'catt': no such class; did you mean 'cat'\?$"):
        net.explain(image, classes=["catt"])
    with pytest.raises(UsageError, match=r"^class 10: no such class; give a name, or a number"):
        net.explain(image, classes=[10])


def test_the_ten_views_and_their_mean(net, image, found):
    mean = net.predict(image[None], views=10).probabilities[0]
    np.testing.assert_allclose(found.views.mean(0), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.views[4], found.probabilities, rtol=1e-5)
    for row, pixels in zip(found.views, found.view_crops(), strict=True):
        own = net.predict(np.ascontiguousarray(pixels)[None]).probabilities[0]
        np.testing.assert_allclose(row, own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "title,changes",
    [("without LRN", {"lrn.enabled": False}), ("without overlapping pooling", {"pool.window": 2})],
)
def test_a_component_switched_off_is_the_network_without_it(net, image, found, title, changes):
    config = net.config.copy_and_resolve_references()
    config.model.update_from_flattened_dict(changes)
    other = alexnet_jax.create(config=config).replace(net.variables)
    (variant,) = (variant for variant in found.variants if variant.title == title)
    expected = other.predict(image[None]).probabilities[0]
    np.testing.assert_allclose(variant.probabilities, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected - found.probabilities).max() > 1e-3


def test_where_the_weights_do_not_allow_it_the_reason_is_said():
    """Without overlap, the last maps of the full network are 7 x 7 and not 6 x 6."""
    net = alexnet_jax.create(width=1 / 32, num_classes=3)
    assert net.variants["without overlapping pooling"] == (
        "fc6 would see 392 values, and its weights are for 288"
    )
    assert net.variants["without LRN"].config.model.lrn.enabled is False
    plain = alexnet_jax.create(width=1 / 32, num_classes=3, lrn_enabled=False, pool_window=2)
    assert plain.variants == {}


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize(
    "then",
    [
        {"conv1": ("activation", "avg_pool"), "conv3": ("activation", "avg_pool")},
        {"conv1": ("within_map_norm", "avg_pool"), "conv3": ("activation",)},
    ],
)
def test_receptive_fields_are_where_gradients_are_not_zero(towers, then):
    """The union over images: of one, ReLU cuts some paths."""
    net = lively(small(towers, 43, **then))
    rng = np.random.default_rng(0)
    images = np.float32(rng.uniform(0, 256, (24, 43, 43, 3)))
    fields = table.receptive_fields(net.tower.layers)
    assert list(fields) == ["conv1", "conv2", "conv3"]
    for name, field in fields.items():
        side = net.features(images[:1], name).shape[1]
        for row, column in [(0, 0), (side // 2, side // 2 + 1), (side - 1, side // 2)]:

            def total(x, name=name, row=row, column=column):
                return net.apply(net.variables, x, name)[:, row, column].sum()

            seen = np.abs(np.asarray(jax.grad(total)(images))).sum((0, 3)) > 0
            rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
            assert field.box(row, column, 43) == box


def test_receptive_fields_of_alexnet_are_those_of_the_literature():
    """11, 51, 99, 131, 163 pixels before pooling; 19, 67, 195 after it."""
    layers = alexnet_jax.create(width=1 / 32).tower.layers
    sizes = {name: field.size for name, field in table.receptive_fields(layers).items()}
    assert sizes == {"conv1": 19, "conv2": 67, "conv3": 99, "conv4": 131, "conv5": 195}
    bare = [dataclasses.replace(layer, operations=()) for layer in layers[:1]]
    assert table.receptive_fields(bare)["conv1"] == table.ReceptiveField(11, 4, 0)


def test_the_exciting_images_are_those_of_a_search_by_hand(net):
    source = open_sources(net.config)["train"]
    squares, labels = source.squares(net.config.data)(np.arange(source.num_examples))
    every = np.unique(np.linspace(0, len(labels) - 1, 1000).astype(int))
    outputs = net.features(squares[every], "conv3")
    field = table.receptive_fields(net.tower.layers)["conv3"]
    chosen, searched = exciting(net, source, "conv3", [6, 1], number=3)
    assert searched == len(every) == 1000
    for channel, images in zip([6, 1], chosen, strict=True):
        peaks = outputs[..., channel].max((1, 2))
        order = np.argsort(-peaks, kind="stable")[:3]
        assert [image.index for image in images] == every[order].tolist()
        for place, image in zip(order, images, strict=True):
            assert image.label == labels[every[place]]
            assert image.strength == pytest.approx(peaks[place], rel=1e-5)
            np.testing.assert_array_equal(image.crop, squares[every[place]][2:22, 2:22])
            values = outputs[place, ..., channel]
            row, column = np.unravel_index(values.argmax(), values.shape)
            assert image.box == field.box(row, column, 20)


def test_the_unit_is_the_strongest_of_the_middle_layer_or_the_named_one(net, image, found):
    peaks = found.layers[1].output.max((0, 1))
    unit = found.unit
    assert (unit.layer, unit.channel, unit.images) == ("conv2", peaks.argmax(), ())
    assert unit.strength == pytest.approx(peaks.max()) and unit.field == 5 + 2 * 2 + 2 * 4
    source = open_sources(net.config)["test"]
    dense = net.explain(image, unit="fc4:7", among=source).unit
    assert (dense.layer, dense.channel, dense.box, dense.field) == ("fc4", 7, (0, 0, 20, 20), 20)
    assert dense.strength == pytest.approx(found.layers[3].output[7], abs=1e-5)
    assert len(dense.images) == 8 and dense.searched == 360
    for text, message in {
        "conv9": "unit 'conv9': the layers are conv1, ",
        "conv2:8": "unit 'conv2:8': give conv2:NUMBER, with a number from 0 to 7",
        "conv2:x": "unit 'conv2:x': give",
    }.items():
        with pytest.raises(UsageError, match=f"^{message}"):
            net.explain(image, unit=text)


def test_an_image_is_a_file_or_an_array_of_one(net, image, tmp_path):
    path = tmp_path / "a photo.png"
    Image.fromarray(image[1:25]).save(path)
    (by_file, by_array) = net.explain(path), net.explain(image[None, 1:25])
    assert by_file.image == str(path)
    np.testing.assert_array_equal(by_file.square, by_array.square)
    np.testing.assert_allclose(by_file.probabilities, by_array.probabilities, rtol=1e-6)
    grey = net.explain(image[..., 0])
    np.testing.assert_array_equal(grey.crop, image[3:23, 2:22, :1].repeat(3, -1))
    path.write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"a photo\.png"):
        net.explain(path)
    with pytest.raises(UsageError, match=r"2 images: explain takes one"):
        net.explain(np.stack([image, image]))
    with pytest.raises(UsageError, match="images of 19 x 24 pixels"):
        net.explain(image[:19])


def test_the_values_of_stages_are_kept_only_where_they_are_asked_for(net):
    """So that training compiles what it did, and a new network has parameters alone."""

    def start(key):
        return net.tower.init(key, np.zeros((1, 20, 20, 3)))

    keys = jax.random.split(jax.random.key(0), 2)
    assert set(jax.eval_shape(jax.vmap(start, axis_name="tower"), keys)) == {"params"}

    def step(variables, keep):
        images = np.zeros((1, 20, 20, 3))
        return net.tower.apply(variables, images, mutable=keep)[1]

    for keep, kept in (("intermediates", "intermediates"), ("stages", "stages")):
        one = jax.vmap(lambda v, keep=keep: step(v, [keep]), axis_name="tower")
        assert set(jax.eval_shape(one, net.variables)) == {kept}
