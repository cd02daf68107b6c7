"""What the device does with uint8 images before the network: mean, colour, views.

The host sends crops as bytes, and three floats of colour noise per training image; all arithmetic
in floating point happens here.
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from alexnet_jax import cache
from alexnet_jax.data import augment, statistics
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
      image_size: side of the uncropped image at test time, in pixels.
      crop_size: side of the network's input, in pixels.
    """

    mean: np.ndarray
    scale: float
    colour_divisor: float
    image_size: int
    crop_size: int

    def train(self, batch: dict[str, jax.Array], noise: ArrayLike) -> jax.Array:
        """`image` uint8 `[B, crop, crop, 3]` and `colour` `[B, 3]` to float `[B, crop, crop, 3]`.

        `noise` says whether the colour shift is applied at this step.
        """
        shift = jnp.where(noise, batch["colour"], 0)[:, None, None, :]
        divisor = jnp.where(noise, self.colour_divisor, 1.0)
        return (batch["image"].astype(jnp.float32) - self.mean + shift) * (self.scale / divisor)

    def centre(self, images_BxSxSx3: jax.Array) -> jax.Array:
        """The centre crop of uncropped uint8 images, as float `[B, crop, crop, 3]`."""
        offset = (self.image_size - self.crop_size) // 2
        return self._test(self._crop(images_BxSxSx3, offset, offset))

    def views(self, images_BxSxSx3: jax.Array, number: int) -> jax.Array:
        """Test views of uncropped uint8 images: float `[number, B, crop, crop, 3]`.

        Ten views are the corners and the centre, then their mirror images (section 4.1); nine are a
        3 x 3 grid; one is the centre. The centre crop is view 4 of nine and ten.
        """
        if number == 1:
            return self.centre(images_BxSxSx3)[None]
        offsets = augment.nine_view_offsets if number == 9 else augment.ten_view_offsets
        corners = offsets(self.image_size, self.crop_size)
        views = jnp.stack([self._crop(images_BxSxSx3, int(y), int(x)) for y, x in corners])
        if number == 10:
            views = jnp.concatenate([views, views[:, :, :, ::-1]])
        return self._test(views)

    def _crop(self, images: jax.Array, y: int, x: int) -> jax.Array:
        return images[..., y : y + self.crop_size, x : x + self.crop_size, :]

    def _test(self, crops: jax.Array) -> jax.Array:
        return (crops.astype(jnp.float32) - self.mean) * self.scale


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
    return Inputs(mean, data.scale, divisor, data.image_size, data.crop_size)


def of_run(config: ConfigDict, workdir: Path) -> Inputs:
    """The input rule of a run. A mean image is computed once and kept in the workdir.

    Raises:
      UsageError: the data set is missing, or the file in the workdir is damaged.
    """
    if config.data.mean != "image":
        return build(config.data, None)
    path = workdir / STATISTICS
    if not path.exists() and jax.process_index() == 0:
        compute_statistics(config, path)
    while not path.exists():  # The first process computes it for all.
        time.sleep(1)
    return build(config.data, statistics.load(path).mean_image)


def compute_statistics(config: ConfigDict, path: Path) -> statistics.Statistics:
    """Writes mean image and RGB components of the images that are trained on to a file.

    Those of images in files are also kept for other runs (`cache.folder`), because a pass over
    ImageNet takes an hour, and reused as long as the images and their files stay the same.

    Raises:
      UsageError: the data set is missing, or an image cannot be read.
    """
    data = config.data

    def show(done: int, total: int) -> None:
        if done == total or done % 100_000 < 256:
            print(f"statistics: {done} of {total} images", file=sys.stderr, flush=True)

    source = open_train(data)
    key = statistics.key(source, data)
    if key is None:
        result = statistics.compute(source, data, show)
    else:
        kept = cache.folder() / f"statistics-{key}.npz"
        try:
            result = statistics.load(kept)
        except UsageError:  # There is none yet, or it is damaged.
            result = statistics.compute(source, data, show)
            with contextlib.suppress(OSError):
                result.save(kept)
    result.save(path)
    return result
