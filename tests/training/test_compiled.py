"""What XLA makes of the full network's train step, counted: no machine's noise is in it."""

import math
import re

import pytest

from alexnet_jax.analysis.exchange import compile_step
from alexnet_jax.config import presets
from tests.support import placement_of

DIMS = re.compile(r"(\w+)\[([\d,]*)\]")


PASSES = {"conv1": 2}
"""Forward, and backward for the kernels and the inputs, but for the images: 3 elsewhere."""


@pytest.fixture(
    scope="module",
    params=[("pmap", True), ("vmap", False)],
    ids=["pmap", "vmap-direct"],
)
def compiled(request):
    """The compiled step of `paper` at batch 128, its share of the work, and whether it has loops.

    By Winograd's algorithm convolutions are products of matrices in loops over parts of the batch.
    """
    config = presets.get("paper")
    config.placement, config.model.winograd = request.param
    program = compile_step(config, placement_of(config.placement))
    return program, 1 if config.placement == "vmap" else 2, config.model.winograd


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
    shapes = {name: sides(result) for name, result, *_ in instructions(text)}
    blocks = re.findall(r"^(ENTRY )?%(\S+) \(.*?\n}", text, re.M | re.S)
    bodies = dict(re.findall(r"^(?:ENTRY )?%(\S+) (\(.*?\n})", text, re.M | re.S))

    def of(block):
        total = 0
        for _, result, operation, operands, attributes in instructions(bodies[block]):
            if operation == "convolution":
                kernel = shapes[operands[1]]
                labels = re.search(r"dim_labels=\w+_(\w+)->", attributes)[1]
                total += math.prod(sides(result)) * math.prod(kernel) // kernel[labels.index("o")]
            elif operation == "dot":
                axes = re.search(r"lhs_contracting_dims={([\d,]*)}", attributes)[1]
                left = shapes[operands[0]]
                total += math.prod(sides(result)) * math.prod(left[int(a)] for a in axes.split(","))
        for line in bodies[block].splitlines():
            times = re.search(r'"known_trip_count":{"n":"(\d+)"}', line)
            for name in re.findall(
                r"(?:calls|body|to_apply|branch_computations)={?%([^\s,}]+)", line
            ):
                total += of(name) * (int(times[1]) if times else 1)
        return total

    return of(next(name for entry, name in blocks if entry))


def multiply_adds_of_the_paper(winograd):
    """Per image, all passes: each tile of Winograd's algorithm has a product per point."""
    layers = {  # outputs, tiles and points of a side, channels of an input, kernels, towers
        "conv1": (55, 11, 11, 7, (3, 48), 96),
        "conv2": (27, 5, 7, 8, (48, 48), 256),
        "conv3": (13, 3, 3, 7, (256, 256), 384),
        "conv4": (13, 3, 3, 7, (192, 192), 384),
        "conv5": (13, 3, 3, 7, (192, 192), 256),
    }
    total = 3 * (9216 * 4096 + 4096 * 4096 + 4096 * 1000)
    for name, (side, kernel, tiles, points, channels, kernels) in layers.items():
        direct, fast = side**2 * kernel**2 * channels[0], tiles**2 * points**2 * channels[1]
        total += PASSES.get(name, 3) * (fast if winograd else direct) * kernels
    return total


def test_the_step_multiplies_as_often_as_the_paper_network(compiled):
    """Forward, twice that backward, and nothing for the gradient of the images."""
    program, parts, winograd = compiled
    counted = parts * multiply_adds(program.as_text()) / 128
    assert multiply_adds_of_the_paper(False) == 3 * 724_406_816 - 55 * 55 * 96 * 11 * 11 * 3
    assert counted == pytest.approx(multiply_adds_of_the_paper(winograd), rel=0.01)


def test_the_step_holds_nothing_slow(compiled):
    program, _, winograd = compiled
    text = program.as_text()
    names = {operation for _, _, operation, _, _ in instructions(text)}
    assert ("convolution" in names) == (not winograd)
    assert "fusion" in names and "scatter" not in names and "f64[" not in text
    windows = re.findall(r" convolution\(.*?window={size=(\S+)", text)
    assert all(size.rstrip("}").count("x") == 1 for size in windows)


def test_the_step_needs_little_scratch_memory(compiled):
    """It was 1.16 GB per tower before the layers told XLA what to keep.

    All gradients are held until every one of them is known to be finite: 0.05 GB more.
    """
    program, parts, _ = compiled
    towers = 2 // parts
    assert program.memory_analysis().temp_size_in_bytes < towers * 0.7e9
