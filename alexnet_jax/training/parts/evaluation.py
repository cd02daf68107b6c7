"""Evaluation during training, and what depends on its results."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.training import evaluate as evaluation
from alexnet_jax.training import schedules
from alexnet_jax.training.events import Evaluation, Event
from alexnet_jax.training.run import Due, Part, Run


class Evaluate(Part):
    """Evaluates the splits of `config.evaluate.splits`, by the centre crop of every image."""

    def __init__(self, config: ConfigDict):
        """Prepares a run of `config`; nothing compiles before the first evaluation."""
        self._config = config
        self._step: Callable[..., Any] | None = None

    def after_step(self, run: Run, due: Due) -> None:
        """Evaluates each split if an evaluation is due.

        Raises:
          Interrupted: the run was asked to stop.
        """
        for split in self._config.evaluate.splits if due.evaluate else ():
            if self._step is None:
                self._step = step_of(run, views=1)
            evaluate_split(run, self._step, split, views=1)


def step_of(run: Run, views: int) -> Callable[..., Any]:
    """Compiles the evaluation step of a run."""
    return evaluation.make_eval_step(
        run.tower, run.inputs, run.placement, views, run.config.evaluate.metrics
    )


def evaluate_split(run: Run, step: Callable[..., Any], split: str, views: int) -> None:
    """Evaluates the current weights of a run and emits the result.

    Args:
      run: the run.
      step: what `step_of` returned for the same number of views.
      split: `train`, `validation` or `test`.
      views: views per image: 1, 9 or 10.

    Raises:
      Interrupted: the run was asked to stop.
    """
    means = evaluation.evaluate(
        step, run.state.variables, run.sources[split], run.config, run.placement, views,
        unreadable=run.unreadable[split], interrupted=run.stop.asked,
    )  # fmt: skip
    event = Evaluation(step=run.step, epoch=run.epoch, split=split, **dataclasses.asdict(means))
    run.evaluations[split] = event
    run.emit(event)


class Plateau(Part):
    """Lowers the rate when the error of the split that steers stops falling (section 5)."""

    def __init__(self, config: ConfigDict):
        """Prepares a run of `config`; with another schedule than `plateau` it does nothing."""
        self._optimizer = config.optimizer
        self._plateau = schedules.Plateau()

    def on_event(self, run: Run, event: Event) -> None:
        """Takes an error and stores the factor on all rates in the state."""
        if self._optimizer.schedule != "plateau" or not run.steers(event):
            return
        assert isinstance(event, Evaluation)
        scale = self._plateau.observe(event.top1_error, self._optimizer)
        full = np.full([run.tower.towers], scale, np.float32)
        run.state = dataclasses.replace(run.state, rate_scale=run.placement.put_towers(full))
        run.rate_scale = float(full[0])

    def memory(self) -> dict[str, Any]:
        """Returns the lowest error, and the numbers of evaluations and drops since then."""
        return dataclasses.asdict(self._plateau)

    def recall(self, memory: dict[str, Any]) -> None:
        """Restores them."""
        self._plateau = schedules.Plateau(**memory)


class StopAtError(Part):
    """Ends the run when the error of the split that steers is low enough."""

    def __init__(self, config: ConfigDict):
        """Prepares a run of `config`; with `stop_at_error = 0` it never ends the run."""
        self._target = config.stop_at_error

    def on_event(self, run: Run, event: Event) -> None:
        """Compares the error with the limit."""
        # Among steps that are not finite there is no checkpoint to end with.
        if self._target > 0 and run.steers(event) and not run.bad_steps:
            assert isinstance(event, Evaluation)
            run.finished = run.finished or event.top1_error <= self._target
