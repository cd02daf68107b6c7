"""What the device does with uint8 images before the network: mean, colour, views.

The host sends crops as bytes, and three floats of colour noise per training image; all arithmetic
in floating point happens here.
"""

import contextlib
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from alexnet_jax import cache, parallel
from alexnet_jax.data import augment, statistics
from alexnet_jax.data.protocol import Source
from alexnet_jax.data.sources import open_train
from alexnet_jax.errors import UsageError

STATISTICS = "statistics.npz"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How images become the network's input.

    Attributes:
      mean: `[crop, crop, 3]` or `[3]`, what is subtracted, on the scale 0-255. It is the centre of
        a mean image, wherever the crop itself was cut (`convdata_jpeg.py` of the source).
      scale: what the difference is multiplied by (1 in 2012: the network sees grey levels).
      colour_divisor: divides a training image after its colour shift (1.1 in the source).
      crop_size: side of the network's input, in pixels.
    """

    mean: np.ndarray
    scale: float
    colour_divisor: float
    crop_size: int

    def train(self, batch: dict[str, jax.Array], noise: ArrayLike) -> jax.Array:
        """`image` uint8 `[B, crop, crop, 3]` and `colour` `[B, 3]` to float `[B, crop, crop, 3]`.

        `noise` says whether the colour shift is applied at this step.
        """
        shift = jnp.where(noise, batch["colour"], 0)[:, None, None, :]
        divisor = jnp.where(noise, self.colour_divisor, 1.0)
        return (batch["image"].astype(jnp.float32) - self.mean + shift) * (self.scale / divisor)

    def centre(self, images_BxHxWx3: jax.Array) -> jax.Array:
        """The centre crop of images of any size from the crop up, float `[B, crop, crop, 3]`.

        The images are uint8, or floating-point numbers on the same scale, 0-255.

        Raises:
          UsageError: the images are smaller than the crop.
        """
        return self.of_crops(self._centre_crop(images_BxHxWx3))

    def of_crops(self, crops: jax.Array) -> jax.Array:
        """The network's input from crops `[..., crop, crop, 3]` of such images: float, the same."""
        # float64 images stay so, for those who differentiate numerically.
        wide = jnp.promote_types(crops.dtype, jnp.float32)
        return (crops.astype(wide) - self.mean) * self.scale

    def views(self, images_BxHxWx3: jax.Array, number: int) -> jax.Array:
        """Test views of such images, crops for `of_crops`: `[number, B, crop, crop, 3]`.

        Ten views are the corners and the centre, then their mirror images (section 4.1); nine are a
        3 x 3 grid; one is the centre. The centre crop is view 4 of nine and ten.

        Raises:
          UsageError: the images are smaller than the crop.
        """
        if number == 1:
            return self._centre_crop(images_BxHxWx3)[None]
        offsets = augment.nine_view_offsets if number == 9 else augment.ten_view_offsets
        corners = offsets(self._size(images_BxHxWx3), self.crop_size)
        views = jnp.stack([self._crop(images_BxHxWx3, int(y), int(x)) for y, x in corners])
        if number == 10:
            views = jnp.concatenate([views, views[:, :, :, ::-1]])
        return views

    def _size(self, images: jax.Array) -> tuple[int, int]:
        height, width = images.shape[-3:-1]
        if min(height, width) < self.crop_size:
            raise UsageError(
                f"images of {height} x {width} pixels: give at least {self.crop_size} x "
                f"{self.crop_size}, the network's crop (config.data.crop_size)"
            )
        return height, width

    def _centre_crop(self, images: jax.Array) -> jax.Array:
        return self._crop(images, *augment.center_offset(self._size(images), self.crop_size))

    def _crop(self, images: jax.Array, y: int, x: int) -> jax.Array:
        return images[..., y : y + self.crop_size, x : x + self.crop_size, :]


def as_batch(images: Any) -> jax.Array | np.ndarray:
    """Images as people hold them, as the `[N, H, W, 3]` that `Inputs.views` takes.

    uint8 stays uint8 and floating-point numbers stay what they are, so that one can differentiate
    with respect to them; other integers become float32.

    Args:
      images: grey levels from 0 to 255, in the order R, G, B: `[N, H, W, 3]`, `[N, H, W, 1]`, one
        image `[H, W, 3]`, grey images `[N, H, W]`, one grey image `[H, W]`; or a list of images of
        one size.

    Raises:
      UsageError: they have another shape, type or number of colours, or differ in size.
    """
    if isinstance(images, list | tuple):
        batches = [as_batch(image) for image in images]
        if len(sizes := sorted({batch.shape[1:3] for batch in batches})) != 1:
            raise UsageError(f"images of the sizes {sizes}: give images of one size")
        traced = any(isinstance(batch, jax.Array) for batch in batches)
        return (jnp if traced else np).concatenate(batches)
    array = images if isinstance(images, jax.Array) else np.asarray(images)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 3):
        array = array[..., None]  # grey
    if array.ndim == 3:
        array = array[None]
    real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or not real:
        raise UsageError(
            f"images are {array.dtype} {list(np.shape(images))}: give grey levels from 0 to 255, "
            "uint8 or float [N, H, W, 3]"
        )
    if jnp.issubdtype(array.dtype, jnp.integer) and array.dtype != np.uint8:
        array = array.astype(np.float32)
    xp = jnp if isinstance(array, jax.Array) else np
    return xp.broadcast_to(array, (*array.shape[:3], 3))


def build(data: ConfigDict, mean_image: np.ndarray | None) -> Inputs:
    """The input rule of `config.data`; `data.mean = "image"` needs `mean_image` `[S, S, 3]`."""
    size, crop = data.image_size, data.crop_size
    if data.mean == "image":
        assert mean_image is not None
        offset = (size - crop) // 2
        mean = np.asarray(mean_image, np.float32)[offset : offset + crop, offset : offset + crop]
    else:
        mean = np.asarray(data.channel_mean, np.float32)
    return with_mean(data, mean)


def with_mean(data: ConfigDict, mean: np.ndarray) -> Inputs:
    """The input rule of `config.data` with a given mean: `[3]` or `[crop, crop, 3]`."""
    divisor = 1.1 if data.colour.rule == "source" else 1.0
    return Inputs(mean, data.scale, divisor, data.crop_size)


def of_run(
    config: ConfigDict, workdir: Path, source: Source | None = None, *, trained: bool = True
) -> Inputs:
    """The input rule of a run. Its mean image is computed once and kept in the workdir.

    Args:
      config: of the run.
      workdir: its folder.
      source: the images that are trained on; None for those that `config.data` names.
      trained: whether there are weights of the run: they go with the mean image that is there.

    Raises:
      UsageError: the data set is missing, or the file in the workdir is missing or damaged.
    """
    if config.data.mean != "image":
        return build(config.data, None)
    path = workdir / STATISTICS
    if not trained:
        _prepare_statistics(config, path, source)
    elif not path.exists():
        raise UsageError(
            f"{path} is missing, the mean image that the run was trained with: put it back, or "
            f"compute it again: python -m alexnet_jax statistics --config=... --workdir={workdir}"
        )
    return build(config.data, statistics.load(path).mean_image)


def _prepare_statistics(config: ConfigDict, path: Path, source: Source | None) -> None:
    """Returns once the file holds the statistics of the images that are trained on.

    Of several processes, the first computes them. What is there from a run that came to no
    checkpoint may be of other images.
    """
    source = open_train(config.data) if source is None else source
    first = jax.process_index() == 0
    if first and os.path.lexists(path) and not _is_of(path, statistics.key(source, config.data)):
        print(f"statistics: {path} is of other images, and is computed again", file=sys.stderr)
        path.unlink()
    parallel.everyone(STATISTICS)  # Now whatever is there is of these images.
    if first and not path.exists():
        compute_statistics(config, path, source)
    while not path.exists():
        time.sleep(1)


def _is_of(path: Path, key: str | None) -> bool:
    """Whether a file holds the statistics of what has this key; images in memory have none."""
    try:
        return key is not None and statistics.load(path).key == key
    except UsageError:
        return False


def keep_statistics(config: ConfigDict, workdir: Path, trained: bool) -> statistics.Statistics:
    """The statistics that a workdir keeps, computed if it has none of these images.

    Args:
      config: a run.
      workdir: the folder, which is locked.
      trained: whether there are weights of a run, whose mean image stays.

    Raises:
      UsageError: the data set is missing, an image cannot be read, or there is the mean image of a
        run that was trained on other images.
    """
    path, source = workdir / STATISTICS, open_train(config.data)
    if os.path.lexists(path):
        if _is_of(path, statistics.key(source, config.data)):
            return statistics.load(path)
        if trained:
            raise UsageError(
                f"{path} is the mean image that the run there was trained with, and of other "
                f"images than {source.name}: name another --workdir"
            )
    return compute_statistics(config, path, source)


def compute_statistics(
    config: ConfigDict, path: Path, source: Source | None = None
) -> statistics.Statistics:
    """Writes mean image and RGB components of the images that are trained on to a file.

    Those of images in files are also kept for other runs (`cache.folder`), because a pass over
    ImageNet takes an hour, and reused as long as the images and their files stay the same.

    Raises:
      UsageError: the data set is missing, or an image cannot be read.
    """
    data = config.data

    def show(done: int, total: int) -> None:
        if done == total or done % 100_000 < 32:  # the size of a batch
            print(f"statistics: {done} of {total} images", file=sys.stderr, flush=True)

    source = open_train(data) if source is None else source
    key = statistics.key(source, data)
    kept = None if key is None else cache.folder() / f"statistics-{key}.npz"
    if kept is not None and _is_of(kept, key):
        result = statistics.load(kept)
    else:  # There is none yet, or it is damaged.
        result = dataclasses.replace(statistics.compute(source, data, show), key=key or "")
        if kept is not None:
            with contextlib.suppress(OSError):
                result.save(kept)
    result.save(path)
    return result
