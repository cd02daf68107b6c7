"""Checkpoints through Orbax: the last and the best kept, each with a checksum of every array.

Orbax writes off the training thread and a checkpoint appears whole or not at all, but it restores
an array that was damaged since without a word: hence the manifest.
"""

import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax.errors import UsageError

Manifest = dict[str, dict[str, Any]]
"""By the path of an array: `dtype`, `shape`, `sha256` and whether it is `finite`."""

_DAMAGED, _FOREIGN = ".damaged", ".foreign"
_ERROR = "top1_error"


def _of_note(record: logging.LogRecord) -> bool:
    """Not Orbax's warnings of what it is asked to do: no OCDBT, nothing written by a reader."""
    return record.levelno >= logging.ERROR or "orbax" not in Path(record.pathname).parts


absl.logging.get_absl_logger().addFilter(_of_note)


class _Best(policies.PreservationPolicy):
    """Keeps the checkpoint of lowest error, the later one of two.

    Orbax's own policy forgets the errors of the checkpoints that a resumed run finds.
    """

    def __init__(self, errors: dict[int, float]):
        """By step; grows with each save."""
        self._errors = errors

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> Sequence[bool]:
        """See `PreservationPolicy`."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        tested = [step for step in steps if step in self._errors]
        best = min(tested, key=lambda step: (self._errors[step], -step), default=None)
        return [step == best for step in steps]


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints/STEP`.

    A checkpoint holds the stacked state (every tower's parameters and momentum), a small dictionary
    of plain numbers and the manifest; none depends on the placement that wrote it.
    """

    def __init__(self, workdir: Path, keep: int = 0):
        """Opens the folder; `keep` latest checkpoints stay, and the one of lowest error.

        With 0 to read only: nothing in the folder is changed.
        """
        self._reads_only = not keep
        self._passed_over: set[int] = set()
        self._folder = workdir.resolve() / "checkpoints"
        self._errors = {} if self._reads_only else _written_errors(self._folder)
        best = _Best(self._errors)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            read_only=self._reads_only,
            create=not self._reads_only,
            cleanup_tmp_directories=not self._reads_only,  # of writes that were cut
        )
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=options,
            item_handlers={
                # A folder an array, and not the OCDBT database: of that TensorStore 0.1.86 leaks
                # two kilobytes for every array of every save.
                "state": ocp.PyTreeCheckpointHandler(use_ocdbt=False),
                "extra": ocp.JsonCheckpointHandler(),
                "manifest": ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self, step: int, state: Any, arrays: Manifest, extra: dict[str, Any], error: float | None
    ) -> None:
        """Starts to write, off this thread.

        Every process must call it.

        Args:
          step: names the checkpoint; one that exists is left as it is.
          state: arrays of the devices.
          arrays: the state's manifest.
          extra: what JSON can hold.
          error: top-1, ranks this checkpoint: the lowest is kept.

        Raises:
          UsageError: this or the write before it failed; says why, and what there is.
          ValueError: a number of the state is not finite.
        """
        if bad := [name for name, row in arrays.items() if not row["finite"]]:
            raise ValueError(f"step {step} is not saved: {bad[0]} is not finite")
        if step in self._manager.all_steps():
            return
        about = {"arrays": arrays, "sha256": _seal(arrays, extra, error), _ERROR: error}
        if error is not None:
            self._errors[step] = error
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    extra=ocp.args.JsonSave(extra),
                    manifest=ocp.args.JsonSave(about),
                ),
            )
        # An array whose shards were looked at holds itself in a cycle, and with it its copy on the
        # host: a whole state a save, until Python looks for cycles, which it does by the number of
        # objects and not by their size.
        gc.collect()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Orbax's and TensorStore's errors of a disk as one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = os.strerror(int(code[1])) if code else str(error).partition("\n")[0]
            last = f"step {steps[-1]} is" if (steps := self.steps()) else "none is"
            raise UsageError(
                f"cannot write a checkpoint to {self._folder} ({reason}); {last} whole there: make "
                "room, and the same command resumes"
            ) from error

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state (NumPy) and extra of one checkpoint.

        Args:
          step: that it is of.
          like: a state of the same structure.

        Raises:
          UsageError: it is not there, damaged or of another configuration.
        """
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UsageError(f"{self._folder} holds no checkpoint {step}; there is {there}")
        try:
            return self._whole(step, like)
        except (UsageError, ValueError) as error:
            raise UsageError(f"{self._folder / str(step)} {error}") from error

    def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint that is whole: its step, state (NumPy) and extra, or None.

        A damaged one, or one of another network among this one's, is named, renamed where that is
        allowed, and passed over for the one before.

        Args:
          like: a state of the same structure.

        Raises:
          UsageError: none is whole, or all are of another network or optimizer.
        """
        foreign: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            try:
                state, extra = self._whole(step, like)
            except UsageError as error:
                foreign.append((step, str(error)))
            except ValueError as error:
                self._set_aside(step, str(error), _DAMAGED)
            else:
                for other, why in foreign:
                    self._set_aside(other, why, _FOREIGN)
                return step, state, extra
        if foreign:
            step, why = foreign[0]
            raise UsageError(f"{self._folder / str(step)} {why}; choose another --workdir")
        broken = {path.name for path in self._folder.glob(f"*{_DAMAGED}")}
        if broken := sorted(broken | {str(step) for step in self._passed_over}):
            raise UsageError(
                f"{self._folder} holds no whole checkpoint, only {', '.join(broken)}: "
                "put back a copy, or remove them to start from the beginning"
            )
        return None

    def _whole(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Raises UsageError for one of another configuration, ValueError for a damaged one."""
        try:
            state, extra, written = self._read(step, like)
            wrong = differences(written, manifest(state))
        except UsageError:
            raise
        except Exception as error:  # whatever Orbax and TensorStore say of broken files
            wrong = [str(error).strip().partition("\n")[0] or type(error).__name__]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise ValueError(f"is damaged ({wrong[0]}{more})")
        return state, extra

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any], Manifest]:
        """Raises whatever, and UsageError only for a checkpoint that is whole and another run's."""
        about = self._manager.restore(
            step,
            args=ocp.args.Composite(extra=ocp.args.JsonRestore(), manifest=ocp.args.JsonRestore()),
        )
        arrays, extra = about["manifest"]["arrays"], about["extra"]
        if about["manifest"]["sha256"] != _seal(arrays, extra, about["manifest"].get(_ERROR)):
            raise ValueError("manifest or plain numbers: other bytes")
        if foreign := differences(arrays, shapes(like)):
            raise UsageError(f"is of another configuration: {foreign[0]}")
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        how = ocp.checkpoint_utils.construct_restore_args(template)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeRestore(template, restore_args=how)),
        )
        return restored["state"], extra, arrays

    def _set_aside(self, step: int, why: str, kind: str) -> None:
        text = f"warning: checkpoint {step} in {self._folder} {why}"
        if self._reads_only:
            self._passed_over.add(step)
            print(f"{text}; it is passed over", file=sys.stderr, flush=True)
            return
        if jax.process_index() == 0:
            print(f"{text}; it is now {step}{kind}", file=sys.stderr, flush=True)
            (self._folder / str(step)).rename(self._folder / f"{step}{kind}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{step}{kind}")
        self._manager.reload()

    def wait(self) -> None:
        """Waits for writes under way; raises as `save`."""
        with self._explained():
            self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        """The checkpoints themselves."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Waits for writes under way, without a word of their errors: see `wait`."""
        try:
            self._manager.close()
        except Exception:
            if exc[0] is None:
                raise


def shapes(tree: Any) -> Manifest:
    """A manifest without checksums, of arrays or `jax.ShapeDtypeStruct`."""
    return {
        jax.tree_util.keystr(path): {"dtype": str(x.dtype), "shape": list(x.shape)}
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def manifest(tree: Any) -> Manifest:
    """Names, types, shapes, SHA-256 and finiteness of host arrays."""

    def look(x: np.ndarray) -> tuple[str, bool]:
        return hashlib.sha256(np.ascontiguousarray(x).data).hexdigest(), bool(np.isfinite(x).all())

    with ThreadPoolExecutor() as pool:  # both release the interpreter
        seen = pool.map(look, jax.tree.leaves(tree))
        return {
            name: row | {"sha256": sha, "finite": finite}
            for (name, row), (sha, finite) in zip(shapes(tree).items(), seen, strict=True)
        }


def parameters_sha256(arrays: Manifest) -> str:
    """One checksum over names, types, shapes and bytes of all parameters of a state."""
    rows = {name: row for name, row in arrays.items() if name.startswith(".params")}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _seal(arrays: Manifest, extra: dict[str, Any], error: float | None) -> str:
    """A checksum over what is kept as JSON."""
    kept = [arrays, extra] if error is None else [arrays, extra, error]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _written_errors(folder: Path) -> dict[int, float]:
    """The error by which each checkpoint of a folder is ranked, by step."""
    errors = {}
    for path in folder.glob("[0-9]*/manifest/metadata"):
        # A damaged one is found when it is restored.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            errors[int(path.parts[-3])] = float(json.loads(path.read_text())[_ERROR])
    return errors


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
