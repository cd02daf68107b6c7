"""The folder of a run: what a run that is there already lets others do with it."""

import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.analysis.verify import verify
from alexnet_jax.cli import main as command_line
from alexnet_jax.config import leaves
from alexnet_jax.config.fields import LAYER_FIELDS, Field, declared, field_of
from alexnet_jax.data import inputs, pipeline, statistics
from alexnet_jax.data.sources import with_classes
from alexnet_jax.data.sources.arrays import as_source
from alexnet_jax.errors import UsageError
from alexnet_jax.training import api, workdir
from alexnet_jax.training import loop as loops
from alexnet_jax.training.events import Warned
from alexnet_jax.training.log import read
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.origin import config_of, load
from tests.support import png_folder, three_layers

FREE = {
    "placement", "accumulate_steps", "log_every_steps", "checkpoint_every_steps",
    "warn_stuck_after_steps", "warn_slow_step_after_seconds", "keep_checkpoints", "imports",
    "tensorboard", "wandb_project", "distributed.enabled", "distributed.coordinator",
    "distributed.process_count", "distributed.process_id", "distributed.start_timeout_seconds",
    "distributed.lost_after_seconds", "evaluate.batch_size", "model.winograd",
}  # fmt: skip
"""Where a run is computed and what is shown of it."""
ONWARD = {
    "num_epochs", "stop_at_error", "max_not_finite_steps", "data.source", "data.max_pixels",
    "data.max_unreadable", "evaluate.every_epochs", "evaluate.splits", "evaluate.metrics",
    "evaluate.final_views",
}  # fmt: skip
"""What may change from a step on; so may the whole update rule but its name."""


def of_images(root):
    """Three layers over a folder of 58 and 6 images to train and validate on, by their mean."""
    config = three_layers()
    config.data.update(source=f"folder:{root}", mean="image")
    config.placement, config.batch_size = "vmap", 8
    config.checkpoint_every_steps, config.log_every_steps = 3, 2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The images and a run of seven steps."""
    root = tmp_path_factory.mktemp("finished")
    images = png_folder(root / "images", 64, 20)
    return images, root / "run", train_and_evaluate(of_images(images), root / "run")


@pytest.fixture
def run(finished, tmp_path):
    """Its configuration, a copy of it, and its result."""
    images, original, result = finished
    return of_images(images), shutil.copytree(original, tmp_path / "run"), result


def edit(folder, **changes):
    """Writes other values into `config.json`, as by hand."""
    path = folder / "config.json"
    kept = json.loads(path.read_text())
    for name, value in changes.items():
        (kept["data"] if name == "source" else kept)[name] = value
    path.write_text(json.dumps(kept))


def named(folder, path):
    """A file of a configuration that is that of a run."""
    path.write_text(
        "from alexnet_jax.training.origin import config_of\n"
        f"get_config = lambda: config_of({str(folder)!r})\n"
    )
    return f"--config={path}"


def files(folder, *but):
    """Bytes and time of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in but
    }


def test_no_verb_changes_a_finished_run(finished, run, tmp_path, monkeypatch, capsys):
    """One adds its page and two pictures."""
    images, (_, folder, result) = finished[0], run
    monkeypatch.setattr(command_line, "_start", lambda config: None)
    config, there = named(folder, tmp_path / "same.py"), f"--workdir={folder}"
    before = files(folder, "lock")
    assert (folder / "lock").read_bytes() == b""
    for verb in (
        ["train", config, there],
        ["train", config, there, "--config.placement=pmap", "--config.log_every_steps=1"],
        ["evaluate", there, "--views=10"],
        ["predict", there, str(images / "test")],
        ["export", there, f"--out={tmp_path / 'out.safetensors'}"],
        ["verify", there],
        ["statistics", config, there],
        ["prepare", config, f"--out={tmp_path / 'prepared'}"],
        ["inspect", config],
        ["report", there],
    ):
        assert command_line.main(verb) == 0, verb
        said = capsys.readouterr()
        if verb[0] == "train":
            test = result["test"]
            right = 100 * (1 - test["top1_error"])
            assert said.out.startswith(f"{right:.1f} % right on {test['num_examples']} test images")
            assert said.out.endswith(f"{folder / 'result.json'}. A page: report {there}\n")
            assert said.err == f"{folder} holds this run, which has ended: nothing is to do\n"
        assert files(folder, "lock", "report.html", "kernels.png", "answers.png") == before, verb
    assert (folder / "report.html").exists() and (folder / "lock").read_bytes() == b""


def another(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, *value, 1) if value else ("conv1",)
    return "other" if isinstance(value, str) else (value or 0) + 1


def test_every_field_is_decided():
    found = {path: field.resume for path, field in declared().items()}
    onward = ONWARD | {name for name in found if name.startswith("optimizer.")} - {"optimizer.rule"}
    assert FREE | onward < found.keys() and "model.lrn.size" in found
    for name, decided in found.items():
        wanted = "free" if name in FREE else "onward" if name in onward else "fixed"
        assert decided == wanted, name
    layers = {name for name, field in LAYER_FIELDS.items() if field.resume != "fixed"}
    assert layers == {"weight_decay"}
    assert Field(0.0, "Of a guest who does not say.").resume == "fixed"


def test_what_weights_were_trained_with_stays_and_what_comes_later_needs_steps(run):
    """Each field in turn, those of operations and layers too; nothing is trained."""
    config, folder, _ = run
    assert workdir.ended(config, folder) == json.loads((folder / "result.json").read_text())
    for name, value in dict(leaves(config)).items():
        changed = config.copy_and_resolve_references()
        with changed.ignore_type():
            changed.update_from_flattened_dict({name: another(value)})
        longer = changed.copy_and_resolve_references()
        longer.num_epochs = 9.0
        kind = field_of(name).resume
        assert (workdir.ended(changed, folder) is None) == (kind != "free"), name
        if kind == "free" or name == "num_epochs":
            workdir.check_resumed(changed, folder, 7)
            continue
        with pytest.raises(UsageError, match=rf"with config\.{name} = .*, not .*: choose another"):
            workdir.check_resumed(changed, folder, 7)
        if kind == "onward":
            workdir.check_resumed(longer, folder, 7)
        else:
            with pytest.raises(UsageError, match=rf"holds a run with config\.{name} = "):
                workdir.check_resumed(longer, folder, 7)
    config.num_epochs = 0.5
    with pytest.raises(UsageError, match=r"has ended, with config\.num_epochs = 1\.0, not 0\.5"):
        workdir.check_resumed(config, folder, 7)
    (folder / "result.json").unlink()  # Of a run that was killed, the rest may be another.
    workdir.check_resumed(config, folder, 7)


def test_a_run_that_a_low_error_ended_goes_on_for_a_lower_one(run):
    config, folder, _ = run
    edit(folder, stop_at_error=0.5, num_epochs=2.0)  # It has seven of fourteen steps.
    config.num_epochs = 3.0
    for target, goes_on in ((0.5, False), (0.6, False), (0.4, True), (0.0, True)):
        config.stop_at_error = target
        if goes_on:
            workdir.check_resumed(config, folder, 7)
        else:
            with pytest.raises(UsageError, match=r"has ended, with config\.num_epochs = 2"):
                workdir.check_resumed(config, folder, 7)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]", "a folder"])
def test_weights_without_a_configuration_are_nobodys(run, content):
    config, folder, _ = run
    path = folder / "config.json"
    path.unlink()
    if content == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    before = files(folder)
    with pytest.raises(UsageError, match=rf"^{path}: .*what the weights there were trained with"):
        train_and_evaluate(config, folder)
    assert files(folder) == before


def test_a_result_without_its_checkpoints_is_a_result_and_no_start(run):
    config, folder, result = run
    shutil.rmtree(folder / "checkpoints")
    before = files(folder, "lock")
    assert train_and_evaluate(config, folder) == result
    config.num_epochs = 2.0
    with pytest.raises(UsageError, match="the result of a run without its checkpoints: put them"):
        train_and_evaluate(config, folder)
    config.model.activation = "tanh"
    with pytest.raises(UsageError, match=r"config\.model\.activation = 'relu', not 'tanh'"):
        train_and_evaluate(config, folder)
    assert files(folder, "lock") == before


def test_a_run_that_goes_on_has_not_ended_until_it_ends_again(run, monkeypatch):
    config, folder, result = run
    config.num_epochs = 2.0
    with monkeypatch.context() as patch:
        patch.setattr(loops, "loop", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_and_evaluate(config, folder)
    assert not (folder / "result.json").exists() and config_of(folder).num_epochs == 2
    longer = train_and_evaluate(config, folder)
    assert (result["steps"], longer["steps"]) == (7, 14)
    # The first attempt wrote the configuration, and the checkpoint says what came before it.
    said = [event.warning for event in read(folder) if isinstance(event, Warned)]
    assert "from step 8 on config.num_epochs is 2.0, was 1.0" in said
    assert json.loads((folder / "result.json").read_text()) == longer


# --------------------------------------------------------------------------- classes


def test_a_class_that_was_renamed_is_refused_by_every_verb(finished, run, tmp_path):
    config, folder, _ = run
    shutil.copytree(finished[0], tmp_path / "images")
    config.data.source = f"folder:{tmp_path / 'images'}"
    edit(folder, source=config.data.source)
    for split in ("train", "test"):
        (tmp_path / "images" / split / "7").rename(tmp_path / "images" / split / "a_seven")
    config.num_epochs = 2.0
    says = r"has other classes than .*/run/classes\.json \(missing: 7; new: a_seven\)"
    before = files(folder)
    for verb in (
        lambda: train_and_evaluate(config, folder),
        lambda: api.evaluate_workdir(config_of(folder), folder, 1, "test"),
        lambda: verify(config_of(folder), folder),
    ):
        with pytest.raises(UsageError, match=says):
            verb()
    assert files(folder) == before


def test_classes_in_another_order_are_matched_by_name(finished, run, tmp_path, monkeypatch):
    """Prepared images whose labels are numbered backwards are the same images."""
    config, folder, result = run
    monkeypatch.setattr(command_line, "_start", lambda config: None)
    command_line.main(["prepare", named(folder, tmp_path / "same.py"), f"--out={tmp_path / 'b'}"])
    for split in ("train", "test"):
        labels, about = tmp_path / "b" / split / "labels.npy", tmp_path / "b" / split / "split.json"
        np.save(labels, 9 - np.load(labels))
        text = json.loads(about.read_text())
        about.write_text(json.dumps(text | {"class_names": text["class_names"][::-1]}))
    edit(folder, source=f"prepared:{tmp_path / 'b'}")
    found = api.evaluate_workdir(config_of(folder), folder, 1, "test")
    assert {k: found[k] for k in result["test"]} == result["test"]
    assert verify(config_of(folder), folder).same
    config.num_epochs, config.data.source = 8 / 7, f"prepared:{tmp_path / 'b'}"
    ordered = shutil.copytree(folder, tmp_path / "ordered")
    there = of_images(finished[0])
    there.num_epochs = 8 / 7
    assert train_and_evaluate(config, folder) == train_and_evaluate(there, ordered)
    assert json.loads((folder / "classes.json").read_text()) == list("0123456789")


def test_splits_with_the_same_names_in_any_order_get_the_labels_of_the_first():
    """Of pairs of arrays with names of their own, in 20 orders each; others are refused."""
    rng = np.random.default_rng(0)
    images, data = rng.integers(0, 256, (6, 4, 4, 3), np.uint8), three_layers().data
    data.update(image_size=4, crop_size=4, pad=0)
    for count in (2, 3, 6) * 20:
        names = tuple(rng.permutation([f"n{i}" for i in range(count)]))
        labels = rng.integers(0, count, 6)
        order = rng.permutation(count)
        there = tuple(np.array(names)[order])  # names[x] is there[where[x]]
        where = np.argsort(order)
        sources = {
            "train": as_source((images, labels), "train", count, names),
            "test": as_source((images, where[labels]), "test", count, there),
        }
        matched = with_classes(sources)["test"]
        assert matched.class_names == names and matched.num_examples == 6
        rows = rng.permutation(6)
        squares, found = matched.squares(data)(rows)
        np.testing.assert_array_equal(found, labels[rows])
        np.testing.assert_array_equal(squares, images[rows])
        other = as_source((images, labels), "test", count, ("other", *names[1:]))
        with pytest.raises(UsageError, match=f"than the training images .missing: {names[0]}; new"):
            with_classes({**sources, "test": other})


# --------------------------------------------------------------------------- the mean image


def test_the_mean_image_of_a_run_that_came_to_nothing_is_of_that_run(tmp_path, monkeypatch, capsys):
    """It is that of these images, by another tool; whatever another run left there."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    path = tmp_path / "run" / "statistics.npz"
    for number, (split, shrink) in enumerate(
        [("train", "area"), ("test", "area"), ("train", "triangle")]
    ):
        images = png_folder(tmp_path / f"images{number}", 10, 10, seed=number)
        config = of_images(images)
        config.data.update(train_split=split, shrink=shrink, validation_fraction=0.0)
        config.data.update(image_size=36, crop_size=36)
        found = inputs.of_run(config, tmp_path / "run", trained=False).mean
        pixels = [np.asarray(Image.open(x))[:, 2:-2] for x in (images / split).rglob("*.png")]
        np.testing.assert_allclose(found, np.mean(pixels, 0), rtol=1e-5)
        again = (f"statistics: {path} is of other images" in capsys.readouterr().err, number > 0)
        assert again[0] == again[1]
        before = path.stat().st_mtime_ns
        inputs.of_run(config, tmp_path / "run", trained=False)
        assert path.stat().st_mtime_ns == before
        assert "statistics" not in capsys.readouterr().err
        # What weights were trained with goes with them, wherever the images have gone.
        shutil.rmtree(images)
        np.testing.assert_array_equal(inputs.of_run(config, tmp_path / "run").mean, found)


def test_images_in_memory_and_files_without_a_key_are_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    config = of_images(png_folder(tmp_path / "images", 10, 10))
    found = inputs.of_run(config, tmp_path, trained=False).mean
    path = tmp_path / "statistics.npz"
    with np.load(path) as archive:
        old = {name: archive[name] for name in archive.files if name != "key"}
    old["mean_image"] = np.zeros_like(old["mean_image"])
    np.savez(path, **old)  # as version 0.1 wrote it
    assert not inputs.of_run(config, tmp_path).mean.any()
    np.testing.assert_array_equal(inputs.of_run(config, tmp_path, trained=False).mean, found)
    config.data.source = "digits"
    assert inputs.of_run(config, tmp_path, trained=False).mean.mean() < found.mean()
    assert not inputs._is_of(path, None)  # nor when the next run starts there


def test_a_mean_image_that_is_gone_is_not_made_up(run):
    config, folder, _ = run
    (folder / "statistics.npz").unlink()
    before = files(folder)
    config.num_epochs = 2.0
    for verb in (lambda: load(folder), lambda: train_and_evaluate(config, folder)):
        with pytest.raises(
            UsageError, match=r"statistics\.npz is missing, the mean image that the"
        ):
            verb()
    assert files(folder, "lock") == {name: x for name, x in before.items() if name != "lock"}


def test_statistics_do_not_replace_those_of_weights(run, tmp_path):
    config, folder, _ = run
    before = files(folder)
    kept, there = inputs.keep_statistics(config, folder, True), folder / "statistics.npz"
    np.testing.assert_array_equal(kept.mean_image, statistics.load(there).mean_image)
    config.data.source = f"folder:{png_folder(tmp_path / 'others', 10, 10)}"
    with pytest.raises(UsageError, match=r"npz is the mean image that the run there was trained"):
        inputs.keep_statistics(config, folder, trained=True)
    assert files(folder) == before
    assert inputs.keep_statistics(config, folder, trained=False).num_examples == 9


def test_ctrl_c_while_the_mean_image_is_computed_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    config, _, result = run
    whole = pipeline.eval_batches

    def cut(*args, **kwargs):
        yield next(whole(*args, **kwargs))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "eval_batches", cut)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["lock", "checkpoints"]
    assert (tmp_path / "new" / "lock").read_bytes() == b"" and not (tmp_path / "kept").exists()
    assert train_and_evaluate(config, tmp_path / "new")["test"] == result["test"]


def test_verify_shows_the_run_to_nobody(run, monkeypatch):
    _, folder, _ = run
    edit(folder, wandb_project="towers", tensorboard=True)
    monkeypatch.setitem(sys.modules, "wandb", None)  # Opening it would be an error.
    before = files(folder)
    assert verify(config_of(folder), folder).same
    assert files(folder) == before


# --------------------------------------------------------------------------- the lock


@pytest.mark.parametrize("kind", ["link", "link to nothing", "folder", "pipe", "file", "same file"])
def test_a_lock_that_is_something_else_is_left_alone(tmp_path, kind):
    folder, precious = tmp_path / "run", tmp_path / "thesis.txt"
    folder.mkdir()
    precious.write_text("precious")
    lock = folder / "lock"
    {
        "link": lambda: lock.symlink_to(precious),
        "link to nothing": lambda: lock.symlink_to(tmp_path / "nothing"),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
        "file": lambda: lock.write_text("precious"),
        "same file": lambda: lock.hardlink_to(precious),
    }[kind]()
    with pytest.raises(UsageError, match=rf"^{lock} is .*: rename it, or choose another"):
        workdir.Writer(folder).__enter__()
    assert precious.read_text() == "precious" and not (tmp_path / "nothing").exists()
    assert os.path.lexists(lock) and (kind != "file" or lock.read_text() == "precious")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.ENOLCK])
def test_a_disk_that_has_no_locks_is_written_with_a_warning(tmp_path, monkeypatch, capsys, code):
    def flock(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with workdir.Writer(tmp_path) as writer:
        writer.check()
        assert "disk without locks: make sure that no other run" in capsys.readouterr().err
        (tmp_path / "lock").unlink()
        with pytest.raises(UsageError, match="was removed"):
            writer.check()


@pytest.mark.parametrize(
    "code,says",
    [
        (errno.ENOSPC, "No space left on device: make room;"),
        (errno.EDQUOT, "quota exceeded: make room;"),
        (errno.EROFS, "Read-only file system: choose a folder that can be written;"),
        (errno.EACCES, "Permission denied: choose a folder that can be written;"),
        (errno.EIO, "Input/output error: choose a folder that can be written;"),
    ],
)
def test_what_is_wrong_with_a_disk_is_said_with_what_helps(tmp_path, monkeypatch, code, says):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=rf"^--workdir={tmp_path}: .*{says}"):
        workdir.Writer(tmp_path).__enter__()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EIO])
def test_a_disk_that_fails_in_the_middle_is_one_line(tmp_path, code):
    """NumPy and TensorStore do not say which file it was."""
    with pytest.raises(UsageError, match=f"^--workdir={tmp_path}: {os.strerror(code)}"):  # noqa: SIM117
        with workdir.Writer(tmp_path):
            raise OSError(code, os.strerror(code))
    with pytest.raises(OSError, match="of something else"), workdir.Writer(tmp_path):
        raise OSError(errno.ENOENT, "of something else")


@pytest.mark.parametrize("name", ["a.json", ".a.json.partial"])
def test_a_link_is_replaced_and_not_followed(tmp_path, name):
    (tmp_path / "precious").write_text("precious")
    for target in ("precious", "nothing"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(tmp_path / target)
        workdir.write_json(tmp_path / "a.json", {"b": 1})
        assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
        assert not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "precious"]
