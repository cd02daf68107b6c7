"""What `bench` reports, by a clock that only the measured things move."""

import types

import jax
import numpy as np
import pytest

from alexnet_jax.analysis import bench
from alexnet_jax.errors import UsageError
from tests.support import tiny_config

BATCH = 32


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which stand still but for what adds to them."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now.seconds)
    return now


class Steps:
    """Steps of known durations in place of a network: the first is slow, as if it compiled."""

    def __init__(self, clock):
        self.clock, self.calls = clock, []
        self.placement = types.SimpleNamespace(
            describe=lambda: "vmap", put_batch=lambda batch: batch, batch_part=(0, 1), on_cpu=True
        )
        self.state, self.fed = 0, []

    def train(self, steps):
        self.calls.append(("train", steps))
        # A round in which the machine was busy must not count: the median of three is 2 seconds.
        durations = {0: 30.0, 1: 2.0, 2: 2.0, 3: 50.0, 4: 1.0}
        self.clock.seconds += steps * durations[sum(name == "train" for name, _ in self.calls) - 1]

    def forward(self, steps):
        self.calls.append(("forward", steps))
        self.clock.seconds += steps * 0.5

    def train_step(self, state, batch):
        self.clock.seconds += 3.0
        self.fed.append(batch)
        return state + 1, {}


@pytest.fixture
def steps(clock, monkeypatch):
    found = Steps(clock)
    monkeypatch.setattr(bench, "build", lambda config: found)
    monkeypatch.setattr(bench, "_settle", lambda: None)
    return found


def test_speeds_are_images_a_second_of_the_median_round(steps, clock, monkeypatch):
    ahead = iter([0, 8])  # of training from data none; of the input alone eight are ready

    def batches(source, data, *, seed, batch_size, part, gives_way):
        assert (source.split, batch_size, part) == ("train", BATCH, (0, 1)) and gives_way
        ready = next(ahead)
        for number in range(100):
            clock.seconds += 0.25 if number >= ready else 0.0
            yield number

    monkeypatch.setattr(bench.pipeline, "train_batches", batches)
    result = bench.run(tiny_config(), rounds=3, steps=4)
    # The first step apart, and one of each before anything is measured.
    assert steps.calls[:3] == [("train", 1), ("train", 1), ("forward", 1)]
    assert steps.calls[3:] == [("train", 4), ("forward", 4)] * 3
    assert steps.fed == list(range(1, 13)) and steps.state == 12  # none is shown twice
    expected = {
        "first_step_seconds": 30.0,
        "train": BATCH / 2.0,
        "forward": BATCH / 0.5,
        "end_to_end": BATCH / 3.25,
        "step_fraction": 2.0 / 3.25,
        "pipeline": BATCH / 0.25,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert (result["placement"], result["batch_size"]) == ("vmap", BATCH)


def test_of_several_processes_each_feeds_its_part_and_the_slowest_counts(steps, clock, monkeypatch):
    """The speed is that of all: the whole batch by the time of the last of them."""
    parts = []

    def batches(source, data, *, seed, batch_size, part, gives_way):
        parts.append((batch_size, part))
        while True:
            clock.seconds += 0.25
            yield 0

    monkeypatch.setattr(bench.pipeline, "train_batches", batches)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        bench.multihost_utils, "process_allgather", lambda mine: np.stack([mine, 4 * mine])
    )
    steps.placement.batch_part = (1, 2)
    result = bench.run(tiny_config(), rounds=3, steps=4)
    assert parts == [(BATCH, (1, 2))] * 2
    speeds = {"train": 2.0, "forward": 0.5, "end_to_end": 3.25, "pipeline": 0.25}
    found = {name: BATCH / result[name] / 4 for name in speeds}
    assert found == pytest.approx(speeds)


def test_without_data_only_the_steps_are_measured(steps):
    config = tiny_config()
    config.data.source = "folder:/nonexistent"
    result = bench.run(config, rounds=3, steps=1)
    assert result["train"] == BATCH / 2.0 and result["forward"] == BATCH / 0.5
    assert not {"end_to_end", "step_fraction", "pipeline"} & result.keys()
    assert "/nonexistent" in result["no_data"]
    last = bench.table(result).splitlines()[-2]
    assert last == f"  {'training from data':<20}not measured: {result['no_data']}"


def test_steps_follow_each_other_and_end_before_the_clock_is_read(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    found = bench.Steps(
        placement=None,
        train_step=lambda state, batch: (state + batch, {"loss": state}),
        eval_step=lambda variables, batch: (variables, batch),
        state=types.SimpleNamespace(variables="weights"),
        batch=2,
        eval_batch="images",
    )
    found.forward(3)
    assert waited == [("weights", "images")]
    found.state = 10
    found.train(3)
    assert found.state == 16 and waited[1] == 16


def test_the_table_names_its_units():
    result = {
        "placement": "mesh", "batch_size": 8, "first_step_seconds": 12.34, "train": 1000.04,
        "forward": 3000.06, "end_to_end": 900.0, "step_fraction": 0.89996, "pipeline": 5000.4,
        "peak_bytes": 2_345_000_000,
    }  # fmt: skip
    rows = {
        "first step after": "12.3 s, compilation included",
        "training step": "1000.0 images/s",
        "forward alone": "3000.1 images/s",
        "training from data": "900.0 images/s, 0.900 of the bare step",
        "input alone": "5000 images/s",
        "peak memory": "2.35 GB on the host, per process",
    }
    lines = ["mesh; batch 8", *(f"  {name:<20}{value}" for name, value in rows.items())]
    assert bench.table(result).splitlines() == lines


def test_a_measurement_waits_until_the_process_is_idle(monkeypatch):
    """Until it computes for no more than a fiftieth of a quarter of a second."""
    slept = []
    busy = iter([0.25, 0.1, 0.006, 0.004, 0.25])
    used = iter(np.cumsum([0, *(x for b in busy for x in (b, 0))]))
    monkeypatch.setattr(bench.time, "process_time", lambda: next(used))
    monkeypatch.setattr(bench.time, "sleep", slept.append)
    bench._settle()
    assert slept == [0.25] * 4


def test_peak_memory_is_in_bytes(monkeypatch):
    usage = types.SimpleNamespace(ru_maxrss=5)
    monkeypatch.setattr(bench.resource, "getrusage", lambda who: usage)
    for system, expected in (("linux", 5 * 1024), ("darwin", 5)):
        monkeypatch.setattr(bench.sys, "platform", system)
        assert bench.peak_bytes() == expected


@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_of_several_processes_are_one_batch(monkeypatch, processes):
    monkeypatch.setattr(bench.train, "make_train_step", lambda *a: None)
    monkeypatch.setattr(bench.evaluation, "make_eval_step", lambda *a, **k: None)
    placement = bench.parallel.Placement
    monkeypatch.setattr(placement, "put_batch", lambda self, batch: batch)
    whole = {"batch": [], "eval_batch": []}
    for number in range(processes):
        monkeypatch.setattr(placement, "batch_part", (number, processes))
        found = bench.build(tiny_config())
        for name, parts in whole.items():
            parts.append(getattr(found, name))
    for parts in whole.values():
        assert {len(x) for part in parts for x in part.values()} == {BATCH // processes}
        assert np.concatenate([part["index"] for part in parts]).tolist() == list(range(BATCH))
        assert len(np.unique([part["image"] for part in parts], axis=0)) == processes


def test_steps_are_built_over_noise_of_the_sizes_of_a_run(monkeypatch):
    monkeypatch.setattr(bench.train, "make_train_step", lambda *a: None)
    monkeypatch.setattr(bench.evaluation, "make_eval_step", lambda *a, **k: None)
    config = tiny_config()
    config.placement = "vmap"
    config.data.update(image_size=40, crop_size=32)
    found = bench.build(config)
    for batch, side in ((found.batch, 32), (found.eval_batch, 40)):
        assert batch["image"].shape == (BATCH, side, side, 3)
        assert np.asarray(batch["label"]).max() < 10 and batch["label"].shape == (BATCH,)
        assert len(np.unique(batch["image"])) == 256
    assert np.asarray(found.eval_batch["mask"]).sum() == BATCH
    with pytest.raises(UsageError, match="batch_size"):
        config.batch_size = 0
        bench.build(config)
