"""A data set that was resized once (see `prepare`): one array of squares that need no decoding.

One folder per split: `images.npy` uint8 `[N, S, S, 3]`, `labels.npy` int32 `[N]` and `split.json`
(class names, resize rule, origin). The squares are those of the original source, so that both give
the same batches.
"""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import jsonfiles
from alexnet_jax.data.protocol import Kind, Reader
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded
from alexnet_jax.registry import SOURCES


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A `Source` of squares.

    Attributes:
      path: the file `images.npy`.
      size: side S of its squares in pixels.
      offset: first byte of the first square in the file.
      labels: int32 `[N]`.
      resize: the `data.resize` with which they were made.
      shrink: the `data.shrink` with which they were made.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    path: Path
    size: int
    offset: int
    labels: np.ndarray
    resize: str
    shrink: str

    @property
    def num_examples(self) -> int:
        """Number of images in the split."""
        return len(self.labels)

    @property
    def files(self) -> tuple[str, ...]:
        """The array of squares."""
        return (str(self.path),)

    def squares(self, config: ConfigDict) -> Reader:
        """See `Source.squares`.

        Raises:
          UsageError: the squares have another size, or were made by another rule.
        """
        self._check(config)
        return self._read

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        squares = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        length = math.prod(squares.shape[1:])
        # Read and not mapped: reading from the map of a file that was cut kills the process.
        try:
            file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                for square, index in zip(squares, indices, strict=True):
                    if os.preadv(file, [square.data], self.offset + int(index) * length) != length:
                        raise UsageError(f"{self.path}: the file was cut; prepare it again")
            finally:
                os.close(file)
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from error
        return squares, self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return f"{self.path}, image {index}"

    def _check(self, config: ConfigDict) -> None:
        made_with = {
            "image_size": self.size,
            "resize": self.resize,
            "shrink": self.shrink,
        }
        for field, has in made_with.items():
            if config[field] != has:
                raise UsageError(
                    f"data.{field} is {config[field]!r}, but {self.name} was prepared with "
                    f"{has!r}: use --config.data.{field}={has}, or prepare it again"
                )


def open_prepared(path: str, split: str, data: ConfigDict) -> Prepared:
    """Opens PATH/SPLIT as `prepare` wrote it.

    Raises:
      UsageError: there is no such split, it is unfinished, or its files do not fit together.
    """
    del data
    folder = expanded(path) / split
    if not (folder / "split.json").is_file():
        has = ", ".join(sorted(p.parent.name for p in folder.parent.glob("*/split.json")))
        raise UsageError(
            f"data.source: {folder} is not a prepared split"
            + (f"; there is {has}" if has else "; `python -m alexnet_jax prepare` writes one")
        )
    try:
        about = jsonfiles.read(folder / "split.json")
        names, resize, shrink = tuple(about["class_names"]), about["resize"], about["shrink"]
        squares = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        # Mapped first: a damaged header can ask for more than the file or the memory holds.
        labels = np.array(np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False))
        if squares.dtype != np.uint8 or squares.shape[1:] != (squares.shape[1],) * 2 + (3,):
            raise ValueError(f"images.npy is {squares.dtype} {squares.shape}")
        if labels.dtype != np.int32 or labels.shape != squares.shape[:1] or not len(labels):
            raise ValueError(f"labels.npy is {labels.dtype} {labels.shape}")
        if not all(isinstance(name, str) for name in names):
            raise TypeError("class_names are not names")
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError("labels.npy holds labels without a name")
    except (OSError, UsageError, ValueError, LookupError, TypeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{folder} is damaged ({reason}); prepare it again") from error
    return Prepared(
        name=f"prepared:{path}",
        split=split,
        class_names=names,
        path=folder / "images.npy",
        size=squares.shape[1],
        offset=squares.offset,
        labels=labels,
        resize=resize,
        shrink=shrink,
    )


SOURCES["prepared"] = Kind(open_prepared, rest="PATH", about="written by the verb prepare")
