"""Own images: classes that are counted, networks to start from, layers that stay."""

import dataclasses
import io
import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from alexnet_jax.cli.main import main
from alexnet_jax.config import presets
from alexnet_jax.data import classes
from alexnet_jax.data.sources import fit_classes, fitting_batch, open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.training import api
from alexnet_jax.training import origin as trained
from alexnet_jax.training.events import Evaluation, TrainingMean, Warned
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.parts import viewers
from alexnet_jax.weights import files as weights
from experiments import finetune
from tests.support import png_folder, three_layers
from tests.training.test_train import lines, short_config


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A run of 14 steps over ten classes, and the same network as a file."""
    root = tmp_path_factory.mktemp("origin")
    config = short_config()
    config.data.source = f"folder:{png_folder(root / 'images', 64)}"
    config.placement, config.num_epochs, config.batch_size = "vmap", 2.0, 8
    config.evaluate.every_epochs = 1.0
    train_and_evaluate(config, root / "run")
    network = trained.load(root / "run")
    weights.write(network.column(), root / "net.safetensors")
    return root, network


def folder_of(root, names, count=12):
    """`root/CLASS/*.png`, without splits."""
    for number, name in enumerate(names):
        png_folder(root.parent / name, 10 * count, test=1, seed=number)
        root.mkdir(exist_ok=True)
        (root.parent / name / "train" / "0").rename(root / name)
    return root


def tuned(source, start, **changes):
    config = finetune.get_config(str(start))
    config.data.source, config.placement = f"folder:{source}", "vmap"
    config.batch_size, config.num_epochs = 8, 2.0
    config.update_from_flattened_dict(changes)
    return config


def test_classes_are_those_of_the_folder(tmp_path):
    names = ("cat", "dog")
    config = short_config()
    config.data.source = f"folder:{folder_of(tmp_path / 'images', names)}"
    assert config.model.num_classes == 10
    config.placement, config.num_epochs, config.batch_size = "vmap", 1.0, 8
    train_and_evaluate(config, tmp_path / "run")
    assert trained.config_of(tmp_path / "run").model.num_classes == 2
    network = trained.load(tmp_path / "run")
    assert network.class_names == names
    # And of a data set by name they are not.
    config.data.source = "digits"
    assert fit_classes(config) is config


@pytest.mark.parametrize("preset", ["caffe", "paper"])
@pytest.mark.parametrize("splits,batch", [(False, 64), (True, 32)])
def test_own_images_that_do_not_fill_a_batch_are_trained_on(tmp_path, preset, splits, batch):
    """120 images: a fifth is the test split or there is one, and a tenth of the rest steers."""
    images = tmp_path / "images"
    if splits:
        png_folder(images, 60, 10)
    else:
        folder_of(images, ("cat", "dog"), 60)
    config = presets.get(preset)
    config.data.source = f"folder:{images}"
    fitted = fit_classes(config)
    assert (config.batch_size, fitted.batch_size) == ({"caffe": 256}.get(preset, 128), batch)
    assert open_sources(fitted)["train"].num_examples == {False: 86, True: 54}[splits]
    config.batch_size = 20  # One that fits is what was asked for.
    assert fit_classes(config).batch_size == 20


@pytest.mark.parametrize("wanted", [1, 7, 32, 96, 128, 256])
def test_the_batch_that_fits_is_a_power_of_two_above_half_of_the_images(wanted):
    for examples in (*range(1, 300), 10**6):
        found = fitting_batch(wanted, examples)
        if wanted <= examples:
            assert found == wanted
        else:
            assert found.bit_count() == 1 and examples / 2 < found <= examples


@pytest.mark.parametrize("given", [False, True])
def test_a_smaller_batch_is_said_once_and_stays(tmp_path, given):
    config = three_layers()
    config.placement, config.batch_size, config.num_epochs = "vmap", 64, 2.0
    rng = np.random.default_rng(0)
    data = {"data": (rng.integers(0, 256, (20, 32, 32, 3), np.uint8), np.arange(20) % 10)}
    if not given:
        config.data.source, data = f"folder:{png_folder(tmp_path / 'images', 20, 4)}", {}
    for epochs in (2.0, 2.0, 3.0):
        config.num_epochs = epochs
        result = api.train(config, tmp_path / "run", **data)
        assert trained.config_of(tmp_path / "run").batch_size == 16  # of the 18 training images
    said = [event.warning for event in result.log if isinstance(event, Warned)]
    assert said[0] == "config.batch_size = 64: the training images are fewer: 16 is used"
    assert sum(text.startswith("config.batch_size") for text in said) == 1
    assert "from step 3 on config.num_epochs is 3.0, was 2.0" in said
    config.data.update(source="digits", train_split="test")  # whose size is known
    config.batch_size = 512
    with pytest.raises(UsageError, match=r"config\.batch_size = 512: must be between 1 and"):
        train_and_evaluate(config, tmp_path / "named")


def test_the_share_of_the_test_is_a_field(tmp_path):
    config = short_config()
    config.data.source = f"folder:{folder_of(tmp_path / 'images', ('cat', 'dog'), 20)}"
    for fraction, count in ((0.1, 4), (0.2, 8), (0.25, 10), (0.5, 20)):
        config.data.test_fraction = fraction
        sources = open_sources(fit_classes(config))
        assert sources["test"].num_examples == count
        seen = [source.describe(i) for source in sources.values()
                for i in range(source.num_examples)]  # fmt: skip
        assert len(seen) == len(set(seen)) == 40 and len(sources) == 3


@pytest.mark.parametrize("name", ["run", "net.safetensors"])
def test_a_run_starts_from_a_run_or_a_file(origin, tmp_path, name):
    root, before = origin
    images, start = folder_of(tmp_path / "images", ("cat", "dog")), tmp_path / name
    (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, start)
    config = tuned(images, start, freeze=("conv1", "fc6"))
    train_and_evaluate(config, tmp_path / "tuned")
    after = trained.load(tmp_path / "tuned")
    assert after.config.model.num_classes == 2 and after.class_names == ("cat", "dog")
    for layer, leaves in before.params.items():
        for part, value in leaves.items():
            now = after.params[layer][part]
            if layer == "fc8":
                assert now.shape[-1] == 2
                continue
            same = np.array_equal(now, value)
            # What learns moves a little from where it started; what is frozen does not.
            assert same == (layer in ("conv1", "fc6")), (layer, part)
            assert np.abs(now - value).max() < 0.2, (layer, part)
    # How it sees images came along.
    assert after.config.data.scale == before.config.data.scale
    np.testing.assert_allclose(after.inputs.mean, before.inputs.mean)
    # Once the run has saved it needs its origin no more.
    start.rename(tmp_path / "gone")
    config.num_epochs = 3.0
    assert train_and_evaluate(config, tmp_path / "tuned")["steps"] == 6


def test_of_the_same_classes_the_last_layer_is_kept_too(origin):
    root, before = origin
    config = tuned(root / "images", root / "run")
    drawn = jax.tree.map(np.zeros_like, before.variables)
    kept = trained.initial(config, drawn, before.class_names)
    jax.tree.map(np.testing.assert_array_equal, kept, before.variables)
    renamed = trained.initial(config, drawn, before.class_names[::-1])
    params = renamed["params"]
    assert not params["fc8"]["kernel"].any() and params["fc7"]["kernel"].any()


def test_folders_of_wordnet_numbers_are_the_classes_of_a_file_with_numbers_and_names(
    origin, tmp_path
):
    """`n01440764` is `n01440764 tench`."""
    root, before = origin
    names = classes.imagenet_classes()[: len(before.class_names)]
    weights.write(dataclasses.replace(before.column(), class_names=names), tmp_path / "a.onnx")
    config = tuned(root / "images", tmp_path / "a.onnx")
    drawn = jax.tree.map(np.zeros_like, before.variables)
    folders = tuple(name.split()[0] for name in names)
    for classes_there, is_kept in ((folders, True), (folders[::-1], False)):
        params = trained.initial(config, drawn, classes_there)["params"]
        assert params["fc8"]["kernel"].any() == is_kept and params["fc7"]["kernel"].any()


def test_a_file_without_names_is_of_no_class_that_is_known(origin, tmp_path):
    """Its classes are shown as numbers, and are not taken for folders that are called so."""
    root, before = origin
    column = before.column()
    weights.write(dataclasses.replace(column, class_names=()), tmp_path / "net.safetensors")
    config = tuned(root / "images", tmp_path / "net.safetensors")
    drawn = jax.tree.map(np.zeros_like, before.variables)
    kept = trained.initial(config, drawn, before.class_names)
    params = kept["params"]
    assert not params["fc8"]["kernel"].any() and params["fc7"]["kernel"].any()
    network = trained.load(tmp_path / "net.safetensors")
    probabilities = np.float32([0.1, 0.5, 0.0, 0.4])
    assert [name for _, name, _ in classes.best(probabilities, network.class_names)] == [
        "1", "3", "0", "2",
    ]  # fmt: skip


def test_a_network_is_loaded_from_the_step_asked_for(origin, tmp_path):
    """With its class names; what is subtracted from images is the run's and the file's alike."""
    root, before = origin
    assert (before.step, before.class_names) == (14, tuple("0123456789"))
    first = trained.load(str(root / "run"), step=12)
    assert first.step == 12
    assert not np.array_equal(first.params["fc8"]["kernel"], before.params["fc8"]["kernel"])
    for path in ("run", "net.safetensors"):
        np.testing.assert_array_equal(trained.mean_of(root / path), [78.0] * 3)
    file = root / "net.safetensors"
    jax.tree.map(np.testing.assert_array_equal, trained.load(file).params, before.params)
    with pytest.raises(UsageError, match=r"step 8: .*net\.safetensors is a file, which holds no"):
        trained.load(file, step=8)
    with pytest.raises(UsageError, match=r"images: .*: name a folder that `train` wrote"):
        trained.load(root / "images")
    (tmp_path / "config.json").write_text((root / "run" / "config.json").read_text())
    with pytest.raises(UsageError, match="holds no checkpoint: run train first"):
        trained.load(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", '{"0": 1}', '["a", "b"]', "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "[" * 10**5]
)
def test_class_names_of_older_runs_are_those_of_their_data_set(origin, tmp_path, content):
    config = trained.config_of(origin[0] / "run")
    assert trained._class_names(config, tmp_path) == tuple("0123456789")
    # What is there and says nothing is not taken for a run that had none.
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UsageError, match=r"/classes\.json (is not a list|cannot be read)"):
        trained._class_names(config, tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps(list("abcdefghij")))
    assert trained._class_names(config, tmp_path) == tuple("abcdefghij")


def test_numbers_of_an_event_are_sent_under_what_it_is_of():
    mean = TrainingMean(7, 0.5, 1.5, 0.5, 0.25, 10.0, 0.125, 0.01)
    assert viewers.scalars(mean) == {
        "training/epoch": 0.5, "training/loss": 1.5, "training/top1_error": 0.5,
        "training/top5_error": 0.25, "training/images_per_second": 10.0,
        "training/data_wait_fraction": 0.125, "training/learning_rate": 0.01,
    }  # fmt: skip
    whole = Evaluation(7, 0.5, "test", 1.5, 0.5, 0.25, 3, {"conv1": 1.0}, 10, 0.375, 0.125)
    assert viewers.scalars(whole) == {
        "evaluation/test/epoch": 0.5, "evaluation/test/loss": 1.5,
        "evaluation/test/top1_error": 0.5, "evaluation/test/top5_error": 0.25,
        "evaluation/test/num_examples": 3.0, "evaluation/test/top1_error_10_views": 0.375,
        "evaluation/test/top5_error_10_views": 0.125,
    }  # fmt: skip


@pytest.mark.parametrize("board,project,names", [
    (False, "", []), (True, "", ["board"]), (False, "towers", ["service"]),
    (True, "towers", ["board", "service"]),
])  # fmt: skip
def test_viewers_are_those_that_the_configuration_asks_for(monkeypatch, board, project, names):
    monkeypatch.setattr(viewers, "TensorBoard", lambda: "board")
    monkeypatch.setattr(viewers, "WeightsAndBiases", lambda: "service")
    config = short_config()
    config.tensorboard, config.wandb_project = board, project
    assert viewers.open_viewers(config) == names
    monkeypatch.setattr("jax.process_index", lambda: 1)  # of several, the first one shows all
    assert viewers.open_viewers(config) == []


def test_a_service_gets_numbers_pictures_and_warnings_at_their_step(tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    config = short_config()
    config.wandb_project = "towers"
    run = types.SimpleNamespace(config=config, workdir=tmp_path / "run")
    run.workdir.mkdir()
    viewer = viewers.WeightsAndBiases()
    viewer.start(run)
    viewer.on_event(run, Evaluation(3, 0.5, "train", 0.25, 0.5, 0.25, 7))
    viewer.on_event(run, Warned(4, "hot"))
    viewer.picture(5, "kernels", Figure(figsize=(2, 1)))
    sent = {("evaluation/train/loss", 3): 0.25, ("kernels", 5): (200, 100)}
    assert service.logged.items() >= sent.items() and len(service.logged) == 6
    assert service.alerts == [("warning", "hot")]
    assert json.loads((tmp_path / "run" / "wandb.json").read_text()) == {"id": "a1"}
    (settings,) = service.settings
    assert settings["config"]["batch_size"] == 32 and settings["name"] == "run"


def test_what_cannot_be_started_from_is_named(origin, tmp_path):
    root, _ = origin
    images = folder_of(tmp_path / "images", ("cat", "dog"))
    config = tuned(images, root / "run")
    with pytest.raises(UsageError, match=r"config\.freeze holds fc8, which is new"):
        config.freeze = ("fc8",)
        train_and_evaluate(config, tmp_path / "a")
    config.freeze = ("conv9",)
    with pytest.raises(UsageError, match=r"config\.freeze holds 'conv9': the layers are conv1"):
        train_and_evaluate(config, tmp_path / "b")
    config.freeze, config.model.width = (), 0.25
    with pytest.raises(UsageError, match=r"config.init_from.*conv1.kernel is \(2, 5, 5, 3, 3\)"):
        train_and_evaluate(config, tmp_path / "c")
    with pytest.raises(UsageError, match="nowhere: No such file"):
        finetune.get_config(str(tmp_path / "nowhere"))


def test_the_command_line_says_so_too(tmp_path, capsys):
    assert main(["train", "--config=experiments/finetune.py", f"--workdir={tmp_path}"]) == 2
    assert "name what to start from" in capsys.readouterr().err


class Service:
    """A stand-in for Weights & Biases that writes down what it is asked; a test calls nobody."""

    id = "a1"

    def __init__(self):
        self.settings, self.logged, self.alerts, self.ended = [], {}, [], 0

    def init(self, **settings):
        self.settings.append(settings)
        return self

    def log(self, values, step):
        self.logged |= {(name, step): value for name, value in values.items()}

    def alert(self, title, text):
        self.alerts.append((title, text))

    def finish(self):
        self.ended += 1

    def Image(self, image):
        return image.size


def test_whoever_watches_gets_the_lines_of_the_log_and_pictures(origin, tmp_path, monkeypatch):
    """Event files are read back by TensorFlow's own reader."""
    import tensorflow as tf
    from PIL import Image

    config = trained.config_of(origin[0] / "run")
    config.tensorboard, config.wandb_project = True, "towers"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        train_and_evaluate(config, tmp_path / "none")
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    train_and_evaluate(config, tmp_path / "run")
    scalars, pictures = {}, {}
    (path,) = (tmp_path / "run" / "tensorboard").iterdir()
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            plugin = value.metadata.plugin_data.plugin_name
            array = tf.make_ndarray(value.tensor)
            if plugin == "scalars":
                scalars[value.tag, event.step] = float(array)
            elif plugin == "images":
                pictures[value.tag, event.step] = array
    log = lines(tmp_path / "run")
    expected = {}
    for line in log:
        group = f"evaluation/{line['split']}" if "split" in line else "training"
        for name, value in line.items():
            if name != "step" and isinstance(value, float | int):
                expected[f"{group}/{name}", line["step"]] = value
    assert scalars.keys() == expected.keys() and len(scalars) >= 20
    for key, value in expected.items():
        assert scalars[key] == pytest.approx(value, rel=1e-6), key
    seen = {line["step"] for line in log if line.get("split") == "validation"}
    assert seen == {7, 14}
    assert pictures.keys() == {(n, s) for n in ("conv1 kernels", "predictions") for s in seen}
    for width, height, content in pictures.values():
        assert Image.open(io.BytesIO(content)).size == (int(width), int(height))
    assert service.logged.keys() == expected.keys() | pictures.keys()
    assert all(service.logged[key] == value for key, value in expected.items())
    # A run that is resumed here goes on there.
    config.num_epochs = 3.0
    train_and_evaluate(config, tmp_path / "run")
    assert [settings["id"] for settings in service.settings] == [None, "a1"]
    assert service.settings[0]["project"] == "towers" and service.ended == 2
