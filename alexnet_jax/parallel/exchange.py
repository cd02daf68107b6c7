"""What devices send each other in a training step: by arithmetic, and in the compiled program.

Counted is what one device receives, which is as much as it sends. An all-gather or reduce-scatter
over g devices moves (g - 1) / g of the whole, an all-reduce twice that (a ring: Patarasuk and Yuan
2009), a permutation the array itself.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable

import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import table
from alexnet_jax.model.precision import widened
from alexnet_jax.parallel import hlo

GRADIENTS = "gradients"
CHECK = "finite_check"
"""The scope of the one exchange that belongs to no layer: whether every gradient is finite."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One place where devices exchange something.

    Attributes:
      name: the layer, `LAYER OPERATION` for what follows it, `finite_check` or `gradients`.
      axis: `tower`, `step` (over the towers, but once per step and not per image) or `data`.
      how: the collectives of the forward and the backward pass.
      forward: elements that a device receives, per image over `tower`, otherwise per step.
      backward: the same, in the backward pass.
      forward_width: bytes per element in the forward pass.
      backward_width: the same, in the backward pass.
    """

    name: str
    axis: str
    how: str
    forward: int
    backward: int
    forward_width: int = 4
    backward_width: int = 4

    @property
    def elements(self) -> int:
        """Both passes."""
        return self.forward + self.backward

    @property
    def bytes(self) -> int:
        """Both passes."""
        return self.forward * self.forward_width + self.backward * self.backward_width


def points(config: ConfigDict, data_parallel: int) -> list[Point]:
    """Every exchange of a step, from the table of layers.

    Activations and their gradients are exchanged in the network's type; partial sums, in the
    forward pass, in at least float32. The backward pass ends at the first layer that is trained. An
    operation with running statistics is taken to sum as many numbers over the parts of the batch as
    it keeps.

    Args:
      config: the run.
      data_parallel: number of parts into which a batch is split.
    """
    dtype = jnp.dtype(config.model.compute_dtype)
    narrow, wide = dtype.itemsize, widened(dtype).itemsize
    found, trained_before, gradients = [], False, 0
    for row in table.count(config.model, config.data.crop_size):
        name, n = row.layer.name, row.exchanged
        trained = trained_before or name not in config.freeze
        if n and row.layer.last:
            found.append(Point(name, parallel.TOWER, "all-reduce", n, 0, wide))
        elif n and row.layer.exchange == "inputs":
            how, back = "all-gather, reduce-scatter", n if trained_before else 0
            found.append(Point(name, parallel.TOWER, how, n, back, narrow, narrow))
        elif n:
            how, back = "reduce-scatter, all-gather", n if trained else 0
            found.append(Point(name, parallel.TOWER, how, n, back, wide, narrow))
        for op, n in row.halos:
            back = n if trained else 0
            found.append(Point(f"{name} {op}", parallel.TOWER, "permute", n, back, narrow, narrow))
        gradients += 2
        for op, operation in zip(row.layer.then, row.layer.operations, strict=True):
            gradients += len(operation.parameters())
            n = ring_all_reduce(row.layer.features, data_parallel) * len(operation.statistics())
            if n and name not in config.freeze:
                # What is kept of a batch is summed over its parts, and so is its gradient.
                where = f"{name} {op}"
                found.append(Point(where, parallel.DATA, "all-reduce", n, n, wide, wide))
        trained_before = trained
    # Whether the gradients of each parameter, and the loss, are finite on every tower.
    if (count := config.model.towers) > 1:
        flags = 2 * (gradients + 1) * (count - 1) // count
        found.append(Point(CHECK, "step", "all-reduce", flags, 0))
    if data_parallel > 1:
        ring = ring_all_reduce(trained_parameters(config), data_parallel)
        width = jnp.dtype(config.gradient_sum_dtype).itemsize
        found.append(Point(GRADIENTS, parallel.DATA, "all-reduce", 0, ring, width, width))
    return found


def trained_parameters(config: ConfigDict) -> int:
    """Number of parameters of one tower that are not frozen; each has the whole last bias."""
    rows, towers = table.count(config.model, config.data.crop_size), config.model.towers
    total = 0
    for row in rows:
        if row.layer.name not in config.freeze:
            shared = row.out_shape[-1] if row.layer.last else 0
            total += (row.parameters - shared) // towers + shared
    return total


def ring_all_reduce(elements: int, devices: int) -> int:
    """What a device receives while `devices` add up `elements` numbers: both halves of a ring."""
    return 2 * math.ceil(elements * (devices - 1) / devices)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Another way to use the same devices, for the same network and global batch.

    Attributes:
      name: as the table shows it.
      gradients: elements of float32 gradients that one device receives in a step.
      activations: elements of activations and their gradients, in the network's own type.
    """

    name: str
    gradients: int
    activations: int


def alternatives(config: ConfigDict, devices: int) -> list[Scheme]:
    """Plain data parallelism, and the hybrid of One weird trick (Krizhevsky 2014, section 4).

    In the hybrid every device convolves its share of the batch and has 1/devices of each dense
    layer: every device gathers the inputs and the outputs of the dense layers, their gradients are
    reduced, and the gradients of the convolutions are added up.
    """
    rows = table.count(config.model, config.data.crop_size)
    parameters = sum(row.parameters for row in rows)
    dense = [row for row in rows if row.layer.kind == "dense"]
    convolutions = sum(row.parameters for row in rows if row.layer.kind != "dense")
    # Inputs of the dense layers in both passes, and the outputs of the last.
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


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange in a program, counted once even if it is in a loop.

    Attributes:
      name: the operation, such as `all-gather`.
      devices: number of devices in one group.
      elements: number of elements that one device receives.
      bytes: the same in bytes.
      scope: the named scopes that it was traced in.
    """

    name: str
    devices: int
    elements: int
    bytes: int
    scope: str


_MOVED: dict[str, Callable[[int, int], float]] = {
    # From the elements of the result and the size of a group.
    "all-gather": lambda n, g: n * (g - 1) / g,
    "reduce-scatter": lambda n, g: n * (g - 1),
    "all-reduce": lambda n, g: 2 * n * (g - 1) / g,
    "all-to-all": lambda n, g: n * (g - 1) / g,
    "collective-permute": lambda n, g: n,
}


def collectives(program: str, devices: int) -> list[Collective]:
    """The exchanges of a program, from its HLO text.

    Args:
      program: `compiled.as_text()`, or `lowered.as_text("hlo", debug_info=True)`, the program
        before XLA changes it (on CPU it exchanges bfloat16 as float32).
      devices: number of devices that it runs on.
    """
    parsed = hlo.parse(program)
    found = []
    for name, instructions in parsed.computations.items():
        for one in instructions:
            kind = one.opcode.removesuffix("-start")
            moved, size = _MOVED.get(kind), _group_size(one.attributes, devices)
            if moved is None or size == 1:
                continue
            arrays = one.results
            if one.opcode != kind and kind != "all-reduce":
                # Of an asynchronous pair: its operands, its results, then perhaps scratch memory.
                results = parsed.results[name]
                operands = sum(len(results.get(operand, ())) for operand in one.operands)
                arrays = arrays[operands : 2 * operands]
            found.append(
                Collective(
                    kind,
                    size,
                    round(sum(moved(x.elements, size) for x in arrays)),
                    round(sum(moved(x.elements, size) * x.width for x in arrays)),
                    one.scope,
                )
            )
    return found


def _group_size(text: str, devices: int) -> int:
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return groups[1].count(",") + 1
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(groups[1])
    if groups := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", text):
        sizes = dict(axis.split("=") for axis in groups[1].split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in groups[2].split(","))
    if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", text):
        # With an odd number of towers, one sends to itself.
        return 2 if any(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])) else 1
    if "replica_groups={}" in text:
        return devices
    return 1


def by_point(found: Iterable[Collective], names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(elements, bytes) of the collectives at each point.

    Collectives outside of every layer are the sum over the parts of the batch, of gradients and
    three metrics.

    Args:
      found: what `collectives` returned.
      names: of the points.
    """
    sums: dict[str, tuple[int, int]] = dict.fromkeys(names, (0, 0))
    for one in found:
        words = set(re.findall(r"\w+", one.scope))
        name = next(
            (name for name in reversed(sums) if set(name.split()) <= words and name != GRADIENTS),
            GRADIENTS,
        )
        elements, bytes_ = sums.get(name, (0, 0))
        sums[name] = (elements + one.elements, bytes_ + one.bytes)
    return sums
