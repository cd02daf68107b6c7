"""What is wrong with a run: dead units, a loss that never moves or is none, steps that are slow."""

import dataclasses
import faulthandler
import math
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import workdir as workdirs
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UsageError
from alexnet_jax.models.table import Layer


def dead_units(fired: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of each layer's units (maps of a convolution) that never fired.

    Args:
      fired: `{layer: bool [towers, units]}`, whether any example made the unit positive anywhere.
    """
    return {name: float(1 - np.mean(units)) for name, units in fired.items()}


@dataclasses.dataclass
class Watch:
    """Turns what a run sees of itself into warnings, each given once.

    Attributes:
      config: of the run.
      layers: the table, for the likely causes.
    """

    config: ConfigDict
    layers: tuple[Layer, ...]
    _said: set[str] = dataclasses.field(default_factory=set)

    def loss(self, step: int, loss: float) -> list[str]:
        """Warns when the training loss is still that of a network which says nothing.

        ln(classes) is the loss of equal probabilities; a network that has begun to learn is well
        below it. Reported after `config.warn_stuck_after_steps` steps.
        """
        limit, level = self.config.warn_stuck_after_steps, math.log(self.config.model.num_classes)
        if not limit or step < limit or loss < 0.99 * level:
            return []
        return self._once(
            "stuck",
            f"step {step}: loss {loss:.3f} is still ln({self.config.model.num_classes}) = "
            f"{level:.3f} after {limit} steps. Likely cause: {self._cause()}",
        )

    def units(self, step: int, dead: Mapping[str, float]) -> list[str]:
        """Warns of layers that are dead as a whole, and of those that are mostly dead."""
        lines = []
        for name, share in dead.items():
            if share == 1:
                lines += self._once(
                    f"{name} dead",
                    f"step {step}: {name} is dead, none of its units fires on any test image. "
                    "Likely cause: a rate too high for this start "
                    f"(optimizer.learning_rate = {self.config.optimizer.learning_rate}); lower it, "
                    f"or start model.layers.{name}.bias above 0",
                )
            elif share > 0.5:
                lines += self._once(
                    f"{name} mostly dead",
                    f"step {step}: {share:.0%} of the units of {name} never fire on any test "
                    "image. Likely cause: optimizer.learning_rate is high, or "
                    f"model.layers.{name}.bias starts too low",
                )
        return lines

    def images(self, split: str, unreadable: Mapping[int, str]) -> list[str]:
        """Warns of each image that was replaced because it cannot be read."""
        return [
            line
            for index, reason in unreadable.items()
            for line in self._once(f"{split} {index}", f"{reason}; another takes its place")
        ]

    def _cause(self) -> str:
        small = [row.name for row in self.layers[1:-1] if row.kind == "conv"]
        small = [n for n in small if self.config.model.layers[n].init_std <= 0.01]
        if self.config.data.scale < 0.1 and small:
            return (
                f"inputs of a few units (data.scale = {self.config.data.scale:g}) and weights of "
                "0.01 fade from layer to layer; 2012 fed grey levels, data.scale = 1"
            )
        if small:
            return (
                f"weights of 0.01 in {', '.join(small)} let the signal fade; the 2012 source "
                "starts conv3-5 at 0.03 (model.layers.*.init_std)"
            )
        return "a rate too low or too high (optimizer.learning_rate), or labels that do not match"

    def _once(self, key: str, line: str) -> list[str]:
        if key in self._said:
            return []
        self._said.add(key)
        return [line]


class NotFinite:
    """Keeps the evidence of steps whose loss or gradients hold a NaN or an infinity.

    Attributes:
      last: the latest of them, as a sentence.
    """

    def __init__(self, config: ConfigDict, workdir: Path, source: Source, params: Any):
        """For a run with parameters of this structure, on the training images of `source`."""
        self._config, self._workdir, self._source = config, workdir, source
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        self._names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
        self._rows: list[dict[str, Any]] = []
        self.last = ""

    @property
    def streak(self) -> int:
        """How many such steps in a row there are, up to now."""
        return len(self._rows)

    def applied(self) -> None:
        """A step was finite."""
        self._rows.clear()

    def not_applied(self, step: int, loss: float, wrong: np.ndarray) -> dict[str, Any]:
        """Takes a step that was not; returns its line for the log.

        Args:
          step: its number.
          loss: as computed.
          wrong: the metric `not_finite` of the training step.
        """
        names = [name for name, bad in zip([*self._names, "loss"], wrong, strict=True) if bad]
        row = {
            "step": step,
            "split": "not_finite",
            "loss": float(loss) if np.isfinite(loss) else str(float(loss)),
            "not_finite": names,
            "examples": pipeline.train_indices(
                self._config.seed, self._source.num_examples, self._config.batch_size, step - 1
            ).tolist(),
        }
        self._rows.append(row)
        first = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
        self.last = f"step {step}: {first} not finite; the step is not applied"
        return row

    def give_up(self, after: int) -> None:
        """Ends the run after so many such steps in a row.

        Raises:
          UsageError: names what to look at.
        """
        if self.streak < after:
            return
        evidence = self._workdir / "not_finite.json"
        images = {i: self._source.describe(i) for row in self._rows for i in row["examples"]}
        workdirs.write_json(evidence, {"steps": self._rows, "images": images})
        raise UsageError(
            f"{self.last}, like the {after - 1} before it (config.max_not_finite_steps = {after}). "
            f"{evidence} names the gradients and the images; the last checkpoint is from before. "
            "If they name no image in common, lower config.optimizer.learning_rate"
        )


class Watchdog:
    """Writes where every thread is, once for each step that takes far too long."""

    def __init__(self, path: Path, seconds: float):
        """Appends to `path` after so many seconds; 0: never."""
        self._path, self._seconds = path, seconds
        self._watched: tuple[str, float] | None = None
        self._ended = threading.Event()

    def watch(self, what: str) -> None:
        """The time of `what` starts now."""
        self._watched = what, time.monotonic()

    def rest(self) -> None:
        """Nothing is timed until the next `watch`."""
        self._watched = None

    def _look(self) -> None:
        said = None
        while not self._ended.wait(min(self._seconds / 4, 5)):
            now = self._watched
            if now is None or now is said or time.monotonic() - now[1] < self._seconds:
                continue
            said = now
            with self._path.open("a") as file:
                file.write(f"\n{time.ctime()}: {now[0]}\n")
                file.flush()
                faulthandler.dump_traceback(file)
            print(
                f"warning: {now[0]} has taken more than {self._seconds:g} s "
                f"(config.warn_slow_step_after_seconds); {self._path} says where every thread is",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Self:
        """Starts to look."""
        if self._seconds:
            threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends."""
        self._ended.set()


class Trace:
    """Records some steps with JAX's profiler; open the folder in TensorBoard, XProf or Perfetto."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        """Records steps `steps[0]` to `steps[1]`, both included, or nothing."""
        self._folder = folder
        self._first, self._last = steps or (1, 0)
        self._running = False

    def before(self, step: int) -> None:
        """Called ahead of each step."""
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """Called once a step is on its way; waits for `state`, its result, where tracing ends."""
        if self._running and step >= self._last:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

    def __enter__(self) -> Self:
        """The trace itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Writes what there is, if the run ends before the last step."""
        self._stop()
