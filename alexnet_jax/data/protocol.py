"""What a source of images is, and how a kind of source is opened by its name.

A source gives random access to the images of one split and neither shuffles nor augments them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

Reader = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From indices `[n]` to squares, uint8 `[n, S, S, 3]`, and their labels, integers `[n]`."""


class Source(Protocol):
    """The images of one split; all that the pipeline needs to know of them.

    `Encoded` adds `squares` to a class that reads files in a known format. Anything with a length
    whose items are pairs of an image and its label becomes a source by `arrays.as_source`.
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


Opener = Callable[[str, str, ConfigDict], Any]
"""Opens one split: `(rest, split, data)` are what stands behind the colon of `data.source`, the
name of the split, and `config.data`. It returns a `Source`, or anything with a length whose items
are pairs of an image and its label (`arrays.as_source`), and raises `UsageError` if there is no
such data set or split."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of source, as an entry of `registry.SOURCES`; a plain `Opener` is one without details.

    Attributes:
      open: opens one split.
      rest: what stands behind the colon, in capitals for messages, such as `PATH`; empty if nothing
        may stand there, None if the opener decides it.
      about: what its images are, in a few words, for messages.
      counted: whether a run has as many classes as are found there (`fit_classes`). Otherwise the
        configuration must say it, and the source is not opened before the run starts.
    """

    open: Opener
    rest: str | None = None
    about: str = ""
    counted: bool = True

    def form(self, name: str) -> str:
        """What is typed for a kind of this name, and what it is."""
        typed = f"{name}:{self.rest}" if self.rest else name
        return f"{typed} ({self.about})" if self.about else typed
