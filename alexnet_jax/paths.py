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
    return expanded(text)


def expanded(text: str) -> Path:
    """A path with `~` and `~user` expanded.

    Raises:
      UsageError: there is no such home folder, as in a container whose user has only a number.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{text}: there is no such home folder: set HOME, or write it out"
        ) from error


def shown(path: str | Path) -> str:
    r"""A name of a file as text that can be printed and written everywhere.

    Names are bytes, which need not be UTF-8, and Python decodes them by the locale. Here they are
    the same in every locale, with `\xe9` for a byte that is not part of UTF-8, and `\n` for a line
    break.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file completely or not at all, with the permissions that the umask gives.

    Text is written as UTF-8. Whatever has this name is replaced and not written into: a link's
    target stays what it is.

    Raises:
      OSError: the folder or its disk does not take it.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as file:  # never through a link
            file.write(content if isinstance(content, bytes) else content.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_output(path: Path, content: str | bytes) -> None:
    """Writes a file that a user asked for, as `write` does.

    Raises:
      UsageError: the folder or its disk does not take it; names the file.
    """
    try:
        write(path, content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
