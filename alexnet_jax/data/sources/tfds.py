"""Images that TensorFlow Datasets prepared on disk, read by record offset.

A TFRecord file has no index, so opening a split reads all record headers once (1.3 million for
ImageNet). After that, any image is one `pread` away, without a shuffle buffer and without reading
the records before it. No file stays open: a data set of a thousand shards would exceed the usual
limit of 1024 open files.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.encoded import Encoded
from alexnet_jax.data.protocol import Kind
from alexnet_jax.data.tensorflow_cpu import import_tensorflow
from alexnet_jax.errors import UsageError
from alexnet_jax.paths import expanded
from alexnet_jax.registry import SOURCES

_HEADER, _FOOTER = 12, 4
"""Bytes around a record: its length (8, little-endian) and the checksum of the length before it,
its own checksum after it; https://www.tensorflow.org/tutorials/load_data/tfrecord."""


@dataclasses.dataclass(frozen=True)
class TFDS(Encoded):
    """A `Source` of the records of one split.

    Attributes:
      image_key: the feature that holds the encoded image.
      label_key: the feature that holds the label.
      files: the shards.
      file: int32 `[N]`, the shard of each record, as an index into `files`.
      offset: int64 `[N]`, the first byte of each record in its shard.
      length: int64 `[N]`, the number of bytes of each record.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_key: str
    label_key: str
    files: tuple[str, ...]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    @property
    def num_examples(self) -> int:
        """Number of images in the split."""
        return len(self.offset)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `Encoded.read`; verifies checksums, because decoders miss most flipped bits."""
        parse = import_tensorflow().train.Example.FromString
        encoded, labels = [], []
        with contextlib.ExitStack() as stack:
            opened: dict[int, int] = {}
            for i in indices:
                number = int(self.file[i])
                if number not in opened:
                    opened[number] = _open(self.files[number])
                    stack.callback(os.close, opened[number])
                start, size = int(self.offset[i]), int(self.length[i])
                # Two reads: dividing the bytes of a single one would copy them.
                record = os.pread(opened[number], size, start)
                checksum = os.pread(opened[number], _FOOTER, start + size)
                if len(record) != size or len(checksum) != _FOOTER:
                    raise UsageError(f"{self.describe(i)}: the file was cut; prepare it again")
                if _masked_crc(record) != int.from_bytes(checksum, "little"):
                    raise UsageError(
                        f"{self.describe(i)}: the checksum does not match; prepare it again"
                    )
                feature = parse(record).features.feature
                image = feature[self.image_key].bytes_list.value
                label = feature[self.label_key].int64_list.value
                if len(image) != 1 or len(label) != 1:
                    raise UsageError(
                        f"{self.describe(i)}: {len(image)} images ({self.image_key}) and "
                        f"{len(label)} labels ({self.label_key}) in one record, instead of one each"
                    )
                encoded.append(image[0])
                labels.append(label[0])
        return encoded, np.array(labels, np.int64)

    def describe(self, index: int) -> str:
        """See `Source.describe`."""
        return f"{self.files[self.file[index]]}, byte {self.offset[index]}"


def open_tfds(name: str, split: str, data: ConfigDict) -> TFDS:
    """Opens `NAME` or `NAME:VERSION`; without a version, the newest one on disk.

    Searches `TFDS_DATA_DIR`, or `~/tensorflow_datasets` as TFDS itself does. NAME is `name/config`
    for a data set with several configurations. The split may be a slice such as `train[:45000]`.

    Raises:
      UsageError: the data set is not prepared, is not one of images with class labels, is not
        stored as TFRecord, has no such split, or has damaged files.
    """
    del data
    import_tensorflow()
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    folder = _find(name)
    # Not by `tfds.builder(NAME)`, which may query the network about a data set and knows only
    # those whose code is installed.
    try:
        info: Any = tfds.builder_from_directory(folder).info
    except (OSError, ValueError, ParseError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{folder} is damaged ({reason}); delete it and prepare it again"
        ) from error
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        stored = getattr(info.file_format, "value", info.file_format)
        raise UsageError(f"{folder} is stored as {stored}; prepare it with file_format='tfrecord'")
    image_key, label_key = _keys(info, tfds.features.Image, tfds.features.ClassLabel)
    try:
        parts = info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        has = ", ".join(sorted(info.splits))
        raise UsageError(f"{info.full_name} has no split '{split}'; it has {has}") from error
    # A slice that ends before it starts has a negative count.
    if not parts or any(part.take <= 0 for part in parts):
        raise UsageError(
            f"split '{split}' of {info.full_name} contains an empty slice; give a larger one"
        )
    spans = _index([(str(part.filename), part.examples_in_shard) for part in parts])
    counts = [part.take for part in parts]
    taken = [s[p.skip : p.skip + p.take] for s, p in zip(spans, parts, strict=True)]
    records = np.concatenate(taken)
    return TFDS(
        name=f"tfds:{info.full_name.removesuffix('/' + str(info.version))}:{info.version}",
        split=split,
        class_names=tuple(info.features[label_key].names),
        image_key=image_key,
        label_key=label_key,
        files=tuple(str(part.filename) for part in parts),
        file=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        offset=records[:, 0],
        length=records[:, 1],
    )


def _find(name: str) -> Path:
    """The directory of a prepared data set: DATA_DIR/NAME/VERSION."""
    name, _, version = name.partition(":")
    data_dir = expanded(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    prepared = [path.parent for path in (data_dir / name).glob("*/dataset_info.json")]
    if version:
        prepared = [path for path in prepared if path.name == version]
    numbered = [path for path in prepared if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if numbered:
        return max(numbered, key=lambda path: [int(part) for part in path.name.split(".")])
    wanted = f"{name}:{version}" if version else name
    first = ""
    if name == "imagenet2012":
        first = (
            "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in "
            f"{data_dir / 'downloads' / 'manual'}, then "
        )
    raise UsageError(
        f"data.source: '{wanted}' is not prepared in {data_dir / name} (TFDS_DATA_DIR moves it); "
        f"{first}run: "
        f"python -c \"import tensorflow_datasets as tfds; tfds.load('{wanted}')\""
    )


def _keys(info: Any, image_type: type, label_type: type) -> tuple[str, str]:
    """The names of the image and of the label among a data set's features."""
    keys = info.supervised_keys
    if keys is not None and len(keys) == 2 and all(key in info.features for key in keys):
        image, label = (info.features[key] for key in keys)
        if isinstance(image, image_type) and isinstance(label, label_type):
            return keys
    raise UsageError(
        f"data.source: {info.full_name} is not a set of images with one class label each "
        f"(its supervised keys are {keys}); choose another data set"
    )


def _index(shards: Sequence[tuple[str, int]]) -> list[np.ndarray]:
    """Offset and length of every record, int64 `[n, 2]`, for each (file, number of records n)."""
    # The threads wait for the disk: a file that is not cached costs one seek per record.
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda shard: _scan(*shard), shards))


def _scan(path: str, expected: int) -> np.ndarray:
    """Reads the record headers of one file and compares their number with the data set's own.

    Only the number reveals an empty file or one that was cut between two records.
    """
    records = []
    descriptor = _open(path)
    try:
        size, position = os.fstat(descriptor).st_size, 0
        while position < size:
            length = int.from_bytes(os.pread(descriptor, 8, position), "little")
            records.append((position + _HEADER, length))
            position += _HEADER + length + _FOOTER
    finally:
        os.close(descriptor)
    if position != size or len(records) != expected:
        raise UsageError(
            f"{path} is damaged: {len(records)} records end at byte {position} of {size}, where "
            f"the data set lists {expected} records; delete its directory and prepare it again"
        )
    return np.array(records, np.int64).reshape(-1, 2)


def _masked_crc(record: bytes) -> int:
    """The checksum of a TFRecord, masked as in `tensorflow/core/lib/hash/crc32c.h`."""
    crc = google_crc32c.value(record)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; prepare it again") from error


SOURCES["tfds"] = Kind(
    open_tfds,
    rest="NAME[:VERSION]",
    about="prepared by TensorFlow Datasets",
    counted=False,
)
