"""What the compiled step sends, against the arithmetic of the two-tower network."""

import math
import re

import pytest

from alexnet_jax import parallel
from alexnet_jax.analysis.exchange import compile_step, lower_step
from alexnet_jax.cli.main import main
from alexnet_jax.config import presets
from alexnet_jax.parallel import exchange
from tests.support import placement_of, tiny_config

# Elements per image and tower, forward, from the shapes of the paper's section 3.5: the other half
# of 13 x 13 x 256 after pooling, of 6 x 6 x 256, of 4096; the logits.
CONV3, FC6, FC7, FC8 = 13 * 13 * 128, 6 * 6 * 128, 2048, 1000
HALF = 30_483_112  # parameters of a tower: half of all but the last bias, which both hold


def step(preset, kind, data, **changes):
    """The collectives of a compiled step at 2 images per pair, and their sum by point."""
    config = presets.get(preset)
    config.batch_size = 2 * data
    config.update_from_flattened_dict(changes)
    placement = placement_of(kind, data)
    text = compile_step(config, placement).as_text()
    found = exchange.collectives(text, placement.mesh.devices.size)
    points = exchange.points(config, data)
    return config, points, found, exchange.by_point(found, [point.name for point in points])


@pytest.mark.parametrize(
    "preset,kind,data,row_split",
    [
        ("article", "pmap", 1, False),
        ("paper", "mesh", 4, True),
        ("caffe", "mesh", 2, False),
    ],
)
def test_bytes_in_the_compiled_step_equal_the_formula(preset, kind, data, row_split):
    changes = {"model.layers.fc6.exchange": "partial_sums"} if row_split else {}
    _, points, found, compiled = step(preset, kind, data, **changes)
    fc6 = 2048 if row_split else FC6
    expected = {"conv3": 2 * CONV3, "fc6": 2 * fc6, "fc7": 2 * FC7, "fc8": FC8}
    if preset == "caffe":  # two channels of the neighbour, there and back
        expected |= {"conv1 lrn": 2 * 2 * 55 * 55, "conv2 lrn": 2 * 2 * 27 * 27}
    for name, elements in expected.items():
        # 2 images, float32.
        assert compiled.pop(name) == (2 * elements, 8 * elements), name
    # A flag for each of 8 layers' two gradients, and for the loss; once a step.
    assert compiled.pop("finite_check") == (17, 68)
    if data > 1:
        # Each device's part of one ring over all gradients and the three sums of the metrics: a
        # whole number of bytes, but not of elements.
        elements, bytes_ = compiled.pop("gradients")
        assert bytes_ == 4 * 2 * (HALF + 3) * (data - 1) / data
        assert abs(elements - bytes_ / 4) <= 0.5
    assert not compiled  # none at conv2, conv4, conv5 or anywhere else
    if row_split:
        assert sum(expected.values()) == 52_456
    expected |= {"finite_check": 17}
    if data > 1:
        expected |= {"gradients": math.ceil(2 * HALF * (data - 1) / data)}
    assert {point.name: point.elements for point in points} == expected
    # Devices talk in pairs, but for the sum over all pairs.
    assert {one.devices for one in found} == ({2, data} if data > 1 else {2})


def test_gradients_may_be_sent_in_half_the_bytes():
    config = presets.get("article")
    config.batch_size, config.gradient_sum_dtype = 4, "bfloat16"
    placement = placement_of("mesh", 2)
    (expected,) = [x for x in exchange.points(config, 2) if x.name == exchange.GRADIENTS]
    # Before XLA changes it: between CPU devices it sends bfloat16 as float32.
    program = lower_step(config, placement).as_text("hlo", debug_info=True)
    found = exchange.by_point(exchange.collectives(program, 4), [x.name for x in exchange.points(
        config, 2)])  # fmt: skip
    # Each device's part of one ring, and the three sums of the metrics in float32.
    assert expected.bytes == pytest.approx(2 * HALF, abs=2)
    assert found["gradients"][1] == expected.bytes + 4 * 3


def test_one_device_sends_nothing():
    config = tiny_config()
    placement = placement_of("vmap")
    text = compile_step(config, placement).as_text()
    assert "convolution" in text and exchange.collectives(text, 1) == []


def test_parts_of_a_batch_exchange_as_much_in_all():
    whole = step("article", "mesh", 2)
    parts = step("article", "mesh", 2, accumulate_steps=2)
    for name in ("conv3", "fc6", "fc7", "fc8"):
        assert whole[3][name][0] == 2 * parts[3][name][0]  # the loop's body, run twice
    assert whole[3]["gradients"] == parts[3]["gradients"]


def test_other_schemes_by_hand():
    config = presets.get("article")
    config.batch_size = 128
    data, hybrid = exchange.alternatives(config, 2)
    assert (data.gradients, data.activations) == (60_965_224, 0)
    # Gathering 9,216 + 4,096 + 4,096 inputs and 1,000 logits, half of which are a device's own.
    assert hybrid.gradients == 2_334_080
    assert hybrid.activations == 128 * (2 * (9216 + 4096 + 4096) + 1000) / 2
    data, hybrid = exchange.alternatives(config, 8)
    assert data.gradients == pytest.approx(60_965_224 * 2 * 7 / 8, abs=2)


def test_the_report_is_read_at_a_glance(capsys, monkeypatch):
    monkeypatch.setattr(parallel, "prepare_host", lambda config: None)
    flags = ["--config=experiments/quickstart.py", "--exchange", "--config.placement=mesh"]
    assert main(["inspect", *flags]) == 0
    text = capsys.readouterr().out
    assert "mesh 4 x 2" in text and "One weird trick" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    rows = [re.split(r"  +", line) for line in text.splitlines()]
    for row in rows:
        if row[0] in ("conv3", "fc6", "fc7", "fc8"):
            assert row[3] == row[4], row
