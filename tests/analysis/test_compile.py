"""Programs for other devices: what is said of one, without compiling it."""

import json
import re
import types

import jax
import pytest

from alexnet_jax.analysis import compile as ahead
from alexnet_jax.analysis import targets, traffic
from alexnet_jax.analysis.traffic import Moved, moved
from alexnet_jax.cli.main import main
from alexnet_jax.config import presets, table
from alexnet_jax.errors import UsageError
from alexnet_jax.parallel import hlo
from alexnet_jax.parallel.placement import arrange
from tests.support import tiny_config


@pytest.mark.parametrize(
    "name,says",
    [
        ("b200:2", "no such device; use one of h100, h200, a100"),
        ("h100", "say how many, such as h100:2"),
        ("h100:0", "say how many"),
        ("rtx4090:2x2", "say how many, such as rtx4090:2"),
        ("v5e", "say which grid, such as v5e:2x2"),
        ("v5e:4", "say which grid, such as v5e:2x2"),
        ("v5p:2", "say which grid, such as v5p:2x2x1"),
        ("", "no such device"),
    ],
)
def test_a_target_that_does_not_exist_is_answered_with_what_to_type(name, says):
    with pytest.raises(UsageError, match=rf"--compile={name}: .*{re.escape(says)}"):
        targets.target(name)


def test_targets_are_described_as_xla_wants_them():
    pair, slice_ = targets.target("a100:2"), targets.target("v5p:2x2x1")
    assert (pair.topology, slice_.topology) == ("1x1x2", "v5p:2x2x1")
    assert (pair.grid, slice_.grid) == ((2,), (2, 2, 1))
    assert "memory_bandwidth: 2039000000000\n" in pair.config
    assert "cuda_compute_capability { major: 8 minor: 0 }" in pair.config
    for device in targets.DEVICES.values():
        assert device.peak["bfloat16"] >= device.peak["default"] >= device.peak["float32"]


@pytest.mark.parametrize("name,extra", [("h100:2", "compile-cuda"), ("v5e:2x2", "compile-tpu")])
def test_without_the_compilers_one_line_says_what_to_install(name, extra, monkeypatch, capsys):
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda module: None)
    assert main(["inspect", "--config=quickstart", f"--compile={name}"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert f"pip install 'alexnet-jax[{extra}]'" in err and "0.7 GB" in err


@pytest.mark.parametrize(
    "kind,name",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        # Others of the same name have other peaks.
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_a_device_at_hand_is_found_by_what_jax_calls_it(kind, name):
    assert targets.known(kind) is (targets.DEVICES[name] if name else None)


PROGRAM = ahead.Compiled(
    name="training", batch=128, arguments=500, scratch=100, kernels=7,
    traffic={"lrn": 4e9, "exchange": 1e9}, exchanged={"fc6": 3e9}, expected={"fc6": 3e9},
    operations=8e12, warnings=("a copy of 12 MB, copy.1",),
)  # fmt: skip


def test_ceilings_are_peaks_and_the_slowest_counts():
    device = targets.DEVICES["v5e"]
    limits = PROGRAM.limits(device, peak=4e12)
    assert limits == pytest.approx(
        {"memory traffic": 5 / 819, "arithmetic": 2.0, "exchange": 3 / 50}
    )
    config = presets.get("paper")
    config.model.compute_dtype = "bfloat16"
    data = ahead.as_data(PROGRAM, config, device)
    assert data["peak"] == 600 and data["fits"]
    # 8e12 operations at 197e12 a second take 0.04 s, less than 3 GB over a link of 50 GB/s.
    assert data["limited_by"] == "exchange"
    assert data["ceiling_images_per_second"] == pytest.approx(128 * 50 / 3)
    json.dumps(data)
    # Of float32 the precision decides.
    config.model.compute_dtype = "float32"
    peaks = {}
    for precision in ("default", "high", "highest"):
        config.model.precision = precision
        peaks[precision] = ahead.as_data(PROGRAM, config, device)["peak_operations"]
    # One, three and six passes of bfloat16 on a TPU.
    assert peaks["high"] == pytest.approx(peaks["default"] / 3)
    assert peaks["highest"] == pytest.approx(peaks["default"] / 6)
    pair = targets.target("h100:2").device
    assert pair.peak_of("float32", "high") == pair.peak_of("float32", "default") == 494.7e12


def test_the_text_says_what_was_counted_and_that_nothing_ran():
    config = presets.get("paper")
    config.model.compute_dtype = "bfloat16"
    found = {
        "target": "v5e:2x2", "device": "TPU v5e", "devices": 4, "placement": "mesh 2 x 2",
        "jax": "0.10.1", "compute_dtype": "bfloat16", "memory": 16 * 2**30, "largest_batch": 71_234,
        "programs": [ahead.as_data(PROGRAM, config, targets.DEVICES["v5e"])],
    }  # fmt: skip
    text = ahead.text_of(found)
    words = " ".join(text.split())
    for part in (
        "Nothing has run", "in all 5,000.0", "exchange 60.000 2,133",
        "warning: a copy of 12 MB, copy.1", "about 71,000", "ceiling: 2,133 images/s, by exchange",
    ):  # fmt: skip
        assert part in words, part
    assert "speed" not in text


def test_kernels_are_counted_by_what_they_do():
    kernels = [
        Moved("fusion", "a", 1.0, "jit(step)/jvp(Tower)/conv1/lrn/mul"),
        Moved("fusion", "b", 2.0, "jit(step)/jvp(Tower)/conv1/conv1._layer/conv"),
        Moved("while/fusion", "c", 4.0, "jit(step)/jvp(Tower)/fc6/dot"),
        Moved("all-reduce-start", "d", 8.0, "jit(step)/psum"),
        Moved("copy", "e", 16.0, ""),
        Moved("fusion", "f", 32.0, "jit(step)/mul"),
        Moved("fusion", "g", 64.0, "jit(step)/transpose(jvp(Tower))/conv5/max_pool/select"),
    ]
    assert traffic.by_kind(kernels) == {
        "max_pool": 64.0, "update and checks": 32.0, "copies": 16.0, "exchange": 8.0,
        "dense layers": 4.0, "convolutions": 2.0, "lrn": 1.0,
    }  # fmt: skip


SUSPECT = """HloModule m

%branch (a: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} parameter(0)
}

%inner (p: bf16[64,55,55,48]) -> f32[64,55,55,48] {
  %p = bf16[64,55,55,48]{3,2,1,0} parameter(0)
  ROOT %wide = f32[64,55,55,48]{3,2,1,0} convert(%p)
}

ENTRY %main (x: bf16[64,55,55,48], y: f32[8], w: f32[4096,2048], z: pred[]) -> f32[8] {
  %x = bf16[64,55,55,48]{3,2,1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %w = f32[4096,2048]{1,0} parameter(2)
  %z = pred[] parameter(3)
  %maps = f32[64,55,55,48]{3,2,1,0} fusion(%x), calls=%inner, metadata={op_name="lrn"}
  %turned = f32[4096,2048]{0,1} copy(%w)
  %of_conv = bf16[64,55,55,48]{0,1,2,3} copy(%x), metadata={op_name="f/conv1/conv"}
  %fetch = (f32[4096,2048]{1,0:S(1)}, f32[4096,2048]{1,0}, u32[]) copy-start(%w)
  %near = f32[4096,2048]{1,0:S(1)} copy-done(%fetch)
  %store = (f32[4096,2048]{1,0}, f32[4096,2048]{1,0:S(1)}, u32[]) copy-start(%near)
  ROOT %r = f32[8]{0} conditional(%z, %y, %y), branch_computations={%branch, %branch}
}
"""


def test_a_compiled_step_is_counted_wherever_it_runs():
    config = tiny_config()
    config.placement = "pmap"
    placement = arrange(config, jax.devices())
    sizes = {"argument": 700, "output": 500, "alias": 400, "temp": 30}
    memory = types.SimpleNamespace(**{f"{k}_size_in_bytes": v for k, v in sizes.items()})
    compiled = types.SimpleNamespace(as_text=lambda: SUSPECT, memory_analysis=lambda: memory)
    program = ahead.Program("training", config.batch_size, None, {"fc6": 8.0}, 3)
    found = ahead.count(program, compiled, config, placement)
    assert (found.arguments, found.scratch, found.peak) == (800, 30, 830)
    assert found.bytes == sum(kernel.bytes for kernel in moved(hlo.parse(SUSPECT)))
    assert (found.exchanged, found.expected) == ({}, {"fc6": 8.0})
    rows = table.count(config.model, config.data.crop_size)
    # Three passes, but for the gradient of the images; half of it on each device.
    assert found.operations == (3 * sum(row.macs for row in rows) - rows[0].macs) * 32


def test_what_would_slow_a_step_is_named():
    program = hlo.parse(SUSPECT)
    kernels = traffic.moved(program)
    lines = traffic.warnings(program, kernels, "bfloat16")
    assert [line.partition(":")[0] for line in lines] == [
        "1 conditional",
        "a copy of 34 MB, turned",
        "37 MB of maps in float32, maps",
    ]
    assert len(traffic.warnings(program, kernels, "float32")) == 2
    for called in ("xla_ffi_python_cpu_callback", "xla_python_gpu_callback"):
        text = SUSPECT.replace(
            "fusion(%x), calls=%inner", f'custom-call(%x), custom_call_target="{called}"'
        )
        lines = traffic.warnings(hlo.parse(text), [], "float32")
        assert lines[1:] == ["a callback into Python"]
    other = SUSPECT.replace(
        "fusion(%x), calls=%inner", 'custom-call(%x), custom_call_target="__cudnn"'
    )
    assert len(traffic.warnings(hlo.parse(other), [], "float32")) == 1


def test_the_largest_batch_lies_on_a_line_through_two_peaks(monkeypatch):
    config = presets.get("paper")
    config.batch_size = 128
    target = targets.target("v5e:2x2")

    tried = []

    def training(config, placement, target):
        tried.append(config.batch_size)
        values = vars(PROGRAM) | {"batch": config.batch_size}
        # The update needs as much as 400 images do.
        scratch = max(config.batch_size, 400) * 10**6
        return ahead.Compiled(**values | {"arguments": 10**9, "scratch": scratch})

    monkeypatch.setattr(ahead, "training", training)
    placement = type("P", (), {"data_parallel": 2})
    for batch, expected in ((512, [2048]), (32, [128, 512])):
        config.batch_size = batch
        first = training(config, placement, target)
        tried.clear()
        most = ahead._largest_batch(config, placement, target, first)
        assert tried == expected and most % 2 == 0
        if batch == 512:
            assert most == pytest.approx((16 * 2**30 - 10**9) / 10**6, abs=2)


def test_the_largest_batch_is_one_that_fits_where_the_next_does_not(monkeypatch):
    config = presets.get("paper")
    config.batch_size = 128

    def training(config, placement, target):
        raise UsageError("does not fit")

    monkeypatch.setattr(ahead, "training", training)
    placement = type("P", (), {"data_parallel": 1})
    assert ahead._largest_batch(config, placement, targets.target("v5e:2x2"), PROGRAM) == 128
