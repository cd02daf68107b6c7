"""A run in progress, and the protocol of the parts that act on it.

A part is an object with methods that the loop calls at certain moments; `parts` lists those of
every run.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.data.inputs import Inputs
from alexnet_jax.data.sources import Source
from alexnet_jax.model.tower import Tower
from alexnet_jax.training.events import Evaluation, Event
from alexnet_jax.training.state import TrainState
from alexnet_jax.training.stop import Stop

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Due:
    """What is due after a step.

    Attributes:
      log: the mean of the latest steps.
      save: a checkpoint.
      evaluate: an evaluation of each of `config.evaluate.splits`.
      leave: the end of this process's work on the run, which can be resumed.
    """

    log: bool
    save: bool
    evaluate: bool
    leave: bool


@dataclasses.dataclass(frozen=True)
class Series:
    """The place of a run among several that a process trains one after another.

    Attributes:
      name: of the run, such as `lrn-off seed 1`.
      number: of the run, counted from 1.
      count: number of runs.
      seconds: what each of those took that are finished, without its first step.
    """

    name: str
    number: int
    count: int
    seconds: tuple[float, ...] = ()


@dataclasses.dataclass
class Run:
    """What parts see of a run and may change.

    Attributes:
      config: the configuration.
      workdir: the folder that the run writes.
      placement: where the towers run.
      tower: the network.
      inputs: how images become the network's input.
      sources: the images of each split: `train` and, if there are any, `validation` and `test`.
      steps_per_epoch: training steps per pass over the training images.
      num_steps: steps of the whole run.
      rate: from the number of updates to the learning rate of the weights, without the drops of
        the plateau schedule; None if the optimizer has rates of its own.
      rate_scale: product of these drops so far, as in the state.
      train_step: the compiled step.
      batches: training batches, starting at the step at which the run starts or resumes.
      stop: tells whether the run was asked to stop.
      state: the training state, on the devices.
      step: number of steps done.
      unreadable: for each split, the images that cannot be read and the reasons; it grows.
      position: values that a later run must have in common with this one to resume it.
      memory: for each part, by name, what it stored in the checkpoint that the run resumes from.
      parts: the parts, in the order in which they act.
      until: the step after which to leave; None for the end of the run.
      metrics: metrics of the latest step, on the devices; None once a part has taken them.
      waited: seconds spent waiting for batches so far.
      bad_steps: number of the latest consecutive steps that were not finite.
      finished: whether a part has ended the run before `num_steps`.
      evaluations: the latest evaluation of each split.
    """

    config: ConfigDict
    workdir: Path
    placement: parallel.Placement
    tower: Tower
    inputs: Inputs
    sources: dict[str, Source]
    steps_per_epoch: int
    num_steps: int
    rate: Callable[[int], float] | None
    rate_scale: float
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    batches: Iterator[Batch]
    stop: Stop
    state: TrainState
    step: int
    unreadable: dict[str, dict[int, str]]
    position: dict[str, Any]
    memory: dict[str, dict[str, Any]]
    parts: Sequence["Part"] = ()
    until: int | None = None
    metrics: dict[str, Any] | None = None
    waited: float = 0.0
    bad_steps: int = 0
    finished: bool = False
    evaluations: dict[str, Evaluation] = dataclasses.field(default_factory=dict[str, Evaluation])

    @property
    def epoch(self) -> float:
        """Passes over the training images so far."""
        return self.step / self.steps_per_epoch

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or a part has ended the run."""
        return self.finished or self.step >= self.num_steps

    def next_batch(self) -> dict[str, jax.Array] | None:
        """Sends the batch of the next step to the devices; returns None after the last step."""
        if self.step >= self.num_steps:
            return None
        before = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - before
        return self.placement.put_batch(batch)

    def evaluation_due(self) -> bool:
        """Returns whether an evaluation is due after this step."""
        every = max(round(self.config.evaluate.every_epochs * self.steps_per_epoch), 1)
        if not self.config.evaluate.splits:
            return False
        return self.step > 0 and (self.step % every == 0 or self.step == self.num_steps)

    def due(self) -> Due:
        """Returns what is due after this step; every process must call it once per step."""
        config, step, asked = self.config, self.step, self.stop.asked()
        evaluate, last = self.evaluation_due(), step == self.num_steps
        leave = asked or (self.until is not None and step >= self.until)
        return Due(
            log=evaluate or step == 1 or last or step % config.log_every_steps == 0,
            save=leave or evaluate or last or step % config.checkpoint_every_steps == 0,
            # If the run was asked to stop, it evaluates as soon as it is resumed.
            evaluate=evaluate and not asked,
            leave=leave,
        )

    def steers(self, event: Event) -> bool:
        """Whether an event is an evaluation of the last split, which steers the run."""
        splits = self.config.evaluate.splits
        return isinstance(event, Evaluation) and bool(splits) and event.split == splits[-1]

    def emit(self, event: Event) -> None:
        """Passes an event to every part, in their order."""
        for part in self.parts:
            part.on_event(self, event)

    def before_step(self) -> None:
        """Lets every part act before a step."""
        for part in self.parts:
            part.before_step(self)

    def after_step(self, due: Due) -> None:
        """Lets every part act after a step."""
        for part in self.parts:
            part.after_step(self, due)


class Part:
    """Something that acts on a run at certain moments.

    Each method does nothing unless a subclass overrides it. What a part needs to remember if the
    run is interrupted it returns from `memory`, as values that JSON can hold; `recall` gets it
    back.
    """

    @property
    def name(self) -> str:
        """The name under which a checkpoint keeps its memory."""
        return type(self).__name__

    def start(self, run: Run) -> None:
        """Called before the first step, with the state on the devices."""

    def before_step(self, run: Run) -> None:
        """Called before a step is started."""

    def after_step(self, run: Run, due: Due) -> None:
        """Called after a step was started; the devices may still be working on it."""

    def on_event(self, run: Run, event: Event) -> None:
        """Called with every event, also with those that the part itself emits."""

    def memory(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of this part."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Called before `start` with what `memory` returned, or, in a new run, with `{}`."""

    def close(self) -> None:
        """Called at the end of the run, whatever ended it."""
