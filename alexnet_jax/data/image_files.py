"""Image files that someone names: files, folders and patterns, without classes."""

import collections
import concurrent.futures
import glob
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.formats import EXTENSIONS, NAMES, Unreadable
from alexnet_jax.data.sources.folder import Listing, content, listing
from alexnet_jax.data.squares import square_of
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded, shown

_AHEAD = 16
"""Images that are read ahead, for each core."""


def image_paths(
    arguments: Iterable[str], complain: Callable[[str], None] | None = None
) -> list[Path]:
    """The images that arguments name: files, folders with all below them, or patterns of both.

    Args:
      arguments: as they were typed.
      complain: called with one line for each argument that names no image and each folder that
        cannot be read; None: the first is an error.

    Raises:
      UsageError: an argument names no image; the message names the argument.
    """
    paths, arguments, complain = [], list(arguments), complain or _raise
    if not arguments:
        raise UsageError("no images: name files, folders or patterns such as 'photos/*.jpg'")
    for argument in arguments:
        path = expanded(argument)
        if path.is_dir():
            found = _in_folder(path, complain)
        elif path.exists():
            found = [path]
        else:
            found = _matches(path, complain)
        if not found:
            what = (
                f"holds no images ({NAMES})" if path.is_dir() else "no such file, folder or pattern"
            )
            complain(f"{argument}: {what}")
        paths += found
    return paths


def _in_folder(folder: Path, complain: Callable[[str], None]) -> list[Path]:
    places = _walk(folder, complain, ())
    return sorted(place / name for place, found in places for name in found.images)


def _matches(pattern: Path, complain: Callable[[str], None]) -> list[Path]:
    """The images among what a pattern matches, in its folders as well; or else all its files."""
    found = sorted({*_glob(pattern, complain)})
    files = [path for path in found if not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    for folder in (path for path in found if path.is_dir()):
        images += _in_folder(folder, complain)
    return sorted({*images}) or files


def _glob(pattern: Path, complain: Callable[[str], None]) -> Iterator[Path]:
    """What a pattern matches; unlike that of `glob`, `**` follows no links in circles."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    at = pattern.parts.index("**")
    tail = pattern.parts[at + 1 :]
    for start in _glob(Path(*pattern.parts[:at]), complain):
        if not tail:
            yield start
            continue
        for place, _ in _walk(start, complain, ()) if start.is_dir() else ():
            yield from _glob(Path(glob.escape(str(place)), *tail), complain)


def _walk(
    folder: Path, complain: Callable[[str], None], above: tuple[Path, ...]
) -> Iterator[tuple[Path, Listing]]:
    """A folder and all below it, links followed as in the classes of a run, and what lies there."""
    here = folder.resolve()
    if here in above:
        return
    try:
        found = listing(folder)
    except UsageError as error:
        complain(str(error))
        return
    yield folder, found
    for name in found.folders:
        yield from _walk(folder / name, complain, (*above, here))


def _raise(text: str) -> None:
    raise UsageError(text)


def squares(
    paths: Iterable[Path], data: ConfigDict, unreadable: dict[int, str] | None = None
) -> Iterator[tuple[Path, np.ndarray]]:
    """Each image with its square, uint8 `[S, S, 3]`, in the given order; several are read at once.

    Args:
      paths: of the images.
      data: `config.data`.
      unreadable: is filled with the places and reasons of images that cannot be read, and these are
        left out; None: the first is an error.

    Raises:
      UsageError: an image cannot be read; the message names it.
    """
    count = os.cpu_count() or 1

    def read(path: Path) -> np.ndarray | UsageError:
        try:
            return square_of(content(path), data)
        except Unreadable as error:
            return UsageError(f"{shown(path)}: {error}")
        except UsageError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        todo, running = iter(enumerate(paths)), collections.deque()
        # As many are ready as a batch may hold on few cores, however many files there are.
        while True:
            for place, path in itertools.islice(todo, _AHEAD * count - len(running)):
                running.append((place, path, pool.submit(read, path)))
            if not running:
                return
            place, path, future = running.popleft()
            found = future.result()
            if isinstance(found, np.ndarray):
                yield path, found
            elif unreadable is None:
                raise found
            else:
                unreadable[place] = str(found)
