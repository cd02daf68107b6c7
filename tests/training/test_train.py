"""Training for real on the digits, at a size that takes seconds."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax.config import default, from_json
from alexnet_jax.data import pipeline
from alexnet_jax.errors import UsageError
from alexnet_jax.training import api, origin
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.checkpoint import manifest, parameters_sha256
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.schedules import Plateau
from tests.support import png_folder, tiny_config

EPOCH = 40  # steps: 1,437 images, of which 144 are held out, in batches of 32


def short_config():
    config = tiny_config()
    config.placement = "pmap"
    config.num_epochs = 8 / EPOCH
    config.log_every_steps = 2
    config.checkpoint_every_steps = 3
    config.evaluate.every_epochs = 4 / EPOCH
    with config.unlocked():
        config.data.colour.rule = "source"
    return config


def log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def lines(workdir):
    """The means of training steps and the evaluations."""
    return [line for line in log(workdir) if line["event"] in ("training", "evaluation")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train_and_evaluate(short_config(), workdir)


def test_a_run_leaves_what_the_workdir_promises(unbroken):
    workdir, result = unbroken
    steps = [(line["step"], line.get("split", line["event"])) for line in log(workdir)]
    assert steps == [
        (1, "training"), (2, "training"), (3, "checkpoint"),
        (4, "training"), (4, "checkpoint"), (4, "validation"),
        (6, "training"), (6, "checkpoint"),
        (8, "training"), (8, "checkpoint"), (8, "validation"), (8, "test"),
    ]  # fmt: skip
    *_, saved, validated, tested = log(workdir)
    config = from_json((workdir / "config.json").read_text(), "config.json")
    assert config.to_dict() == short_config().to_dict()

    def means(line):
        return {k: v for k, v in line.items() if k not in ("event", "step", "epoch", "split")}

    assert json.loads((workdir / "result.json").read_text()) == result == {
        "seed": 0, "steps": 8, "placement": "pmap", "devices": 2,
        "parameters_sha256": saved["parameters_sha256"],
        "colour_share": result["colour_share"],
        "validation": means(validated), "test": means(tested),
    }  # fmt: skip
    assert result["validation"]["num_examples"] == 144
    assert result["test"]["num_examples"] == 360 and tested["epoch"] == 8 / EPOCH
    variables = origin.load(workdir).variables
    assert variables.keys() == {"params"}
    assert parameters_sha256(manifest(variables)) == saved["parameters_sha256"]
    assert json.loads((workdir / "classes.json").read_text()) == list("0123456789")
    assert sorted(path.name for path in workdir.iterdir()) == [
        "checkpoints", "classes.json", "config.json", "env.json", "lock", "metrics.jsonl",
        "result.json",
    ]  # fmt: skip


def test_the_environment_is_what_numbers_depend_on(unbroken):
    env = json.loads((unbroken[0] / "env.json").read_text())
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        assert env["packages"][name] == importlib.import_module(name).__version__
    assert {"orbax-checkpoint", "tensorflow-datasets"} < env["packages"].keys()
    assert env["devices"] == [str(device) for device in jax.devices()[:2]]
    assert env["python"] == sys.version.split()[0] and env["command"][1:] == sys.argv[1:]
    assert env["placement"] == "pmap, 2 cpu devices" and env["processes"] == 1
    assert env["xla_flags"] == os.environ["XLA_FLAGS"] and env["cpu_count"] == os.cpu_count()
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert env["git_revision"] == git.stdout.strip()


def test_a_config_is_kept_without_its_processes_and_what_changes_is_told(tmp_path):
    config = short_config()
    assert workdirs.write_config(config, tmp_path) == []
    config.distributed.coordinator = "host:1"
    assert workdirs.write_config(config, tmp_path) == []
    config.data.scale, config.freeze = 2.0, ("conv1",)
    assert workdirs.write_config(config, tmp_path) == [
        "config.data.scale is 2.0, was 0.015625", "config.freeze is ('conv1',), was ()",
    ]  # fmt: skip
    kept = from_json((tmp_path / "config.json").read_text(), "config.json")
    assert kept.distributed == default().distributed
    assert config.distributed.coordinator == "host:1"
    (tmp_path / "config.json").write_text("{")
    assert workdirs.write_config(config, tmp_path) == []
    assert kept.to_dict() == from_json((tmp_path / "config.json").read_text(), "again").to_dict()


def test_a_trace_of_the_steps_asked_for(tmp_path, unbroken):
    result = train_and_evaluate(short_config(), tmp_path, profile=(2, 3))
    assert result == unbroken[1]
    (path,) = (tmp_path / "profile").glob("**/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    assert [dict(event.stats)["step_num"] for event in events if event.name == "train"] == [2, 3]


def test_bfloat16_computes_nearly_the_same(tmp_path, unbroken):
    config = short_config()
    config.model.compute_dtype = "bfloat16"
    train_and_evaluate(config, tmp_path)
    ours, theirs = lines(tmp_path), lines(unbroken[0])
    assert ours[0]["loss"] != theirs[0]["loss"]
    for line, expected in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=0.02)


def cut_short(workdir, monkeypatch):
    """Dies after step 5, saved and evaluated after step 4."""
    full_stream = pipeline.train_batches

    def cut_stream(*args, **kwargs):
        for i, batch in enumerate(full_stream(*args, **kwargs)):
            if i == 5:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_batches", cut_stream)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(short_config(), workdir)
    assert max(line["step"] for line in lines(workdir)) < 8


def test_an_interrupted_run_ends_like_an_unbroken_one(unbroken, tmp_path, monkeypatch):
    cut_short(tmp_path, monkeypatch)
    result = train_and_evaluate(short_config(), tmp_path)
    assert result == unbroken[1]  # the checksum of the parameters included

    def steady(workdir):
        timed = ("images_per_second", "data_wait_fraction")
        return [{k: v for k, v in line.items() if k not in timed} for line in log(workdir)]

    assert steady(tmp_path) == steady(unbroken[0])


@pytest.mark.parametrize("placement", ["vmap", "mesh"])
def test_a_run_goes_on_under_another_placement(unbroken, tmp_path, monkeypatch, placement):
    cut_short(tmp_path, monkeypatch)
    config = short_config()
    config.placement = placement
    result = train_and_evaluate(config, tmp_path)
    assert result["placement"] == placement
    assert result["test"]["loss"] == pytest.approx(unbroken[1]["test"]["loss"], rel=1e-4)
    for ours, theirs in zip(lines(tmp_path), lines(unbroken[0]), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_evaluation_of_a_workdir_repeats_its_result(unbroken):
    workdir, result = unbroken
    config = from_json((workdir / "config.json").read_text(), "config.json")
    fields = api.evaluate_workdir(config, workdir, 1, "test")
    assert fields["loss"] == pytest.approx(result["test"]["loss"], rel=1e-6)
    assert {k: fields[k] for k in ("step", "split", "num_examples", "top1_error")} == {
        "step": 8, "split": "test", "num_examples": 360, "top1_error": result["test"]["top1_error"],
    }  # fmt: skip
    for split, count in (("train", 1293), ("validation", 144)):
        found = api.evaluate_workdir(config, workdir, 1, split)
        assert (found["split"], found["num_examples"]) == (split, count)
    assert found["loss"] == pytest.approx(result["validation"]["loss"], rel=1e-6)
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    first = api.evaluate_workdir(config, workdir, 1, "test", step=steps[0])
    assert first["step"] == steps[0] < steps[-1] == fields["step"]
    assert first["loss"] != fields["loss"]
    with pytest.raises(UsageError, match="name a folder that `train` wrote"):
        api.evaluate_workdir(config, workdir / "nothing", 1, "test")


def test_a_run_is_not_continued_as_another(unbroken, tmp_path):
    workdir = shutil.copytree(unbroken[0], tmp_path / "run")
    (workdir / "result.json").unlink()  # as if it had been killed in its final test
    fewer, renamed = (f"folder:{png_folder(tmp_path / name, 64, 10)}" for name in "ab")
    for split in ("train", "test"):
        (tmp_path / "b" / split / "9").rename(tmp_path / "b" / split / "nine")
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    for field, value, says in (
        ("seed", 1, "holds a run with config.seed = 0, not 1: choose another"),
        ("batch_size", 64, "holds a run with config.batch_size = 32, not 64"),
        ("num_epochs", 6 / EPOCH, "is 6 steps, but .* holds a run of 8"),
        ("data.train_split", "test", "with config.data.train_split = 'train', not 'test'"),
        ("data.source", fewer, "holds a run with training images 1293, not 58"),
        ("data.source", renamed, r"other classes than .*json \(missing: 9; new: nine\): give them"),
    ):
        config = short_config()
        config.update_from_flattened_dict({field: value})
        with pytest.raises(UsageError, match=f"--workdir={workdir} .*{says}|{says}"):
            train_and_evaluate(config, workdir)
    assert before == {path: path.read_bytes() for path in workdir.glob("*.json*")}


def test_a_resumed_run_says_what_changed(unbroken, tmp_path):
    workdir = shutil.copytree(unbroken[0], tmp_path / "run")
    config = short_config()
    config.num_epochs, config.optimizer.learning_rate = 10 / EPOCH, 0.005
    train_and_evaluate(config, workdir)
    said = [line["warning"] for line in log(workdir) if line["event"] == "warning"]
    assert [text.partition(" is ")[0] for text in said] == [
        "from step 9 on config.num_epochs", "from step 9 on config.optimizer.learning_rate",
    ]  # fmt: skip
    assert said[1].endswith("is 0.005, was 0.01")


def test_the_plateau_drops_three_times_and_no_more():
    config = tiny_config()
    config.optimizer.plateau_patience = 2
    plateau = Plateau()
    errors = [0.9, 0.8, 0.8, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    scales = [plateau.observe(error, config.optimizer) for error in errors]
    np.testing.assert_allclose(scales, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-3, 1e-3])


def test_a_class_count_that_does_not_match_is_named(tmp_path):
    config = short_config()
    config.model.num_classes = 11
    with pytest.raises(UsageError, match=r"config\.model\.num_classes = 11, but digits has 10"):
        train_and_evaluate(config, tmp_path)
