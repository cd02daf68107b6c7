"""Where images come from: random access to the encoded images of one split.

A source neither decodes nor shuffles. It is safe to read from several threads, and holds no open
files, so that a data set of a thousand shards stays within the usual limit of 1024 of them.
"""

import dataclasses
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.tensorflow_cpu import import_tensorflow
from alexnet_jax.errors import UsageError

FORMS = (
    "'digits' (built in), 'tfds:NAME' or 'tfds:NAME:VERSION' (prepared by TensorFlow Datasets), "
    "'folder:PATH' (PATH/SPLIT/CLASS/*.jpg), 'prepared:PATH' (written by the verb prepare)"
)


class Source(Protocol):
    """The images of one split.

    Attributes:
      name: what `open_source` took, with the version filled in.
      split: name of the split.
      num_examples: images in the split, at least 1.
      class_names: one name a label.
      files: what the images are read from; none of those that are built in.
    """

    name: str
    split: str
    num_examples: int
    class_names: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, which is that of `class_names`."""
        ...

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Images `[n]` as encoded (PNG, JPEG or BMP) and their labels, int32 `[n]`.

        Args:
          indices: integers `[n]` in `0..num_examples-1`, in any order.

        Raises:
          UsageError: a file is gone or was cut since the source was opened; it names the file.
        """
        ...

    def describe(self, index: int) -> str:
        """Where image `index` lies, for error messages: a path, and a byte offset if in a shard."""
        ...


def open_sources(config: ConfigDict) -> dict[str, Source]:
    """The training and the test split of a run.

    Raises:
      UsageError: if a data set is missing, or its classes are not those of the network.
    """
    data = config.data
    sources = {
        "train": open_source(data.source, data.train_split, data.test_fraction),
        "test": open_source(data.source, data.test_split, data.test_fraction),
    }
    for source in sources.values():
        if source.num_classes != config.model.num_classes:
            raise UsageError(
                f"config.model.num_classes = {config.model.num_classes}, but {data.source} has "
                f"{source.num_classes} classes: set --config.model.num_classes="
                f"{source.num_classes}"
            )
    return sources


def fit_classes(config: ConfigDict) -> ConfigDict:
    """A run of as many classes as its folder has; of any other source as it is.

    Of a data set by name the number is known before; of somebody's own images it is counted.
    """
    data = config.data
    if not data.source.startswith(("folder:", "prepared:")):
        return config
    classes = open_source(data.source, data.train_split, data.test_fraction).num_classes
    fitted = config.copy_and_resolve_references()
    fitted.model.num_classes = classes
    fitted.model.layers[fitted.model.layer_order[-1]].features = classes
    return fitted


def open_source(name: str, split: str, test_fraction: float = 0.2) -> Source:
    """Opens one split of a data set that is already on this machine; downloads nothing.

    Args:
      name: one of `FORMS`.
      split: `train` or `test` of the digits; a split of the data set, slices such as
        `train[:45000]` included, for TFDS; for folders a directory in PATH, or `train` and `test`
        where PATH holds the classes themselves.
      test_fraction: of each class, in that last case.

    Raises:
      UsageError: the name, the data set or the split does not exist, or its files are damaged.
    """
    kind, _, rest = name.partition(":")
    if name == "digits":
        return _open_digits(split)
    if kind == "tfds" and rest:
        from alexnet_jax.data import tfds_source

        return tfds_source.open_tfds(rest, split)
    if kind == "folder" and rest:
        from alexnet_jax.data import folder_source

        return folder_source.open_folder(rest, split, test_fraction)
    if kind == "prepared" and rest:
        from alexnet_jax.data import prepared_source

        return prepared_source.open_prepared(rest, split)
    raise UsageError(f"data.source: no source is called '{name}'; give one of {FORMS}")


@dataclasses.dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits that scikit-learn ships, 8 x 8 pixels, as PNG in memory."""

    split: str
    encoded: tuple[bytes, ...]
    labels: np.ndarray
    rows: np.ndarray
    name: str = "digits"
    class_names: tuple[str, ...] = tuple("0123456789")
    files: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """Images in the split."""
        return len(self.encoded)

    @property
    def num_classes(self) -> int:
        """Ten."""
        return len(self.class_names)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `Source.read`."""
        return [self.encoded[i] for i in indices], self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return f"scikit-learn's digits, row {self.rows[index]}"


def _open_digits(split: str) -> Digits:
    """Splits by one fixed permutation: scikit-learn's order groups the digits by writer."""
    if split not in ("train", "test"):
        raise UsageError(f"digits has no split '{split}'; it has train, test")
    from sklearn.datasets import load_digits

    tf = import_tensorflow()
    digits = load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(digits.target))
    rows = order[:1437] if split == "train" else order[1437:]
    # Grey levels 0..16 of the set, on the 0-255 scale of every other source.
    images = np.round(digits.images[rows] * (255 / 16)).astype(np.uint8)
    encoded = tuple(tf.io.encode_png(image[:, :, None]).numpy() for image in images)
    return Digits(split, encoded, digits.target[rows].astype(np.int32), rows)
