"""Images in folders, one folder per class."""

import collections
import dataclasses
import hashlib
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.encoded import Encoded
from alexnet_jax.data.formats import EXTENSIONS, NAMES
from alexnet_jax.data.protocol import Kind
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded, shown
from alexnet_jax.registry import SOURCES

_TEST = ("test", "validation", "val")
"""Common names for the images that are not trained on; each of them finds any other."""

_MOST_BYTES = 2**30
"""A larger file is not read, whatever it holds."""


@dataclasses.dataclass(frozen=True)
class Folder(Encoded):
    """A `Source` of image files.

    Attributes:
      paths: the N files.
      labels: int32 `[N]`.
      place: the folder that holds the class folders.
      absent: classes of other splits that have no folder in this one.
      empty: classes of other splits whose folder in this one holds no images.
      left_out: the number of other files among the images, by the endings of their names.
      not_read: folders that hold no images of this split, from PATH on.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray
    place: Path = Path()
    absent: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    not_read: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """Number of images in the split."""
        return len(self.paths)

    @property
    def files(self) -> tuple[str, ...]:
        """The image files."""
        return tuple(map(str, self.paths))

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `Encoded.read`."""
        return [content(self.paths[i]) for i in indices], self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return shown(self.paths[index])


def account(folders: Sequence[Folder]) -> str:
    """What was found in the splits of one PATH and what was left out, in one line."""
    images = ", ".join(f"{folder.num_examples} images in {folder.split}" for folder in folders)
    parts = [f"{folders[0].name}: {images}, {len(folders[0].class_names)} classes"]
    # Without split folders, all splits are shares of one place.
    counts = {folder.place: folder.left_out for folder in folders}.values()
    left_out = sum(counts, collections.Counter[str]())
    if count := left_out.total():
        kinds = [f"{ending} {number}" for ending, number in left_out.most_common()]
        parts.append(f"{count} file{'s' if count > 1 else ''} left out ({some(kinds)})")
    if others := list(dict.fromkeys(name for folder in folders for name in folder.not_read)):
        parts.append(f"not read: {some(others)}")
    for folder in folders:
        if missing := (*folder.absent, *folder.empty):
            parts.append(f"no images of {some(missing)} in {folder.split}")
    return "; ".join(parts)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many others there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def open_folder(path: str, split: str, data: ConfigDict) -> Folder:
    """Opens PATH/SPLIT/CLASS/*.jpg, or a share of PATH/CLASS/*.jpg.

    The classes are the folders that hold images in one of the splits that a run uses
    (`data.train_split`, `data.validation_split`, `data.test_split`). Labels follow their sorted
    names, so that a class without a folder in one split does not shift the labels of the others.
    Whatever else lies there is left out, and `account` names it.

    If there is no folder `test`, `validation` or `val`, another of the three is opened instead.

    If PATH has no SPLIT folders but holds the class folders themselves, `data.test_fraction` of the
    images of each class (every fifth, for 0.2) is `test` and the rest is `train`. They are counted
    in the order of a hash of their names, which is the same on every machine and unrelated to the
    order in which the photographs were taken.

    Args:
      path: the folder.
      split: the name of the split.
      data: `config.data`.

    Raises:
      UsageError: there is no such folder or split, or it holds no images.
    """
    root = expanded(path)
    if not root.is_dir():
        raise UsageError(f"data.source: there is no folder {root}; give PATH of PATH/SPLIT/CLASS/*")
    split, *others = (
        _existing(root, name)
        for name in (split, data.train_split, data.validation_split, data.test_split)
    )
    used = [name for name in dict.fromkeys((split, *others)) if name and (root / name).is_dir()]
    top = listing(root)
    if used and split not in used:
        raise UsageError(f"{root} has no split '{split}'; it has {some(top.folders)}")
    place = root / split if used else root
    here = listing(place) if used else top

    left_out, not_read = here.others + _endings(here.images), []
    images: dict[str, list[Path]] = {}
    for name in here.folders:
        where = (place / name).relative_to(root)
        try:
            inside = listing(place / name)
        except UsageError as error:
            not_read.append(f"{shown(where)} ({str(error).rpartition(': ')[2]})")
            continue
        images[shown(name)] = [place / name / image for image in inside.images]
        if inside.images:
            left_out += inside.others
            not_read += [shown(where / folder) for folder in inside.folders]
    if not used:
        _check_derived_split(root, split, images)
    if not any(images.values()):
        what = "holds images" if here.folders else "lies there; add CLASS/*"
        raise UsageError(f"{place} has no class folders: no folder {what} ({NAMES})")

    elsewhere = {
        shown(name)
        for other in used
        if other != split
        for name in listing(root / other).folders
        if _holds_images(root / other / name)
    }
    classes = sorted({name for name, files in images.items() if files} | elsewhere)
    not_read += [shown((place / name).relative_to(root)) for name in images if name not in classes]
    not_read += [shown(name) for name in top.folders if used and name not in used]
    if not used:
        images = {name: _share(files, split, data.test_fraction) for name, files in images.items()}
    pairs = [(p, i) for i, name in enumerate(classes) for p in images.get(name, ())]
    if not pairs:
        raise UsageError(
            f"{root}: no image is left for {split}: add images or a folder {split}/, or test on "
            "the training images with --config.data.test_split=train"
        )
    return Folder(
        name=f"folder:{path}",
        split=split,
        class_names=tuple(classes),
        paths=tuple(p for p, _ in pairs),
        labels=np.array([i for _, i in pairs], np.int32),
        place=place,
        absent=tuple(name for name in classes if name not in images),
        empty=tuple(name for name in classes if used and images.get(name) == []),
        left_out=left_out,
        not_read=tuple(not_read),
    )


def _existing(root: Path, split: str) -> str:
    """The name under which a split lies there."""
    if split not in _TEST:
        return split
    return next((name for name in (split, *_TEST) if (root / name).is_dir()), "test")


def _check_derived_split(root: Path, split: str, images: dict[str, list[Path]]) -> None:
    """Raises `UsageError` if PATH lacks the SPLIT folder and holds no class folders either."""
    if images and not any(images.values()):
        has = some(sorted(images))
    elif split not in ("train", "test"):
        has = "train, test (shares of its class folders)"
    else:
        return
    raise UsageError(f"{root} has no split '{split}'; it has {has}")


def _share(files: list[Path], split: str, fraction: float) -> list[Path]:
    # By bytes, which are the same in every locale.
    hashed = sorted(files, key=lambda p: hashlib.sha256(os.fsencode(p.name)).digest())
    # Every fifth, not the first of five: a class of fewer images must not be missing in `train`.
    tested = [math.floor((i + 1) * fraction + 1e-9) for i in range(-1, len(hashed))]
    return sorted(
        (p for i, p in enumerate(hashed) if (tested[i + 1] > tested[i]) == (split == "test")),
        key=os.fsencode,
    )


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies in a folder, each kind in the order of the bytes of its names.

    Attributes:
      images: names of files that end like images.
      folders: names of folders, of links to folders as well.
      others: the number of other files by their endings; of hidden ones, which begin with a dot.
    """

    images: list[str]
    folders: list[str]
    others: collections.Counter[str]


def listing(folder: Path) -> Listing:
    """Lists a folder.

    Raises:
      UsageError: it cannot be read.
    """
    found = Listing([], [], collections.Counter())
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    found.others["hidden"] += 1
                elif _is_image(entry.name):
                    # Without a stat: a million of them take minutes on a network file system.
                    found.images.append(entry.name)
                elif _is_folder(entry):
                    found.folders.append(entry.name)
                else:
                    found.others.update(_endings([entry.name]))
    except OSError as error:
        raise UsageError(f"cannot read {shown(folder)}: {error.strerror}") from error
    found.images.sort(key=os.fsencode)
    found.folders.sort(key=os.fsencode)
    return found


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_is_image(e.name) for e in entries if not e.name.startswith("."))
    except OSError:
        return False


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _endings(names: Sequence[str]) -> collections.Counter[str]:
    return collections.Counter(
        shown(os.path.splitext(name)[1].lower()) or "no ending" for name in names
    )


def content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
      UsageError: it cannot be read, is no file, or is larger than any image.
    """
    try:
        # A pipe would otherwise wait for somebody to write into it.
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "it is not a file")
            if status.st_size > _MOST_BYTES:
                raise OSError(0, f"it has {status.st_size} bytes, more than an image")
            with open(opened, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(opened)
    except OSError as error:
        raise UsageError(f"cannot read {shown(path)}: {error.strerror}") from error


SOURCES["folder"] = Kind(open_folder, rest="PATH", about="PATH/SPLIT/CLASS/*.jpg")
