"""Image files that someone names: files, folders and patterns, without classes."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.data.sources.folder import EXTENSIONS, Folder
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded


def image_paths(arguments: Iterable[str]) -> list[Path]:
    """The images that arguments name: files, folders with all below them, or patterns.

    Raises:
      UsageError: an argument names no image; the message names the argument.
    """
    paths: list[Path] = []
    for argument in arguments:
        path = expanded(argument)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
        elif path.exists():
            found = [path]
        else:
            found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            what = "holds no images" if path.is_dir() else "no such file, folder or pattern"
            raise UsageError(f"{argument}: {what} ({', '.join(EXTENSIONS)})")
        paths += found
    if not paths:
        raise UsageError("no images: name files, folders or patterns such as 'photos/*.jpg'")
    return paths


def source_of(paths: Sequence[Path], class_names: tuple[str, ...]) -> Folder:
    """A `Source` of these files, whose labels mean nothing."""
    return Folder(
        name="images",
        split="predict",
        class_names=class_names,
        paths=tuple(paths),
        labels=np.zeros(len(paths), np.int32),
    )
