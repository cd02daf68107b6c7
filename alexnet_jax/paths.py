"""Paths as people type them, and files that are written wholly or not at all."""

import os
from pathlib import Path

from alexnet_jax.errors import UsageError


def local(text: str, name: str) -> Path:
    """A path on this machine, with `~` expanded.

    Args:
      text: as it was typed.
      name: of what it was typed for, such as `--workdir`.

    Raises:
      UsageError: it is empty, or the address of a bucket.
    """
    if not text:
        raise UsageError(f"{name} is empty: name a folder")
    if "://" in text:
        scheme = text.partition("://")[0]
        tool = {"gs": "gcsfuse", "s3": "mount-s3"}.get(scheme, "a file system in user space")
        raise UsageError(
            f"{name}={text}: only paths of this machine are read and written: mount the bucket "
            f"({tool}) and name the mounted folder"
        )
    return Path(text).expanduser()


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file wholly or not at all, with the permissions that the umask gives.

    Args:
      path: of the file; one that is there is replaced.
      content: bytes, or text for UTF-8.

    Raises:
      OSError: it cannot be written; the file that was there stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
