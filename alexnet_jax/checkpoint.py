"""Checkpoints through Orbax: written off the training thread, the last and the best kept."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints/STEP`.

    A checkpoint holds the stacked state (every tower's parameters and momentum) and a small
    dictionary of plain numbers; neither depends on the placement that wrote it.
    """

    def __init__(self, workdir: Path, keep: int):
        """Opens the folder; `keep` latest checkpoints stay, and the one of lowest error."""
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["top1_error"], reverse=True, n=1
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        self._manager = ocp.CheckpointManager(workdir.resolve() / "checkpoints", options=options)

    def save(self, step: int, state: Any, extra: dict[str, float], error: float | None) -> None:
        """Starts to write; `error` (top-1, lower is better) ranks this checkpoint."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
            ),
            metrics=None if error is None else {"top1_error": error},
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest error, or None."""
        return self._manager.best_step()

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, float]]:
        """State as NumPy arrays in the structure of `like`, and the plain numbers."""
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template), extra=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["extra"]

    def close(self) -> None:
        """Waits for writes under way; their errors surface here."""
        self._manager.wait_until_finished()
        self._manager.close()
