"""Names of classes, and the most probable classes of an image."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BEST = 5


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 classes of 2012 as `WNID NAME`, in the order of their WordNet IDs."""
    text = (Path(__file__).with_name("imagenet_classes.txt")).read_text("utf-8")
    return tuple(text.splitlines())


def best(probabilities: np.ndarray, names: tuple[str, ...]) -> list[tuple[int, str, float]]:
    """(label, name, probability) of the five most probable classes, most probable first.

    Args:
      probabilities: `[classes]`.
      names: one per class, or none at all: the name of a class is then its label.
    """
    order = np.argsort(-probabilities, kind="stable")[:BEST]
    return [
        (int(i), shown_name(names[i]) if names else str(i), float(probabilities[i])) for i in order
    ]


def five_best(
    probabilities: np.ndarray, names: tuple[str, ...], label: int
) -> list[tuple[str, float, bool]]:
    """(name, percent, whether it is `label`) of the five most probable classes, for figures."""
    found = best(probabilities, names)
    return [(name, 100 * probability, number == label) for number, name, probability in found]


def shown_names(names: Sequence[str], count: int) -> list[str]:
    """What `count` classes are called: by `names` as `shown_name` gives them, or their numbers."""
    return [shown_name(name) for name in names] if names else [str(i) for i in range(count)]


def shown_name(name: str) -> str:
    """Returns `n01440764 tench` for `n01440764`, and other names unchanged."""
    return _wnids().get(name, name)


def words(names: Sequence[str]) -> tuple[str, ...]:
    """Names for readers: `tench` for `n01440764` and `n01440764-tench`, where all stay distinct."""
    found = tuple(_NUMBER.sub("", shown_name(name)) or name for name in names)
    return found if len({*found}) == len(found) else tuple(map(shown_name, names))


@functools.cache
def _wnids() -> dict[str, str]:
    return {line.partition(" ")[0]: line for line in imagenet_classes()}


def keys(names: Sequence[str]) -> tuple[str, ...]:
    """By what classes are compared with those of another list: their WordNet numbers or names.

    `n01440764`, `n01440764 tench` and `n01440764-tench` are one class. In a list in which several
    begin with the same number, all are compared by name.
    """
    matches = [_WNID.match(name) for name in names]
    found = tuple(m[0] if m else name for m, name in zip(matches, names, strict=True))
    return found if len({*found}) == len(found) else tuple(names)


_WNID = re.compile(r"n\d{8}(?![0-9A-Za-z])")
_NUMBER = re.compile(r"^n\d{8}[ _-]+")
