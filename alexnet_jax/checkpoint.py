"""Checkpoints through Orbax: the last and the best kept, each with a checksum of every array.

Orbax writes off the training thread and a checkpoint appears whole or not at all, but it restores
an array that was damaged since without a word: hence the manifest.
"""

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax import parallel
from alexnet_jax.errors import UsageError

Manifest = dict[str, dict[str, Any]]
"""By the path of an array: `dtype`, `shape` and `sha256`."""

_DAMAGED = ".damaged"


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints/STEP`.

    A checkpoint holds the stacked state (every tower's parameters and momentum), a small dictionary
    of plain numbers and the manifest; none depends on the placement that wrote it.
    """

    def __init__(self, workdir: Path, keep: int):
        """Opens the folder; `keep` latest checkpoints stay, and the one of lowest error."""
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["top1_error"], reverse=True, n=1
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        self._folder = workdir.resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, extra: dict[str, float], error: float | None) -> None:
        """Starts to write; `error` (top-1, lower is better) ranks this checkpoint.

        Every process must call it. An error of an earlier write surfaces here.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                extra=ocp.args.JsonSave(extra),
                manifest=ocp.args.JsonSave(
                    {
                        "arrays": (arrays := manifest(parallel.to_host(state))),
                        "sha256": _seal(arrays, extra),
                    }
                ),
            ),
            metrics=None if error is None else {"top1_error": error},
        )

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest error, or None."""
        return self._manager.best_step()

    def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, float]] | None:
        """The newest checkpoint that is whole: its step, state (NumPy) and plain numbers, or None.

        A damaged one is named, renamed and passed over for the one before.

        Args:
          like: a state of the same structure.

        Raises:
          UsageError: none is whole, or they are of another network or optimizer.
        """
        for step in reversed(self.steps()):
            try:
                state, extra, written = self._read(step, like)
                wrong = differences(written, manifest(state))
            except UsageError:
                raise
            except Exception as error:  # whatever Orbax and TensorStore say of broken files
                wrong = [str(error).strip().partition("\n")[0] or type(error).__name__]
            if not wrong:
                return step, state, extra
            self._set_aside(step, wrong)
        if broken := sorted(self._folder.glob(f"*{_DAMAGED}")):
            names = ", ".join(path.name for path in broken)
            raise UsageError(
                f"{self._folder} holds no whole checkpoint, only {names}: "
                "put back a copy, or remove them to start from the beginning"
            )
        return None

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, float], Manifest]:
        """Raises whatever, and UsageError only for a checkpoint that is whole and another run's."""
        about = self._manager.restore(
            step,
            args=ocp.args.Composite(extra=ocp.args.JsonRestore(), manifest=ocp.args.JsonRestore()),
        )
        arrays, extra = about["manifest"]["arrays"], about["extra"]
        if about["manifest"]["sha256"] != _seal(arrays, extra):
            raise ValueError("manifest or plain numbers: other bytes")
        if foreign := differences(arrays, shapes(like)):
            raise UsageError(
                f"{self._folder / str(step)} is of another configuration: {foreign[0]}; "
                "choose another --workdir"
            )
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template))
        )
        return restored["state"], extra, arrays

    def _set_aside(self, step: int, wrong: list[str]) -> None:
        aside = self._folder / f"{step}{_DAMAGED}"
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        if jax.process_index() == 0:
            print(
                f"warning: checkpoint {step} is damaged ({wrong[0]}{more}); it is now {aside}",
                file=sys.stderr,
                flush=True,
            )
            (self._folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged {step}")
        self._manager.reload()

    def close(self) -> None:
        """Waits for writes under way; their errors surface here."""
        self._manager.wait_until_finished()
        self._manager.close()


def shapes(tree: Any) -> Manifest:
    """A manifest without checksums, of arrays or `jax.ShapeDtypeStruct`."""
    return {
        jax.tree_util.keystr(path): {"dtype": str(x.dtype), "shape": list(x.shape)}
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def manifest(tree: Any) -> Manifest:
    """Names, types, shapes and SHA-256 of host arrays."""

    def digest(x: np.ndarray) -> str:
        return hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        digests = pool.map(digest, jax.tree.leaves(tree))
        return {
            name: row | {"sha256": sha}
            for (name, row), sha in zip(shapes(tree).items(), digests, strict=True)
        }


def _seal(arrays: Manifest, extra: dict[str, float]) -> str:
    """A checksum over what is kept as JSON."""
    return hashlib.sha256(json.dumps([arrays, extra], sort_keys=True).encode()).hexdigest()


def differences(written: Manifest, found: Manifest) -> list[str]:
    """What is not as it was written, a line each; checksums where both have one."""
    lines = [f"{name} is missing" for name in written if name not in found]
    lines += [f"{name} is not part of it" for name in found if name not in written]
    for name in written.keys() & found.keys():
        old, new = written[name], found[name]
        for field in sorted(old.keys() & new.keys()):
            if old[field] != new[field]:
                text = f"{field} {old[field]}, here {new[field]}"
                lines.append(f"{name}: {'other bytes' if field == 'sha256' else text}")
    return sorted(lines)
