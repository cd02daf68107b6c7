"""Resizes a data set once, for runs that read it many times."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import pipeline
from alexnet_jax.data.protocol import Source
from alexnet_jax.errors import UsageError

_BATCH = 64


def prepare(
    source: Source, config: ConfigDict, folder: Path, progress: Callable[[int, int], None]
) -> None:
    """Writes the squares of one split to `folder`, in the order of the source.

    `split.json` is written last: a folder without it is unfinished.

    Args:
      source: the images.
      config: `config.data`.
      folder: is created; the files of an unfinished attempt are replaced.
      progress: called after each batch with the number of images done and of all images.

    Raises:
      UsageError: the folder holds a prepared split, cannot be written, or an image is damaged.
    """
    if (folder / "split.json").exists():
        raise UsageError(f"{folder} is prepared already; remove it to prepare it again")
    size, count = config.image_size, source.num_examples
    labels = []
    unreadable: pipeline.Unreadable = {}

    def write_header(file: BinaryIO, images: int) -> None:
        shape = (images, size, size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written and not mapped: on a full disk, a write is an error and a map is a crash.
        with (folder / "images.npy").open("wb") as file:
            write_header(file, count)
            for batch in pipeline.eval_batches(
                source, config, batch_size=_BATCH, unreadable=unreadable
            ):
                real = batch["mask"] > 0
                file.write(batch["image"][real].tobytes())
                labels.extend(batch["label"][real])
                progress(len(labels) + len(unreadable), count)
            file.seek(0)
            write_header(file, len(labels))  # has the same length: NumPy pads the number
            file.flush()
            os.fsync(file.fileno())
        np.save(folder / "labels.npy", np.array(labels, np.int32))
        about = {
            "class_names": source.class_names,
            "resize": config.resize,
            "shrink": config.shrink,
            "from": source.name,
            "unreadable": list(unreadable.values()),
        }
        (folder / "split.json").write_text(json.dumps(about) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error
