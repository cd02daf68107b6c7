"""Checkpoints by Orbax: the latest and the best are kept, with a checksum of every array.

Orbax writes in the background, and a checkpoint appears completely or not at all. But Orbax does
not notice if an array is damaged later: hence the manifest.
"""

import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax.errors import UsageError
from alexnet_jax.parallel import everyone
from alexnet_jax.training.state import TrainState

Manifest = dict[str, dict[str, Any]]
"""For each array, by its path: `dtype`, `shape`, `sha256` and whether it is `finite`."""

Items = Mapping[str, Any]
"""Trees of arrays by the name of the item that holds them in a checkpoint."""

_WHOLE, _DAMAGED, _FOREIGN = "", ".damaged", ".foreign"
"""Kinds of checkpoints, by what their names end with from then on."""
_VARIABLES = ("params", "batch_stats")
_OPTIMIZER = "optimizer"
_EVERYTHING = "state"  # Version 0.1 kept everything in one item.


def _of_note(record: logging.LogRecord) -> bool:
    """Drops Orbax's warnings about options that are chosen below: no OCDBT, read only."""
    return record.levelno >= logging.ERROR or "orbax" not in Path(record.pathname).parts


absl.logging.get_absl_logger().addFilter(_of_note)


class _Kept(policies.PreservationPolicy):
    """Preserves the checkpoint of one step, which may change."""

    def __init__(self, step: Callable[[], int | None]):
        self._step = step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """See Orbax."""
        del context
        return [checkpoint.step == self._step() for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints/STEP`.

    A checkpoint holds, stacked by tower, the parameters, the running statistics if there are any,
    and the state of the optimizer, each as an item of its own; a small dictionary of plain values;
    and the manifest. It does not depend on the placement that wrote it.

    Attributes:
      best: the step whose checkpoint is kept besides the latest ones; None for no step.
    """

    def __init__(self, workdir: Path, keep: int = 0):
        """Opens the folder.

        Args:
          workdir: the folder of the run.
          keep: number of latest checkpoints that are kept; with 0 the folder is only read, and
            nothing in it is changed.
        """
        self._reads_only = not keep
        self._passed_over: set[int] = set()
        self.best: int | None = None
        self._folder = workdir.resolve() / "checkpoints"
        # Orbax reads with all processes at once: where one fails, the others would wait for it.
        self._reader = self._open(keep if jax.process_count() == 1 else 0)
        self._manager = self._open(keep) if keep and jax.process_count() > 1 else self._reader

    def _open(self, keep: int) -> ocp.CheckpointManager:
        """Opens the folder for all processes to write, or, with 0, for this one to read."""
        me, alone = jax.process_index(), not keep and jax.process_count() > 1
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), _Kept(lambda: self.best)]
            ),
            read_only=not keep,
            create=keep > 0,
            cleanup_tmp_directories=keep > 0,  # from interrupted writes
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me if alone else 0, active_processes={me} if alone else None
            ),
        )
        return ocp.CheckpointManager(
            self._folder,
            options=options,
            item_handlers={
                # One folder per array instead of the OCDBT database, with which TensorStore 0.1.86
                # leaks two kilobytes per array and save.
                name: ocp.PyTreeCheckpointHandler(use_ocdbt=False)
                for name in (*_VARIABLES, _OPTIMIZER, _EVERYTHING)
            }
            | {name: ocp.JsonCheckpointHandler() for name in ("extra", "manifest")},
        )

    def save(self, step: int, state: TrainState, arrays: Manifest, extra: dict[str, Any]) -> None:
        """Starts to write a checkpoint in the background.

        Every process must call it.

        Args:
          step: the name of the checkpoint; if it exists, nothing is written.
          state: arrays on the devices.
          arrays: the manifest of `items(state)` on the host.
          extra: plain values that JSON can hold.

        Raises:
          UsageError: this write or the one before it failed; says why, and which checkpoints exist.
          ValueError: a number of the state is not finite.
        """
        if bad := [name for name, row in arrays.items() if not row["finite"]]:
            raise ValueError(f"step {step} is not saved: {bad[0]} is not finite")
        if any(everyone(step in self._manager.all_steps())):
            return
        # Orbax writes in the background, while the caller may change its values: this is a copy.
        extra = json.loads(json.dumps(extra))
        with self._explained():
            self._manager.save(
                step,
                force=True,  # also if a later one was passed over and stays
                args=ocp.args.Composite(
                    **{name: ocp.args.PyTreeSave(tree) for name, tree in items(state).items()},
                    extra=ocp.args.JsonSave(extra),
                    manifest=ocp.args.JsonSave({"arrays": arrays, "sha256": _seal(arrays, extra)}),
                ),
            )
        # An array whose shards were accessed is part of a reference cycle, with its copy on the
        # host. Each save would leave a whole state behind until Python collects garbage, which
        # depends on the number of objects and not on their size.
        gc.collect()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns errors of the disk, as Orbax and TensorStore raise them, into one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = os.strerror(int(code[1])) if code else str(error).partition("\n")[0]
            steps = self.steps()
            last = f"the latest complete one is of step {steps[-1]}" if steps else "there is none"
            raise UsageError(
                f"cannot write a checkpoint to {self._folder} ({reason}); {last}: make room, and "
                "the same command resumes"
            ) from error

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state, as NumPy arrays, and the plain values of one checkpoint.

        Args:
          step: its step.
          like: a state of the same structure.

        Raises:
          UsageError: it does not exist, is damaged or belongs to another configuration.
        """
        found, extra = self._one(step, items(like))
        return _state(found), extra

    def restore_latest(self, like: TrainState) -> tuple[int, TrainState, dict[str, Any]] | None:
        """Returns step, state (NumPy) and plain values of the latest intact checkpoint, or None.

        A damaged checkpoint, or one of another network among those of this one, is reported and
        skipped; unless the folder is only read, it is renamed too.

        Args:
          like: a state of the same structure.

        Raises:
          UsageError: no checkpoint is intact, or all belong to another network or optimizer.
        """
        found = self._latest(items(like))
        return None if found is None else (found[0], _state(found[1]), found[2])

    def restore_variables(
        self, step: int | None, like: dict[str, Any]
    ) -> tuple[int, dict[str, Any]] | None:
        """Returns the step of a checkpoint and what a network needs of it, as NumPy arrays.

        The state of the optimizer is not read, and may be of any optimizer. Checkpoints of version
        0.1 can be read too.

        Args:
          step: the step; None for the latest intact checkpoint.
          like: variables of the same structure: `params` and, if there are any, `batch_stats`.

        Raises:
          UsageError: as `restore` or `restore_latest`.
        """
        if step is not None:
            return step, self._one(step, like)[0]
        found = self._latest(like)
        return None if found is None else found[:2]

    def _one(self, step: int, like: Items) -> tuple[dict[str, Any], dict[str, Any]]:
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UsageError(f"{self._folder} holds no checkpoint {step}; there is {there}")
        try:
            return self._whole(step, like)
        except (UsageError, ValueError) as error:
            raise UsageError(f"{self._folder / str(step)} {error}") from error

    def _latest(self, like: Items) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        # Who only reads may be one of several processes, and decides alone.
        agreed = everyone if not self._reads_only else lambda mine: [mine]
        foreign: list[tuple[int, str]] = []
        known = {step for steps in agreed(self.steps()) for step in steps}
        for step in sorted(known, reverse=True):
            found, extra, mine = self._judged(step, like)
            every = agreed(mine)
            kinds, (_, why) = {kind for kind, _ in every}, every[0]
            if kinds == {_WHOLE}:
                for other, reason in foreign:
                    self._set_aside(other, reason, _FOREIGN)
                return step, found, extra
            if len(kinds) > 1:  # One of them reads something else: none may decide for all.
                each = "; ".join(f"for process {i} it {why}" for i, (_, why) in enumerate(every))
                self._pass_over(step, f"is not the same for all processes ({each})")
            elif kinds == {_FOREIGN}:
                foreign.append((step, why))
            else:
                self._set_aside(step, why, _DAMAGED)
        if foreign:
            step, why = foreign[0]
            raise UsageError(f"{self._folder / str(step)} {why}; choose another --workdir")
        broken = {path.name for path in self._folder.glob(f"*{_DAMAGED}")}
        if broken := sorted(broken | {str(step) for step in self._passed_over}):
            raise UsageError(
                f"{self._folder} holds no intact checkpoint, only {', '.join(broken)}: "
                "put back a copy, or remove them to start from the beginning"
            )
        return None

    def _judged(
        self, step: int, like: Items
    ) -> tuple[dict[str, Any], dict[str, Any], tuple[str, str]]:
        """A checkpoint as this process reads it, its kind, and why it is of this kind."""
        try:
            if step not in self.steps():
                return {}, {}, (_DAMAGED, "is missing")
            return *self._whole(step, like), (_WHOLE, "is whole")
        except UsageError as error:
            return {}, {}, (_FOREIGN, str(error))
        except ValueError as error:
            return {}, {}, (_DAMAGED, str(error))

    def _whole(self, step: int, like: Items) -> tuple[dict[str, Any], dict[str, Any]]:
        """Raises UsageError for a checkpoint of another configuration, ValueError for damage."""
        try:
            found, extra, written = self._read(step, like)
            wrong = differences(written, manifest(found))
        except UsageError:
            raise
        except Exception as error:  # whatever Orbax and TensorStore raise for broken files
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"is damaged ({reason})") from error
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise ValueError(f"is damaged ({wrong[0]}{more})")
        return found, extra

    def _read(self, step: int, like: Items) -> tuple[dict[str, Any], dict[str, Any], Manifest]:
        """Raises UsageError for another configuration only; anything else means damage."""
        about = self._reader.restore(
            step,
            args=ocp.args.Composite(extra=ocp.args.JsonRestore(), manifest=ocp.args.JsonRestore()),
        )
        arrays, extra = about["manifest"]["arrays"], about["extra"]
        if about["manifest"]["sha256"] != _seal(arrays, extra):
            raise ValueError("manifest or plain numbers: other bytes")
        old = (self._folder / str(step) / _EVERYTHING).is_dir()
        if old and _OPTIMIZER in like:
            raise UsageError("was written by version 0.1, whose runs cannot be resumed")
        if _OPTIMIZER not in like:
            arrays = _of(_VARIABLES, arrays)
        if foreign := differences(arrays, shapes(like)):
            network = [line for line in foreign if not line.startswith(f".{_OPTIMIZER}")]
            if network:
                raise UsageError(f"is of another configuration: {network[0]}")
            raise UsageError(f"holds the state of another optimizer: {foreign[0]}")
        template = {
            name: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
            for name, tree in like.items()
        }
        wanted: Items = {_EVERYTHING: template} if old else template
        args = {name: _reading(tree, partial=old) for name, tree in wanted.items()}
        restored = self._reader.restore(step, args=ocp.args.Composite(**args))
        found = restored[_EVERYTHING] if old else {name: restored[name] for name in like}
        return found, extra, arrays

    def _set_aside(self, step: int, why: str, kind: str) -> None:
        """Renames a checkpoint that is the same for all processes, if they write the folder."""
        if self._reads_only:
            self._pass_over(step, why)
            return
        self._warn(step, f"{why}; it is now {step}{kind}")
        if jax.process_index() == 0:
            (self._folder / str(step)).rename(self._folder / f"{step}{kind}")
        everyone(step)  # Only now it is renamed for all.
        self._manager.reload()

    def _pass_over(self, step: int, why: str) -> None:
        self._passed_over.add(step)
        self._warn(step, f"{why}; it is skipped")

    def _warn(self, step: int, text: str) -> None:
        if self._reads_only or jax.process_index() == 0:
            text = f"warning: checkpoint {step} in {self._folder} {text}"
            print(text, file=sys.stderr, flush=True)

    def wait(self) -> None:
        """Waits until everything is written; raises the same errors as `save`."""
        with self._explained():
            self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        """Returns the checkpoints."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Waits until everything is written; `wait` raises the errors, this does not.

        After an error nothing is waited for if other processes would have to write as well.
        """
        if exc[0] is not None and jax.process_count() > 1:
            return
        try:
            self._manager.close()
        except Exception:
            if exc[0] is None:
                raise


def items(state: TrainState) -> dict[str, Any]:
    """Returns a state as the items of a checkpoint."""
    optimizer = {
        "opt_state": state.opt_state,
        "rate_scale": state.rate_scale,
        "seed": state.seed,
        "step": state.step,
    }
    return {**state.variables, _OPTIMIZER: optimizer}


def _state(found: dict[str, Any]) -> TrainState:
    """Returns the state of such items."""
    return TrainState(
        params=found["params"], batch_stats=found.get("batch_stats", {}), **found[_OPTIMIZER]
    )


def _reading(template: Any, partial: bool) -> ocp.args.PyTreeRestore:
    """Returns the argument with which Orbax reads a tree, or a part of one, as NumPy arrays."""
    how = ocp.checkpoint_utils.construct_restore_args(template)
    return ocp.args.PyTreeRestore(template, restore_args=how, partial_restore=partial)


def shapes(trees: Items) -> Manifest:
    """Returns a manifest without checksums, of arrays or `jax.ShapeDtypeStruct`."""
    return {
        f".{item}{jax.tree_util.keystr(path)}": {"dtype": str(x.dtype), "shape": list(x.shape)}
        for item, tree in trees.items()
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def manifest(trees: Items) -> Manifest:
    """Returns the manifest of arrays on the host."""

    def look(x: np.ndarray) -> tuple[str, bool]:
        return hashlib.sha256(np.ascontiguousarray(x).data).hexdigest(), bool(np.isfinite(x).all())

    leaves = [x for tree in trees.values() for x in jax.tree.leaves(tree)]
    with ThreadPoolExecutor() as pool:  # Both release the interpreter lock.
        seen = pool.map(look, leaves)
        return {
            name: row | {"sha256": sha, "finite": finite}
            for (name, row), (sha, finite) in zip(shapes(trees).items(), seen, strict=True)
        }


def parameters_sha256(arrays: Manifest) -> str:
    """Returns a checksum of names, types, shapes and bytes of all parameters and statistics."""
    rows = _of(_VARIABLES, arrays)
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _of(names: Sequence[str], arrays: Manifest) -> Manifest:
    """Returns the rows of some items."""
    starts = tuple(f".{name}[" for name in names)
    return {name: row for name, row in arrays.items() if name.startswith(starts)}


def _seal(arrays: Manifest, extra: dict[str, Any]) -> str:
    """Returns a checksum of everything that a checkpoint keeps as JSON."""
    return hashlib.sha256(json.dumps([arrays, extra], sort_keys=True).encode()).hexdigest()


def differences(written: Manifest, found: Manifest) -> list[str]:
    """Returns one line per difference; checksums are compared if both manifests have them."""
    lines = [f"{name} is missing" for name in written if name not in found]
    lines += [f"{name} is not part of it" for name in found if name not in written]
    for name in written.keys() & found.keys():
        old, new = written[name], found[name]
        for field in sorted(old.keys() & new.keys()):
            if old[field] != new[field]:
                text = f"{field} {old[field]}, here {new[field]}"
                lines.append(f"{name}: {'other bytes' if field == 'sha256' else text}")
    return sorted(lines)
