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


class StepMetrics(Part):
    """Emits the mean of the finite steps since the last mean, and each step that is not finite.

    The metrics of a step are fetched while the next step runs. Only if a mean or a checkpoint is
    due they are fetched at once, so that they are part of it.
    """

    def __init__(self, config: ConfigDict):
        """Prepares a run of `config`."""
        self._config = config
        self._sums: dict[str, float] = {}
        self._finite_steps = 0
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._evidence: list[NotFinite] = []
        self._timed_steps, self._since, self._waited = 0, 0.0, 0.0
        self._restart = True

    def start(self, run: Run) -> None:
        """Collects the names of the parameters, in the order of the metric `not_finite`."""
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(run.state.params)]
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
        self._names = [*names, "loss"]

    def before_step(self, run: Run) -> None:
        """Restarts the clock after a mean, once all parts are done with the step before."""
        if self._restart:
            self._timed_steps, self._since, self._waited = 0, time.perf_counter(), run.waited
            self._restart = False

    def after_step(self, run: Run, due: Due) -> None:
        """Takes the metrics of the step and emits the mean if it is due."""
        if run.metrics is not None:
            self._pending.append((run.step, run.metrics))
            run.metrics = None
            self._timed_steps += 1
        while len(self._pending) > (0 if due.log or due.save else 1):
            self._take(run, *self._pending.pop(0))
        if due.log and self._finite_steps:
            run.emit(self._mean(run))
            self._sums, self._finite_steps = {}, 0
        self._restart = self._restart or due.log

    def _take(self, run: Run, step: int, metrics: dict[str, Any]) -> None:
        values = parallel.to_host(metrics)
        wrong = values.pop("not_finite")
        if not wrong.any():
            self._evidence.clear()
            self._finite_steps += 1
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
        else:
            self._note(run, step, float(values["loss"]), wrong)
        run.bad_steps = len(self._evidence)

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

    def _mean(self, run: Run) -> TrainingMean:
        elapsed = time.perf_counter() - self._since
        mean = {name: value / self._finite_steps for name, value in self._sums.items()}
        unreadable = len(run.unreadable["train"]) if self._config.data.max_unreadable else None
        rate = None
        if run.rate is not None:
            scale = float(np.ravel(parallel.to_host(run.state.rate_scale))[0])
            rate = float(run.rate(run.step - 1)) * scale
        return TrainingMean(
            step=run.step,
            epoch=run.epoch,
            **mean,
            images_per_second=self._timed_steps * self._config.batch_size / elapsed,
            data_wait_fraction=(run.waited - self._waited) / elapsed,
            learning_rate=rate,
            unreadable=unreadable,
        )

    def memory(self) -> dict[str, Any]:
        """Returns the sums of a mean that is not complete."""
        return {"sums": self._sums, "finite_steps": self._finite_steps}

    def recall(self, memory: dict[str, Any]) -> None:
        """Restores them."""
        self._sums, self._finite_steps = dict(memory.get("sums", {})), memory.get("finite_steps", 0)
