"""Images that are given in Python: arrays, or anything with a length whose items are images."""

import dataclasses
import operator
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.decode import UnreadableImage, decoder, resizer
from alexnet_jax.data.formats import Unreadable
from alexnet_jax.data.protocol import Kind, Reader, Source
from alexnet_jax.errors import UsageError
from alexnet_jax.registry import SOURCES

NAME = "given"
"""`data.source` of a run whose images are given in Python."""


def as_source(
    data: Any,
    split: str,
    classes: int,
    class_names: Sequence[str] = (),
    name: str = NAME,
) -> Source:
    """Images and their labels as a source.

    An image is an array of grey levels 0 to 255, uint8 or whole numbers of another type, `[H, W,
    3]` in the order R, G, B, `[H, W, 1]` or `[H, W]`; an image of Pillow; or the bytes of a file
    (`data.formats`). Images of any size become squares by the rule of all sources
    (`data.resize`, `data.shrink`); those that are squares of `data.image_size` stay as they are.

    Args:
      data: a pair of images and labels: an array `[N, H, W, 3]`, `[N, H, W, 1]` or `[N, H, W]`, or
        any sequence of N images, and N integers. Or anything else with a length whose items are
        pairs of one image and its label: they are read one at a time, from several threads, and
        each must be the same whenever it is read. Or a `Source`, which is returned as it is.
      split: the name of the split.
      classes: the number of classes; 0: not known.
      class_names: one name per class. If it is empty, the names are `data.class_names`, if there is
        such an attribute, and otherwise the labels themselves.
      name: of the source, for messages.

    Raises:
      UsageError: the images or the labels are of another kind, a label is not one of the classes,
        or there are not as many names as classes.
    """
    if hasattr(data, "squares"):
        return data
    names = tuple(class_names) or tuple(getattr(data, "class_names", ()))
    if names and classes and len(names) != classes:
        raise UsageError(
            f"the {split} images have {len(names)} class names, and the network has {classes} "
            f"classes: set config.model.num_classes = {len(names)}"
        )
    names = names or tuple(map(str, range(classes)))
    if isinstance(data, tuple) and len(data) == 2:
        data = _Pairs.of(*data, split, len(names))
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UsageError(
            f"the {split} images are {_kind(data)}: give a pair of arrays (images, labels), or an "
            "object with a length whose items are pairs (image, label)"
        )
    if not len(data):
        raise UsageError(f"there are no {split} images: give at least one")
    return Items(data, split, names, name)


@dataclasses.dataclass(frozen=True)
class Items:
    """A `Source` of the items of a sequence; see `as_source`.

    Attributes:
      items: has a length, and items that are pairs of an image and its label.
      split: the name of the split.
      class_names: one name per class; empty: it is not known how many there are.
      name: of the source, for messages.
    """

    items: Any
    split: str
    class_names: tuple[str, ...]
    name: str = NAME
    files: tuple[str, ...] = ()
    # Batches are read from several threads, and one that seeks in an open file, for example, would
    # get the bytes of another's image.
    _lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def num_examples(self) -> int:
        """Number of images."""
        return len(self.items)

    def squares(self, config: ConfigDict) -> Reader:
        """See `Source.squares`."""
        size, resize, decode = config.image_size, resizer(config), decoder(config)

        def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            squares = np.empty((len(indices), size, size, 3), np.uint8)
            labels: list[int] = []
            files: dict[int, bytes] = {}
            for place, index in enumerate(map(int, indices)):
                where = self.describe(index)
                image, label = self._item(index)
                labels.append(label)
                if isinstance(image, bytes):
                    files[place] = image
                    continue
                try:
                    squares[place] = resize(_pixels(image, where))
                except Unreadable as error:
                    raise UsageError(f"{where}: {error}") from None
            try:
                if files:
                    squares[list(files)] = decode(list(files.values()))
            except UnreadableImage as error:
                where = self.describe(int(indices[list(files)[error.position]]))
                raise UsageError(f"{where}: {error.reason}") from None
            return squares, np.array(labels)

        return read

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return f"{self.name}, {self.split}, image {index}"

    def _item(self, index: int) -> tuple[Any, int]:
        where = self.describe(index)
        try:
            with self._lock:
                image, label = self.items[index]
            label = operator.index(label)
        except UsageError:
            raise
        except Exception as error:  # Of code that is not ours: anything may go wrong in it.
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"{where} cannot be read as a pair (image, label): {text}") from error
        return image, label


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Images and labels as a sequence of pairs."""

    images: Any
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], self.labels[index]

    @classmethod
    def of(cls, images: Any, labels: Any, split: str, classes: int) -> "_Pairs":
        """Checks whole arrays at once, rather than each image whenever it is read."""
        what = f"the {split} images"
        try:
            labels = np.asarray(labels)
        except ValueError:  # Lists of different lengths; refused below.
            labels = np.array(None)
        if not hasattr(images, "__len__"):
            raise UsageError(f"{what} are {_kind(images)}: give an array [N, H, W, 3]")
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise UsageError(
                f"the {split} labels are {_kind(labels)}: give one whole number for each of the "
                f"{len(images)} images, [N]"
            )
        if len(labels) and (labels.min() < 0 or (classes and labels.max() >= classes)):
            raise UsageError(
                f"the {split} labels are from {labels.min()} to {labels.max()}: {_allowed(classes)}"
            )
        # Lists hold images that may differ in size.
        if hasattr(images, "__array__"):
            array = np.asarray(images)
            if array.ndim not in (3, 4) or array.shape[3:] not in ((), (1,), (3,)):
                turned = array.ndim == 4 and array.shape[1] in (1, 3)
                hint = "; np.moveaxis(images, 1, -1) moves the colours last" if turned else ""
                raise UsageError(
                    f"{what} are {_kind(array)}: give [N, H, W, 3], or [N, H, W] for grey "
                    f"ones{hint}"
                )
            images = _grey_levels(array, what)
        return cls(images, labels)


def _pixels(image: Any, where: str) -> np.ndarray:
    """An array, or an image of Pillow, as uint8 `[h, w, 3]`.

    Raises:
      UsageError: it is neither, or has other colours or values.
    """
    if hasattr(image, "convert") and image.mode[0] not in "IF":  # These have more grey levels.
        image = image.convert("RGB")
    array = np.asarray(image)
    grey = array.ndim == 2
    if not (grey or (array.ndim == 3 and array.shape[2] in (1, 3))) or not array.size:
        raise UsageError(
            f"{where} is {_kind(image)}: give an array [H, W, 3] or [H, W], an image of Pillow, or "
            "the bytes of a file"
        )
    levels = _grey_levels(array, where)
    return np.broadcast_to(levels[..., None] if grey else levels, (*array.shape[:2], 3))


def _grey_levels(array: np.ndarray, what: str) -> np.ndarray:
    """An array as uint8, which is not copied if it is uint8 already.

    Raises:
      UsageError: it holds something else than whole numbers from 0 to 255.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "iuf":
        with np.errstate(invalid="ignore"):  # NaN and infinity are found by the comparison.
            levels = array.astype(np.uint8)
        if np.array_equal(levels, array):
            return levels
        found = f"{_kind(array)} from {array.min():g} to {array.max():g}"
    else:
        found = _kind(array)
    raise UsageError(f"{what}: {found}: give grey levels, whole numbers from 0 to 255, as uint8")


def _allowed(classes: int) -> str:
    return f"give 0 to {classes - 1}" if classes else "give 0 or more"


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"of type {type(value).__name__}"


def _open(rest: str, split: str, data: ConfigDict) -> Source:
    del rest, split, data
    raise UsageError(
        f"data.source = {NAME!r}: the images of this run were given in Python; give them again, or "
        "name a source"
    )


SOURCES[NAME] = Kind(_open, rest="", about="images that are given in Python")
