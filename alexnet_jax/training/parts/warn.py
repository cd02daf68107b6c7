"""Warnings about a run: dead units, a loss that does not fall, unreadable images."""

import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from alexnet_jax.training.events import Evaluation, Event, TrainingMean, Warned
from alexnet_jax.training.run import Due, Part, Run

_SOON = 200
"""Steps for which a network of 2012 may stay at this loss in any run: the four presets did so for
64 to 157 steps (results/overfit-800)."""


def at_chance(loss: float, classes: int) -> bool:
    """Whether a cross-entropy is that of equal probabilities, ln(classes), or worse.

    A network that has begun to learn is well below it.
    """
    return not loss < 0.99 * math.log(classes)


class Warnings(Part):
    """Emits warnings, each of them once."""

    def __init__(self, config: ConfigDict):
        """Prepares a run of `config`."""
        self.config = config
        self._said: set[str] = set()
        rate, given = "optimizer.learning_rate", config.optimizer.rule == "given"
        self._rate = "the optimizer's learning rate" if given else rate
        self._rate_now = self._rate if given else f"{rate} = {config.optimizer.learning_rate}"

    def start(self, run: Run) -> None:
        """Says so if there is nothing to train."""
        if run.num_steps == 0:
            epochs = f"config.num_epochs = {self.config.num_epochs:g}"
            run.emit(Warned(0, f"{epochs} is no step: nothing is trained"))

    def on_event(self, run: Run, event: Event) -> None:
        """Checks losses, dead units, and images that an evaluation could not read."""
        lines: list[str] = []
        if isinstance(event, TrainingMean):
            lines = self.loss(event.step, event.loss, run.num_steps)
        if isinstance(event, Evaluation) and self.config.model.activation == "relu":
            lines = self.units(event.step, event.dead_units)
        if isinstance(event, Evaluation):
            lines += self.images(event.split, run.unreadable[event.split])
        for line in lines:
            run.emit(Warned(event.step, line))

    def after_step(self, run: Run, due: Due) -> None:
        """Names training images that were replaced because they cannot be read."""
        del due
        for line in self.images("train", run.unreadable["train"]):
            run.emit(Warned(run.step, line))

    def loss(self, step: int, loss: float, num_steps: int) -> list[str]:
        """Returns a warning if the training loss is still that of equal probabilities.

        It comes after `config.warn_stuck_after_steps` steps, or earlier in a short run: after a
        fifth of its `num_steps`, but at least `_SOON`.
        """
        classes, after = self.config.model.num_classes, self.config.warn_stuck_after_steps
        limit = min(after, max(num_steps // 5, _SOON))
        if not after or step < limit or not at_chance(loss, classes):
            return []
        return self._once(
            "stuck",
            f"step {step}: loss {loss:.3f} is still ln({classes}) = {math.log(classes):.3f} after "
            f"{limit} steps. Likely cause: {self._cause()}",
        )

    def units(self, step: int, dead: Mapping[str, float]) -> list[str]:
        """Returns warnings about layers whose units are all dead or mostly dead."""
        lines = []
        for name, share in dead.items():
            if share == 1:
                lines += self._once(
                    f"{name} dead",
                    f"step {step}: {name} is dead: none of its units is positive for any image. "
                    "Likely cause: a rate too high for this start "
                    f"({self._rate_now}); lower it, "
                    f"or start model.layers.{name}.bias above 0",
                )
            elif share > 0.5:
                lines += self._once(
                    f"{name} mostly dead",
                    f"step {step}: {share:.0%} of the units of {name} are not positive for any "
                    f"image. Likely cause: {self._rate} is high, or "
                    f"model.layers.{name}.bias starts too low",
                )
        return lines

    def images(self, split: str, unreadable: Mapping[int, str]) -> list[str]:
        """Returns a warning for each image that was replaced because it cannot be read."""
        return [
            line
            for index, reason in unreadable.items()
            for line in self._once(f"{split} {index}", f"{reason}; another takes its place")
        ]

    def _cause(self) -> str:
        layers = self.config.model.layers
        middle = self.config.model.layer_order[1:-1]
        small = [n for n in middle if layers[n].kind == "conv" and layers[n].init_std <= 0.01]
        if self.config.data.scale < 0.1 and small:
            return (
                f"with inputs of a few units (data.scale = {self.config.data.scale:g}) and "
                "weights of 0.01 the signal fades from layer to layer; the inputs of 2012 were "
                "grey levels (data.scale = 1)"
            )
        if small:
            return (
                f"with weights of 0.01 in {', '.join(small)} the signal fades; the 2012 source "
                "uses 0.03 for conv3-5 (model.layers.*.init_std)"
            )
        return f"{self._rate} is too low or too high, or labels do not match the images"

    def _once(self, key: str, line: str) -> list[str]:
        if key in self._said:
            return []
        self._said.add(key)
        return [line]
