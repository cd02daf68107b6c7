"""What devices send each other in a training step: by arithmetic, and in the compiled program.

Counted is what one device receives, which is what it sends. An all-gather or reduce-scatter over g
devices moves (g - 1) / g of the whole, an all-reduce twice that (a ring: Patarasuk and Yuan 2009),
a permutation the piece itself.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import inputs as input_rules
from alexnet_jax import optim, parallel, train
from alexnet_jax.inspect import align
from alexnet_jax.models import table
from alexnet_jax.models import tower as towers
from alexnet_jax.state import init_state

GRADIENTS = "gradients"


@dataclasses.dataclass(frozen=True)
class Point:
    """One place where devices exchange something.

    Attributes:
      name: the layer, `LAYER lrn` for a normalization across towers, `finite_check` or `gradients`.
      axis: `tower`, `step` (over the towers, but once a step and not an image) or `data`.
      how: the collectives of the forward and the backward pass.
      forward: elements a device receives: an image over `tower`, else a step.
      backward: the same, in the backward pass.
    """

    name: str
    axis: str
    how: str
    forward: int
    backward: int

    @property
    def elements(self) -> int:
        """Both passes."""
        return self.forward + self.backward


def points(config: ConfigDict, data_parallel: int) -> list[Point]:
    """Every exchange of a step, from the table of layers.

    `data_parallel` is the number of parts that a batch is split into.
    """
    found = []
    for row in table.count(config.model, config.data.crop_size):
        if row.exchanged:
            n = row.exchanged
            if row.layer.last:
                found.append(Point(row.layer.name, parallel.TOWER, "all-reduce", n, 0))
            else:
                ways = ["all-gather", "reduce-scatter"]
                how = ", ".join(ways if row.layer.exchange == "inputs" else ways[::-1])
                found.append(Point(row.layer.name, parallel.TOWER, how, n, n))
        if row.halo:
            name = f"{row.layer.name} lrn"
            found.append(Point(name, parallel.TOWER, "permute", row.halo, row.halo))
    # Whether the gradients of each parameter, and the loss, are finite on every tower.
    if (count := config.model.towers) > 1:
        flags = 2 * len(config.model.layer_order) + 1
        found.append(Point(train.CHECK, "step", "all-reduce", 2 * flags * (count - 1) // count, 0))
    if data_parallel > 1:
        ring = ring_all_reduce(tower_parameters(config), data_parallel)
        found.append(Point(GRADIENTS, parallel.DATA, "all-reduce", 0, ring))
    return found


def tower_parameters(config: ConfigDict) -> int:
    """What one tower holds: half of all but the last bias, for two towers."""
    rows, count = table.count(config.model, config.data.crop_size), config.model.towers
    total, shared = sum(row.parameters for row in rows), rows[-1].out_shape[-1]
    return (total - shared) // count + shared


def ring_all_reduce(elements: int, devices: int) -> int:
    """What a device receives where `devices` add up `elements` numbers: both halves of a ring."""
    return 2 * math.ceil(elements * (devices - 1) / devices)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Another way to use the same devices, for the same network and global batch.

    Attributes:
      name: what it is called.
      gradients: elements of float32 gradients that one device receives in a step.
      activations: elements of activations and theirs, in the network's own type.
    """

    name: str
    gradients: int
    activations: int


def alternatives(config: ConfigDict, devices: int) -> list[Scheme]:
    """Plain data parallelism, and the hybrid of One weird trick (Krizhevsky 2014, section 4).

    In the hybrid every device convolves its share of the batch and holds 1/devices of each dense
    layer: the inputs and the outputs of those are gathered by all, their gradients reduced, and the
    convolutions' gradients added up.
    """
    rows = table.count(config.model, config.data.crop_size)
    parameters = sum(row.parameters for row in rows)
    dense = [row for row in rows if row.layer.kind == "dense"]
    convolutions = sum(row.parameters for row in rows if row.layer.kind != "dense")
    # Inputs of the dense layers there and back, and the outputs of the last.
    inputs = sum(math.prod(a.next_shape) for a, b in itertools.pairwise(rows) if b in dense)
    activations = 2 * inputs + rows[-1].out_shape[-1]
    images, others = config.batch_size, (devices - 1) / devices
    return [
        Scheme("data parallelism", ring_all_reduce(parameters, devices), 0),
        Scheme(
            "One weird trick",
            ring_all_reduce(convolutions, devices),
            math.ceil(images * activations * others),
        ),
    ]


# --------------------------------------------------------------------------- compiled


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange in a compiled program, once through.

    Attributes:
      name: the operation, such as `all-gather`.
      devices: how many take part together.
      elements: that one device receives.
      bytes: the same.
      scope: where in the source it comes from.
    """

    name: str
    devices: int
    elements: int
    bytes: int
    scope: str


_MOVED: dict[str, Callable[[int, int], float]] = {
    # From the elements of the result.
    "all-gather": lambda n, g: n * (g - 1) / g,
    "reduce-scatter": lambda n, g: n * (g - 1),
    "all-reduce": lambda n, g: 2 * n * (g - 1) / g,
    "all-to-all": lambda n, g: n * (g - 1) / g,
    "collective-permute": lambda n, g: n,
}
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%\S+ = (?P<type>\(.*?\)|\S+) (?P<name>" + "|".join(_MOVED) + r")"
    r"(?P<start>-start)?\((?P<rest>.*)$",
    re.M,
)
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")


def collectives(program: str, devices: int) -> list[Collective]:
    """The exchanges of a compiled program, from its HLO text.

    Args:
      program: `compiled.as_text()`.
      devices: that it runs on.
    """
    found = []
    for match in _INSTRUCTION.finditer(program):
        arrays = _ARRAY.findall(match["type"])
        if match["start"] and match["name"] in ("all-gather", "collective-permute"):
            arrays = arrays[1:2]  # beside its operand and what it needs to run
        size = _group_size(match["rest"], devices)
        if size == 1:
            continue
        moved = _MOVED[match["name"]]
        elements = bytes_ = 0.0
        for kind, shape in arrays:
            n = math.prod(int(side) for side in shape.split(",") if side)
            elements += moved(n, size)
            bytes_ += moved(n, size) * _width(kind)
        scope = re.search(r'op_name="([^"]*)"', match["rest"])
        found.append(
            Collective(
                match["name"], size, round(elements), round(bytes_), scope[1] if scope else ""
            )
        )
    return found


def _width(kind: str) -> float:
    return 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) / 8


def _group_size(text: str, devices: int) -> int:
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return groups[1].count(",") + 1
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(groups[1])
    if groups := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", text):
        sizes = dict(axis.split("=") for axis in groups[1].split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in groups[2].split(","))
    if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", text):
        # Of an odd number of towers one keeps what it has.
        return 2 if any(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])) else 1
    if "replica_groups={}" in text:
        return devices
    raise ValueError(f"unknown form of replica groups: {text}")


def compile_step(config: ConfigDict, placement: parallel.Placement) -> str:
    """The HLO text of the compiled training step of `config`; nothing is drawn, nothing runs."""
    tower = towers.build(config.model)
    data, size = config.data, config.batch_size
    inputs = input_rules.build(data, np.zeros((data.image_size, data.image_size, 3), np.float32))
    tx = optim.sgd_2012(config, steps_per_epoch=1000, num_steps=1000)
    step = train.make_train_step(config, tower, inputs, tx, placement, 1000)
    state = init_state(towers.shapes(tower, data.crop_size), tx)
    side = data.crop_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8),
        "colour": jax.ShapeDtypeStruct((size, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    return step.lower(state, batch).compile(placement.compiler_options()).as_text()


def by_point(found: Iterable[Collective], names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(elements, bytes) of the collectives at each point: once through the program.

    What comes from no layer is the sum over the parts of the batch, of gradients and three metrics.
    """
    sums = dict.fromkeys(names, (0, 0))
    for one in found:
        words = set(re.findall(r"\w+", one.scope))
        name = next(
            (name for name in reversed(sums) if set(name.split()) <= words and name != GRADIENTS),
            GRADIENTS,
        )
        elements, bytes_ = sums.get(name, (0, 0))
        sums[name] = (elements + one.elements, bytes_ + one.bytes)
    return sums


# --------------------------------------------------------------------------- as text


def report(config: ConfigDict) -> str:
    """What this run's devices exchange, by arithmetic and as compiled, beside other schemes."""
    placement = parallel.place(config)
    parts = placement.data_parallel
    devices = placement.mesh.devices.size
    images = config.batch_size // parts
    expected = points(config, parts)
    program = collectives(compile_step(config, placement), devices)
    # A program that accumulates holds its loop's exchanges once, for one part of the images.
    images_once = images // config.accumulate_steps
    compiled = by_point(program, [point.name for point in expected])
    width = jnp.dtype(config.model.compute_dtype).itemsize

    rows = [("point", "collectives", "elements", "bytes", "bytes as compiled")]
    between = [point for point in expected if point.axis == parallel.TOWER]
    for point in between:
        there = f"{point.forward:,}" + (f" + {point.backward:,}" if point.backward else "")
        measured = compiled[point.name][1] / images_once
        rows.append(
            (point.name, point.how, there, f"{point.elements * width:,}", f"{measured:,.0f}")
        )
    sums = [sum(point.elements for point in between)]
    sums.append(sum(compiled[point.name][1] for point in between) / images_once)
    rows.append(("towers", "an image", f"{sums[0]:,}", f"{sums[0] * width:,}", f"{sums[1]:,.0f}"))
    step, measured = sums[0] * width * images, sums[1] * images
    for point in expected:
        if point.axis != parallel.TOWER:
            n, seen = point.elements, compiled[point.name][1]
            rows.append((point.name, f"{point.how}, a step", f"{n:,}", f"{4 * n:,}", f"{seen:,}"))
            step, measured = step + 4 * n, measured + seen
    lines = align(rows, right=(2, 3, 4))
    lines.insert(1, "-" * len(lines[0]))

    each = f"batch {config.batch_size}: {images} images for each group of {config.model.towers}"
    head = f"{placement.describe()}; {each}, {config.model.compute_dtype}"
    if devices == 1 and config.model.towers > 1:
        head += "\nOne device holds every tower, so that nothing is sent; the figures are for two."
    shares = [("a step, for each device", "MB", "MB as compiled")]
    shares.append(("towers (this run)", f"{step / 1e6:,.1f}", f"{measured / 1e6:,.1f}"))
    for scheme in alternatives(config, max(devices, 2)):
        sent = 4 * scheme.gradients + width * scheme.activations
        shares.append((scheme.name, f"{sent / 1e6:,.1f}", "-"))
    below = align(shares, right=(1, 2))
    below.insert(1, "-" * len(below[0]))
    below += ["", "Received by one device, which sends as much; MB are 10^6 bytes."]
    others = config.model.towers - 1
    for row in table.count(config.model, config.data.crop_size):
        split = row.layer.features * others
        if row.layer.kind == "dense" and row.layer.exchange == "inputs" and split < row.exchanged:
            field = f"--config.model.layers.{row.layer.name}.exchange=partial_sums"
            below.append(f"{field} sends {2 * split:,} elements for {2 * row.exchanged:,}.")
    return "\n".join([head, "", *lines, "", *below])
