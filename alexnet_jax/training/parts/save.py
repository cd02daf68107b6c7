"""Checkpoints, written before the evaluation of the same step, so that none is lost with it."""

from typing import Any

from alexnet_jax import parallel
from alexnet_jax.training.checkpoint import Checkpoints, items, manifest, parameters_sha256
from alexnet_jax.training.events import Evaluation, Event, Saved
from alexnet_jax.training.run import Due, Part, Run
from alexnet_jax.training.workdir import Writer, as_json


class Folder(Part):
    """Ends the run if its folder was removed or replaced."""

    def __init__(self, writer: Writer):
        """Prepares to check the folder whose lock `writer` holds."""
        self._writer = writer

    def after_step(self, run: Run, due: Due) -> None:
        """Checks the folder before anything is written to it."""
        del run
        if due.log or due.save:
            self._writer.check()


class Save(Part):
    """Writes checkpoints, and keeps the one with the lowest error of the split that steers.

    The memory of all parts is written with the state.
    """

    def __init__(self, checkpoints: Checkpoints):
        """Prepares to write to `checkpoints`."""
        self._checkpoints = checkpoints
        self._best: dict[str, Any] = {}

    def after_step(self, run: Run, due: Due) -> None:
        """Starts to write a checkpoint if it is due."""
        needed = due.leave or run.step == run.num_steps
        # If steps that are not finite end the run, it resumes before the first of them.
        if not due.save or (run.bad_steps and not needed):
            return
        arrays = manifest(items(parallel.to_host(run.state)))
        # The event comes first, so that the log has a line for every checkpoint.
        run.emit(Saved(run.step, parameters_sha256(arrays)))
        extra = {
            "position": run.position,
            "config": as_json(run.config),
            "parts": {part.name: memory for part in run.parts if (memory := part.memory())},
        }
        self._checkpoints.save(run.step, run.state, arrays, extra)

    def on_event(self, run: Run, event: Event) -> None:
        """Chooses the checkpoint that is kept."""
        # Among steps that are not finite there is none.
        if not run.steers(event) or event.step not in self._checkpoints.steps():
            return
        assert isinstance(event, Evaluation)
        if not self._best or event.top1_error < self._best["error"]:
            self._best = {"step": event.step, "error": event.top1_error}
            self._checkpoints.best = event.step

    def memory(self) -> dict[str, Any]:
        """Returns the best step so far and its error."""
        return self._best

    def recall(self, memory: dict[str, Any]) -> None:
        """Restores them."""
        self._best = dict(memory)
        self._checkpoints.best = memory.get("step")
