"""What is wrong with a run: units that never fire, a loss that never moves, steps that are slow."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from ml_collections import ConfigDict

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
