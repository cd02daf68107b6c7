"""Training for real on the digits, at a size that takes seconds."""

import json
import shutil

import numpy as np
import pytest

from alexnet_jax.config import from_json
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluate import evaluate_workdir
from alexnet_jax.optim import Plateau
from alexnet_jax.train import train_and_evaluate
from tests.support import needs_data, tiny_config


def short_config():
    config = tiny_config()
    config.placement = "pmap"
    config.num_epochs = 8 / 44  # 8 steps
    config.log_every_steps = 2  # and the run below is cut after 5 steps, saved after 3
    config.checkpoint_every_steps = 3
    config.evaluate.every_epochs = 4 / 44
    with config.unlocked():
        config.data.colour.rule = "source"
    return config


def log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def lines(workdir):
    return [line for line in log(workdir) if line["split"] in ("train", "test")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train_and_evaluate(short_config(), workdir)


def test_a_run_leaves_what_the_workdir_promises(unbroken):
    workdir, result = unbroken
    assert json.loads((workdir / "result.json").read_text()) == result
    assert result["test"]["num_examples"] == 360
    assert {"seed", "steps", "placement", "parameters_sha256"} <= set(result)
    config = from_json((workdir / "config.json").read_text(), "config.json")
    assert config.to_dict() == short_config().to_dict()
    env = json.loads((workdir / "env.json").read_text())
    assert env["packages"]["jax"] and len(env["devices"]) == 2
    train = [line for line in lines(workdir) if line["split"] == "train"]
    assert [line["step"] for line in train] == [1, 2, 4, 6, 8]
    for line in train:
        assert 0 <= line["top5_error"] <= line["top1_error"] <= 1
        assert 0 <= line["data_wait_fraction"] <= 1
    tests = [line for line in lines(workdir) if line["split"] == "test"]
    assert [line["step"] for line in tests] == [4, 8]


def test_a_trace_of_the_steps_asked_for(tmp_path, unbroken):
    result = train_and_evaluate(short_config(), tmp_path, profile=(2, 3))
    assert result == unbroken[1]
    assert len(list((tmp_path / "profile").glob("**/*.xplane.pb"))) == 1


def test_bfloat16_computes_nearly_the_same(tmp_path, unbroken):
    config = short_config()
    config.model.compute_dtype = "bfloat16"
    train_and_evaluate(config, tmp_path)
    ours, theirs = lines(tmp_path), lines(unbroken[0])
    assert ours[0]["loss"] != theirs[0]["loss"]
    for line, expected in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=0.02)


def cut_short(workdir, monkeypatch):
    """Runs until step 5 is done, then dies as if by Ctrl-C; the checkpoint of step 4 stays."""
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
    steady = ("step", "split", "loss", "top1_error", "learning_rate")

    def same(workdir):
        return [{k: line[k] for k in steady if k in line} for line in lines(workdir)]

    assert same(tmp_path) == same(unbroken[0])
    sums = [
        [line["parameters_sha256"] for line in log(workdir) if line["split"] == "checkpoint"]
        for workdir in (tmp_path, unbroken[0])
    ]
    assert len(sums[0]) == 4 and sums[0] == sums[1]


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
    fields = evaluate_workdir(config, workdir, 1, "test")
    assert fields["loss"] == pytest.approx(result["test"]["loss"], rel=1e-6)
    ten = evaluate_workdir(config, workdir, 10, "test")
    # The crop is the whole image, so a view is the image or its mirror, five times each.
    assert ten["loss"] == pytest.approx(fields["loss"], rel=1e-4)
    assert 0 <= ten["top5_error_10_views"] <= ten["top1_error_10_views"] <= 1
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    first = evaluate_workdir(config, workdir, 1, "test", step=steps[0])
    assert first["step"] == steps[0] < steps[-1] == fields["step"]
    assert first["loss"] != fields["loss"]
    with pytest.raises(UsageError, match="holds no checkpoint"):
        evaluate_workdir(config, workdir / "nothing", 1, "test")


def test_a_run_is_not_continued_as_another(unbroken, tmp_path):
    workdir = shutil.copytree(unbroken[0], tmp_path / "run")
    for field, value, says in (
        ("seed", 1, "with seed 0, not 1: choose another"),
        ("batch_size", 64, "with batch_size 32, not 64"),
        ("num_epochs", 6 / 44, "is 6 steps, but .* holds a run of 8"),
        ("data.train_split", "test", "with training images 1437, not 360"),
    ):
        config = short_config()
        config.update_from_flattened_dict({field: value})
        with pytest.raises(UsageError, match=f"--workdir={workdir} .*{says}|{says}"):
            train_and_evaluate(config, workdir)
    # What may change is said.
    config = short_config()
    config.num_epochs, config.optimizer.learning_rate = 10 / 44, 0.005
    train_and_evaluate(config, workdir)
    said = [line["warning"] for line in log(workdir) if line["split"] == "warning"]
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


@needs_data
def test_the_full_network_takes_a_step_on_photographs(tmp_path):
    """Batch 128 of real ImageNet images; an untrained network's loss is near ln(1000) = 6.91."""
    import jax

    from alexnet_jax import inputs, optim, parallel, presets
    from alexnet_jax.models import tower
    from alexnet_jax.state import init_state
    from alexnet_jax.train import make_train_step

    config = presets.get("article")
    config.placement = "pmap"
    placement = parallel.place(config)
    net, tx = tower.build(config.model), optim.sgd_2012(config, 6, 6)
    step = make_train_step(config, net, inputs.build(config.data, None), tx, placement, 6)
    source = open_source("tfds:imagenet2012", "train")
    batches = pipeline.train_batches(source, config.data, seed=0, batch_size=128)
    state = placement.put_towers(
        init_state(tower.init(net, config.seed, config.data.crop_size), tx)
    )
    before = np.asarray(jax.tree.leaves(state.params)[0])
    state, metrics = step(state, placement.put_batch(next(batches)))
    assert 6.85 < float(parallel.to_host(metrics)["loss"]) < 7.2
    assert not np.array_equal(before, np.asarray(jax.tree.leaves(state.params)[0]))
