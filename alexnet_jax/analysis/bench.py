"""Speed of a configuration on this machine: its step, its forward pass and its input."""

import contextlib
import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import validate
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import Source, fit_classes, open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import build_tower, draw_parameters, initial_statistics
from alexnet_jax.training import evaluate as evaluation
from alexnet_jax.training import loop as train
from alexnet_jax.training import optimizers
from alexnet_jax.training.state import TrainState, init_state


@dataclasses.dataclass
class Steps:
    """The training and evaluation steps of a configuration, as a run compiles them.

    Attributes:
      placement: where the towers run.
      train_step: the compiled training step.
      eval_step: the compiled evaluation step.
      state: of the training, on the devices.
      batch: a training batch of noise, on the devices of all processes.
      eval_batch: an evaluation batch of noise of the same size, on the same devices.
    """

    placement: parallel.Placement
    train_step: Callable
    eval_step: Callable
    state: TrainState
    batch: dict[str, jax.Array]
    eval_batch: dict[str, jax.Array]

    def train(self, steps: int) -> None:
        """Runs a number of training steps and waits for the last one."""
        for _ in range(steps):
            self.state, _ = self.train_step(self.state, self.batch)
        jax.block_until_ready(self.state)

    def forward(self, steps: int) -> None:
        """Runs a number of evaluation steps, of centre crops, and waits for the last one."""
        sums = None
        for _ in range(steps):
            sums = self.eval_step(self.state.variables, self.eval_batch)
        jax.block_until_ready(sums)


def build(config: ConfigDict) -> Steps:
    """Builds the steps, for noise: nothing is read from disk, and a mean image is zero.

    Raises:
      UsageError: as `train.train_and_evaluate`.
    """
    validate(config)
    placement = parallel.place(config)
    tower = build_tower(config.model)
    data = config.data
    which, parts = placement.batch_part
    size = config.batch_size // parts  # Each of several processes feeds its own part.
    mean = np.zeros((data.image_size, data.image_size, 3), np.float32)
    inputs = input_rules.build(data, mean)
    tx = optimizers.build(config, steps_per_epoch=1000, num_steps=1000)
    params = draw_parameters(tower, config.seed, data.crop_size)
    statistics = initial_statistics(tower, data.crop_size)
    generator = np.random.default_rng(which)

    def batch(side: int) -> dict[str, np.ndarray]:
        return {
            "image": generator.integers(0, 256, (size, side, side, 3), np.uint8),
            "label": generator.integers(0, config.model.num_classes, size, np.int32),
            "index": np.arange(which * size, (which + 1) * size, dtype=np.int32),
        }

    return Steps(
        placement=placement,
        train_step=train.make_train_step(config, tower, inputs, tx, placement, 1000),
        eval_step=evaluation.make_eval_step(tower, inputs, placement, views=1),
        state=placement.put_towers(init_state(params, tx, batch_stats=statistics)),
        batch=placement.put_batch(
            batch(data.crop_size) | {"colour": np.zeros((size, 3), np.float32)}
        ),
        eval_batch=placement.put_batch(
            batch(data.image_size) | {"mask": np.ones(size, np.float32)}
        ),
    )


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(config: ConfigDict, rounds: int, steps: int) -> dict[str, Any]:
    """Measures each quantity in turn, so that a slow moment of the machine affects all alike.

    Speeds are those of all processes together. Every process must call it.

    Args:
      config: the run; its data set may be missing, and then only the steps are measured.
      rounds: the number of measurements of each quantity.
      steps: the training steps per measurement.

    Returns:
      `first_step_seconds` (from this call, compilation included); the medians of `train`,
      `forward` and, with data, `pipeline` and `end_to_end` in images per second; `step_fraction`
      (`end_to_end` divided by `train`); and `peak_bytes` of training, in this process.
    """
    with contextlib.suppress(UsageError):
        config = fit_classes(config)
    begun = time.perf_counter()
    bench = build(config)
    bench.train(1)
    result: dict[str, Any] = {
        "placement": bench.placement.describe(),
        "batch_size": config.batch_size,
        "first_step_seconds": time.perf_counter() - begun,
    }
    bench.train(1)
    result["peak_bytes"] = peak_bytes()
    bench.forward(1)
    modes: dict[str, Callable[[int], None]] = {"train": bench.train, "forward": bench.forward}
    source: Source | None = None
    try:
        source = open_sources(config)["train"]
    except UsageError as error:
        result["no_data"] = str(error)
    else:
        modes["end_to_end"] = _end_to_end(bench, config, source)
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(rounds):
        for name, mode in modes.items():
            before = time.perf_counter()
            mode(steps)
            seconds[name].append((time.perf_counter() - before) / steps)
            _settle()
    for name, values in seconds.items():
        result[name] = config.batch_size / _slowest(statistics.median(values))
    if source is not None:
        result["step_fraction"] = result["end_to_end"] / result["train"]
        stream = _batches(config, source, bench.placement)
        result["pipeline"] = pipeline_speed(config, stream, batches=max(steps, 10))
    return result


def _end_to_end(bench: Steps, config: ConfigDict, source: Source) -> Callable[[int], None]:
    batches = _batches(config, source, bench.placement)
    bench.placement.put_batch(next(batches))
    _settle()

    def fed(steps: int) -> None:
        for _ in range(steps):
            batch = bench.placement.put_batch(next(batches))
            bench.state, _ = bench.train_step(bench.state, batch)
        jax.block_until_ready(bench.state)

    return fed


def _settle() -> None:
    """Waits until reading ahead has ended, so that it does not slow the next measurement."""
    busy = 1.0
    while busy > 0.02:
        before = time.process_time()
        time.sleep(0.25)
        busy = (time.process_time() - before) / 0.25


def _slowest(seconds: float) -> float:
    """The longest time that any process took for the same."""
    if jax.process_count() == 1:
        return seconds
    return float(multihost_utils.process_allgather(np.float32(seconds)).max())


def _batches(
    config: ConfigDict, source: Source, placement: parallel.Placement
) -> Iterator[pipeline.Batch]:
    return pipeline.train_batches(
        source,
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        part=placement.batch_part,
        gives_way=placement.on_cpu,
    )


def pipeline_speed(config: ConfigDict, stream: Iterator[pipeline.Batch], batches: int) -> float:
    """Images per second of the input alone, after what was read ahead has been used up.

    Args:
      config: the run.
      stream: of this process's part of each batch.
      batches: number of batches to measure.
    """
    for _ in range(8):
        next(stream)
    before = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return batches * config.batch_size / _slowest(time.perf_counter() - before)


def table(result: dict[str, Any]) -> str:
    """The result of `run` as text."""
    rows = [
        ("first step after", f"{result['first_step_seconds']:.1f} s, compilation included"),
        ("training step", f"{result['train']:.1f} images/s"),
        ("forward alone", f"{result['forward']:.1f} images/s"),
    ]
    if "end_to_end" in result:
        share = f"{result['step_fraction']:.3f} of the bare step"
        rows += [
            ("training from data", f"{result['end_to_end']:.1f} images/s, {share}"),
            ("input alone", f"{result['pipeline']:.0f} images/s"),
        ]
    else:
        rows += [("training from data", f"not measured: {result['no_data']}")]
    rows += [("peak memory", f"{result['peak_bytes'] / 1e9:.2f} GB on the host, per process")]
    lines = [f"{result['placement']}; batch {result['batch_size']}"]
    return "\n".join(lines + [f"  {name:<20}{value}" for name, value in rows])
