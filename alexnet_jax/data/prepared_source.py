"""A data set resized once (see `prepare`): its squares in one array, cropped without decoding.

A folder a split: `images.npy` uint8 `[N, S, S, 3]`, `labels.npy` int32 `[N]` and `split.json`
(class names, the resize rule, where they came from). The squares are those the pipeline makes of
the original, so training from either gives the same batches.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A `Source` of squares.

    Attributes:
      path: of `images.npy`.
      size: S of its squares.
      offset: of the first in the file, in bytes.
      resize: the `data.resize` that made them.
      shrink: the `data.shrink` that made them.
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
        """Images in the split."""
        return len(self.labels)

    @property
    def files(self) -> tuple[str, ...]:
        """The array of squares."""
        return (str(self.path),)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Like `Source.read`, but squares `[S, S, 3]` in place of files."""
        # Read and not mapped: of a file that is cut a map is the end of the process.
        shape = (self.size, self.size, 3)
        length = math.prod(shape)
        try:
            file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                found = [os.pread(file, length, self.offset + int(i) * length) for i in indices]
            finally:
                os.close(file)
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from error
        if any(len(square) != length for square in found):
            raise UsageError(f"{self.path}: the file was cut; prepare it again")
        squares = [np.frombuffer(square, np.uint8).reshape(shape) for square in found]
        return squares, self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return f"{self.name} {self.split}, image {index}"

    def check(self, config: ConfigDict) -> None:
        """Compares with `config.data`.

        Raises:
          UsageError: the squares are of another size, or made by another rule.
        """
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


def open_prepared(path: str, split: str) -> Prepared:
    """Opens PATH/SPLIT as `prepare` wrote it.

    Raises:
      UsageError: it is not there, was not finished, or its files do not fit together.
    """
    folder = Path(path).expanduser() / split
    if not (folder / "split.json").is_file():
        has = ", ".join(sorted(p.parent.name for p in folder.parent.glob("*/split.json")))
        raise UsageError(
            f"data.source: {folder} is not a prepared split"
            + (f"; there is {has}" if has else "; `python -m alexnet_jax prepare` writes one")
        )
    try:
        about = json.loads((folder / "split.json").read_text())
        names, resize, shrink = tuple(about["class_names"]), about["resize"], about["shrink"]
        squares = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        # Mapped first: a header can ask for more than there is, in the file and in memory.
        labels = np.array(np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False))
        if squares.dtype != np.uint8 or squares.shape[1:] != (squares.shape[1],) * 2 + (3,):
            raise ValueError(f"images.npy is {squares.dtype} {squares.shape}")
        if labels.dtype != np.int32 or labels.shape != squares.shape[:1] or not len(labels):
            raise ValueError(f"labels.npy is {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError("labels.npy holds labels without a name")
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
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
