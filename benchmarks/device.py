"""What only a machine with the device can say, on one page: the first minutes on a GPU or TPU.

    python -m benchmarks.device --out=runs/device

It needs no data set and no TensorFlow; images are noise. It compares the losses of every placement
that fits with those of the CPU, says what a lower precision does to them, whether two runs end in
the same bits and whether a run resumes to the bit, and times the training step and the
normalizations. A part that fails or for which `--seconds` are over is named on the page, and the
others go on. Writes device.json and device.md into --out.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import gzip
import hashlib
import itertools
import json
import math
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import presets
from alexnet_jax.config.networks import cifar_stem
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.model import lrn_kernel, norm
from alexnet_jax.model.tower import build_tower, draw_parameters, parameter_shapes
from alexnet_jax.parallel.placement import to_host
from alexnet_jax.training.checkpoint import Checkpoints, items, manifest
from alexnet_jax.training.evaluate import make_eval_step
from alexnet_jax.training.optimizers import build
from alexnet_jax.training.state import init_state
from alexnet_jax.training.step import make_train_step

HERE = Path(__file__).parent
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


# --- Networks and programs


def small_network() -> ConfigDict:
    """Two towers at 1/16 of AlexNet's width over 32 x 32 images: compiled in a second."""
    config = presets.get("article")
    config.unlock()
    cifar_stem(config.model)
    config.model.update(num_classes=10, width=1 / 16)
    for name in config.model.layer_order:
        config.model.layers[name].init_std = 0.05
    config.data.update(image_size=32, crop_size=32, pad=2, scale=1 / 64)
    config.batch_size = 32
    return config


def variant(config: ConfigDict, arithmetic: str, batch_size: int) -> ConfigDict:
    """A copy that computes in `bfloat16`, or in float32 at a precision that `arithmetic` names."""
    config = config.copy_and_resolve_references()
    config.unlock()
    config.batch_size = batch_size
    if arithmetic == "bfloat16":
        config.model.compute_dtype = "bfloat16"
    else:
        config.model.update(compute_dtype="float32", precision=arithmetic)
    return config


def placements(devices: list[Any]) -> dict[str, parallel.Placement]:
    """Those that fit on these devices, for two towers."""
    found, count = {"vmap": ("vmap", devices[:1], (1, 1))}, len(devices)
    if count >= 2:
        found["pmap"] = ("pmap", devices[:2], (1, 2))
        found["mesh 1 x 2"] = ("mesh", devices[:2], (1, 2))
    if count >= 4:
        found[f"mesh {count // 2} x 2"] = ("mesh", devices[: count // 2 * 2], (count // 2, 2))
    return {
        label: parallel.Placement(
            name, Mesh(np.array(some).reshape(shape), (parallel.DATA, parallel.TOWER))
        )
        for label, (name, some, shape) in found.items()
    }


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Inside it, programs are traced with the forms that a CPU runs, whatever the platform."""
    chosen = lax.platform_dependent

    def plain(*args: Any, default: Any = None, cpu: Any = None, **others: Any) -> Any:
        del others
        return (cpu or default)(*args)

    jax.lax.platform_dependent = plain
    try:
        yield
    finally:
        jax.lax.platform_dependent = chosen


_DRAWN: dict[Any, Any] = {}
"""The parameters that were drawn last, since a second goes by for those of AlexNet."""


@dataclasses.dataclass
class Program:
    """A training step, or a forward pass in evaluation, on its way to a device.

    Attributes:
      config: the network.
      placement: where it runs.
      forward: whether it is the forward pass.
      plain: whether it has the forms of a CPU.
      options: of the compiler, besides the placement's own.
      compiled: the program, once it is compiled.
      seconds: that the compiler took.
    """

    config: ConfigDict
    placement: parallel.Placement
    forward: bool = False
    plain: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    compiled: Any = None
    seconds: float = math.nan

    def __post_init__(self) -> None:
        data = self.config.data
        mean = np.full((data.image_size, data.image_size, 3), 118, np.float32)
        self.tower = build_tower(self.config.model)
        self.inputs = input_rules.build(data, mean)
        self.tx = build(self.config, steps_per_epoch=1000, num_steps=1000)

    def lower(self) -> Any:
        """Traces the program, on this thread: what is chosen by platform is a global."""
        with plain_forms() if self.plain else contextlib.nullcontext():
            if self.forward:
                step = make_eval_step(self.tower, self.inputs, self.placement, views=1)
                return step.lower(self.shapes().variables, self.batch(0))
            step = make_train_step(
                self.config, self.tower, self.inputs, self.tx, self.placement, 1000
            )
            return step.lower(self.shapes(), self.batch(0))

    def compile(self, lowered: Any) -> None:
        """Compiles what `lower` returned."""
        begun = time.perf_counter()
        options = self.placement.compiler_options() | self.options
        self.compiled = lowered.compile(options or None)
        self.seconds = time.perf_counter() - begun

    def shapes(self) -> Any:
        """Those of the state."""
        return init_state(parameter_shapes(self.tower, self.config.data.crop_size), self.tx)

    def state(self) -> Any:
        """The first state, on the host."""
        crop, layers = self.config.data.crop_size, self.tower.layers
        if (crop, layers) not in _DRAWN:
            _DRAWN.clear()
            _DRAWN[crop, layers] = draw_parameters(self.tower, 0, crop)
        return init_state(_DRAWN[crop, layers], self.tx)

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """A batch of noise, on the host."""
        rng, size, data = np.random.default_rng(number), self.config.batch_size, self.config.data
        side = data.image_size if self.forward else data.crop_size
        batch = {
            "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
            "label": rng.integers(0, self.config.model.num_classes, size, np.int32),
        }
        if self.forward:
            return batch | {"mask": np.ones(size, np.float32)}
        return batch | {
            "index": np.arange(size, dtype=np.int32) + number * size,
            "colour": np.float32(rng.normal(0, 5, (size, 3))),
        }

    def run(self, steps: int, state: Any = None, first: int = 0) -> tuple[list[float], Any]:
        """Losses of training steps from a state on the host, and the last state there."""
        state = self.placement.put_towers(self.state() if state is None else state)
        losses = []
        for number in range(first, first + steps):
            batch = self.placement.put_batch(self.batch(number))
            state, metrics = self.compiled(state, batch)
            losses.append(metrics["loss"])
        return [float(to_host(loss)) for loss in losses], to_host(state)

    def time(self, rounds: int, round_seconds: float) -> dict[str, float]:
        """Seconds of one step: the median, least and most of some rounds, and the host's share."""
        state, batch = self.placement.put_towers(self.state()), self.batch(0)
        batch = self.placement.put_batch(batch)

        def work(steps: int) -> float:
            nonlocal state
            begun = time.perf_counter()
            result = None
            for _ in range(steps):
                if self.forward:
                    result = self.compiled(state.variables, batch)
                else:
                    state, result = self.compiled(state, batch)
            handed_over = time.perf_counter() - begun
            jax.block_until_ready((state, result))
            return handed_over

        work(3)
        begun = time.perf_counter()
        work(2)
        steps = max(1, min(50, round(round_seconds / (time.perf_counter() - begun) * 2)))
        each, host = [], []
        for _ in range(rounds):
            begun = time.perf_counter()
            host.append(work(steps) / steps)
            each.append((time.perf_counter() - begun) / steps)
        return {
            "seconds": statistics.median(each),
            "least": min(each),
            "most": max(each),
            "host_seconds": statistics.median(host),
        }

    def peak_bytes(self) -> int:
        """What the compiler says that the program needs on one device, arguments included."""
        m = self.compiled.memory_analysis()
        peak = getattr(m, "peak_memory_in_bytes", 0)
        whole = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        return max(peak, whole + m.temp_size_in_bytes)

    def moved_bytes(self) -> float | None:
        """What one device reads and writes in its memory, by XLA's own count if it has one."""
        cost = self.compiled.cost_analysis()
        cost = cost[0] if isinstance(cost, list) and cost else cost
        return (cost or {}).get("bytes accessed")


class Compiler:
    """Compiles programs beside each other, in the order in which they are given."""

    def __init__(self, deadline: float, end: float, workers: int, folder: Path | None):
        """Starts the workers.

        Args:
          deadline: when nothing more is compiled (`time.monotonic`).
          end: when nothing more is measured.
          workers: programs compiled at once.
          folder: where the text of the programs goes; None for nowhere.
        """
        self.deadline, self.end, self.folder = deadline, end, folder
        self.pool = concurrent.futures.ThreadPoolExecutor(workers)
        self.waiting: dict[str, tuple[Program, concurrent.futures.Future]] = {}
        self.failed: dict[str, str] = {}

    def add(self, name: str, program: Program) -> None:
        """Traces a program now and compiles it soon; its error, if any, is kept for the page."""
        if time.monotonic() > self.deadline:
            self.failed[name] = "not compiled: the time was over"
            return
        try:
            future = self.pool.submit(program.compile, program.lower())
        except Exception as error:
            self.failed[name] = short(error)
            return
        self.waiting[name] = program, future

    def check(self) -> None:
        """Raises TimeoutError once nothing more should be measured."""
        if time.monotonic() > self.end:
            raise TimeoutError("the time was over")

    def get(self, name: str) -> Program | None:
        """The compiled program; None if it failed or the time was over."""
        if name not in self.waiting:
            return None
        program, future = self.waiting[name]
        try:
            future.result(max(self.deadline - time.monotonic(), 0.01))
        except concurrent.futures.TimeoutError:
            future.cancel()
            self.failed[name] = "not compiled: the time was over"
            return None
        except Exception as error:
            self.failed[name] = short(error)
            return None
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{name.replace(' ', '-').replace('/', '_')}.hlo.gz"
            file.write_bytes(gzip.compress(program.compiled.as_text().encode(), 6))
        return program


def short(error: Exception) -> str:
    """The type of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


# --- Parts of the page


def about(devices: list[Any]) -> dict[str, Any]:
    """Versions and devices."""
    client, stats = devices[0].client, devices[0].memory_stats() or {}
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "platform": f"{devices[0].platform}, {client.platform_version.splitlines()[0]}",
        "memory_bytes": stats.get("bytes_limit"),
        "versions": {
            "jax": jax.__version__,
            "jaxlib": jax.lib.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "numpy": np.__version__,
        },
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def repeated(fn: Callable, *args: Any, calls: int, rounds: int = 7) -> float:
    """Median seconds of one call among calls that follow each other."""
    jax.block_until_ready(fn(*args))
    each = []
    for _ in range(rounds):
        begun = time.perf_counter()
        result = None
        for _ in range(calls):
            result = fn(*args)
        jax.block_until_ready(result)
        each.append((time.perf_counter() - begun) / calls)
    return statistics.median(each)


def ceilings(device: Any, scale: int) -> dict[str, float]:
    """What the device does at most here: bytes/s of a copy, and FLOP/s of a bfloat16 product."""
    size, side = 2**28 // scale, 8192 // scale
    x = jax.device_put(np.arange(size, dtype=np.float32), device)
    seconds = repeated(jax.jit(lambda x: x + 1), x, calls=10)
    rng = np.random.default_rng(0)
    a = jax.device_put(rng.standard_normal((side, side), np.float32), device).astype(jnp.bfloat16)
    product = repeated(jax.jit(lambda a: a @ a), a, calls=10)
    return {
        "bytes_per_second": 2 * 4 * size / seconds,
        "bfloat16_flop_per_second": 2 * side**3 / product,
    }


def agreement(compiler: Compiler, names: list[str], steps: int) -> list[dict]:
    """Losses of the same steps as several programs, and their distance from those of the first."""
    reference = compiler.get(names[0])
    if reference is None:
        raise RuntimeError(compiler.failed[names[0]])
    losses, last = reference.run(steps)
    first = reference.state()
    moved = norm_of(difference(last.params, first.params))
    rows: list[dict] = [{"name": names[0], "losses": losses}]
    for name in names[1:]:
        program = compiler.get(name)
        if program is None:
            rows.append({"name": name, "failed": compiler.failed[name]})
            continue
        found, state = program.run(steps)
        rows.append(
            {
                "name": name,
                "losses": found,
                "loss_difference": float(np.max(np.abs(np.subtract(found, losses) / losses))),
                "update_difference": norm_of(difference(state.params, last.params)) / moved,
            }
        )
    return rows


def difference(a: Any, b: Any) -> Any:
    """Leaf by leaf, in float64."""
    return jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), a, b)


def norm_of(tree: Any) -> float:
    """The Euclidean norm of all leaves as one vector."""
    return math.sqrt(sum(float(np.vdot(x, x)) for x in jax.tree.leaves(tree)))


def checksum(state: Any) -> str:
    """Of the bits of every array."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def determinism(compiler: Compiler, names: list[str], steps: int) -> list[dict]:
    """Whether the same steps end in the same bits when they are run again, and after a resume."""
    rows = []
    for name in names:
        program = compiler.get(name)
        if program is None:
            rows.append({"name": name, "failed": compiler.failed[name]})
            continue
        compiler.check()
        once, state = program.run(steps)
        again, other = program.run(steps)
        rows.append(
            {
                "name": name,
                "same_losses": once == again,
                "same_bits": checksum(state) == checksum(other),
                "resumed_bits": resumed(program, steps) == checksum(state),
            }
        )
    return rows


def resumed(program: Program, steps: int) -> str:
    """The checksum after half of the steps, a checkpoint, and the other half from the disk."""
    half = steps // 2
    _, state = program.run(half)
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder), keep=1) as checkpoints:
            placed = program.placement.put_towers(state)
            checkpoints.save(half, placed, manifest(items(state)), {"step": half})
            checkpoints.wait()
        with Checkpoints(Path(folder)) as checkpoints:
            restored, _ = checkpoints.restore(half, program.state())
    return checksum(program.run(steps - half, restored, half)[1])


def speed(
    compiler: Compiler, names: list[str], rounds: int, round_seconds: float, bandwidth: float
) -> list[dict]:
    """Times of programs, beside what they move through memory and need of it."""
    programs = [(name, compiler.get(name)) for name in names]
    rows = [{"name": name, "failed": compiler.failed[name]} for name, p in programs if p is None]
    # The peak of the process is that of a program only while each needs more than those before.
    ready = sorted(((n, p) for n, p in programs if p), key=lambda pair: pair[1].peak_bytes())
    before = 0
    for name, program in ready:
        try:
            compiler.check()
            row = {"name": name, **program.time(rounds, round_seconds)}
        except Exception as error:
            rows.append({"name": name, "failed": short(error)})
            continue
        stats = program.placement.mesh.devices.flat[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use", 0)
        moved = program.moved_bytes()
        row |= {
            "images_per_second": program.config.batch_size / row["seconds"],
            "peak_bytes": peak if peak > before else None,
            "compiled_peak_bytes": program.peak_bytes(),
            "compile_seconds": program.seconds,
            "moved_bytes": moved,
            "memory_seconds": moved / bandwidth if moved else None,
        }
        before = max(peak, before)
        rows.append(row)
    order = {name: i for i, name in enumerate(names)}
    return sorted(rows, key=lambda row: order[row["name"]])


LRN = dict(axes=(3,), size=5, k=2.0, alpha=1e-4 / 5, beta=0.75)
SQUARE = dict(axes=(1, 2), size=5, k=1.0, alpha=1e-3 / 25, beta=0.75)


def normalizations(
    compiler: Compiler, device: Any, wanted: list[tuple], interpret: bool, calls: int
) -> list[dict]:
    """Both passes of each norm in several forms: their errors and their time.

    Args:
      compiler: whose time is kept.
      device: where they run.
      wanted: (name, shape, type, whether to try other blocks) of each.
      interpret: whether Pallas interprets the kernels.
      calls: that follow each other in one measurement.
    """
    rows = []
    for name, shape, dtype, tune in wanted:
        constants = LRN if name.startswith("lrn") else SQUARE
        forms: dict[str, Callable] = {
            "wide": lambda x, c=constants: norm._widely(x, *c.values()),
            "narrow": lambda x, c=constants: norm._narrowly(x, *c.values()),
        }
        if constants is LRN:
            kernel = lrn_kernel.Constants(*list(LRN.values())[1:])
            forms["kernel"] = lambda x, c=kernel: lrn_kernel.respond(x, c, interpret)
        rng = np.random.default_rng(0)
        # Squares that alpha makes count.
        x, g = (jnp.asarray(30 * rng.standard_normal(shape, np.float32), dtype) for _ in "xg")
        x, g = jax.device_put((x, g), device)
        exact = reference_norm(x[:1], g[:1], constants)
        found: dict[str, Any] = {}
        row = {"name": f"{name} {dtype}", "least_bytes": 5 * x.nbytes, "forms": found}
        rows.append(row)
        for form, fn in forms.items():
            if time.monotonic() > compiler.end:
                compiler.failed[f"{row['name']} {form}"] = "the time was over"
                continue
            found[form] = measured(fn, x, g, exact, calls)
        if tune and constants is LRN:
            for block, warps in itertools.product((2048, 4096, 8192), (4, 8)):
                if time.monotonic() < compiler.end:
                    with blocks_of(block, warps):
                        fn = forms["kernel"]
                        found[f"kernel {block} x {warps}"] = measured(fn, x, g, exact, calls)
    return rows


@contextlib.contextmanager
def blocks_of(elements: int, warps: int) -> Iterator[None]:
    """Inside it, the kernels have blocks of another size."""
    chosen = lrn_kernel._BLOCK, lrn_kernel._WARPS
    lrn_kernel._BLOCK, lrn_kernel._WARPS = elements, warps
    try:
        yield
    finally:
        lrn_kernel._BLOCK, lrn_kernel._WARPS = chosen


def measured(fn: Callable, x: jax.Array, g: jax.Array, exact: Any, calls: int) -> dict[str, Any]:
    """Seconds of both passes and the relative errors of value and gradient."""

    def forward(x: jax.Array) -> jax.Array:
        return fn(x)

    def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, back = jax.vjp(fn, x)
        return y, back(g)[0]

    try:
        first, both = jax.jit(forward), jax.jit(backward)
        found = [np.asarray(v[:1], np.float64) for v in both(x, g)]
        errors = [
            float(np.linalg.norm(a - b) / np.linalg.norm(b))
            for a, b in zip(found, exact, strict=True)
        ]
        return {
            "forward_seconds": repeated(first, x, calls=calls),
            "both_seconds": repeated(both, x, g, calls=calls),
            "value_error": errors[0],
            "gradient_error": errors[1],
        }
    except Exception as error:
        return {"failed": short(error)}


def reference_norm(x: jax.Array, g: jax.Array, constants: dict[str, Any]) -> tuple:
    """Value and gradient in float64, with windows from a matrix of zeros and ones per axis."""
    x, g = (np.asarray(v, np.float64) for v in (x, g))
    size, k, alpha, beta = (constants[name] for name in ("size", "k", "alpha", "beta"))

    def window_sum(v: np.ndarray, back: bool) -> np.ndarray:
        for axis in constants["axes"]:
            i = np.arange(v.shape[axis])
            away = i[:, None] - i
            band = (away >= -((size - 1) // 2)) & (away <= size // 2)
            v = np.moveaxis(np.moveaxis(v, axis, -1) @ (band.T if back else band), -1, axis)
        return v

    s = k + alpha * window_sum(x * x, False)
    terms = window_sum(g * x * s ** -(beta + 1), True)
    return x * s**-beta, g * s**-beta - 2 * alpha * beta * x * terms


# --- The page


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    said = result["about"]
    versions = ", ".join(f"{name} {value}" for name, value in said["versions"].items())
    lines = [
        f"# {said['devices']}",
        "",
        f"{said['platform']}; {versions}. Took {result['seconds']:.0f} s.",
    ]
    if bound := result.get("ceilings"):
        lines += [
            "",
            f"A copy moves {bound['bytes_per_second'] / 1e9:,.0f} GB/s, a large bfloat16 product "
            f"runs at {bound['bfloat16_flop_per_second'] / 1e12:,.0f} TFLOP/s.",
        ]
    for title, part in result["parts"].items():
        lines += ["", f"## {title}", "", *table(part)]
    if result["failures"]:
        lines += ["", "## Not done", ""]
        lines += [f"- {name}: {why}" for name, why in result["failures"].items()]
    return "\n".join(lines) + "\n"


def table(rows: list[dict]) -> list[str]:
    """Rows of one part, with the columns that one of them has."""
    rows = [row for row in rows if "failed" not in row]
    if not rows:
        return ["Nothing."]
    if "forms" in rows[0]:
        rows = [
            {"name": row["name"], "form": form}
            | found
            | {"share of memory speed": row.get("least_seconds", math.nan) / found["both_seconds"]}
            for row in rows
            for form, found in row["forms"].items()
            if "failed" not in found
        ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    head = [_HEADS.get(column, column.replace("_", " ")) for column in columns]
    return [
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
        *("| " + " | ".join(row) + " |" for row in cells),
    ]


_HEADS = {
    "seconds": "ms per step",
    "least": "least ms",
    "most": "most ms",
    "host_seconds": "host's ms",
    "forward_seconds": "forward us",
    "both_seconds": "both passes us",
    "memory_seconds": "ms at memory speed",
    "peak_bytes": "peak MB",
    "compiled_peak_bytes": "compiled peak MB",
    "moved_bytes": "moved GB",
    "compile_seconds": "compiled in s",
}


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column in ("forward_seconds", "both_seconds"):
        return f"{1e6 * value:.1f}"
    if column in ("seconds", "least", "most", "host_seconds", "memory_seconds"):
        return f"{1e3 * value:.3f}"
    if column == "compile_seconds":
        return f"{value:.0f}"
    if column.endswith("peak_bytes"):
        return f"{value / 1e6:,.0f}"
    if column == "moved_bytes":
        return f"{value / 1e9:.2f}"
    if column == "images_per_second":
        return f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(f"{v:.6g}" for v in value)
    return f"{value:.2g}" if isinstance(value, float) else str(value)


# --- The order of work


def main(argv: list[str] | None = None) -> None:
    """Runs all parts and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/device"))
    parser.add_argument(
        "--seconds",
        type=float,
        default=600,
        help="what is not done after these is left out; nothing is compiled after 3/5 of them",
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--tune", action="store_true", help="time other blocks of the kernels")
    parser.add_argument("--workers", type=int, default=6, help="programs compiled at once")
    parser.add_argument("--programs", type=Path, help="folder for the compiled programs' text")
    args = parser.parse_args(argv)
    begun = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    devices = jax.devices()
    result: dict[str, Any] = {"about": about(devices), "parts": {}, "failures": {}}

    def write() -> None:
        result["seconds"] = time.monotonic() - begun
        (args.out / "device.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "device.md").write_text(page(result))

    def part(name: str, fn: Callable[[], Any]) -> Any:
        """Does one part; whatever happens, what was found until then is on the disk."""
        print(f"{time.monotonic() - begun:6.1f} s  {name}", flush=True)
        try:
            return fn()
        except Exception as error:
            traceback.print_exc()
            result["failures"][name] = short(error)
            return None
        finally:
            write()

    compiler = Compiler(
        begun + 0.6 * args.seconds, begun + args.seconds, args.workers, args.programs
    )
    full = small_network if args.small else lambda: presets.get("article")
    whole = {"article": full, "source": lambda: presets.get("source"),
             "caffe": lambda: presets.get("caffe")}  # fmt: skip
    if args.small:
        whole = {"article": small_network}
    fits = placements(devices)
    cpu = placements(jax.devices("cpu"))["vmap"]
    vmap = fits["vmap"]
    few = 4 if args.small else 16

    small_rows, full_rows, again, timed = [], [], [], []

    def trace() -> None:
        def add(group: list[str], name: str, program: Program) -> None:
            group.append(name)
            compiler.add(name, program)

        for group, config, title in (
            (small_rows, variant(small_network(), "highest", 32), "small network"),
            (full_rows, variant(full(), "highest", few), f"article {few}"),
        ):
            add(group, f"{title} on the CPU, highest", Program(config, cpu))
            for label, where in fits.items():
                add(group, f"{title} {label} highest", Program(config, where))
        for arithmetic in ("bfloat16",) if args.small else ("high", "default", "bfloat16"):
            config = variant(full(), arithmetic, few)
            add(full_rows, f"article {few} vmap {arithmetic}", Program(config, vmap))
        for name, arithmetic, size, plain in rows_of_speed(args.small):
            config = variant(whole[name](), arithmetic, size)
            label = f"{name} {arithmetic} {size}" + (" plain forms" if plain else "")
            add(timed, label, Program(config, vmap, plain=plain))
            if not plain and size <= 128 and name != "caffe":
                add(timed, f"{label} forward", Program(config, vmap, forward=True))
            if not again:
                options = DETERMINISTIC if vmap.mesh.devices.flat[0].platform == "gpu" else {}
                add(again, f"{label} deterministic", Program(config, vmap, options=options))
                again.append(label)

    part("tracing the programs", trace)
    result["ceilings"] = part(
        "memory and arithmetic", lambda: ceilings(devices[0], 64 if args.small else 1)
    )
    bandwidth = (result["ceilings"] or {}).get("bytes_per_second", math.nan)
    steps = 3 if args.small else 5
    for title, names in (
        ("The small network's losses beside the CPU's", small_rows),
        ("AlexNet's losses beside the CPU's", full_rows),
    ):
        rows = part(title, lambda n=names: agreement(compiler, n, steps))
        result["parts"][title] = rows or []
    rounds, round_seconds = (3, 0.01) if args.small else (7, 0.15)
    title = "Training steps and forward passes"
    rows = part(title, lambda: speed(compiler, timed, rounds, round_seconds, bandwidth))
    result["parts"][title] = rows or []
    title = "The same bits again"
    result["parts"][title] = part(title, lambda: determinism(compiler, again, 6)) or []
    title = "Normalizations, both towers at batch 128"
    calls, interpret = (2, True) if args.small else (20, devices[0].platform != "gpu")
    wanted = rows_of_norms(args.small, args.tune)
    rows = part(title, lambda: normalizations(compiler, devices[0], wanted, interpret, calls))
    for row in rows or []:
        row["least_seconds"] = row["least_bytes"] / bandwidth
    result["parts"][title] = rows or []
    result["failures"] |= compiler.failed
    compiler.pool.shutdown(wait=False, cancel_futures=True)
    write()
    print(page(result), flush=True)


def rows_of_speed(small: bool) -> list[tuple[str, str, int, bool]]:
    """(preset, arithmetic, batch, whether in the forms of a CPU), the most wanted first."""
    if small:
        return [("article", "highest", 8, False), ("article", "bfloat16", 8, True)]
    return [
        ("source", "bfloat16", 128, False),
        ("source", "bfloat16", 128, True),
        ("source", "highest", 128, False),
        ("article", "bfloat16", 128, False),
        ("source", "high", 128, False),
        ("source", "bfloat16", 1024, False),
        ("article", "highest", 128, False),
        ("caffe", "bfloat16", 128, False),
        ("article", "bfloat16", 128, True),
        ("article", "high", 128, False),
        ("article", "bfloat16", 1024, False),
        ("source", "bfloat16", 256, False),
        ("source", "highest", 128, True),
        ("caffe", "highest", 128, False),
        ("caffe", "high", 128, False),
        ("article", "bfloat16", 256, False),
        ("source", "high", 1024, False),
        ("article", "high", 256, False),
        ("caffe", "bfloat16", 256, False),
        ("caffe", "bfloat16", 1024, False),
    ]


def rows_of_norms(small: bool, tune: bool) -> list[tuple]:
    """(name, shape, type, whether to try other blocks)."""
    if small:
        return [
            ("lrn", (2, 3, 3, 6), "bfloat16", tune),
            ("within a map", (2, 5, 5, 6), "float32", False),
        ]
    conv1, pooled1, conv2 = (256, 55, 55, 48), (256, 27, 27, 48), (256, 27, 27, 128)
    return [
        ("lrn of conv1, source", conv1, "bfloat16", tune),
        ("lrn of conv2, source", conv2, "bfloat16", tune),
        ("within a map of conv2, source", conv2, "bfloat16", False),
        ("lrn of conv1, source", conv1, "float32", False),
        ("lrn of conv2, source", conv2, "float32", tune),
        ("within a map of conv2, source", conv2, "float32", False),
        ("lrn of conv1, article", pooled1, "bfloat16", False),
    ]


if __name__ == "__main__":
    main()
