"""What a run leaves in its folder besides logs and checkpoints: config, environment, result."""

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
from alexnet_jax.config import default
from alexnet_jax.errors import UsageError


class Writer:
    """The one run that writes a folder, as a context; process 0 of several holds it for all.

    The operating system forgets the lock with the process that held it, so that none is ever stale.
    Within the context an `OSError` of the folder or its disk becomes a `UsageError`.
    """

    def __init__(self, workdir: Path):
        """Of `workdir`, which need not exist."""
        self._workdir = workdir
        self._file: int | None = None

    def __enter__(self) -> Self:
        """Creates the folder and takes the lock.

        Raises:
          UsageError: the folder cannot be written, or another run is writing it; names that.
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
                    f"warning: {self._workdir} is on a disk without locks: see to it that no other "
                    "run writes it",
                    file=sys.stderr,
                )
                return self
            raise self._unwritable(error) from error
        return self

    def check(self) -> None:
        """Raises `UsageError` where the folder was removed or replaced since."""
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


def write_config(config: ConfigDict, workdir: Path) -> list[str]:
    """Writes `config.json`: what is run, not which processes run it.

    Returns:
      A line for each field that was another where the folder has been written before.
    """
    path = workdir / "config.json"
    kept = config.copy_and_resolve_references()
    with kept.unlocked():
        kept.distributed = default().distributed
    try:
        before = flat(json.loads(path.read_text()))
    except (OSError, ValueError):
        before = {}
    now = flat(json.loads(kept.to_json()))
    changed = [
        f"config.{name} is {now.get(name)!r}, was {before.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before and before.get(name) != now.get(name)
    ]
    write_json(path, json.loads(kept.to_json()))
    return changed


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    found = {}
    for name, value in tree.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Writes one of a workdir's JSON files, whole or not at all; one process does so for all."""
    if jax.process_index() > 0:
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def environment(placement: parallel.Placement) -> dict[str, Any]:
    """What a run's numbers depend on besides its config: versions, revision, devices, command."""
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
