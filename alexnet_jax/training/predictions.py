"""What a network says of images, for people and for programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data import classes
from alexnet_jax.paths import shown

_SHOWN = 10


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """The probabilities of the classes of N images.

    Attributes:
      images: what each image is called: its path, or `image 0` and so on.
      probabilities: float32 `[N, classes]`.
      class_names: one name per class; if it is empty, classes are called by their numbers.
    """

    images: tuple[str, ...]
    probabilities: np.ndarray
    class_names: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """The number of each image's most probable class, `[N]`."""
        return self.probabilities.argmax(1)

    @property
    def names(self) -> list[str]:
        """The name of each image's most probable class."""
        return [best[0][0] for best in self]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> list[tuple[str, float]]:
        """Returns name and probability of the five most probable classes of an image."""
        found = classes.best(self.probabilities[index], self.class_names)
        return [(name, probability) for _, name, probability in found]

    def __iter__(self) -> Iterator[list[tuple[str, float]]]:
        """Iterates over the images, as `predictions[0]` and so on."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        """Returns one line per image, the first ten of them."""
        width = max(map(len, self.images[:_SHOWN]), default=0)
        names = classes.words(self.class_names)
        rows = zip(self.images[:_SHOWN], self.probabilities, strict=False)
        found = [(image, *classes.best(row, names)[0]) for image, row in rows]
        lines = [f"{image:<{width}}  {_percent(p)}  {name}" for image, _, name, p in found]
        more = len(self) - _SHOWN
        return "\n".join([*lines, f"... and {more} more"] if more > 0 else lines)


class Writer:
    """Answers as text, one image after the other.

    Where an image lies in a folder that is called as a class, by name or WordNet number, that is
    taken for its true class.

    Attributes:
      images: number of images so far that have a true class.
      right: number of those whose most probable class is the true one.
    """

    def __init__(self, form: str, paths: Sequence[Path], class_names: Sequence[str]):
        """Prepares for these images.

        Args:
          form: `text`: one line per image with its most probable class, and of one image alone the
            five most probable; `table`: the five in columns; `json`: the five as one line of JSON
            per image; `csv`: the five as one row of a file with a header. JSON and CSV have the
            WordNet numbers of classes.
          paths: the images that are to come.
          class_names: one name per class, or none.
        """
        for_readers = form in ("text", "table")
        self._form = form
        self._names = classes.words(class_names) if for_readers else tuple(class_names)
        self._alone = len(paths) == 1
        self._width = max((len(shown(path)) for path in paths), default=0)
        self._keys = {key: i for i, key in enumerate(classes.keys(class_names))}
        self._longest = max((len(classes.shown_name(name)) for name in self._names), default=3)
        self.images = self.right = 0

    def header(self) -> str:
        """The first line; empty if there is none."""
        if self._form != "csv":
            return ""
        places = range(1, min(classes.BEST, len(self._names) or classes.BEST) + 1)
        return _csv_row([
            "image", "true_class",
            *(name for i in places for name in (f"class_{i}", f"probability_{i}")),
        ])  # fmt: skip

    def row(self, path: Path, probabilities: np.ndarray) -> str:
        """What is written about one image: probabilities `[classes]`."""
        found = classes.best(probabilities, self._names)
        label = self._keys.get(classes.keys([path.parent.name])[0])
        true = "" if label is None else classes.shown_name(self._names[label])
        wrong = label is not None and found[0][0] != label
        self.images += label is not None
        self.right += label is not None and not wrong
        note = f"   wrong: {true}" if wrong else ""
        if self._form == "json":
            best = [{"class": name, "probability": p} for _, name, p in found]
            answer: dict[str, Any] = {"image": str(path), "best": best}
            return json.dumps(answer | ({"true_class": true} if true else {}))
        if self._form == "csv":
            return _csv_row([shown(path), true, *(cell for _, *cells in found for cell in cells)])
        if self._form == "table":
            cells = [f"{_percent(p)} {name:<{self._longest}}" for _, name, p in found]
            return "  ".join([f"{shown(path):<{self._width}}", *cells]).rstrip() + note
        if self._alone:
            rows = [f"  {_percent(p)}  {name}" for _, name, p in found]
            return "\n".join([shown(path) + note, *rows])
        _, name, p = found[0]
        return f"{shown(path):<{self._width}}  {_percent(p)}  {name}{note}"

    def summary(self) -> str:
        """How many answers are right; empty if no image has a true class."""
        if not self.images:
            return ""
        share = f"{100 * self.right / self.images:.1f} %"
        by = "the class of its folder" if self.images == 1 else "the classes of their folders"
        images = "image" if self.images == 1 else "images"
        return f"right: {self.right:,} of {self.images:,} {images} ({share}), by {by}"


def _percent(probability: float) -> str:
    return f"{100 * probability:5.1f} %"


def _csv_row(cells: list[Any]) -> str:
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(cells)
    return row.getvalue()
