"""The sources of a run: opened by name, one module for each kind, and divided into splits.

A module registers its kind in `registry.SOURCES`. It must be quick to import: what takes seconds,
such as TensorFlow, is imported when a source is opened.
"""

import dataclasses
import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.config.guests import import_guests
from alexnet_jax.data.protocol import Kind, Reader, Source
from alexnet_jax.data.sources.arrays import as_source
from alexnet_jax.data.sources.folder import Folder, account, some
from alexnet_jax.errors import UsageError
from alexnet_jax.registry import SOURCES


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


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """A `Source` of the images of another source, with the labels of other orders of its classes.

    Attributes:
      source: the other source.
      class_names: its classes in the order of the new labels.
    """

    source: Source
    class_names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the other source."""
        return self.source.name

    @property
    def split(self) -> str:
        """The split of the other source."""
        return self.source.split

    @property
    def num_examples(self) -> int:
        """Number of its images."""
        return self.source.num_examples

    @property
    def files(self) -> tuple[str, ...]:
        """Its files."""
        return self.source.files

    def squares(self, config: ConfigDict) -> Reader:
        """See `Source.squares`."""
        read = self.source.squares(config)
        label = np.array([self.class_names.index(n) for n in self.source.class_names], np.int32)

        def relabelled(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            squares, labels = read(indices)
            return squares, label[labels]

        return relabelled

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return self.source.describe(index)


def with_classes(
    sources: Mapping[str, Source], names: tuple[str, ...] = (), where: str = ""
) -> dict[str, Source]:
    """The splits of a run with the labels that their classes have by their names in `names`.

    Args:
      sources: the images of each split, `train` among them.
      names: of the classes of a network, in the order of its labels; empty: those of `train`.
      where: the place of these names, for messages.

    Raises:
      UsageError: a split has other classes; says which.
    """
    if not names:
        names, where = sources["train"].class_names, "the training images"
    return {split: _with_classes(source, names, where) for split, source in sources.items()}


def _with_classes(source: Source, names: tuple[str, ...], where: str) -> Source:
    found = source.class_names
    if not names or not found or found == names:
        return source
    if sorted(found) != sorted(names) or len(set(names)) != len(names):
        lists = {"missing": sorted({*names} - {*found}), "new": sorted({*found} - {*names})}
        text = "; ".join(f"{what}: {some(which)}" for what, which in lists.items() if which)
        raise UsageError(
            f"{source.name}, {source.split}, has other classes than {where} ({text or 'repeated'}):"
            " give them the same names"
        )
    return Relabelled(source, names)


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


def open_sources(
    config: ConfigDict, names: tuple[str, ...] = (), where: str = ""
) -> dict[str, Source]:
    """Opens the splits of a run: `train`, `test` and, if it has one, `validation`.

    No split is opened twice.

    Args:
      config: of the run.
      names: of the classes of a network that was trained on them, in the order of its labels, to
        which those of the sources are matched (`with_classes`); empty: those of the training
        images.
      where: the place of these names, for messages.

    Raises:
      UsageError: a data set is missing, or its classes are not those of the network.
    """
    data = config.data
    opened = _opener(data, config.model.num_classes)
    train, validation = _training(data, opened)
    sources = {"train": train, "test": opened(data.test_split)}
    if data.validation_split:
        validation = opened(data.validation_split)
    if validation is not None:
        sources["validation"] = validation
    sources = with_classes(sources, names, where)
    for source in sources.values():
        if (classes := len(source.class_names)) != config.model.num_classes:
            raise UsageError(
                f"config.model.num_classes = {config.model.num_classes}, but {data.source} has "
                f"{classes} classes: set --config.model.num_classes={classes}"
            )
    announce(sources.values())
    return sources


def announce(sources: Iterable[Source]) -> None:
    """Says on stderr what was found in folders and what was left out, where a run opens them."""
    import jax  # Takes a second, which those who list the sources do not need.

    wholes = {id(source): source for source in map(_whole, sources)}.values()
    folders = [source for source in wholes if isinstance(source, Folder)]
    if folders and jax.process_index() == 0:  # pyright: ignore[reportUnknownMemberType]
        print(account(folders), file=sys.stderr, flush=True)


def check_classes(*sources: Source) -> None:
    """Checks that splits have folders for the same classes.

    Raises:
      UsageError: a class has a folder in one of them only, such as `Cat` beside `cat`.
    """
    for source in map(_whole, sources):
        if isinstance(source, Folder) and source.absent:
            raise UsageError(
                f"{source.place} has no folder of the classes {some(source.absent)}, which another "
                "split has: give them the same names; an empty folder says that there are none"
            )


def _whole(source: Source) -> Source:
    """The source of which another is a part."""
    while isinstance(source, (Subset, Relabelled)):
        source = source.source
    return source


def given_sources(
    config: ConfigDict,
    data: Any,
    validation: Any = None,
    test: Any = None,
    class_names: tuple[str, ...] = (),
) -> dict[str, Source]:
    """The splits of a run whose images are given in Python: see `arrays.as_source`.

    Without `validation`, a share of the training images is held out (`data.validation_fraction`).
    Without `test`, there is no split `test`.

    Raises:
      UsageError: the images or the labels are of another kind, or the classes are not those of
        `config.model.num_classes`.
    """

    def source(given: Any, split: str) -> Source:
        return as_source(given, split, config.model.num_classes, class_names)

    sources = {"train": source(data, "train")}
    if validation is not None:
        sources["validation"] = source(validation, "validation")
    elif config.data.validation_fraction:
        sources["train"], sources["validation"] = hold_out(
            sources["train"], config.data.validation_fraction
        )
    if test is not None:
        sources["test"] = source(test, "test")
    return sources


def open_train(data: ConfigDict) -> Source:
    """Opens only the images of `config.data` that are trained on, whatever their classes.

    Raises:
      UsageError: the data set is missing.
    """
    source = _training(data, _opener(data))[0]
    announce([source])
    return source


def _opener(data: ConfigDict, classes: int = 0) -> Callable[[str], Source]:
    """Opens each split once: a split of a large data set takes seconds."""

    @functools.cache
    def opened(split: str) -> Source:
        return open_source(data.source, split, data, classes)

    return opened


def _training(data: ConfigDict, opened: Callable[[str], Source]) -> tuple[Source, Source | None]:
    """The images that are trained on, and those of the same split that are held out."""
    whole = opened(data.train_split)
    if data.validation_split or not data.validation_fraction:
        return whole, None
    return hold_out(whole, data.validation_fraction)


def fit_classes(config: ConfigDict) -> ConfigDict:
    """Returns a run that fits one's own images, or the run itself for named data sets.

    Of a named data set, classes, splits and size are known in advance. Of one's own images the
    classes are counted. Presets for ImageNet validate on its split `validation`; a source that has
    only its test images to give for it validates on a share of its training images instead. A batch
    of more images than are trained on is replaced (`fitting_batch`).

    Raises:
      UsageError: there is no such source.
    """
    import_guests(config)
    data = config.data
    kind, _ = _kind(data.source)
    if not kind.counted:
        return config
    opened = _opener(data)
    fitted = config.copy_and_resolve_references()
    # A sequence without names has the classes of the network.
    if classes := len(opened(data.train_split).class_names):
        fitted.model.num_classes = classes
        fitted.model.layers[fitted.model.layer_order[-1]].features = classes
    if data.validation_split not in ("", "test") and opened(data.validation_split).split == "test":
        fitted.data.validation_split = ""
    train, _ = _training(fitted.data, opened)
    fitted.batch_size = fitting_batch(config.batch_size, train.num_examples)
    return fitted


def fitting_batch(wanted: int, examples: int) -> int:
    """The batch size that is wanted, or the largest power of two that is not above `examples`.

    A power of two divides over the devices of most machines, so that the same number is chosen
    wherever a run resumes.
    """
    return wanted if wanted <= examples else 2 ** (examples.bit_length() - 1)


def open_source(name: str, split: str, data: ConfigDict | None = None, classes: int = 0) -> Source:
    """Opens one split of a data set that is already on this machine; downloads nothing.

    Args:
      name: `data.source`, such as `folder:PATH`.
      split: the name of the split; see the opener of each kind for those that it has.
      data: `config.data`; its defaults if it is None.
      classes: the number of classes, for sources that have none of their own; 0: not known.

    Raises:
      UsageError: the name, the data set or the split does not exist, or its files are damaged.
    """
    kind, rest = _kind(name)
    opened = kind.open(rest, split, default().data if data is None else data)
    return opened if hasattr(opened, "squares") else as_source(opened, split, classes, name=name)


def forms() -> str:
    """What `data.source` may be, in one line."""
    return ", ".join(_entry(name).form(name) for name in SOURCES)


def _entry(name: str) -> Kind:
    """The entry of a name; those of others may be plain functions."""
    entry = SOURCES[name]
    return entry if isinstance(entry, Kind) else Kind(entry)


def _kind(source: str) -> tuple[Kind, str]:
    """The kind of a source by its full name, and what stands behind the colon.

    Raises:
      UsageError: there is no such kind, or it wants more or less than is there.
    """
    name, _, rest = source.partition(":")
    if name in SOURCES:
        kind = _entry(name)
        if kind.rest is None or bool(kind.rest) == bool(rest):
            return kind, rest
    close = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f"did you mean {_entry(close[0]).form(close[0])}?" if close else f"give one of {forms()}"
    raise UsageError(f"data.source: no source is called '{source}'; {hint}")
