"""Metrics of training steps: fetched one step late, averaged, and watched for NaN."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.data import pipeline
from alexnet_jax.errors import UsageError
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.events import NotFinite, TrainingMean
from alexnet_jax.training.run import Due, Part, Run


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step that was started.

    Attributes:
      number: the first step is 1.
      metrics: on the devices, which may still compute them.
      ends_line: whether the mean is due that ends with this step.
      unreadable: number of unreadable training images known then.
    """

    number: int
    metrics: dict[str, Any]
    ends_line: bool
    unreadable: int


class StepMetrics(Part):
    """Emits the mean of the finite steps since the last mean, and each step that is not finite.

    The metrics of a step are fetched once the next step is on its way, so that the devices never
    wait for the log: a mean comes one step late. Only if a checkpoint is due, whose state the next
    step would overwrite, they are fetched at once, so that they are part of it.

    A line's time ends when its last step is computed, and the time of the next line starts there;
    after an evaluation it starts with the next step.
    """

    def __init__(self, config: ConfigDict):
        """Prepares a run of `config`."""
        self._config = config
        self._sums: dict[str, float] = {}
        self._finite_steps = 0
        self._pending: list[_Step] = []
        self._evidence: list[NotFinite] = []
        self._timed_steps, self._since, self._waited = 0, 0.0, 0.0
        self._restart = True

    def start(self, run: Run) -> None:
        """Collects the names of the parameters, in the order of the metric `not_finite`."""
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(run.state.params)]
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
        self._names = [*names, "loss"]

    def before_step(self, run: Run) -> None:
        """Restarts the clock after a mean with a checkpoint, once all parts are done with both."""
        if self._restart:
            self._lap(run)
            self._restart = False

    def after_step(self, run: Run, due: Due) -> None:
        """Takes the metrics of the step before, or those of this one too if a checkpoint is due."""
        if run.metrics is not None:
            parallel.copy_to_host_async(run.metrics)
            unreadable = len(run.unreadable["train"])
            self._pending.append(_Step(run.step, run.metrics, due.log, unreadable))
            run.metrics = None
        while len(self._pending) > (0 if due.save else 1):
            self._take(run, self._pending.pop(0))
        self._restart = self._restart or (due.log and due.save)

    def _take(self, run: Run, step: _Step) -> None:
        values = parallel.to_host(step.metrics)
        self._timed_steps += 1
        wrong = values.pop("not_finite")
        if not wrong.any():
            self._evidence.clear()
            self._finite_steps += 1
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
        else:
            self._note(run, step.number, float(values["loss"]), wrong)
        run.bad_steps = len(self._evidence)
        if step.ends_line and self._finite_steps:
            run.emit(self._mean(run, step))
            self._sums, self._finite_steps = {}, 0

    def _lap(self, run: Run) -> tuple[int, float, float]:
        """Restarts the clock; returns the steps until now, their seconds and those of waiting."""
        now = time.perf_counter()
        lap = self._timed_steps, now - self._since, run.waited - self._waited
        self._timed_steps, self._since, self._waited = 0, now, run.waited
        return lap

    def _note(self, run: Run, step: int, loss: float, wrong: np.ndarray) -> None:
        """Emits a step that was not applied.

        Raises:
          UsageError: there were too many in a row; names the file that lists them.
        """
        indices = pipeline.train_indices(
            self._config.seed, run.sources["train"].num_examples, self._config.batch_size, step - 1
        )
        event = NotFinite(
            step=step,
            loss=loss if np.isfinite(loss) else str(loss),
            not_finite=[name for name, bad in zip(self._names, wrong, strict=True) if bad],
            examples=indices.tolist(),
        )
        self._evidence.append(event)
        run.emit(event)
        limit = self._config.max_not_finite_steps
        if len(self._evidence) < limit:
            return
        path = run.workdir / "not_finite.json"
        rows = [dataclasses.asdict(event) for event in self._evidence]
        images = {
            i: run.sources["train"].describe(i) for row in self._evidence for i in row.examples
        }
        workdirs.write_json(path, {"steps": rows, "images": images})
        raise UsageError(
            f"step {step}: {event.not_finite[0]} is not finite; such steps in a row: {limit} "
            f"(config.max_not_finite_steps = {limit}). {path} names the gradients and the images "
            "of each. None of them was applied. If they have no image in common, lower "
            "config.optimizer.learning_rate"
        )

    def _mean(self, run: Run, step: _Step) -> TrainingMean:
        timed_steps, seconds, waited = self._lap(run)
        mean = {name: value / self._finite_steps for name, value in self._sums.items()}
        rate = None if run.rate is None else run.rate(step.number - 1) * run.rate_scale
        return TrainingMean(
            step=step.number,
            epoch=step.number / run.steps_per_epoch,
            **mean,
            images_per_second=timed_steps * self._config.batch_size / seconds,
            data_wait_fraction=waited / seconds,
            learning_rate=rate,
            unreadable=step.unreadable if self._config.data.max_unreadable else None,
        )

    def memory(self) -> dict[str, Any]:
        """Returns the sums of a mean that is not complete."""
        return {"sums": self._sums, "finite_steps": self._finite_steps}

    def recall(self, memory: dict[str, Any]) -> None:
        """Restores them."""
        self._sums, self._finite_steps = dict(memory.get("sums", {})), memory.get("finite_steps", 0)
