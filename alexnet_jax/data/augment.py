"""The random draws of training, as pure functions of (seed, epoch), and the test views.

Draws are made for all examples of a split at once and indexed by example, so that the augmentation
of an example depends on nothing but (seed, epoch, index): not on the batch size, the hosts, the
devices or the step at which a run was resumed.
"""

import dataclasses
import enum

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config.fields import FIELDS
from alexnet_jax.errors import UsageError


class _Stream(enum.IntEnum):
    """Independent random streams: turning one augmentation off does not change the others."""

    ORDER = 0
    OFFSET = 1
    FLIP = 2
    COLOUR = 3


@dataclasses.dataclass(frozen=True)
class Draws:
    """One epoch's draws.

    Attributes:
      offset: int32 `[N, 2]`, the crop's top row and left column in pixels.
      flip: bool `[N]`, mirror left to right.
      gaussians: float32 `[N, 3]`, standard normal, for `colour_shift`.
    """

    offset: np.ndarray
    flip: np.ndarray
    gaussians: np.ndarray


def order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of one epoch: a permutation of the examples, int64 `[N]`."""
    return _generator(seed, _Stream.ORDER, epoch).permutation(num_examples)


def draws(seed: int, epoch: int, num_examples: int, config: ConfigDict) -> Draws:
    """Crops, flips and Gaussians of one epoch.

    The corner of a crop is uniform in `0..image_size + 2 * pad - crop_size`, both ends included:
    33 x 33 positions for 256 -> 224, as in `convdata_jpeg.py` of the source (the paper counts
    32 x 32).

    Args:
      seed: seed of the run, 0 or more.
      epoch: counted from 0.
      num_examples: number of examples N.
      config: `config.data`.

    Raises:
      UsageError: the crop is larger than the padded image.
    """
    size = config.image_size + 2 * config.pad
    if not 0 < config.crop_size <= size:
        raise UsageError(
            f"data.crop_size {config.crop_size} does not fit into data.image_size + 2 * data.pad "
            f"= {size}"
        )
    if config.random_crop:
        offset = _generator(seed, _Stream.OFFSET, epoch).integers(
            0, size - config.crop_size, (num_examples, 2), np.int32, endpoint=True
        )
    else:
        offset = np.full((num_examples, 2), center_offset((size, size), config.crop_size), np.int32)
    if config.random_flip:
        flip = _generator(seed, _Stream.FLIP, epoch).integers(0, 2, num_examples, bool)
    else:
        flip = np.zeros(num_examples, bool)
    gaussians = _generator(seed, _Stream.COLOUR, epoch).standard_normal((num_examples, 3))
    return Draws(offset, flip, gaussians.astype(np.float32))


def crop(
    images: np.ndarray, offset: np.ndarray, flip: np.ndarray, *, crop_size: int, pad: int
) -> np.ndarray:
    """Cuts one window out of each image and mirrors some of the windows.

    Args:
      images: uint8 `[b, S, S, 3]`.
      offset: `[b, 2]`, top row and left column in the padded image.
      flip: bool `[b]`.
      crop_size: side of the window in pixels.
      pad: pixels added on each side before, mirrored at the edge pixel. A border of zeros would be
        an edge that no photograph has, and far from zero after the mean is subtracted.

    Returns:
      uint8 `[b, crop_size, crop_size, 3]`.
    """
    if pad:
        images = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), "reflect")
    crops = np.empty((len(images), crop_size, crop_size, 3), np.uint8)
    for out, image, (top, left), mirrored in zip(crops, images, offset, flip, strict=True):
        window = image[top : top + crop_size, left : left + crop_size]
        if mirrored:
            # By channel: NumPy reverses pixels of three bytes at a quarter of the speed.
            for channel in range(3):
                out[..., channel] = window[:, ::-1, channel]
        else:
            out[:] = window
    return crops


def colour_shift(gaussians: np.ndarray, colour: ConfigDict) -> np.ndarray:
    """What the PCA noise of section 4.1 adds to every pixel's R, G, B.

    With `stdevs` s and `eigenvectors` P (rows R, G, B) in grey levels, and `a = 0.1 * gaussians`:

      none    0
      source  P (a s), `convdata_jpeg.py`; the images are divided by 1.1 afterwards, on the device
      paper   255 P (a (s / 255)^2): eigenvalues, which are variances, times a. The paper names no
              unit. For pixels in 0..255 the rule would shift colours by 1,483 grey levels, so it is
              taken to mean pixels in 0..1.

    Args:
      gaussians: standard normal `[..., 3]`, one per component.
      colour: `config.data.colour`.

    Returns:
      float32 `[..., 3]` in grey levels (0-255).

    Raises:
      UsageError: there is no such rule.
    """
    FIELDS["data.colour.rule"].check("data.colour.rule", colour.rule)
    if colour.rule == "none":
        return np.zeros(gaussians.shape, np.float32)
    scale = np.asarray(colour.stdevs, np.float64)
    if colour.rule == "paper":
        scale = 255 * np.square(scale / 255)
    components = np.asarray(colour.eigenvectors, np.float64)
    return (0.1 * gaussians * scale @ components.T).astype(np.float32)


def center_offset(size: tuple[int, int], crop_size: int) -> tuple[int, int]:
    """Top row and left column of the centre crop, rounded down if a margin is odd.

    Args:
      size: height and width of the image.
      crop_size: side of the crop.
    """
    height, width = size
    return (height - crop_size) // 2, (width - crop_size) // 2


def nine_view_offsets(size: tuple[int, int], crop_size: int) -> np.ndarray:
    """Offsets of a 3 x 3 grid of crops, int32 `[9, 2]`: the test of cuda-convnet on CIFAR-10.

    The centre crop is view 4; no view is mirrored. The arguments are those of `center_offset`.
    """
    (middle, centre), (bottom, right) = center_offset(size, crop_size), _last(size, crop_size)
    corners = [(top, left) for top in (0, middle, bottom) for left in (0, centre, right)]
    return np.array(corners, np.int32)


def ten_view_offsets(size: tuple[int, int], crop_size: int) -> np.ndarray:
    """Top rows and left columns of the five crops of section 4.1, int32 `[5, 2]`.

    Top left, top right, bottom left, bottom right, centre. The ten views are these five crops,
    followed by their mirror images in the same order. The arguments are those of `center_offset`.
    """
    bottom, right = _last(size, crop_size)
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), center_offset(size, crop_size)]
    return np.array(corners, np.int32)


def _last(size: tuple[int, int], crop_size: int) -> tuple[int, int]:
    """Offset of the bottom right crop."""
    return size[0] - crop_size, size[1] - crop_size


def _generator(seed: int, stream: _Stream, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, epoch])))
