"""The script for a machine with a GPU runs whole on a CPU, without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import device

ROOT = Path(__file__).parents[1]
SCRIPT = """
import runpy, sys
sys.modules |= dict.fromkeys(("tensorflow", "tensorflow_datasets", "sklearn", "tqdm"))
sys.argv = ["device", "--small", "--tune", "--seconds=900", "--out", sys.argv[1]]
runpy.run_module("benchmarks.device", run_name="__main__")
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder with what the script wrote."""
    out = tmp_path_factory.mktemp("device")
    flags = "--xla_force_host_platform_device_count=2"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", SCRIPT, out], cwd=ROOT, env=env, check=True, timeout=900)
    return out


def test_every_part_is_on_the_page_and_nothing_failed(page):
    result = json.loads((page / "device.json").read_text())
    assert result["failures"] == {}
    text = (page / "device.md").read_text()
    for title, rows in result["parts"].items():
        assert rows and f"## {title}" in text
        assert not any("failed" in row for row in rows)
    small, full, timed, again, norms = result["parts"].values()
    assert {row["name"].split(" on ")[0] for row in small[:1]} == {"small network"}
    # Two devices: the placements agree with each other, and bfloat16 is farther away.
    assert len(small) == 4 and all(row["loss_difference"] < 1e-5 for row in small[1:])
    assert full[-1]["name"].endswith("bfloat16") and 0 < full[-1]["loss_difference"] < 0.05
    assert all(0 < row["least"] <= row["seconds"] <= row["most"] for row in timed)
    assert all(row["same_bits"] and row["resumed_bits"] for row in again)
    for row in norms:
        for form in row["forms"].values():
            assert form["value_error"] < 0.004 and form["gradient_error"] < 0.004
            assert form["value_error"] < 1e-6 or "bfloat16" in row["name"]
    assert "kernel 2048 x 8" in norms[0]["forms"]


def test_what_is_compared_with_is_the_loop_of_the_paper():
    x, g = np.random.default_rng(0).normal(size=(2, 1, 1, 2, 7))
    constants = device.LRN | dict(alpha=0.3)
    value, gradient = device.reference_norm(x, g, constants)

    def loop(x):
        y = np.empty_like(x)
        for where in np.ndindex(x.shape):
            i = where[-1]
            near = x[(*where[:-1], slice(max(0, i - 2), i + 3))]
            y[where] = x[where] / (2 + 0.3 * np.sum(near**2)) ** 0.75
        return y

    np.testing.assert_allclose(value, loop(x), rtol=1e-12)
    for where in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[where] = 1e-6
        slope = np.sum(g * (loop(x + step) - loop(x - step))) / 2e-6
        np.testing.assert_allclose(gradient[where], slope, atol=1e-8)


def test_the_plain_forms_are_those_of_a_cpu():
    import jax

    def fn(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x + 1, cuda=lambda x: x + 2)

    def other(x):
        return jax.lax.platform_dependent(x, cuda=lambda x: x + 2, default=lambda x: x + 3)

    before = jax.lax.platform_dependent
    with device.plain_forms():
        assert (fn(0), other(0)) == (1, 3)
    assert jax.lax.platform_dependent is before


def test_after_its_time_a_program_is_named_and_left_out():
    compiler = device.Compiler(0.0, 0.0, 1, None)
    compiler.add("late", None)
    assert compiler.get("late") is None and "time" in compiler.failed["late"]
    with pytest.raises(TimeoutError):
        compiler.check()
