"""Resizes a data set once, for runs that read it many times."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UsageError

_BATCH = 64


def prepare(
    source: Source, config: ConfigDict, folder: Path, progress: Callable[[int, int], None]
) -> None:
    """Writes the squares of one split to `folder`, in the order of the source.

    `split.json` comes last: a folder without it was not finished.

    Args:
      source: the images.
      config: `config.data`.
      folder: is created; what an unfinished attempt left there is replaced.
      progress: called after each batch with the images done and their number.

    Raises:
      UsageError: the folder holds a prepared split, or cannot be written, or an image is damaged.
    """
    if (folder / "split.json").exists():
        raise UsageError(f"{folder} is prepared already; remove it to prepare it again")
    size, count = config.image_size, source.num_examples
    labels = np.empty(count, np.int32)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written and not mapped: a full disk is an error here, and a crash there.
        with (folder / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            done = 0
            for batch in pipeline.eval_batches(source, config, batch_size=_BATCH):
                real = batch["mask"] > 0
                file.write(batch["image"][real].tobytes())
                labels[batch["index"][real]] = batch["label"][real]
                done += int(real.sum())
                progress(done, count)
            file.flush()
            os.fsync(file.fileno())
        np.save(folder / "labels.npy", labels)
        about = {
            "class_names": source.class_names,
            "resize": config.resize,
            "shrink": config.shrink,
            "from": source.name,
        }
        (folder / "split.json").write_text(json.dumps(about) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error
