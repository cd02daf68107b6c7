"""The script for the first hour on a new machine: whole on a CPU, and what its page would say."""

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax.analysis.compile import Compiled
from alexnet_jax.training.state import TrainState
from benchmarks import device, device_page

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "benchmarks.device", "--small", "--out"]


def test_every_part_is_on_the_page_and_nothing_failed(tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": ""}
    subprocess.run([*COMMAND, tmp_path], cwd=ROOT, env=env, check=True, timeout=900)
    result = json.loads((tmp_path / "device.json").read_text())
    text = (tmp_path / "device.md").read_text()
    assert result["failures"] == {} and "Not done" not in text
    parts = {title: {row["name"]: row for row in rows} for title, rows in result["parts"].items()}
    assert all(rows and f"\n## {title}\n" in text for title, rows in parts.items())
    small, peaks, full, images, more, norms = parts.values()
    # Of the placements, with two devices, and of what they are compared with.
    assert list(small)[:4] == [
        "vmap, float32", "vmap, float32, deterministic", "pmap, float32", "mesh 1 x 2, float32",
    ]  # fmt: skip
    for row in (*small.values(), *full.values(), *more.values()):
        assert row["agrees"] and row["same_bits"] and row.get("resumed_bits", True)
    # Another arithmetic in place of float32 would not have passed.
    assert small["vmap, bfloat16"]["loss_difference"] > device.TOLERANCES["float32"][0]
    assert peaks["copy in memory, GB/s"]["rate"] > 0
    for row in (*full.values(), *more.values()):
        assert 0 < row["least_seconds"] <= row["seconds"] <= row["most_seconds"]
        assert row["compiled_peak_bytes"] > 1e6 and row["moved_bytes"] > 1e6
        assert "ceiling_seconds" not in row  # of a CPU none is known
    assert "no ceiling is known for this device" in text
    step = full["small, bfloat16, batch 32"]["images_per_second"]
    read, trained, sent = images.values()
    assert read["of_step"] == pytest.approx(read["images_per_second"] / step)
    assert trained["images_per_second"] > 0 and sent["images_per_second"] > 0
    assert len(norms) == 22
    for name, row in norms.items():
        most = 0.004 if "bfloat16" in name else 1e-6
        assert row["value_error"] < most and row["gradient_error"] < most


def test_xla_takes_the_options_for_gpus():
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert lowered.compile(device.DETERMINISTIC | device.UNTUNED)(1.0) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_deterministic_ops"):
        lowered.compile(dict.fromkeys(device.DETERMINISTIC, "true"))


def outcome(losses=(2.0, 1.0), weight=0.5):
    params = {"a": np.full((2, 4), weight, np.float32)}
    return list(losses), TrainState(0, params, {}, {}, 1.0, 0)


@pytest.mark.parametrize(
    "found,arithmetic,rounding,agrees",
    [
        (outcome(), "float32", (0, 0), True),
        (outcome(losses=(2.0, 1.000005)), "float32", (0, 0), True),
        (outcome(losses=(2.0, 1.00005)), "float32", (0, 0), False),
        (outcome(losses=(2.0, 1.00005)), "float32", (2e-5, 0), True),
        (outcome(losses=(2.0, 1.00005)), "float32", (1e-5, 0), False),
        (outcome(losses=(2.0, 1.00005)), "bfloat16", (0, 0), True),
        (outcome(losses=(2.0, float("nan"))), "bfloat16", (0, 0), False),
        # The updates were of 0.5.
        (outcome(weight=0.501), "float32", (0, 0), True),
        (outcome(weight=0.505), "float32", (0, 0), False),
        (outcome(weight=0.505), "float32", (0, 0.004), True),
        (outcome(weight=0.505), "float32", (0, 0.003), False),
        (outcome(weight=0.505), "high", (0, 0), True),
        (outcome(weight=0.7), "bfloat16", (0, 0), False),
    ],
)
def test_a_perturbed_step_is_noticed(found, arithmetic, rounding, agrees):
    _, first = outcome(weight=0.0)
    row = device.compare(found, outcome(), first, arithmetic, rounding)
    assert row["agrees"] is agrees
    weight = found[1].params["a"][0, 0]
    assert row["update_difference"] == pytest.approx(abs(weight - 0.5) / 0.5, rel=1e-4)


def test_rounding_moves_each_weight_to_a_neighbour():
    weights = np.float32(np.random.default_rng(0).standard_normal((40, 50)))
    first = TrainState(0, {"a": weights}, {}, {}, 1.0, 0)
    moved = device.rounded(first).params["a"]
    steps = moved.view(np.int32) - weights.view(np.int32)
    assert set(np.unique(steps)) == {-1, 1} and moved.dtype == np.float32
    assert abs(steps.mean()) < 0.1


def test_bits_are_compared_and_not_numbers():
    assert device.same_bits(outcome(), outcome())
    assert not device.same_bits(outcome(), outcome(weight=np.nextafter(np.float32(0.5), 1)))
    assert not device.same_bits(outcome(), outcome(losses=(2.0, np.nextafter(1.0, 2))))
    assert not device.same_bits(outcome(weight=0.0), outcome(weight=-0.0))
    assert device.same_bits(outcome(weight=np.nan), outcome(weight=np.nan))


def decaying_step(decay):
    """A step without a network, whose parameters and batches decide its losses."""
    step = device.Step.__new__(device.Step)
    step.config = device.network("small", batch=2)
    step.placement = device.place("vmap", jax.devices()[:1])
    zeros = np.zeros(2, np.float32)
    params = {"a": {"kernel": np.ones((2, 3), np.float32)}}
    step.first = TrainState(np.zeros(2, np.int32), params, {}, {"velocity": zeros}, zeros, zeros)

    def compiled(state, batch):
        kernel = decay * state.params["a"]["kernel"] + batch["colour"][0, 0]
        new = dataclasses.replace(state, step=state.step + 1, params={"a": {"kernel": kernel}})
        return new, {"loss": kernel[0, 0]}

    step.compiled = compiled
    return step


def test_a_resumed_run_goes_on_from_the_disk(monkeypatch):
    step = decaying_step(0.5)
    whole = step.run()
    assert len(set(whole[0])) == device.STEPS and whole[1].step.tolist() == [device.STEPS] * 2
    assert device.same_bits(step.resumed(), whole)
    restore = device.Checkpoints.restore

    def changed(self, *args):
        state, extra = restore(self, *args)
        kernel = state.params["a"]["kernel"] + np.float32(1e-3)
        return dataclasses.replace(state, params={"a": {"kernel": kernel}}), extra

    monkeypatch.setattr(device.Checkpoints, "restore", changed)
    assert not device.same_bits(step.resumed(), whole)


def with_ceiling(kind, arithmetic, monkeypatch, **changes):
    """The row of a step that takes 10 ms on a device of this kind."""
    needs = Compiled("training", 128, 10**9, 10**9, 7, {"lrn": 2.4e9}, {}, {}, 6.69e11, ())
    needs = dataclasses.replace(needs, **changes)
    monkeypatch.setattr(device, "count", lambda *args: needs)
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(device_kind=kind)]))
    step = types.SimpleNamespace(
        config=device.network("article", arithmetic, 128), program=None, compiled=None,
        placement=types.SimpleNamespace(mesh=mesh),
    )  # fmt: skip
    return device.ceiling(step, 0.01)


def test_a_known_device_has_a_ceiling_and_another_has_none(monkeypatch):
    # 2.4 GB at 4.8 TB/s take 0.5 ms, 6.69e11 operations in float32 at 66.9 TFLOP/s 10 ms.
    row = with_ceiling("NVIDIA H200", "bfloat16", monkeypatch, operations=1e11)
    assert (row["limited_by"], row["compiled_peak_bytes"]) == ("memory traffic", 2e9)
    assert row["ceiling_seconds"] == pytest.approx(5e-4) and row["share"] == pytest.approx(0.05)
    row = with_ceiling("NVIDIA H200", "float32", monkeypatch)
    assert row["limited_by"] == "arithmetic" and row["share"] == pytest.approx(1.0)
    row = with_ceiling("NVIDIA GeForce GTX 580", "float32", monkeypatch)
    assert row == {"moved_bytes": 2.4e9, "compiled_peak_bytes": 2e9}


def test_the_page_says_how_near_to_its_ceiling_a_step_is(monkeypatch):
    row = with_ceiling("NVIDIA H200", "bfloat16", monkeypatch, operations=1e11) | {
        "name": "article, bfloat16, batch 128", "seconds": 0.01, "images_per_second": 12800.0,
        "peak_bytes": 3e9, "agrees": False, "loss_difference": 0.5,
    }  # fmt: skip
    exact = {"name": "vmap, float32", "agrees": True, "loss_difference": 1.25e-7}
    reading = {"name": "files", "images_per_second": 6400.0, "of_step": 0.5}
    sections = [device_page.SMALL, device_page.FULL, device_page.INPUT]
    parts = dict(zip((s.title for s in sections), ([exact], [row], [reading]), strict=True))
    about = {"devices": "1 x NVIDIA H200", "text": "today"}
    result = {"about": about, "seconds": 9, "limit": 600, "parts": parts, "failures": {"a": "b"}}
    text = device_page.page(result, sections)
    assert text.startswith("# First hour: 1 x NVIDIA H200\n\ntoday\nTook 9 of 600 seconds.\n")
    for line in (
        "| Small network: losses and updates are those of the CPU | yes | "
        "in float32 to 1.2e-07 of a loss |",
        "| Full network: losses and updates are those of the CPU | **no**, 1 of 1 | "
        "not: article, bfloat16, batch 128 |",
        "| Training: article, bfloat16, batch 128 | 12,800 images/s | 10.000 ms per step; 5% of "
        "the ceiling by memory traffic; 3.00 GB in use at the peak, 2.00 GB as compiled |",
        "| Input: files | 6,400 images/s | 0.50 of what the step takes: reading limits training |",
        "| Not done | 1 | named at the end of this page |",
        "| article, bfloat16, batch 128 | 10.000 | 12,800 | 0.500 | memory traffic | 5% |",
        "- a: b",
    ):
        assert line in text.splitlines(), line


def section(title):
    return device_page.Section(title, "", (("seconds",),))


def test_what_fails_or_does_not_fit_is_named_and_the_others_go_on(monkeypatch, tmp_path):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(device.time, "monotonic", lambda: now.seconds)

    def takes(seconds, error=None):
        def work():
            now.seconds += seconds
            if error:
                raise error
            return {"seconds": seconds}

        return work

    def first(machine):
        yield "a", takes(10.0)
        yield "b", takes(30.0, ValueError("what went wrong\nand a trace"))
        yield "c", takes(5.0)

    def broken(machine):
        raise ImportError("no TensorFlow")
        yield

    def last(machine):
        yield "d", takes(20.0)
        yield "e", takes(20.0)  # At 65 of 80 seconds: as long as the one before, it would not fit.

    parts = [(section("one"), first), (section("two"), broken), (section("three"), last)]
    machine = device.Machine(jax.devices()[:1])
    text = device.carry_out(parts, machine, 80.0, tmp_path)
    result = json.loads((tmp_path / "device.json").read_text())
    assert (tmp_path / "device.md").read_text() == text
    found = {title: [row["name"] for row in rows] for title, rows in result["parts"].items()}
    assert found == {"one": ["a", "c"], "two": [], "three": ["d"]}
    assert result["failures"] == {
        "one: b": "ValueError: what went wrong",
        "two": "ImportError: no TensorFlow",
        "three: e": "TimeoutError: no time was left",
    }
    assert text.endswith(
        "## Not done\n\n- one: b: ValueError: what went wrong\n- two: ImportError: no TensorFlow\n"
        "- three: e: TimeoutError: no time was left\n"
    )


@pytest.mark.parametrize("count,names", [(1, []), (2, ["mesh 1 x 2"]), (5, ["mesh 2 x 2"])])
def test_a_mesh_has_as_many_devices_as_make_pairs(count, names):
    machine = device.Machine(jax.devices()[:count])
    small = [name for name, _ in device.small_network(machine)]
    full = [name for name, _ in device.full_network(machine, device.FIRST)]
    assert [n.partition(",")[0] for n in small if n.startswith("mesh")] == names
    wanted = [f"article, bfloat16, batch {128 * (count // 2)}, {n}" for n in names]
    assert full == ["article, bfloat16, batch 128", "article, float32, batch 128", *wanted]
    assert device.place("mesh", jax.devices()[: max(count, 2)]).mesh.devices.size == max(
        count // 2 * 2, 2
    )
