"""What a run logs, saves and ends with, against NumPy, a scripted evaluation and a fake clock."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax import parallel
from alexnet_jax.analysis import verify
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_train
from alexnet_jax.errors import Stopped, UsageError
from alexnet_jax.model.tower import build_tower, draw_parameters
from alexnet_jax.training import evaluate, loop, origin
from alexnet_jax.training import run as runs
from alexnet_jax.training.events import TrainingMean
from alexnet_jax.training.log import Log
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.parts import metrics
from alexnet_jax.training.stop import Stop
from tests import numpy_reference
from tests.support import dropout_masks, three_layers

EPOCH, BATCH = 40, 32  # steps per epoch, images per step
METRICS = ("loss", "top1_error", "top5_error")


def run_of(steps, **changes):
    """A configuration of `steps` steps that logs and saves every one of them."""
    config = three_layers()
    config.placement, config.num_epochs = "vmap", steps / EPOCH
    config.log_every_steps = config.checkpoint_every_steps = 1
    config.keep_checkpoints = 20
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def log(workdir, event, split=None):
    """The lines of one kind of event, and of one split, by step."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if row["event"] == event and row.get("split") == split}


def saved(workdir, step):
    """Parameters of a checkpoint."""
    return origin.load(workdir, step=step).params


# Two runs of the same eight steps. Rate and colour noise change on the way.
EIGHT = dict(
    seed=3, optimizer__schedule="steps", optimizer__drop_epochs=(4 / EPOCH,),
    data__colour__rule="source", data__colour__until_epoch=5 / EPOCH,
)  # fmt: skip


@pytest.fixture(scope="module")
def each_step(tmp_path_factory):
    """Logged at every step."""
    workdir = tmp_path_factory.mktemp("each")
    return workdir, train_and_evaluate(run_of(8, **EIGHT), workdir)


class Clock:
    """A host and its devices, on which a step takes 1 s from when it is started or they are free.

    On the host a batch takes 0.25 s, a line of the log 0.125, a test 100, and all else no time.
    """

    def __init__(self):
        self.now, self.free, self.idle, self.ends = 0.0, 0.0, [], {}

    def starts(self, function):
        def called(*args):
            self.idle.append(max(self.now - self.free, 0))
            self.free = max(self.now, self.free) + 1
            state, metrics = function(*args)
            self.ends[id(metrics)] = self.free
            return state, metrics

        return called

    def fetches(self, function):
        def called(tree):
            self.now = max(self.now, self.ends.get(id(tree), self.free))
            return function(tree)

        return called

    def takes(self, seconds, function, event=object):
        def called(*args, **kwargs):
            self.now += seconds * any(isinstance(x, event) for x in args)
            return function(*args, **kwargs)

        return called


@pytest.fixture(scope="module")
def some_steps(tmp_path_factory):
    """Logged every five, under such a clock."""
    workdir, clock = tmp_path_factory.mktemp("some"), Clock()

    def batches(*args, real=pipeline.train_batches, **kwargs):
        for batch in real(*args, **kwargs):
            clock.now += 0.25
            yield batch

    make = loop.make_train_step
    with pytest.MonkeyPatch.context() as patch:
        for module in (runs, metrics):
            patch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
        patch.setattr(loop, "make_train_step", lambda *args: clock.starts(make(*args)))
        patch.setattr(pipeline, "train_batches", batches)
        patch.setattr(parallel, "to_host", clock.fetches(parallel.to_host))
        patch.setattr(evaluate, "evaluate", clock.takes(100, evaluate.evaluate))
        patch.setattr(Log, "on_event", clock.takes(0.125, Log.on_event, TrainingMean))
        config = run_of(8, **EIGHT, log_every_steps=5, checkpoint_every_steps=3)
        config.evaluate.every_epochs = 4 / EPOCH
        return workdir, train_and_evaluate(config, workdir), clock


def by_hand(params, step, *, order=3, dropout=3, noise=True):
    """Loss and errors of a step of `EIGHT`, in NumPy, from the parameters before it."""
    config = run_of(8, **EIGHT)
    source = open_train(config.data)
    stream = dict(seed=order, batch_size=BATCH, start_step=step - 1)
    batch = next(pipeline.train_batches(source, config.data, **stream))
    images = batch["image"] - np.array(config.data.channel_mean)
    if noise:
        images = (images + batch["colour"][:, None, None]) / 1.1
    masks = dropout_masks(build_tower(config.model), batch, dropout, step - 1)
    logits = numpy_reference.logits(config.model, params, images * config.data.scale, masks)
    own = logits[np.arange(BATCH), batch["label"]]
    ahead = (logits > own[:, None]).sum(1)
    loss = np.mean(np.log(np.exp(logits).sum(1)) - own)
    return {"loss": loss, "top1_error": np.mean(ahead >= 1), "top5_error": np.mean(ahead >= 5)}


@functools.cache
def drawn(seed):
    return draw_parameters(build_tower(three_layers().model), seed, 32)


@pytest.mark.parametrize("step", [1, 2, 5, 6, 8])
def test_a_logged_step_is_that_of_the_network_by_hand(each_step, step):
    """From the parameters saved before it; colour noise ends with the fifth step."""
    params = saved(each_step[0], step - 1) if step > 1 else drawn(3)
    expected = by_hand(params, step, noise=step <= 5)
    line = log(each_step[0], "training")[step]
    assert {name: line[name] for name in METRICS} == pytest.approx(expected, rel=1e-5)
    other = by_hand(params, step, noise=step > 5)
    assert abs(other["loss"] - expected["loss"]) > 1e-4  # far beyond the tolerance above
    assert 0 < expected["top5_error"] < expected["top1_error"]


def test_weights_order_and_dropout_are_those_of_the_seed(each_step):
    logged = log(each_step[0], "training")[1]["loss"]
    for other in ((drawn(4), 3, 3), (drawn(3), 4, 3), (drawn(3), 3, 4)):
        params, order, dropout = other
        found = by_hand(params, 1, order=order, dropout=dropout)["loss"]
        assert abs(found - logged) > 1e-3


def test_another_seed_is_another_run(each_step, tmp_path):
    train_and_evaluate(run_of(8, **EIGHT | {"seed": 4}), tmp_path, until=1)
    for event, field in (("training", "loss"), ("checkpoint", "parameters_sha256")):
        assert log(tmp_path, event)[1][field] != log(each_step[0], event)[1][field]


def test_a_line_is_the_mean_of_its_own_steps(each_step, some_steps):
    each, some = (log(run[0], "training") for run in (each_step, some_steps))
    assert list(each) == list(range(1, 9)) and list(some) == [1, 4, 5, 8]
    for first, last in ((1, 1), (2, 4), (5, 5), (6, 8)):
        for name in METRICS:
            mean = np.mean([each[step][name] for step in range(first, last + 1)])
            assert some[last][name] == pytest.approx(mean, rel=1e-9)
    # How often a run logs, saves and evaluates changes nothing in what it learns.
    assert some_steps[1]["parameters_sha256"] == each_step[1]["parameters_sha256"]
    sums = [log(run[0], "checkpoint") for run in (each_step, some_steps)]
    assert list(sums[1]) == [3, 4, 6, 8] and all(sums[0][step] == sums[1][step] for step in sums[1])


def test_a_line_begun_before_a_stop_is_the_mean_of_all_its_steps(some_steps, tmp_path):
    config = run_of(8, **EIGHT, log_every_steps=5)
    train_and_evaluate(config, tmp_path, until=7)
    train_and_evaluate(config, tmp_path)
    found, expected = (log(workdir, "training")[8] for workdir in (tmp_path, some_steps[0]))
    assert {name: found[name] for name in METRICS} == {name: expected[name] for name in METRICS}


def test_a_line_has_its_epoch_its_rate_and_its_speed(some_steps):
    lines = log(some_steps[0], "training")
    for step, line in lines.items():
        assert line["epoch"] == step / EPOCH
        assert line["learning_rate"] == pytest.approx(0.01 if step <= 4 else 0.001)
    # A line's time is that of its steps on the devices, which batches and lines do not hold up.
    for step, steps, batches in ((1, 1, 2), (4, 3, 2), (5, 1, 2), (8, 3, 1)):
        assert lines[step]["images_per_second"] == pytest.approx(BATCH)
        assert lines[step]["data_wait_fraction"] == pytest.approx(batches / 4 / steps)


def test_the_devices_wait_for_an_evaluation_and_its_line_only(some_steps):
    """And not for the lines after steps 1 and 5, with which no checkpoint is due."""
    assert some_steps[2].idle == [0.25, 0, 0, 0, 100.125, 0, 0, 0]


def test_the_same_seed_is_the_same_run_to_the_bit(each_step, monkeypatch, tmp_path):
    """By `verify`; and what it says of a log that was changed."""
    config = run_of(8, **EIGHT)
    workdir = shutil.copytree(each_step[0], tmp_path / "run", ignore=lambda *_: ["checkpoints"])
    verdict = verify.verify(config, workdir, until=2)
    assert verdict.same and (verdict.until, verdict.lines, verdict.checksums) == (2, 4, 2)
    # From here on the repetition is the first run's log.
    again = (each_step[0] / "metrics.jsonl").read_text()
    monkeypatch.setattr(
        verify,
        "train_and_evaluate",
        lambda config, folder, **_: Path(folder, "metrics.jsonl").write_text(again),
    )
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    def changed(at, of, until=0, **fields):
        rows = [
            row | (fields if (row["step"], row.get("split", row["event"])) == (at, of) else {})
            for row in lines
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return verify.verify(config, workdir, until)

    loss = log(each_step[0], "training")[2]["loss"]
    near = float(np.nextafter(loss, 9))
    found = changed(2, "training", until=8, loss=near)
    assert found.differences == (f"step 2, training loss: {near} logged, {loss} now",)
    assert not found.same and found.lines == 18 and found.text().startswith("not the same, steps 1")
    assert changed(2, "training", until=1, loss=near).same  # which is before
    assert changed(2, "training", until=8, images_per_second=1e9).same
    assert not changed(1, "checkpoint", parameters_sha256="0" * 64).same
    assert changed(2, "checkpoint", parameters_sha256="0" * 64).same  # until the first one
    assert not changed(8, "validation", until=8, top5_error=0.5).same
    assert not changed(8, "test", until=8, top5_error=0.5).same
    assert changed(8, "test", until=8, step=9).differences == ()
    assert changed(8, "validation", until=8, split="train").differences == (
        "step 8, evaluation of train: logged, not repeated",
    )
    with pytest.raises(UsageError, match=r"--until=9: the log of .* is whole up to step 8"):
        changed(1, "training", until=9)
    environment = json.loads((workdir / "env.json").read_text())
    environment["packages"]["jax"], environment["command"] = "0.1", ["another"]
    (workdir / "env.json").write_text(json.dumps(environment))
    assert changed(1, "training").environment == (
        f"packages.jax: 0.1 there, {jax.__version__} here",
    )


def test_one_bad_image_costs_its_step_and_no_more(each_step, tmp_path, monkeypatch):
    examples = pipeline.train_indices(3, 1293, BATCH, 4)

    def poisoned(*args, real=pipeline.train_batches, **kwargs):
        for batch in real(*args, **kwargs):
            bad = batch["index"][:, None] == examples[7]
            yield batch | {"colour": np.where(bad, np.float32("nan"), batch["colour"])}

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_batches", poisoned)
        train_and_evaluate(run_of(8, **EIGHT, log_every_steps=2), tmp_path)
    assert list(log(tmp_path, "not_finite")) == [5]
    line = log(tmp_path, "not_finite")[5]
    assert line["examples"] == examples.tolist() and line["loss"] == "nan"
    assert {"conv1/kernel", "fc3/bias", "loss"} <= set(line["not_finite"])
    lines = log(tmp_path, "training")
    assert list(lines) == [1, 2, 4, 6, 8]
    # Step 6 begins where step 4 ended, and its line is of that step alone.
    expected = by_hand(saved(tmp_path, 4), 6, noise=False)
    assert {name: lines[6][name] for name in METRICS} == pytest.approx(expected, rel=1e-5)
    sums, usual = log(tmp_path, "checkpoint"), log(each_step[0], "checkpoint")
    assert list(sums) == [1, 2, 3, 4, 6, 7, 8]
    assert [sums[step] == usual[step] for step in sums] == [True] * 4 + [False] * 3


class Script:
    """Stands in for `evaluate.evaluate`: its errors are written beforehand."""

    def __init__(self, **errors):
        self.errors, self.calls = errors, []

    def __call__(self, step, params, source, config, placement, views, **rest):
        done = sum(call[0] == source.split for call in self.calls)
        self.calls.append((source.split, views))
        errors = self.errors[source.split]
        error = errors[min(done, len(errors) - 1)]
        of_views = (error, error / 2) if views > 1 else (None, None)
        return evaluate.Means(1.0, error, error / 2, 360, {"conv1": 1.0}, views, *of_views)


# The error on the training images falls throughout, that on the validation images twice.
ERRORS = {"train": [0.9, 0.8, 0.7, 0.6, 0.5], "validation": [0.5, 0.2, 0.4, 0.3, 0.3]}
TEST = {"test": [0.6]}


def plateau_run(**changes):
    """Nine steps, evaluated every second; without momentum and decay an update is its rate."""
    config = run_of(9, optimizer__momentum=0.0, optimizer__weight_decay=0.0)
    config.evaluate.update(every_epochs=2 / EPOCH, splits=("train", "validation"))
    config.optimizer.update(schedule="plateau", plateau_patience=1, drop_factor=0.25)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="module")
def plateau(tmp_path_factory):
    """Unbroken; of a constant rate up to step 7; and stopped in steps 6 and 7, then resumed."""
    folder = {name: tmp_path_factory.mktemp(name) for name in ("whole", "constant", "broken")}
    found = {"folder": folder, "result": {}, "calls": {}, "stopped": [], "left": []}
    stops = []

    class Heard(Stop):
        def __init__(self):
            super().__init__()
            stops.append(self)

    def signalled_in(step):
        def batches(*args, real=pipeline.train_batches, **kwargs):
            # A batch is read while the step before it is computed.
            for number, batch in enumerate(real(*args, **kwargs), kwargs["start_step"]):
                if number == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                    while stops[-1].signal is None:
                        time.sleep(0.001)
                yield batch

        return batches

    def run(name, config, until=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate, "evaluate", script := Script(**ERRORS, **TEST))
            if name in found["calls"]:  # it goes on where it was
                script.calls = found["calls"][name]
            found["calls"][name] = script.calls
            found["result"][name] = train_and_evaluate(config, folder[name], until=until)

    run("whole", plateau_run())
    run("constant", plateau_run(optimizer__schedule="constant"), until=7)
    for step in (6, 7):  # after 6 an evaluation is due, which the stop puts off
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "Stop", Heard)
            patch.setattr(pipeline, "train_batches", signalled_in(step))
            with pytest.raises(Stopped) as stopped:
                run("broken", plateau_run(keep_checkpoints=1))
        found["stopped"].append(stopped.value)
        found["left"].append(checkpoints_of(folder["broken"]))
    run("broken", plateau_run(keep_checkpoints=1))
    return found


def checkpoints_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_the_plateau_lowers_the_rate_of_the_steps_after_it(plateau):
    """The error does not fall at 6, 8 and 9: from 7 on a quarter, from 9 on a sixteenth."""
    folder = plateau["folder"]
    rates = [line["learning_rate"] for line in log(folder["whole"], "training").values()]
    np.testing.assert_allclose(rates, [0.01] * 6 + [0.01 / 4] * 2 + [0.01 / 16])
    start = saved(folder["whole"], 6)
    jax.tree.map(np.testing.assert_array_equal, start, saved(folder["constant"], 6))
    for name, leaves in start.items():
        for kind, before in leaves.items():
            lower, full = (
                saved(folder[run], 7)[name][kind].astype(np.float64) - before
                for run in ("whole", "constant")
            )
            assert np.abs(full).max() > 1e-5
            np.testing.assert_allclose(lower, full / 4, rtol=1e-3, atol=1e-7)


def test_a_plateau_run_interrupted_around_a_drop_ends_like_the_unbroken_one(plateau):
    whole, broken = plateau["folder"]["whole"], plateau["folder"]["broken"]
    assert plateau["result"]["broken"] == plateau["result"]["whole"]
    for which in (("checkpoint",), ("evaluation", "validation"), ("evaluation", "train")):
        assert log(broken, *which) == log(whole, *which)
    steady = (*METRICS, "learning_rate", "epoch")
    for step, line in log(whole, "training").items():
        other = log(broken, "training")[step]
        assert {k: line[k] for k in steady} == {k: other[k] for k in steady}


def test_a_signal_ends_the_step_and_saves(plateau):
    for step, stopped in zip((6, 7), plateau["stopped"], strict=True):
        assert stopped.signal == signal.SIGTERM
        says = f"stopped after step {step}, which is saved; the same command resumes"
        assert str(stopped) == says
    assert plateau["left"] == [[4, 6], [4, 7]]  # the best and the latest
    assert plateau["result"]["constant"] == {"step": 7}
    assert not (plateau["folder"]["constant"] / "result.json").exists()


def test_evaluations_are_logged_by_split_and_the_last_split_ranks_checkpoints(plateau):
    folder = plateau["folder"]["broken"]
    for split, errors in ERRORS.items():
        lines = log(folder, "evaluation", split)
        assert list(lines) == [2, 4, 6, 8, 9]
        assert [line["top1_error"] for line in lines.values()] == errors
        assert all(line["epoch"] == step / EPOCH for step, line in lines.items())
    assert [line["top1_error"] for line in log(folder, "evaluation", "test").values()] == [0.6]
    result = json.loads((folder / "result.json").read_text())
    last = {split: errors[-1] for split, errors in (ERRORS | TEST).items()}
    assert {split: result[split]["top1_error"] for split in last} == last
    assert checkpoints_of(folder) == [4, 9]
    assert log(plateau["folder"]["whole"], "warning").keys() == {2}  # dead, and said once


@pytest.mark.parametrize("limit,steps", [(0.2, 4), (0.5, 2)])
def test_stop_at_error_ends_the_run_with_the_evaluation_that_reaches_it(
    tmp_path, monkeypatch, limit, steps
):
    script = Script(train=[0.0], validation=ERRORS["validation"], **TEST)
    monkeypatch.setattr(evaluate, "evaluate", script)
    config = plateau_run(stop_at_error=limit, evaluate__final_views=10)
    assert train_and_evaluate(config, tmp_path)["steps"] == steps
    assert script.calls == [("train", 1), ("validation", 1)] * (steps // 2) + [("test", 10)]
    assert max(log(tmp_path, "training")) == max(log(tmp_path, "checkpoint")) == steps


def test_a_run_stopped_by_its_error_goes_on_without_the_limit(tmp_path, monkeypatch):
    script = Script(train=[0.9], validation=ERRORS["validation"], **TEST)
    monkeypatch.setattr(evaluate, "evaluate", script)
    assert train_and_evaluate(plateau_run(stop_at_error=0.5), tmp_path)["steps"] == 2
    assert train_and_evaluate(plateau_run(stop_at_error=0.5), tmp_path)["steps"] == 2
    assert train_and_evaluate(plateau_run(), tmp_path)["steps"] == 9


SIGNALS = """
import os, signal, time
from alexnet_jax.training.stop import Stop

def ask(stop, number):
    os.kill(os.getpid(), number)
    ends = time.monotonic() + 20
    while not stop.asked() and time.monotonic() < ends:
        time.sleep(0.01)

listened = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
with Stop() as stop:
    print(stop.asked(), flush=True)
    ask(stop, signal.SIGTERM)
    print(stop.asked(), stop.signal, flush=True)
print(listened == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], flush=True)
with Stop() as stop:
    ask(stop, signal.SIGTERM)
    ask(stop, signal.SIGINT)
    time.sleep(20)
    print("still here")
"""


def test_one_signal_is_a_wish_and_a_second_one_ends_the_process():
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["False", f"True {signal.SIGTERM.value}", "True"]
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == 2 * "\nstopping after this batch; once more to stop at once\n"
