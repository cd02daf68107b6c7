"""Each part that acts on a run, alone: a run of plain values, and the events that come of it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import re
import struct
import termios
import threading
import time
import types

import numpy as np
import pytest

from alexnet_jax.config import default
from alexnet_jax.data import augment
from alexnet_jax.errors import UsageError
from alexnet_jax.training.events import Evaluation, NotFinite, Saved, TrainingMean, Warned
from alexnet_jax.training.log import Log, read
from alexnet_jax.training.parts import terminal as terminals
from alexnet_jax.training.parts.evaluation import StopAtError
from alexnet_jax.training.parts.metrics import StepMetrics
from alexnet_jax.training.parts.profile import Profile
from alexnet_jax.training.parts.save import Save
from alexnet_jax.training.parts.terminal import Terminal
from alexnet_jax.training.parts.warn import Warnings
from alexnet_jax.training.parts.watchdog import Watchdog
from alexnet_jax.training.run import Due, Part, Run, Series
from tests.support import tiny_config


def due(**what):
    return Due(**{"log": False, "save": False, "evaluate": False, "leave": False} | what)


def evaluation(step, error, split="validation"):
    return Evaluation(step, step / 10, split, 1.0, error, error / 2, 100)


def a_run(*parts, workdir=None, **config):
    """A run of these parts without data, devices or steps."""
    settings = default()
    settings.unlock()
    settings.update_from_flattened_dict(config)
    run = object.__new__(Run)
    vars(run).update(
        config=settings, parts=parts, step=0, num_steps=100, steps_per_epoch=10, workdir=workdir,
        unreadable={"train": {}, "validation": {}}, waited=0.0, bad_steps=0, finished=False,
        metrics=None, until=None, evaluations={}, memory={}, position={},
        rate=lambda step: 0.5 / (step + 1), rate_scale=0.1,
        stop=types.SimpleNamespace(asked=lambda: False),
        state=types.SimpleNamespace(params={"a": np.zeros(1)}),
        sources={
            "train": types.SimpleNamespace(
                name="digits", num_examples=20, describe="image {}".format
            )
        },
    )  # fmt: skip
    return run


class Heard(Part):
    """Remembers the events."""

    def __init__(self):
        self.events = []

    def on_event(self, run, event):
        self.events.append(event)


def test_the_mean_is_of_the_steps_since_the_last_line():
    heard, heard_at = Heard(), {}
    run = a_run(heard, **{"data.max_unreadable": 9})
    part = StepMetrics(run.config)
    part.start(run)
    losses = np.random.default_rng(0).normal(size=7)
    for step, loss in enumerate(losses, 1):
        part.before_step(run)
        run.step = step
        run.metrics = {"loss": loss, "top1_error": loss / 2, "top5_error": loss / 4,
                       "not_finite": np.zeros(2, int)}  # fmt: skip
        run.unreadable["train"][step] = "cut"
        part.after_step(run, due(log=step in (3, 7), save=step == 7))
        heard_at[step] = list(heard.events)
    # A line comes when the next step was started, unless a checkpoint is due with it.
    assert [len(heard_at[step]) for step in (3, 4, 6, 7)] == [0, 1, 1, 2]
    means = heard.events
    assert [mean.step for mean in means] == [3, 7] == [mean.unreadable for mean in means]
    assert [mean.epoch for mean in means] == [0.3, 0.7]
    for mean, part_of in zip(means, (losses[:3], losses[3:]), strict=True):
        assert mean.loss == pytest.approx(part_of.mean())
        assert mean.top5_error == pytest.approx(part_of.mean() / 4)
        assert mean.learning_rate == pytest.approx(0.5 / mean.step * 0.1)


def test_sums_that_were_not_written_are_remembered():
    first, again, heard = StepMetrics(default()), StepMetrics(default()), Heard()
    run = a_run(heard)
    ends = due(log=True, save=True)
    for part, steps, at in ((first, (1, 2), due(save=True)), (again, (3,), ends)):
        part.start(run)
        for step in steps:
            part.before_step(run)
            run.step, run.metrics = step, {
                "loss": float(step), "top1_error": 0.0, "top5_error": 0.0,
                "not_finite": np.zeros(2, int)}  # fmt: skip
            part.after_step(run, at)
        again.recall(first.memory())
    assert heard.events[-1].loss == pytest.approx((1 + 2 + 3) / 3)


def test_steps_that_are_not_finite_are_kept_as_evidence_and_end_the_run(tmp_path):
    heard = Heard()
    run = a_run(heard, workdir=tmp_path, seed=3, batch_size=4, max_not_finite_steps=2)
    run.sources["train"].num_examples = 10  # two steps per epoch: steps 3 and 4 are the second's
    run.state.params = {"conv1": {"bias": np.zeros(1), "kernel": np.zeros(1)}}
    part = StepMetrics(run.config)
    part.start(run)

    def step(number, loss, wrong):
        run.step = number
        run.metrics = {"loss": loss, "top1_error": 0.0, "top5_error": 0.0,
                       "not_finite": np.array(wrong)}  # fmt: skip
        part.after_step(run, due(save=True))
        assert run.bad_steps == any(wrong)

    step(1, 0.5, [2, 0, 0])
    step(2, 0.5, [0, 0, 0])
    step(3, 0.5, [0, 1, 0])
    assert not (tmp_path / "not_finite.json").exists()
    with pytest.raises(UsageError, match="step 4: conv1/bias is not finite") as raised:
        step(4, np.inf, [2, 2, 2])
    assert "such steps in a row: 2 (config.max_not_finite_steps = 2)" in str(raised.value)
    order = augment.order(3, 1, 10)
    assert heard.events == [
        NotFinite(1, 0.5, ["conv1/bias"], augment.order(3, 0, 10)[:4].tolist()),
        NotFinite(3, 0.5, ["conv1/kernel"], order[:4].tolist()),
        NotFinite(4, "inf", ["conv1/bias", "conv1/kernel", "loss"], order[4:8].tolist()),
    ]
    evidence = json.loads((tmp_path / "not_finite.json").read_text())
    assert evidence["steps"] == [dataclasses.asdict(event) for event in heard.events[1:]]
    assert evidence["images"] == {str(i): f"image {i}" for i in order[:8]}


def test_the_run_ends_at_the_error_of_the_split_that_steers():
    part = StopAtError(a_run(stop_at_error=0.2).config)
    run = a_run(part, **{"evaluate.splits": ("train", "validation")})
    for event, run.bad_steps, ended in (
        (evaluation(1, 0.3), 0, False), (evaluation(2, 0.1, "train"), 0, False),
        (evaluation(2, 0.1), 1, False), (evaluation(3, 0.2), 0, True),
        (evaluation(4, 0.9), 0, True),
    ):  # fmt: skip
        run.emit(event)
        assert run.ended is ended


def test_the_best_checkpoint_is_that_of_the_lowest_error():
    checkpoints = types.SimpleNamespace(best=None, steps=lambda: [0, 1, 3, 4])
    part = Save(checkpoints)
    run = a_run(part)
    best = []
    for step, error in enumerate((0.5, 0.4, 0.2, 0.4, 0.3)):  # that of step 2 was not saved
        run.emit(evaluation(step, error))
        run.emit(evaluation(step, 0.0, "train"))
        best.append(checkpoints.best)
    assert best == [0, 1, 1, 1, 4]
    again = types.SimpleNamespace(best=None, steps=lambda: [4, 5, 6])
    resumed = Save(again)
    resumed.recall(part.memory())
    best = [again.best]
    run = a_run(resumed)
    for step, error in ((5, 0.35), (6, 0.25)):
        run.emit(evaluation(step, error))
        best.append(again.best)
    assert best == [4, 4, 6]


def test_no_checkpoint_amid_steps_that_are_not_finite(monkeypatch):
    saved = []
    part = Save(types.SimpleNamespace(save=lambda step, *_: saved.append(step)))
    for name in ("items", "manifest"):
        monkeypatch.setattr(f"alexnet_jax.training.parts.save.{name}", lambda state: {})
    run = a_run(part)
    for run.step, run.bad_steps, why in (
        (1, 0, {}), (2, 1, {"evaluate": True}), (3, 1, {"leave": True}), (4, 0, {}), (100, 2, {}),
    ):  # fmt: skip
        part.after_step(run, due(save=True, **why))
    assert saved == [1, 3, 4, 100]  # where the run leaves or ends it is always saved


def test_a_warning_is_given_once():
    heard = Heard()
    part = Warnings(a_run(warn_stuck_after_steps=5).config)
    run = a_run(heard, part)
    for step in (4, 5, 6):
        run.step = step + 1
        run.emit(TrainingMean(step, 0.1, 6.9, 1.0, 1.0, 1.0, 0.0, 0.01))
    warned = [event for event in heard.events if isinstance(event, Warned)]
    assert [event.step for event in warned] == [5] and "still ln(1000)" in warned[0].warning


def test_a_run_without_a_step_says_that_nothing_is_trained():
    for steps, expected in (
        (0, ["config.num_epochs = 0.01 is no step: nothing is trained"]),
        (1, []),
    ):
        heard = Heard()
        run = a_run(heard, part := Warnings(a_run(num_epochs=0.01).config))
        run.num_steps = steps
        part.start(run)
        assert [event.warning for event in heard.events] == expected


def test_layers_that_are_dead_or_mostly_so_are_named_once():
    part = Warnings(a_run(**{"optimizer.learning_rate": 0.25}).config)
    dead = {"conv1": 0.5, "conv2": 0.6, "conv4": 1.0}
    lines = part.units(7, dead)
    assert [line.partition(". ")[0] for line in lines] == [
        "step 7: 60% of the units of conv2 are not positive for any image",
        "step 7: conv4 is dead: none of its units is positive for any image",
    ]
    assert "optimizer.learning_rate = 0.25" in lines[1] and "model.layers.conv4.bias" in lines[1]
    assert part.units(8, dead) == []
    assert len(part.units(9, {"conv2": 1.0})) == 1


@pytest.mark.parametrize("activation,warned", [("relu", 1), ("tanh", 0)])
def test_units_are_dead_where_zero_means_dead(activation, warned):
    heard = Heard()
    part = Warnings(a_run(**{"model.activation": activation}).config)
    event = dataclasses.replace(evaluation(3, 0.5), dead_units={"conv1": 1.0})
    a_run(heard, part).emit(event)
    assert len(heard.events) == 1 + warned


def test_each_unreadable_image_is_warned_of_once_per_split():
    heard = Heard()
    part = Warnings(a_run().config)
    run = a_run(heard, part)
    warned = []
    for run.step, split, image in (
        (1, "train", {3: "a.png: cut"}), (2, "train", {4: "b.png: cut"}), (3, "train", {}),
        (4, "validation", {3: "c.png: cut"}),
    ):  # fmt: skip
        run.unreadable[split] |= image
        part.after_step(run, due())
        run.emit(evaluation(run.step, 0.5))
        warned += [(e.step, e.warning) for e in heard.events if isinstance(e, Warned)]
        heard.events.clear()
    assert warned == [
        (1, "a.png: cut; another takes its place"), (2, "b.png: cut; another takes its place"),
        (4, "c.png: cut; another takes its place"),
    ]  # fmt: skip


def test_a_loss_that_never_moves_is_reported_once_with_its_cause():
    config = tiny_config()
    config.warn_stuck_after_steps = 100
    config.model.layers.conv3.init_std = 0.01
    part = Warnings(config)
    assert part.loss(99, 2.3026, 10_000) == [] and part.loss(100, 2.1, 10_000) == []
    (line,) = part.loss(120, 2.3020, 10_000)
    assert "step 120" in line and "ln(10)" in line and "data.scale" in line
    assert part.loss(140, 2.3020, 10_000) == []


@pytest.mark.parametrize(
    "after,num_steps,first",
    # A fifth of the run, at least 200 steps, and never later than the field says.
    [(5000, 450_000, 5000), (5000, 2190, 438), (5000, 300, 200), (100, 2190, 100), (0, 2190, None)],
)
def test_a_short_run_is_not_stuck_in_silence_for_most_of_it(after, num_steps, first):
    part = Warnings(tiny_config())
    part.config.warn_stuck_after_steps = after
    warned = [step for step in range(1, 6000) if part.loss(step, 2.3026, num_steps)]
    assert warned == ([] if first is None else [first])


def test_the_log_goes_on_behind_the_checkpoint_that_is_resumed_from(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def log(step, *events):
        part = Log()
        run = a_run(part, workdir=tmp_path)
        run.step = step
        part.start(run)
        for event in events:
            run.emit(event)
            # At once, and not when the file is closed.
            assert event in read(tmp_path)
        part.close()

    saved = [Saved(step, f"{step}") for step in (2, 4)]
    log(0, saved[0], evaluation(2, 0.5), saved[1], evaluation(4, 0.4))
    with path.open("a") as file:  # not lines of a log, and one that a crash cut
        file.write('[2]\n{"loss": 1}\n{"event": "checkpoint", "step": 4, "parameters_sha')
    assert read(tmp_path) == [saved[0], evaluation(2, 0.5), saved[1], evaluation(4, 0.4)]
    log(4, evaluation(4, 0.3))
    assert read(tmp_path) == [saved[0], evaluation(2, 0.5), saved[1], evaluation(4, 0.3)]
    assert len(path.read_text().splitlines()) == 4
    log(2)
    assert read(tmp_path) == [saved[0]]
    log(0)
    assert read(tmp_path) == []
    log(0, evaluation(2, 0.5), evaluation(3, 0.4))  # the checkpoint's own line is gone
    log(2)
    assert read(tmp_path) == [evaluation(2, 0.5)]
    with pytest.raises(UsageError, match="run train first"):
        read(tmp_path / "nowhere")
    assert read(tmp_path / "nowhere", missing=True) == []


def test_where_there_is_no_terminal_an_event_is_a_line(monkeypatch, capsys):
    part = Terminal()
    run = a_run(part, batch_size=32, **{"data.source": "digits"})
    run.placement = types.SimpleNamespace(describe=lambda: "vmap, 1 cpu device")
    for speaks in (True, False):
        monkeypatch.setattr("jax.process_index", lambda speaks=speaks: 0 if speaks else 1)
        run.step = 2
        part.start(run)
        run.step = 4
        run.emit(TrainingMean(3, 1.25, 0.5, 0.25, 0.125, 1.5, 0.0, 0.01))
        run.step = 5
        run.emit(TrainingMean(4, 1.5, 0.25, 0.125, 0.0625, 1234.56, 0.0, 0.01))
        run.emit(evaluation(4, 0.5))
        run.emit(dataclasses.replace(evaluation(4, 0.5, "test"), views=10, top1_error_views=0.25))
        run.emit(Warned(4, "hot"))
        run.emit(NotFinite(5, "nan", ["conv1/bias", "loss"], [1, 2]))
        run.emit(Saved(4, "abc"))
        part.close()
        run.num_steps = 7163  # from the second time on, of which nothing is shown
        assert capsys.readouterr().err == speaks * (
            "vmap, 1 cpu device; digits: 20 training images, 100 steps, from step 2\n"
            "step 3/100  epoch 1.25  loss 0.5000  top-1 error 0.250  1.5 images/s\n"
            "step 4/100  epoch 1.50  loss 0.2500  top-1 error 0.125  1234.6 images/s  0:02 left\n"
            "step 4  validation: loss 1.0000, top-1 error 0.5000\n"
            "step 4  test: loss 1.0000, top-1 error 0.2500 (10 views)\n"
            "warning: hot\n"
            "warning: step 5: conv1/bias and 1 more not finite; the step is not applied\n"
        )


@pytest.mark.parametrize(
    "steps,left", [(96, "0:19"), (964, "3:12"), (46, "0:09"), (20_964, "1:09:52")]
)
def test_what_is_left_is_shown_in_minutes_and_seconds(capsys, steps, left):
    part = Terminal()
    run = a_run(part, batch_size=2)
    run.placement = types.SimpleNamespace(describe=str)
    run.num_steps, run.step = 4 + steps, 2
    part.start(run)
    for step in (3, 4):
        run.emit(TrainingMean(step, 1.5, 0.25, 0.125, 0.0625, 10.0, 0.0, 0.01))
    assert capsys.readouterr().err.endswith(f"10.0 images/s  {left} left\n")


def test_of_the_step_that_compiles_no_time_is_derived(capsys):
    part = Terminal()
    run = a_run(part)
    run.placement = types.SimpleNamespace(describe=str)
    run.step = 7  # It resumes: the first mean is of two steps, one of which compiles.
    part.start(run)
    for step in (10, 20, 30):
        run.emit(TrainingMean(step, 1.5, 0.25, 0.125, 0.0625, 10.0, 0.0, 0.01))
    lines = capsys.readouterr().err.splitlines()[1:]
    assert ["left" in line for line in lines] == [False, True, True]


@pytest.mark.parametrize(
    "number,finished,left",
    # The first run: 60 steps of 6 s are left, and of two more runs 100 steps of 5 s.
    [(1, (), "6:00 left  study 22:40 left"),
     # 300 s and 400 s for a run each, and 200 s for 0.4 of a run: 375 s a run.
     (2, (300.0,), "6:00 left  study 11:57 left"),
     (3, (300.0, 400.0), "6:00 left  study 6:00 left"),
     # A run that failed is not among the finished ones.
     (2, (), "6:00 left  study 14:20 left")],
)  # fmt: skip
def test_the_time_left_of_a_study_counts_finished_runs_and_these_steps(
    number, finished, left, capsys, monkeypatch
):
    part = Terminal(Series("lrn-off seed 1", number, 3, finished))
    run = a_run(part, batch_size=12)
    run.placement = types.SimpleNamespace(describe=str)
    clock = iter([1000.0, 1200.0])  # Step 1, after a long compilation, and step 40.
    monkeypatch.setattr(terminals.time, "monotonic", lambda: next(clock))
    part.start(run)
    for step in (0, 40):
        run.emit(TrainingMean(step, 1.5, 0.25, 0.125, 0.0625, 2.0, 0.0, 0.01))
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.partition("  ")[0] for line in lines] == [f"run {number}/3 lrn-off seed 1"] * 2
    assert "left" not in lines[0] and lines[1].endswith(f"2.0 images/s  {left}")


LABEL = "run 103/112 lrn-off seed 1"


@pytest.mark.parametrize("series", [None, Series("lrn-off seed 1", 103, 112, (45_000.0,))])
@pytest.mark.parametrize("columns", [40, 80, 100, 120, 200])
def test_on_a_terminal_the_bar_is_a_bar_and_no_number_is_cut(columns, series, monkeypatch):
    screen, keyboard = pty.openpty()
    fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    recorded: list[bytes] = []

    def record():
        with contextlib.suppress(OSError):  # the end
            while read := os.read(screen, 4096):
                recorded.append(read)

    reader = threading.Thread(target=record)
    reader.start()
    with os.fdopen(keyboard, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        part = Terminal(series)
        run = a_run(part, batch_size=128)
        run.placement = types.SimpleNamespace(describe=lambda: "vmap")
        run.num_steps, run.step = 2220, 0
        part.start(run)
        for run.step in (1, 20, 1980, 2220):
            run.emit(TrainingMean(run.step, 29.876, 0.6543, 0.2109, 0.0625, 1234.56, 0.0, 0.01))
            part._bar.refresh()
        part.close()
    reader.join()
    os.close(screen)
    written = b"".join(recorded).decode()
    drawn = [line for line in re.split(r"[\r\n]+", written) if "|" in line]
    assert len(drawn) >= 4 and all(len(line) <= columns for line in drawn)
    parts = ["loss 0.6543", "top-1 error 0.211", "1234.6 images/s", "epoch 29.88"]
    for line in drawn:
        bar = re.fullmatch(r"(.*?) *\d+ % \|(.*)\| step (\d+)/2220(?:, (.*))?", line.rstrip())
        assert bar and len(bar[2]) >= 10, line
        assert bar[1] == ({40: "", 80: "run 103/112"}.get(columns, LABEL) if series else "")
        shown = bar[4].split(", ") if bar[4] else []
        times = [part for part in shown if part.endswith(" left")]
        assert shown == times + parts[: len(shown) - len(times)]  # each whole
        if bar[3] == "1980" and columns > 40:
            pattern = r"\d:\d\d left" + bool(series) * r", study 59:\d\d:\d\d left"
            assert re.fullmatch(pattern, ", ".join(times))
    full = [len(line.split(", ")) for line in drawn if "1980/2220" in line]
    assert (
        max(full)
        == (
            {40: 1, 80: 3, 100: 3, 120: 4, 200: 7}
            if series
            else {40: 1, 80: 4, 100: 5, 120: 6, 200: 6}
        )[columns]
    )


def test_a_slow_step_is_shown_once_with_its_stacks(tmp_path, capsys):
    part, path = Watchdog(0.1), tmp_path / "stacks.txt"
    run = a_run(workdir=tmp_path)

    def shown(what):
        while not path.exists() or f": {what}\n" not in path.read_text():
            time.sleep(0.01)

    part.start(run)
    shown("the first batch")
    for run.step in (0, 1):
        part.before_step(run)
        part.after_step(run, due(log=True))
        shown(f"step {run.step + 1}")
    time.sleep(0.3)  # several looks at a step that was shown
    run.step = 2
    for what in ({"evaluate": True}, {"leave": True}):
        part.before_step(run)
        part.after_step(run, due(**what))
        time.sleep(0.3)
    part.close()
    text = path.read_text()
    assert [line.split(": ")[1] for line in text.splitlines() if line[-1:].isdigit()
            and ": step" in line] == ["step 1", "step 2"]  # fmt: skip
    assert "test_a_slow_step_is_shown_once" in text
    assert capsys.readouterr().err.count("has taken more than 0.1 s") == 3
    threads = set(threading.enumerate())
    part = Watchdog(0)
    part.start(run)
    assert set(threading.enumerate()) <= threads
    part.close()


@pytest.mark.parametrize("steps", [(2, 4), (1, 1), (5, 9), None])
def test_a_trace_is_of_the_steps_asked_for(tmp_path, monkeypatch, steps):
    """Six steps; the last is waited for, and the end of the run ends a trace under way."""
    seen = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: seen.append(("start", folder)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: seen.append(("stop",)))
    monkeypatch.setattr("jax.block_until_ready", lambda state: seen.append(("wait", state)))
    part, run = Profile(steps), a_run(workdir=tmp_path)
    for step in range(1, 7):
        part.before_step(run)
        seen.append(step)
        run.step, run.state = step, f"state {step}"
        part.after_step(run, due())
    part.close()
    first, last = steps or (7, 7)
    folder = str(tmp_path / "profile")
    expected = [*range(1, first), ("start", folder), *range(first, min(last, 6) + 1)]
    if last <= 6:
        expected += [("wait", f"state {last}"), ("stop",), *range(last + 1, 7)]
    elif steps:
        expected += [("stop",)]
    assert seen == (expected if steps else list(range(1, 7)))


@pytest.mark.parametrize("every,steps", [(1.0, [10, 20, 25]), (0.5, [5, 10, 15, 20, 25])])
def test_what_is_due(every, steps):
    run = a_run(log_every_steps=7, checkpoint_every_steps=12, **{"evaluate.every_epochs": every})
    run.num_steps = 25
    logged, saved, evaluated = [], [], []
    for run.step in range(1, 26):
        now = run.due()
        logged += [run.step] * now.log
        saved += [run.step] * now.save
        evaluated += [run.step] * now.evaluate
        assert not now.leave
    assert evaluated == steps
    assert saved == sorted({12, 24, 25, *steps})
    assert logged == sorted({1, 7, 14, 21, 25, *steps})
    run.stop.asked = lambda: True
    run.step = 10
    assert run.due() == due(log=True, save=True, leave=True)
    run.step = 3
    assert run.due() == due(save=True, leave=True)
    run.stop.asked = lambda: False
    for until, leaves in ((2, True), (3, True), (4, False)):
        run.until = until
        assert run.due() == due(save=leaves, leave=leaves)
