"""The folder of a run: who may write it, its configuration and its environment."""

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

from alexnet_jax import parallel
from alexnet_jax.config import default, from_json, leaves
from alexnet_jax.config.fields import field_of
from alexnet_jax.errors import UsageError

CLASSES = "classes.json"


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
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            me = f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}"
            os.ftruncate(self._file, 0)
            os.write(self._file, me.encode())
        except BlockingIOError as error:
            holder = path.read_text() or "another process"
            self._release()
            raise UsageError(
                f"--workdir={self._workdir} is being written by {holder}: wait for it to end, or "
                "choose another"
            ) from error
        except OSError as error:
            self._release()
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                print(
                    f"warning: {self._workdir} is on a disk without locks: make sure that no other "
                    "run writes it",
                    file=sys.stderr,
                )
                return self
            raise self._unwritable(error) from error
        return self

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
        return named or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"--workdir={self._workdir}: {error.strerror or error}: make room, or choose a folder "
            "that can be written; the same command resumes from the last checkpoint"
        )

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def check_resumed(config: ConfigDict, workdir: Path, class_names: tuple[str, ...]) -> None:
    """Checks that a run which resumes here changes nothing but what a resumed run may change.

    Args:
      config: the configuration of this run.
      workdir: the folder of the run that is resumed.
      class_names: the classes of this run's images.

    Raises:
      UsageError: one line that names the first field that differs, with both values.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return
    before, now = dict(leaves(from_json(path.read_text(), str(path)))), dict(leaves(config))
    for name in now:
        declared = field_of(name)
        assert declared is not None
        if not declared.resume and before.get(name) != now[name]:
            raise UsageError(
                f"--workdir={workdir} holds a run with config.{name} = {before.get(name)!r}, "
                f"not {now[name]!r}: choose another"
            )
    try:
        names = tuple(json.loads((workdir / CLASSES).read_text()))
    except (OSError, ValueError):
        return
    if names != class_names:
        missing, new = set(names) - set(class_names), set(class_names) - set(names)
        raise UsageError(
            f"--workdir={workdir} holds a run with other classes than {config.data.source} has "
            f"(missing {sorted(missing)[:5]}, new {sorted(new)[:5]}): choose another"
        )


def write_config(config: ConfigDict, workdir: Path) -> list[str]:
    """Writes `config.json`, without the fields that say which processes run it.

    Returns:
      One line per field that has another value than in the `config.json` that was there before.
    """
    path = workdir / "config.json"
    kept = config.copy_and_resolve_references()
    with kept.unlocked():
        kept.distributed = default().distributed
    now = dict(leaves(kept))
    try:
        before = dict(leaves(from_json(path.read_text(), str(path))))
    except (OSError, UsageError):  # There is none, or it was damaged by hand.
        before = now
    changed = [
        f"config.{name} is {now[name]!r}, was {before.get(name)!r}"
        for name in sorted(now)
        if before.get(name) != now[name]
    ]
    write_json(path, json.loads(kept.to_json()))
    return changed


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Writes a JSON file completely or not at all; of several processes, the first writes."""
    if jax.process_index() > 0:
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


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
