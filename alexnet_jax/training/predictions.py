"""What a network says of images, for people and for programs."""

import dataclasses
import json
from collections.abc import Iterator
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
        lines = [
            f"{image:<{width}}  {100 * best[0][1]:5.1f} %  {best[0][0]}"
            for image, best in zip(self.images[:_SHOWN], self, strict=False)
        ]
        more = len(self) - _SHOWN
        return "\n".join([*lines, f"... and {more} more"] if more > 0 else lines)


def as_json(image: Any, found: list[tuple[int, str, float]]) -> str:
    """One line of JSON for programs; `found` is what `data.classes.best` returns."""
    rows: list[dict[str, Any]] = [{"class": name, "probability": p} for _, name, p in found]
    return json.dumps({"image": str(image), "best": rows})


def as_text(image: Any, found: list[tuple[int, str, float]]) -> str:
    """A few lines for the terminal; `found` is what `data.classes.best` returns."""
    return "\n".join([shown(image), *(f"  {100 * p:5.1f} %  {name}" for _, name, p in found)])
