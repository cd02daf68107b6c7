"""Where images come from: the protocol of a source, and the sources of a run.

A source gives random access to the images of one split and neither shuffles nor augments them.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError

FORMS = (
    "'digits' (built in), 'tfds:NAME' or 'tfds:NAME:VERSION' (prepared by TensorFlow Datasets), "
    "'folder:PATH' (PATH/SPLIT/CLASS/*.jpg), 'prepared:PATH' (written by the verb prepare)"
)

Reader = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From indices `[n]` to squares, uint8 `[n, S, S, 3]`, and their labels, int32 `[n]`."""


class Source(Protocol):
    """The images of one split; all that the pipeline needs to know of them.

    `Encoded` adds `squares` to a class that reads files in a known format. Another source makes
    squares itself:

        class Arrays:
            name, split, class_names, files = "arrays", "train", ("cat", "dog"), ()

            def __init__(self, images, labels):  # uint8 [N, S, S, 3], int32 [N]
                self.images, self.labels, self.num_examples = images, labels, len(images)

            def squares(self, config):
                return lambda indices: (self.images[indices], self.labels[indices])

            def describe(self, index):
                return f"image {index}"
    """

    @property
    def name(self) -> str:
        """The name that `open_source` took, with the version filled in."""
        ...

    @property
    def split(self) -> str:
        """The name of the split."""
        ...

    @property
    def num_examples(self) -> int:
        """Number of images in the split, at least 1."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the images are read from; empty if they are in memory."""
        ...

    def squares(self, config: ConfigDict) -> Reader:
        """Returns a function that reads images as squares.

        The function is called from several threads at a time. It gets integers in
        `0..num_examples-1`, in any order and possibly repeated, and raises `UsageError` for an
        image that it cannot read; the message names the image.

        Args:
          config: `config.data`; the side of the squares is `config.image_size`, and they are made
            as `config.resize` and `config.shrink` say.

        Raises:
          UsageError: the source has no such squares.
        """
        ...

    def describe(self, index: int) -> str:
        """Where image `index` is stored, for messages: a path, and an offset within a shard."""
        ...


@dataclasses.dataclass(frozen=True)
class Subset:
    """A `Source` of some images of another source.

    Attributes:
      source: the other source.
      rows: int `[n]`, which of its images, in this order.
      split: the name of this split.
    """

    source: Source
    rows: np.ndarray
    split: str

    @property
    def name(self) -> str:
        """The name of the other source."""
        return self.source.name

    @property
    def num_examples(self) -> int:
        """Number of images in the subset."""
        return len(self.rows)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the other source, including those without an image here."""
        return self.source.class_names

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the other source."""
        return self.source.files

    def squares(self, config: ConfigDict) -> Reader:
        """See `Source.squares`."""
        read = self.source.squares(config)
        return lambda indices: read(self.rows[indices])

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return self.source.describe(int(self.rows[index]))


def hold_out(source: Source, fraction: float) -> tuple[Subset, Subset]:
    """Divides the images of a source into those to train on and those to validate on.

    The choice depends on nothing but the number of images and the fraction, so that runs with
    different seeds share it. Both parts keep the order of the source.

    Args:
      source: the images.
      fraction: share of the second part, more than 0 and less than 1. It is rounded to whole
        images, and is at least one.

    Raises:
      UsageError: no image would be left to train on.
    """
    count = source.num_examples
    held_out = max(round(fraction * count), 1)
    if held_out >= count:
        raise UsageError(
            f"config.data.validation_fraction = {fraction}: leaves none of the {count} images of "
            f"{source.name}, {source.split}, to train on"
        )
    order = np.random.Generator(np.random.Philox(2012)).permutation(count)
    return (
        Subset(source, np.sort(order[held_out:]), source.split),
        Subset(source, np.sort(order[:held_out]), "validation"),
    )


def open_sources(config: ConfigDict) -> dict[str, Source]:
    """Opens the splits of a run: `train`, `test` and, if it has one, `validation`.

    No split is opened twice.

    Raises:
      UsageError: a data set is missing, or its classes are not those of the network.
    """
    data = config.data
    opened = _opener(data)
    train, validation = _training(data, opened)
    sources = {"train": train, "test": opened(data.test_split)}
    if data.validation_split:
        validation = opened(data.validation_split)
    if validation is not None:
        sources["validation"] = validation
    for source in sources.values():
        if (classes := len(source.class_names)) != config.model.num_classes:
            raise UsageError(
                f"config.model.num_classes = {config.model.num_classes}, but {data.source} has "
                f"{classes} classes: set --config.model.num_classes={classes}"
            )
    return sources


def open_train(data: ConfigDict) -> Source:
    """Opens only the images of `config.data` that are trained on, whatever their classes.

    Raises:
      UsageError: the data set is missing.
    """
    return _training(data, _opener(data))[0]


def _opener(data: ConfigDict) -> Callable[[str], Source]:
    """Opens each split once: a split of a large data set takes seconds."""

    @functools.cache
    def opened(split: str) -> Source:
        return open_source(data.source, split, data.test_fraction)

    return opened


def _training(data: ConfigDict, opened: Callable[[str], Source]) -> tuple[Source, Source | None]:
    """The images that are trained on, and those of the same split that are held out."""
    whole = opened(data.train_split)
    if data.validation_split or not data.validation_fraction:
        return whole, None
    return hold_out(whole, data.validation_fraction)


def fit_classes(config: ConfigDict) -> ConfigDict:
    """Returns a run with as many classes as its folder has, or the run itself for other sources.

    The number of classes of a named data set is known in advance; that of one's own images is
    counted. Presets for ImageNet validate on its split `validation`; a folder without such a split
    validates on a share of its training images instead, and not on its test images.

    Raises:
      UsageError: there is no such folder.
    """
    data = config.data
    kind, _, path = data.source.partition(":")
    if kind not in ("folder", "prepared"):
        return config
    classes = len(open_source(data.source, data.train_split, data.test_fraction).class_names)
    fitted = config.copy_and_resolve_references()
    fitted.model.num_classes = classes
    fitted.model.layers[fitted.model.layer_order[-1]].features = classes
    validation, root = ("validation", "val"), Path(path).expanduser()
    there = any((root / name).is_dir() for name in validation)
    if kind == "folder" and data.validation_split in validation and not there:
        fitted.data.validation_split = ""
    return fitted


def open_source(name: str, split: str, test_fraction: float = 0.2) -> Source:
    """Opens one split of a data set that is already on this machine; downloads nothing.

    Args:
      name: one of `FORMS`.
      split: `train` or `test` of the digits; a split of the data set, including slices such as
        `train[:45000]`, for TFDS; for folders a directory in PATH, or `train` and `test` if PATH
        holds the class folders themselves.
      test_fraction: share of each class that is `test` in that last case.

    Raises:
      UsageError: the name, the data set or the split does not exist, or its files are damaged.
    """
    kind, _, rest = name.partition(":")
    # Each kind is imported when it is needed: TensorFlow Datasets takes seconds.
    if name == "digits":
        from alexnet_jax.data.sources import digits

        return digits.open_digits(split)
    if kind == "tfds" and rest:
        from alexnet_jax.data.sources import tfds

        return tfds.open_tfds(rest, split)
    if kind == "folder" and rest:
        from alexnet_jax.data.sources import folder

        return folder.open_folder(rest, split, test_fraction)
    if kind == "prepared" and rest:
        from alexnet_jax.data.sources import prepared

        return prepared.open_prepared(rest, split)
    raise UsageError(f"data.source: no source is called '{name}'; give one of {FORMS}")
