"""What XLA makes of the full network's train step, counted: no machine's noise is in it."""

import math
import re

import pytest

from alexnet_jax.analysis import bench
from alexnet_jax.config import presets

DIMS = re.compile(r"(\w+)\[([\d,]*)\]")


@pytest.fixture(scope="module", params=["vmap", "pmap"])
def compiled(request):
    """The compiled step of `paper` at batch 128, and for how much of the work it stands."""
    config = presets.get("paper")
    config.placement = request.param
    steps = bench.build(config)
    lowered = steps.train_step.lower(steps.state, steps.batch)
    program = lowered.compile(steps.placement.compiler_options())
    return program, 1 if request.param == "vmap" else 2


def sides(text):
    """`f32[128,55,55,48]` to its dimensions."""
    return [int(d) for d in DIMS.match(text)[2].split(",") if d]


def instructions(text):
    """(name, result, operation, operand names, attributes) of every instruction."""
    pattern = re.compile(
        r"^\s*(?:ROOT )?(%[\w.-]+) = (\w+\[[\d,]*\])\S* ([\w-]+)\(([^)]*)\)(.*)$", re.M
    )
    for name, result, operation, operands, attributes in pattern.findall(text):
        yield name, result, operation, re.findall(r"%[\w.-]+", operands), attributes


def multiply_adds(text):
    """Of all convolutions and matrix products, padding counted as any other pixel."""
    rows = list(instructions(text))
    shapes = {name: sides(result) for name, result, *_ in rows}
    total = 0
    for _, result, operation, operands, attributes in rows:
        if operation == "convolution":
            kernel = shapes[operands[1]]
            labels = re.search(r"dim_labels=\w+_(\w+)->", attributes)[1]
            total += math.prod(sides(result)) * math.prod(kernel) // kernel[labels.index("o")]
        elif operation == "dot":
            axes = re.search(r"lhs_contracting_dims={([\d,]*)}", attributes)[1]
            left = shapes[operands[0]]
            total += math.prod(sides(result)) * math.prod(left[int(a)] for a in axes.split(","))
    return total


def test_the_step_multiplies_as_often_as_the_paper_network(compiled):
    """Forward, twice that backward, and nothing for the gradient of the images."""
    program, parts = compiled
    forward, conv1 = 724_406_816, 55 * 55 * 96 * 11 * 11 * 3
    counted = parts * multiply_adds(program.as_text()) / 128
    assert counted == pytest.approx(3 * forward - conv1, rel=0.01)


def test_the_step_holds_nothing_slow(compiled):
    text = compiled[0].as_text()
    names = {operation for _, _, operation, _, _ in instructions(text)}
    assert {"convolution", "fusion"} <= names
    assert "scatter" not in names and "f64[" not in text
    windows = re.findall(r" convolution\(.*?window={size=(\S+)", text)
    assert windows and all(size.rstrip("}").count("x") == 1 for size in windows)


def test_the_step_needs_little_scratch_memory(compiled):
    """It was 1.16 GB per tower before the layers told XLA what to keep.

    All gradients are held until every one of them is known to be finite: 0.05 GB more.
    """
    program, parts = compiled
    towers = 2 // parts
    assert program.memory_analysis().temp_size_in_bytes < towers * 0.7e9
