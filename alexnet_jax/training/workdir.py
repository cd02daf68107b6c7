"""The folder of a run: who may write it, its configuration and its environment."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import jax
from ml_collections import ConfigDict

from alexnet_jax import jsonfiles, parallel, paths
from alexnet_jax.config import default, from_json, leaves
from alexnet_jax.config.fields import field_of
from alexnet_jax.errors import UsageError

CLASSES = "classes.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"

_HOLDER = "process "
"""How the content of a lock begins while somebody holds it."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM)
"""What `flock` answers on disks that have no locks: some network disks, buckets, shared folders."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Writer:
    """A context in which one run holds the lock of a folder and writes it.

    Of several processes, the first holds the lock. The operating system releases it when the
    process ends, so that a lock is never stale. Within the context an `OSError` about the folder or
    its disk becomes a `UsageError`.
    """

    def __init__(self, workdir: Path):
        """Prepares the lock of `workdir`, which need not exist."""
        self._workdir = workdir
        self._file: int | None = None
        self._holds = False

    def __enter__(self) -> Self:
        """Creates the folder and takes the lock.

        Raises:
          UsageError: the folder cannot be written, or another run is writing it.
        """
        path = self._workdir / "lock"
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            if jax.process_index() > 0:
                return self
            self._file = self._open(path)
            self._lock(self._file)
            me = f"{_HOLDER}{os.getpid()} on {socket.gethostname()} since {time.ctime()}"
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, me.encode(), 0)
            self._holds = True
        except BlockingIOError as error:
            holder = path.read_text() or "another process"
            self._release()
            raise UsageError(
                f"--workdir={self._workdir} is being written by {holder}: wait for it to end, or "
                "choose another"
            ) from error
        except OSError as error:
            self._release()
            raise self._unwritable(error) from error
        return self

    def _open(self, path: Path) -> int:
        """Opens the file of the lock.

        Raises:
          UsageError: what is there is not one, and stays as it is.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            found = "a link" if path.is_symlink() else "not a file"
        else:
            file = os.open(path, flags, 0o666)
            content = os.pread(file, len(_HOLDER), 0)
            if content in (b"", _HOLDER.encode()):
                return file
            os.close(file)
            found = "a file of something else"
        raise UsageError(
            f"{path} is {found}, and a run needs this name for its lock: rename it, or choose "
            "another --workdir"
        )

    def _lock(self, file: int) -> None:
        """Takes the lock, where the disk has any."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"warning: {self._workdir} is on a disk without locks: make sure that no other "
                "run writes it",
                file=sys.stderr,
            )

    def check(self) -> None:
        """Raises `UsageError` if the folder was removed or replaced in the meantime."""
        if self._file is not None:
            mine = os.fstat(self._file)
            try:
                there = (self._workdir / "lock").stat()
            except OSError:
                there = None
            if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
                raise UsageError(f"--workdir={self._workdir} was removed while the run wrote it")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Releases the lock."""
        try:
            if isinstance(error, OSError) and self._is_of_disk(error):
                self.check()
                raise self._unwritable(error) from error
        finally:
            self._release()

    def _is_of_disk(self, error: OSError) -> bool:
        named = str(error.filename or "").startswith(str(self._workdir))
        return named or error.errno in (*_FULL, errno.EROFS, errno.EFBIG, errno.EIO)

    def _unwritable(self, error: OSError) -> UsageError:
        reason = error.strerror or str(error)
        if error.filename2 or error.filename:
            reason += f" ({error.filename2 or error.filename})"
        advice = "make room" if error.errno in _FULL else "choose a folder that can be written"
        return UsageError(
            f"--workdir={self._workdir}: {reason}: {advice}; the same command resumes from the "
            "last checkpoint"
        )

    def _release(self) -> None:
        """Leaves an empty file, so that a process that held the lock in between changed nothing."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if self._holds:
                    os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file, self._holds = None, False


def read_config(workdir: Path) -> ConfigDict:
    """Reads the configuration of the run in a folder.

    Raises:
      UsageError: there is none, or it is damaged.
    """
    path = workdir / "config.json"
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not text
        raise UsageError(f"{path}: {error}") from error
    return from_json(text, str(path))


def class_names(config: ConfigDict, workdir: Path) -> tuple[tuple[str, ...], str]:
    """Reads the classes of the run in a folder, in the order of its labels.

    Args:
      config: of the run.
      workdir: the folder.

    Returns:
      Their names, which are none if the run did not write them, as the first of version 0.1; and
      the path of the file.

    Raises:
      UsageError: the file is damaged.
    """
    path = workdir / CLASSES
    try:
        names = jsonfiles.read(path)
    except FileNotFoundError:
        return (), str(path)
    except (OSError, UsageError) as error:
        raise UsageError(f"{path} cannot be read ({error}): {_PUT_BACK}") from error
    count = config.model.num_classes
    if not isinstance(names, list) or [str] * count != [type(name) for name in names]:
        raise UsageError(f"{path} is not a list of {count} names: {_PUT_BACK}")
    return tuple(names), str(path)


_PUT_BACK = (
    "put it back, or remove it if the classes of the data set have the order that they had when "
    "the run was trained"
)


def is_trained(workdir: Path) -> bool:
    """Whether the folder holds weights, or the result of a run whose weights are gone."""
    steps = (path.name.isdigit() for path in (workdir / CHECKPOINTS).glob("*"))
    return any(steps) or (workdir / RESULT).is_file()


def result_of(workdir: Path) -> dict[str, Any] | None:
    """Reads the result of the run in a folder; None: it has not ended."""
    try:
        found = jsonfiles.read(workdir / RESULT, finite=False)
    except (OSError, UsageError):  # Written again by a run that resumes.
        return None
    return found if isinstance(found, dict) and isinstance(found.get("steps"), int) else None


def ended(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Returns the result of the run that a folder holds, if it is this one and it has ended.

    Args:
      config: of the run.
      workdir: the folder.
    """
    result = result_of(workdir)
    try:
        before = read_config(workdir)
    except UsageError:
        return None
    return None if _changed(before, config, ("fixed", "onward")) else result


def check_resumed(config: ConfigDict, workdir: Path, steps_per_epoch: int) -> None:
    """Checks that a run which resumes here changes nothing but what a resumed run may change.

    Args:
      config: the configuration of this run.
      workdir: the folder of the run that is resumed.
      steps_per_epoch: of both.

    Raises:
      UsageError: one line that names the first field that differs, with both values; or the folder
        does not say what its weights were trained with.
    """
    try:
        before = read_config(workdir)
    except UsageError as error:
        raise UsageError(
            f"{error}: it says what the weights there were trained with; put it back, or choose "
            "another --workdir"
        ) from error

    def refuse(name: str, what: str, advice: str) -> UsageError:
        values = dict(leaves(before)).get(name), dict(leaves(config)).get(name)
        return UsageError(
            f"--workdir={workdir} holds a {what} with config.{name} = {values[0]!r}, not "
            f"{values[1]!r}: choose another{advice}"
        )

    for name in _changed(before, config, ("fixed",)):
        raise refuse(name, "run", "")
    result = result_of(workdir)
    if result is None:
        return
    # A run that a low error ended goes on if a lower one is asked for.
    if result["steps"] < round(before.num_epochs * steps_per_epoch):
        goes_on = config.stop_at_error < before.stop_at_error
    else:
        goes_on = config.num_epochs > before.num_epochs
    for name in () if goes_on else _changed(before, config, ("onward",)):
        raise refuse(
            name, "run that has ended,", ", or raise config.num_epochs to go on from there"
        )


def _changed(before: ConfigDict, now: ConfigDict, kinds: tuple[str, ...]) -> list[str]:
    """The fields with other values, of those that a resumed run may do so much with."""
    old, new = dict(leaves(before)), dict(leaves(now))

    def kind(name: str) -> str:
        field = field_of(name)
        return "fixed" if field is None else field.resume

    names = dict.fromkeys([*new, *old])
    return [name for name in names if old.get(name) != new.get(name) and kind(name) in kinds]


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A configuration as JSON, without the fields that say which processes run it."""
    kept = config.copy_and_resolve_references()
    with kept.unlocked():
        kept.distributed = default().distributed
    return json.loads(kept.to_json())


def write_config(
    config: ConfigDict, workdir: Path, trained_with: dict[str, Any] | None = None
) -> list[str]:
    """Writes `config.json`.

    Args:
      config: of the run.
      workdir: its folder.
      trained_with: the configuration of the steps so far, as `as_json` returned it; None for that
        of the `config.json` that is there, which an interrupted run may have written before its
        first step.

    Returns:
      One line per field that has another value than in the steps so far.
    """
    content = as_json(config)
    now = dict(leaves(from_json(json.dumps(content), "config")))
    try:
        text = json.dumps(trained_with)
        old = from_json(text, "config") if trained_with else read_config(workdir)
        before = dict(leaves(old))
    except UsageError:  # There is none, or it was damaged by hand.
        before = now
    changed = [
        f"config.{name} is {now[name]!r}, was {before.get(name)!r}"
        for name in sorted(now)
        if before.get(name) != now[name]
    ]
    write_json(workdir / "config.json", content)
    return changed


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Writes a JSON file completely or not at all; of several processes, the first writes."""
    if jax.process_index() == 0:
        paths.write(path, json.dumps(content, indent=2) + "\n")


def environment(placement: parallel.Placement) -> dict[str, Any]:
    """Returns what numbers depend on besides the config: versions, revision, devices, command."""
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "tensorflow-datasets",
        "numpy",
    )
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        try:
            done = subprocess.run(
                ["git", *args], cwd=folder, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "git_revision": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "placement": placement.describe(),
        "devices": [str(device) for device in placement.mesh.devices.flat],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "cpu_count": os.cpu_count(),
    }
