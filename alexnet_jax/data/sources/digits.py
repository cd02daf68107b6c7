"""The handwritten digits of scikit-learn, for a first run without a download."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.encoded import Encoded
from alexnet_jax.data.protocol import Kind
from alexnet_jax.data.tensorflow_cpu import import_tensorflow
from alexnet_jax.errors import UsageError
from alexnet_jax.registry import SOURCES


@dataclasses.dataclass(frozen=True)
class Digits(Encoded):
    """A `Source` of 8 x 8 pixel digits, as PNG in memory.

    Attributes:
      encoded: the images.
      labels: int32 `[N]`.
      rows: int `[N]`, their rows in scikit-learn's array.
    """

    split: str
    encoded: tuple[bytes, ...]
    labels: np.ndarray
    rows: np.ndarray
    name: str = "digits"
    class_names: tuple[str, ...] = tuple("0123456789")
    files: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """Number of images in the split."""
        return len(self.encoded)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `Encoded.read`."""
        return [self.encoded[i] for i in indices], self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return f"scikit-learn's digits, row {self.rows[index]}"


def open_digits(rest: str, split: str, data: ConfigDict) -> Digits:
    """Opens `train`, 1,437 images, or `test`, 360.

    They are divided by one fixed permutation, because scikit-learn's order groups them by writer.

    Raises:
      UsageError: there is no such split.
    """
    del rest, data
    if split not in ("train", "test"):
        raise UsageError(f"digits has no split '{split}'; it has train, test")
    from sklearn.datasets import load_digits

    tf = import_tensorflow()
    digits: Any = load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(digits.target))
    rows = order[:1437] if split == "train" else order[1437:]
    # From the set's grey levels 0-16 to the scale 0-255 of every other source.
    images = np.round(digits.images[rows] * (255 / 16)).astype(np.uint8)
    encoded = tuple(tf.io.encode_png(image[:, :, None]).numpy() for image in images)
    return Digits(split, encoded, digits.target[rows].astype(np.int32), rows)


SOURCES["digits"] = Kind(
    open_digits, rest="", about="scikit-learn's handwritten digits", counted=False
)
