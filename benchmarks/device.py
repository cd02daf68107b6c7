"""The first hour on a new machine: one page of what only its devices can say, in ten minutes.

    python -m benchmarks.device --out=runs/device

The page says whether every placement gives the losses of a CPU, what a lower precision changes,
whether a second run and a resumed one end in the same bits, how long a training step takes beside
its ceiling (`alexnet_jax.analysis.compile`), how much memory it needs beside what XLA planned, and
whether JPEG files are read as fast as a step uses them. Images are noise and no data set is needed.

What matters most comes first. A measurement that fails, or for which no time is left, is named on
the page and the others go on. The page is written after each of them: device.json and device.md in
--out.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax import parallel
from alexnet_jax.analysis import bench, targets
from alexnet_jax.analysis.compile import as_data, count, lower_training
from alexnet_jax.analysis.doctor import version
from alexnet_jax.config import presets
from alexnet_jax.config.networks import cifar_stem
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_source
from alexnet_jax.model import lrn_kernel, lrn_mosaic, norm
from alexnet_jax.model.tower import build_tower, draw_parameters
from alexnet_jax.parallel.placement import arrange
from alexnet_jax.training import optimizers
from alexnet_jax.training.checkpoint import Checkpoints, items, manifest
from alexnet_jax.training.state import TrainState, init_state
from benchmarks import device_page as layout

Row = dict[str, Any]
Work = Iterator[tuple[str, Callable[[], Row]]]
"""Measurements of one part: their names, and what makes the row of each."""

Outcome = tuple[list[float], TrainState]
"""The losses of some steps, and the last state on the host."""

STEPS = 4
"""Training steps whose losses are compared."""

TOLERANCES = {"float32": (1e-5, 5e-3), "high": (1e-3, 0.05), "bfloat16": (0.02, 0.3)}
"""By arithmetic: how far a loss and the sum of all updates may be from those of float32 on a CPU,
relative. TensorFloat-32 in place of float32 is noticed: on an H200 it changes them by 2.3e-5 and
1.2e-2, and float32 by 5.1e-7 and 4.1e-4. Where rounding the first weights anew (`rounded`) already
does as much, three times that is allowed."""

DETERMINISTIC = {"xla_gpu_deterministic_ops": "True"}
UNTUNED = {"xla_gpu_autotune_level": "0"}
"""Saves most of the compiling where nothing is timed."""


@dataclasses.dataclass
class Machine:
    """What is measured, and what one part leaves for a later one.

    Attributes:
      devices: all of one kind.
      small: whether sizes are tiny, to try the script.
      source: `data.source` of images to read; empty: JPEG files of noise.
      fed: the step that the input is compared with, and its images/s.
      bandwidth: bytes/s of a copy in device memory.
    """

    devices: list[Any]
    small: bool = False
    source: str = ""
    fed: "tuple[Step, float] | None" = None
    bandwidth: float = math.nan

    def peak_bytes(self) -> int:
        """The highest mark of memory in use on the first device so far; 0 if none is kept."""
        return (self.devices[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


# --- Training steps


def network(name: str, arithmetic: str = "float32", batch: int = 32) -> ConfigDict:
    """A preset, or `small`: two towers of 1/16 of AlexNet's width over 32 x 32 images."""
    config = presets.get("article" if name == "small" else name)
    with config.unlocked():
        if name == "small":
            cifar_stem(config.model)
            config.model.update(num_classes=10, width=1 / 16)
            for layer in config.model.layer_order:
                config.model.layers[layer].init_std = 0.05
            config.data.update(image_size=32, crop_size=32, pad=2, scale=1 / 64)
        config.batch_size = config.evaluate.batch_size = batch
        config.model.winograd = False  # The values that devices are compared with are direct sums.
        if arithmetic == "bfloat16":
            config.model.compute_dtype = "bfloat16"
        else:
            config.model.precision = "highest" if arithmetic == "float32" else arithmetic
    return config


def place(name: str, devices: list[Any]) -> parallel.Placement:
    """Two towers under `vmap`, `pmap` or `mesh`; a mesh has as many devices as make pairs."""
    config = network("small", batch=32 * len(devices))
    config.placement = name
    return arrange(config, devices[: len(devices) // 2 * 2] if name == "mesh" else devices)


class Step:
    """A training step, compiled for the devices of a placement."""

    def __init__(self, config: ConfigDict, placement: parallel.Placement, options: dict[str, str]):
        """Compiles it; a GPU gets options of XLA besides those of the placement."""
        begun = time.perf_counter()
        self.config, self.placement = config, placement
        tower = build_tower(config.model)
        tx = optimizers.build(config, steps_per_epoch=1000, num_steps=1000)
        self.first = init_state(draw_parameters(tower, 0, config.data.crop_size), tx)
        on_gpu = placement.mesh.devices.flat[0].platform == "gpu"
        chosen: Any = placement.compiler_options() | (options if on_gpu else {})
        self.program = lower_training(config, placement)
        self.compiled: Any = self.program.lowered.compile(chosen or None)
        self.compile_seconds = time.perf_counter() - begun

    def batch(self, number: int) -> dict[str, jax.Array]:
        """A batch of noise, on the devices."""
        config, size = self.config, self.config.batch_size
        rng, side = np.random.default_rng(number), config.data.crop_size
        return self.placement.put_batch({
            "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
            "label": rng.integers(0, config.model.num_classes, size, np.int32),
            "index": np.arange(size, dtype=np.int32) + number * size,
            "colour": np.float32(rng.normal(0, 5, (size, 3))),
        })  # fmt: skip

    def run(self, state: TrainState | None = None, start: int = 0, end: int = STEPS) -> Outcome:
        """Runs steps from a state on the host; None: from the first."""
        placed = self.placement.put_towers(state or self.first)
        losses = []
        for number in range(start, end):
            placed, metrics = self.compiled(placed, self.batch(number))
            losses.append(metrics["loss"])
        return [float(parallel.to_host(x)) for x in losses], parallel.to_host(placed)

    def resumed(self) -> Outcome:
        """`run` with a checkpoint after half of the steps, and the others from the disk."""
        half = STEPS // 2
        losses, state = self.run(end=half)
        with tempfile.TemporaryDirectory() as folder:
            with Checkpoints(Path(folder), keep=1) as checkpoints:
                placed = self.placement.put_towers(state)
                checkpoints.save(half, placed, manifest(items(state)), {})
                checkpoints.wait()
            with Checkpoints(Path(folder)) as checkpoints:
                state, _ = checkpoints.restore(half, self.first)
        more, state = self.run(state, half)
        return losses + more, state

    def time(self, rounds: int, round_seconds: float) -> Row:
        """Seconds of a step, the median of some rounds, and seconds until it is handed over."""
        state, batch = self.placement.put_towers(self.first), self.batch(0)
        handed_over: list[float] = []

        def work(steps: int) -> float:
            nonlocal state
            begun = time.perf_counter()
            for _ in range(steps):
                state, _ = self.compiled(state, batch)
            handed_over.append((time.perf_counter() - begun) / steps)
            jax.block_until_ready(state)
            return (time.perf_counter() - begun) / steps

        work(3)
        steps = max(1, min(50, round(round_seconds / work(2))))
        each = [work(steps) for _ in range(rounds)]
        return {
            "seconds": statistics.median(each),
            "least_seconds": min(each),
            "most_seconds": max(each),
            "host_seconds": statistics.median(handed_over[2:]),
            "images_per_second": self.config.batch_size / statistics.median(each),
        }


@functools.lru_cache(1)
def reference(name: str, batch: int) -> tuple[Outcome, tuple[float, float]]:
    """What a CPU computes in float32, and what weights rounded anew change there."""
    step = Step(network(name, batch=batch), place("vmap", jax.devices("cpu")), {})
    expected = step.run()
    return expected, differences(step.run(rounded(step.first)), expected, step.first)


def rounded(state: TrainState) -> TrainState:
    """A state whose parameters are each the next float above or below, at random."""
    rng = np.random.default_rng(0)

    def move(x: np.ndarray) -> np.ndarray:
        return np.nextafter(x, np.float32(rng.choice([-np.inf, np.inf], x.shape)))

    return dataclasses.replace(state, params=jax.tree.map(move, state.params))


def distance(a: Any, b: Any) -> float:
    """The Euclidean norm of the difference of two trees, as vectors."""
    each = jax.tree.map(lambda x, y: float(np.linalg.norm(np.subtract(x, y).ravel())), a, b)
    return math.hypot(*jax.tree.leaves(each))


def differences(found: Outcome, expected: Outcome, first: TrainState) -> tuple[float, float]:
    """How far losses and updates are from the expected ones, relative."""
    (losses, state), (wanted, last) = found, expected
    loss = float(np.max(np.abs(np.subtract(losses, wanted) / wanted)))
    return loss, distance(state.params, last.params) / distance(last.params, first.params)


def compare(
    found: Outcome,
    expected: Outcome,
    first: TrainState,
    arithmetic: str,
    rounding: tuple[float, float],
) -> Row:
    """How far losses and updates are from the expected ones, and whether that is near enough."""
    each = differences(found, expected, first)
    most = [max(x, 3 * y) for x, y in zip(TOLERANCES[arithmetic], rounding, strict=True)]
    return {
        "loss_difference": each[0],
        "update_difference": each[1],
        "rounding_difference": rounding[1],
        "agrees": each[0] <= most[0] and each[1] <= most[1],
    }


def same_bits(a: Outcome, b: Outcome) -> bool:
    """Whether two runs have the same losses and last states, to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


# --- Parts: what each measures


def small_network(machine: Machine) -> Work:
    """Every placement, the option for equal bits, and lower precision."""
    rows = [("vmap", "float32", {}), ("vmap", "float32", DETERMINISTIC)]
    if len(machine.devices) > 1:
        rows += [("pmap", "float32", {}), ("mesh", "float32", {})]
    rows += [("vmap", "bfloat16", {}), ("vmap", "high", {})]

    def row(name: str, arithmetic: str, options: dict[str, str]) -> Row:
        where = place(name, machine.devices)
        step = Step(network("small", arithmetic), where, UNTUNED | options)
        found = step.run()
        expected, rounding = reference("small", 32)
        return compare(found, expected, step.first, arithmetic, rounding) | {
            "same_bits": same_bits(found, step.run()),
            "resumed_bits": same_bits(found, step.resumed()),
        }

    for name, arithmetic, options in rows:
        grid = f" {len(machine.devices) // 2} x 2" if name == "mesh" else ""
        label = f"{name}{grid}, {arithmetic}{', deterministic' if options else ''}"
        yield label, functools.partial(row, name, arithmetic, options)


def peaks(machine: Machine) -> Work:
    """What one device does at most: a copy in its memory, and products of matrices."""
    device, shrink = machine.devices[0], 64 if machine.small else 1
    known, size, side = targets.known(device.device_kind), 2**28 // shrink, 8192 // shrink

    def copy() -> Row:
        x = jax.device_put(np.ones(size, np.float32), device)
        machine.bandwidth = 8.0 * size / seconds_of(jax.jit(lambda x: x + 1), x, calls=10)
        return row(machine.bandwidth, 1e9, known and known.bandwidth)

    def product(dtype: str) -> Row:
        numbers = np.random.default_rng(0).standard_normal((side, side), np.float32)
        x = jax.device_put(numbers, device).astype(dtype)
        fn = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
        return row(2.0 * side**3 / seconds_of(fn, x, calls=10), 1e12, known and known.peak[dtype])

    def row(rate: float, unit: float, stated: float | None) -> Row:
        return {"rate": rate / unit, "of_stated": rate / stated if stated else None}

    yield "copy in memory, GB/s", copy
    for dtype in ("bfloat16", "float32"):
        yield f"product in {dtype}, TFLOP/s", functools.partial(product, dtype)


def seconds_of(fn: Callable, *args: Any, calls: int) -> float:
    """Median seconds of one call among some that follow each other."""
    jax.block_until_ready(fn(*args))
    each = []
    for _ in range(7):
        begun, result = time.perf_counter(), None
        for _ in range(calls):
            result = fn(*args)
        jax.block_until_ready(result)
        each.append((time.perf_counter() - begun) / calls)
    return statistics.median(each)


def full_network(machine: Machine, wanted: list[tuple[str, str, int, str, dict]]) -> Work:
    """Steps as a run compiles them: losses beside the CPU's, time, ceiling, memory."""

    def row(name: str, arithmetic: str, batch: int, where: str, options: dict[str, str]) -> Row:
        step = Step(network(name, arithmetic, batch), place(where, machine.devices), options)
        before, found = machine.peak_bytes(), {}
        if batch == base:  # A CPU would take long over more images.
            last = step.run()
            expected, rounding = reference(name, batch)
            found = compare(last, expected, step.first, arithmetic, rounding)
            found["same_bits"] = same_bits(last, step.run())
        found |= step.time(*((3, 0.01) if machine.small else (7, 0.15)))
        if not machine.fed:
            machine.fed = step, found["images_per_second"]
        peak = machine.peak_bytes()
        found["peak_bytes"] = peak if peak > before else None  # else another's mark is higher
        return found | {"compile_seconds": step.compile_seconds} | ceiling(step, found["seconds"])

    base, pairs = 32 if machine.small else 128, len(machine.devices) // 2
    for name, arithmetic, times, where, options in wanted:
        if where == "mesh" and not pairs:
            continue
        name, batch = "small" if machine.small else name, base * times
        label = f"{name}, {arithmetic}, batch "
        if where == "mesh":
            batch *= pairs
        label += str(batch) + (f", mesh {pairs} x 2" if where == "mesh" else "")
        label += ", deterministic" if options else ""
        yield label, functools.partial(row, name, arithmetic, batch, where, options)


def ceiling(step: Step, seconds: float) -> Row:
    """What a step needs of a device, and the shortest time in which such a device could do it."""
    needs = count(step.program, step.compiled, step.config, step.placement)
    row = {"moved_bytes": needs.bytes, "compiled_peak_bytes": needs.peak}
    device = targets.known(step.placement.mesh.devices.flat[0].device_kind)
    if device is None:
        return row
    data = as_data(needs, step.config, device)
    least = data["limits"][data["limited_by"]]
    return row | {
        "ceiling_seconds": least,
        "limited_by": data["limited_by"],
        "share": least / seconds,
    }


FIRST = [
    ("article", "bfloat16", 1, "vmap", {}),
    ("article", "float32", 1, "vmap", {}),
    ("article", "bfloat16", 1, "mesh", {}),
]
MORE = [
    ("article", "bfloat16", 1, "vmap", DETERMINISTIC),
    ("source", "bfloat16", 1, "vmap", {}),
    ("source", "float32", 1, "vmap", {}),
    ("article", "high", 1, "vmap", {}),
    ("article", "bfloat16", 8, "vmap", {}),
    ("source", "bfloat16", 8, "vmap", {}),
    ("caffe", "bfloat16", 1, "vmap", {}),
]
"""Preset, arithmetic, batch in multiples of 128 (for each pair of a mesh), placement, options."""


def input_speed(machine: Machine) -> Work:
    """Images/s of the training input alone, of sending batches, and of training from files."""
    if machine.fed is None:
        raise RuntimeError("no training step ran that could use the images")
    step, alone = machine.fed
    data, batches, size = step.config.data, 10 if machine.small else 40, step.config.batch_size

    def stream(folder: str) -> Iterator[pipeline.Batch]:
        if not machine.source:
            write_jpegs(Path(folder) / "train", count=2 * size)
        source = open_source(machine.source or f"folder:{folder}", data.train_split, data)
        return pipeline.train_batches(source, data, seed=0, batch_size=size)

    def read(folder: str) -> float:
        return bench.pipeline_speed(step.config, stream(folder), batches)

    def sent(folder: str) -> float:
        return size / seconds_of(step.placement.put_batch, next(stream(folder)), calls=3)

    def trained(folder: str) -> float:
        images, begun = stream(folder), 0.0
        state = step.placement.put_towers(step.first)
        for number in range(-8, batches):
            if number == 0:
                jax.block_until_ready(state)
                begun = time.perf_counter()
            state, _ = step.compiled(state, step.placement.put_batch(next(images)))
        jax.block_until_ready(state)
        return batches * size / (time.perf_counter() - begun)

    def row(fn: Callable[[str], float]) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            speed = fn(folder)
        return {"images_per_second": speed, "of_step": speed / alone}

    yield "JPEG files, decoded, resized and cropped", functools.partial(row, read)
    yield "training from the files", functools.partial(row, trained)
    yield "batches, sent to the device", functools.partial(row, sent)


def write_jpegs(folder: Path, count: int) -> None:
    """Writes smooth noise of the size of ImageNet's photographs, 500 x 375 and about 100 kB."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        grain = np.clip(smooth + rng.normal(0, 12, (*smooth.shape[:2], 1)), 0, 255)
        path = folder / f"class{number % 10}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grain.astype(np.uint8)).save(path, quality=90)


LRN, SQUARE = ((3,), 5, 2.0, 1e-4 / 5, 0.75), ((1, 2), 5, 1.0, 1e-3 / 25, 0.75)
MAPS = [
    ("lrn, conv1 of source", LRN, (256, 55, 55, 48)),
    ("lrn, conv2 of source", LRN, (256, 27, 27, 128)),
    ("within a map, conv2 of source", SQUARE, (256, 27, 27, 128)),
    ("lrn, conv1 of article", LRN, (256, 27, 27, 48)),
]
"""Normalizations, their axes and constants, and the maps of both towers at batch 128."""


def normalizations(machine: Machine) -> Work:
    """Each normalization in every form that a platform may run."""
    platform = machine.devices[0].platform

    def kernel(x: jax.Array) -> jax.Array:
        constants = lrn_kernel.Constants(*LRN[1:])
        if platform == "tpu":
            return lrn_mosaic.respond(x, constants)
        return lrn_kernel.respond(x, constants, interpret=platform == "cpu")

    def row(fn: Callable, wide: Callable, shape: tuple[int, ...], dtype: str) -> Row:
        rng = np.random.default_rng(0)
        # Squares that alpha makes count.
        x, g = (jnp.asarray(30 * rng.standard_normal(shape, np.float32), dtype) for _ in "xg")
        one = jax.device_put([np.asarray(v[:1], np.float32) for v in (x, g)], jax.devices("cpu")[0])
        exact = jax.jit(functools.partial(both, wide))(*one)
        x, g = jax.device_put((x, g), machine.devices[0])
        passes, calls = jax.jit(functools.partial(both, fn)), 2 if machine.small else 20
        value, gradient = (
            float(np.linalg.norm(np.asarray(a[:1], np.float32) - b) / np.linalg.norm(b))
            for a, b in zip(passes(x, g), exact, strict=True)
        )
        seconds = seconds_of(passes, x, g, calls=calls)
        return {
            "forward_micros": 1e6 * seconds_of(jax.jit(fn), x, calls=calls),
            "both_micros": 1e6 * seconds,
            # Reads the maps twice and a gradient once, writes both once.
            "of_copy": 5 * x.nbytes / machine.bandwidth / seconds,
            "value_error": value,
            "gradient_error": gradient,
        }

    for dtype, (name, constants, shape) in itertools.product(("bfloat16", "float32"), MAPS):
        forms: dict[str, Callable] = {
            "wide": lambda x, c=constants: norm._widely(x, *c),
            "narrow": lambda x, c=constants: norm._narrowly(x, *c),
        }
        if constants is LRN:
            forms["kernel"] = kernel
        shape = (2, 5, 5, 6) if machine.small else shape
        for form, fn in forms.items():
            work = functools.partial(row, fn, forms["wide"], shape, dtype)
            yield f"{name}, {dtype}: {form}", work


def both(fn: Callable, x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The value of a function and the gradient of its product with g."""
    y, back = jax.vjp(fn, x)
    return y, back(g)[0]


# --- The order of work

PARTS: list[tuple[layout.Section, Callable[[Machine], Work]]] = [
    (layout.SMALL, small_network),
    (layout.PEAKS, peaks),
    (layout.FULL, lambda machine: full_network(machine, FIRST)),
    (layout.INPUT, input_speed),
    (layout.MORE, lambda machine: full_network(machine, MORE[:1] if machine.small else MORE)),
    (layout.NORMS, normalizations),
]
"""In the order of their worth, which is that of the page too."""


def about(devices: list[Any]) -> dict[str, str]:
    """The devices, and what else the numbers depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "alexnet_jax")
    versions = [f"{name} {version(name)}" for name in names if version(name)]
    client = str(devices[0].client.platform_version).splitlines()[0]
    platform = " ".join(dict.fromkeys((devices[0].platform, client)))
    flags = os.environ.get("XLA_FLAGS", "")
    text = f"{time.strftime('%Y-%m-%d')}; {platform}; {', '.join(versions)}; {os.cpu_count()} cores"
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return {"devices": kind, "text": text + (f"; XLA_FLAGS `{flags}`" if flags else "") + "."}


def carry_out(
    parts: list[tuple[layout.Section, Callable[[Machine], Work]]],
    machine: Machine,
    limit: float,
    out: Path,
) -> str:
    """Measures the parts in their order, writes the page after each measurement and returns it.

    A measurement begins only if as much time is left as the longest one of its part has taken.

    Args:
      parts: sections of the page, and what measures for each.
      machine: where.
      limit: seconds for everything.
      out: the folder of the page.
    """
    start, text = time.monotonic(), ""
    rows_of: dict[str, list[Row]] = {section.title: [] for section, _ in parts}
    failures: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    for section, measure in parts:
        longest, work = 0.0, measure(machine)
        while True:
            begun, name = time.monotonic(), section.title
            try:
                if (found := next(work, None)) is None:
                    break
                name += f": {found[0]}"
                print(f"{begun - start:6.1f} s  {name}", flush=True)
                if begun + longest > start + limit:
                    raise TimeoutError("no time was left")
                rows_of[section.title].append({"name": found[0]} | found[1]())
            except Exception as error:
                reason = str(error).strip().partition("\n")[0][:300]
                failures[name] = f"{type(error).__name__}: {reason}"
            longest = max(longest, time.monotonic() - begun)
            result = {
                "about": about(machine.devices), "seconds": time.monotonic() - start,
                "limit": limit, "parts": rows_of, "failures": failures,
            }  # fmt: skip
            text = layout.page(result, [section for section, _ in parts])
            (out / "device.json").write_text(json.dumps(result, indent=1) + "\n")
            (out / "device.md").write_text(text)
    return text


def main(argv: list[str] | None = None) -> None:
    """Measures everything and writes the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/device"))
    parser.add_argument("--seconds", type=float, default=600, help="what does not fit is left out")
    parser.add_argument("--source", default="", help="images to read, such as tfds:imagenet2012")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    args = parser.parse_args(argv)
    parallel.prepare_host(network("small"))
    machine = Machine(jax.devices(), small=args.small, source=args.source)
    print(carry_out(PARTS, machine, args.seconds, args.out))


if __name__ == "__main__":
    main()
