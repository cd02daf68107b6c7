"""Images in folders, one folder per class."""

import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.encoded import Encoded
from alexnet_jax.data.protocol import Kind
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded
from alexnet_jax.registry import SOURCES

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")
_TEST = ("test", "validation", "val")
"""Common names for the images that are not trained on; each of them finds any other."""


@dataclasses.dataclass(frozen=True)
class Folder(Encoded):
    """A `Source` of image files.

    Attributes:
      paths: the N files.
      labels: int32 `[N]`.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray

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
        try:
            encoded = [self.paths[i].read_bytes() for i in indices]
        except OSError as error:
            raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error
        return encoded, self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return str(self.paths[index])


def open_folder(path: str, split: str, data: ConfigDict) -> Folder:
    """Opens PATH/SPLIT/CLASS/*.jpg, or a share of PATH/CLASS/*.jpg.

    Labels follow the sorted class names of all splits, so that a class without a folder in one
    split does not shift the labels of the others.

    If there is no folder `test`, `validation` or `val`, another of the three is opened instead.

    If PATH has no SPLIT folder but holds the class folders themselves, `data.test_fraction` of the
    images of each class (every fifth, for 0.2) is `test` and the rest is `train`. They are counted
    in the order of a hash of their names, which is the same on every machine and unrelated to the
    order in which the photographs were taken.

    Args:
      path: the folder.
      split: the name of the split.
      data: `config.data`.

    Raises:
      UsageError: there is no such folder or split, it holds no image, or a class folder is empty.
    """
    root = expanded(path)
    if not root.is_dir():
        raise UsageError(f"data.source: there is no folder {root}; give PATH of PATH/SPLIT/CLASS/*")
    if split in _TEST:
        split = next((name for name in (split, *_TEST) if (root / name).is_dir()), "test")
    divided = (root / split).is_dir()
    classes = _subfolders(root / split if divided else root)
    images = {folder.name: _images(folder) for folder in classes}
    if not classes:
        raise UsageError(f"{root / split if divided else root} has no class folders; add CLASS/*")
    if not divided:
        _check_derived_split(root, split, images)
    for folder in classes:
        if not images[folder.name]:
            raise UsageError(f"class folder {folder} has no images ({', '.join(EXTENSIONS)})")
    names = set(images)
    if divided:
        names.update(c.name for other in _subfolders(root) for c in _subfolders(other))
    else:
        images = {name: _share(files, split, data.test_fraction) for name, files in images.items()}
    class_names = tuple(sorted(names))
    pairs = [(p, i) for i, name in enumerate(class_names) for p in images.get(name, ())]
    if not pairs:
        raise UsageError(
            f"{root}: no image is left for {split}: add images or a folder {split}/, or test on "
            "the training images with --config.data.test_split=train"
        )
    return Folder(
        name=f"folder:{path}",
        split=split,
        class_names=class_names,
        paths=tuple(p for p, _ in pairs),
        labels=np.array([i for _, i in pairs], np.int32),
    )


def _check_derived_split(root: Path, split: str, images: dict[str, list[Path]]) -> None:
    """Raises `UsageError` if PATH lacks the SPLIT folder and holds no class folders either."""
    if not any(images.values()):
        has = ", ".join(sorted(images))
    elif split not in ("train", "test"):
        has = "train, test (shares of its class folders)"
    else:
        return
    raise UsageError(f"{root} has no split '{split}'; it has {has}")


def _share(files: list[Path], split: str, fraction: float) -> list[Path]:
    hashed = sorted(files, key=lambda p: hashlib.sha256(p.name.encode()).digest())
    # Every fifth, not the first of five: a class of fewer images must not be missing in `train`.
    tested = [math.floor((i + 1) * fraction + 1e-9) for i in range(-1, len(hashed))]
    return sorted(
        p for i, p in enumerate(hashed) if (tested[i + 1] > tested[i]) == (split == "test")
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    # Without is_file(): a stat of a million files takes minutes on a network file system.
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)


SOURCES["folder"] = Kind(open_folder, rest="PATH", about="PATH/SPLIT/CLASS/*.jpg")
