"""Statistics of training images that the input rule needs: mean image and colour components.

They are the mean image and `color_pca` of cuda-convnet2's `make-data.py`, from whole squares rather
than crops.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import decode, formats, pipeline
from alexnet_jax.data.protocol import Source
from alexnet_jax.errors import UsageError

_BATCH = 32
"""Small, because a square of 256 pixels in float64 takes 1.5 MB."""

_UNREADABLE = (
    *(OSError, EOFError, ValueError, zipfile.BadZipFile),
    *(AttributeError, TypeError),  # for a single array instead of an archive
    MemoryError,  # for a header that claims an enormous size
    RuntimeError,  # for a zip header that asks for a password or an unknown version
)
"""What NumPy raises for files with other content."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of the images of one source, in grey levels (0-255).

    Attributes:
      mean_image: float32 `[S, S, 3]`.
      channel_mean: float32 `[3]`, the mean of `mean_image` over positions.
      stdevs: float32 `[3]`, ascending: standard deviations of R, G, B over all pixels along their
        principal components.
      eigenvectors: float32 `[3, 3]`, those components as columns (rows are R, G, B), with signs
        such that the largest entry of each is positive.
      num_examples: number of images.
      key: of what they were computed from, as `key` returns it; empty where it has none, or was
        written by version 0.1.
    """

    mean_image: np.ndarray
    channel_mean: np.ndarray
    stdevs: np.ndarray
    eigenvectors: np.ndarray
    num_examples: int
    key: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one .npz file, completely or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.unlink(missing_ok=True)
        try:
            with partial.open("xb") as file:  # never through a link
                np.savez(file, **dataclasses.asdict(self))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def compute(
    source: Source, config: ConfigDict, progress: Callable[[int, int], None] | None = None
) -> Statistics:
    """Computes the statistics in one pass over the squares of a source.

    Args:
      source: the images.
      config: `config.data`.
      progress: called after each batch with the number of images done and of all images.

    Raises:
      UsageError: an image cannot be read.
    """
    size = config.image_size
    total = np.zeros((size, size, 3))
    products = np.zeros((3, 3))
    done = 0
    for batch in pipeline.eval_batches(source, config, batch_size=_BATCH):
        images = batch["image"][batch["mask"] > 0].astype(np.float64)
        total += images.sum(0)
        pixels = images.reshape(-1, 3)
        products += pixels.T @ pixels
        done += len(images)
        if progress is not None:
            progress(done, source.num_examples)
    mean_image = total / done
    mean = mean_image.mean((0, 1))
    covariance = products / (done * size**2) - np.outer(mean, mean)
    variances, components = np.linalg.eigh(covariance)
    largest = components[np.abs(components).argmax(0), range(3)]
    return Statistics(
        mean_image=mean_image.astype(np.float32),
        channel_mean=mean.astype(np.float32),
        # Two variances of grey images are zero, and rounding can make them negative.
        stdevs=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
        eigenvectors=(components * np.sign(largest)).astype(np.float32),
        num_examples=done,
    )


def key(source: Source, config: ConfigDict) -> str | None:
    """A hash of everything that the result of `compute` depends on.

    It covers which images there are; path, size and modification time of the files, because reading
    them takes long; and the configuration and the code that make squares of them. Images in memory
    have no key, since nothing but their pixels tells them from others.
    """
    if not source.files:
        return None
    images = hashlib.sha256()
    for index in range(source.num_examples):
        images.update(f"{source.describe(index)}\n".encode())
    files = [(str(Path(name).resolve()), *_stamp(name)) for name in source.files]
    rule = [config.image_size, config.resize, config.shrink]
    modules = (decode.__file__, formats.__file__, __file__)
    code = [hashlib.sha256(Path(of).read_bytes()).hexdigest() for of in modules]
    about = [source.name, source.split, images.hexdigest(), rule, code, files]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0  # The error is reported when the file is read.
    return status.st_size, status.st_mtime_ns


def load(path: str | os.PathLike[str]) -> Statistics:
    """Reads what `Statistics.save` wrote.

    Raises:
      UsageError: there is no such file, or it has other content.
    """
    fields = {field.name for field in dataclasses.fields(Statistics)}
    try:
        # NumPy does not close a file that it opened and could not read.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if {*archive.files, "key"} != fields:
                raise ValueError(f"it holds {', '.join(archive.files)}")
            arrays = {name: archive[name] for name in archive.files}
        _check(arrays)
    except _UNREADABLE as error:
        raise UsageError(
            f"{path} is not a file of statistics ({error}); remove it and compute it again"
        ) from error
    count, of = int(arrays.pop("num_examples")), str(arrays.pop("key", ""))
    return Statistics(num_examples=count, key=of, **arrays)


def _check(arrays: dict[str, np.ndarray]) -> None:
    side = len(arrays["mean_image"]) if arrays["mean_image"].ndim else 0
    shapes = {
        "mean_image": (side, side, 3),
        "channel_mean": (3,),
        "stdevs": (3,),
        "eigenvectors": (3, 3),
    }
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or not array.size or array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not float32 {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    count, stdevs, components = (arrays[n] for n in ("num_examples", "stdevs", "eigenvectors"))
    if count.shape or count.dtype.kind != "i" or count < 1:
        raise ValueError("num_examples is not a positive integer")
    if (stdevs < 0).any() or (np.diff(stdevs) < 0).any():
        raise ValueError("stdevs are not ascending")
    if not np.allclose(components.T @ components, np.eye(3), atol=1e-4):
        raise ValueError("eigenvectors are not orthonormal")
    for name in ("mean_image", "channel_mean"):
        if arrays[name].min() < 0 or arrays[name].max() > 255:
            raise ValueError(f"{name} is not within 0-255")
