"""Squares of a few images, without TensorFlow: its import takes longer than they do.

The pixels of a file are those of `data.decode`, to the bit. The resized square is computed by the
same rules, and differs where two grey levels are equally near and rounding decides.
"""

import functools

import numpy as np
import simplejpeg
from ml_collections import ConfigDict

from alexnet_jax.config.fields import FIELDS
from alexnet_jax.data import decode, formats


def square_of(encoded: bytes, config: ConfigDict) -> np.ndarray:
    """Decodes and resizes one image.

    Args:
      encoded: in one of the formats of `data.formats`.
      config: `config.data`.

    Returns:
      uint8 `[S, S, 3]` with `S = image_size`.

    Raises:
      Unreadable: as `decode.decoder` refuses the image.
      UsageError: there is no such `resize` or `shrink`.
    """
    allow = functools.partial(decode.allow, config)
    if not formats.tensorflow_reads(encoded, allow):
        return square(formats.by_pillow(encoded, allow), config)
    try:
        return square(_decoded(encoded, allow), config)
    except (ValueError, formats.Unreadable):
        # Four colours, or damaged: TensorFlow decides, as in training.
        try:
            return decode.decoder(config)([encoded])[0]
        except decode.UnreadableImage as error:
            raise formats.Unreadable(error.reason) from None


def _decoded(encoded: bytes, allow: formats.Allow) -> np.ndarray:
    """A JPEG or PNG as TensorFlow decodes it, uint8 `[h, w, 3]`."""
    if not encoded.startswith(formats.JPEG):
        return formats.by_pillow(encoded, allow)
    *_, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    if colours not in ("YCbCr", "Gray", "RGB"):
        raise ValueError(colours)
    # The transform of TensorFlow's default, which differs from the exact one by some grey levels.
    return simplejpeg.decode_jpeg(encoded, "RGB", fastdct=True)


def square(image: np.ndarray, config: ConfigDict) -> np.ndarray:
    """The square of a decoded image, uint8 `[h, w, 3]`, by the rules of `decode.to_square`.

    Raises:
      UsageError: there is no such `resize` or `shrink`.
    """
    for name in ("resize", "shrink"):
        FIELDS[f"data.{name}"].check(f"data.{name}", config[name])
    size, sides = config.image_size, image.shape[:2]
    short = min(sides)
    target = tuple(
        size if config.resize == "stretch" else (2 * side * size + short) // (2 * short)
        for side in sides
    )
    corner = [(side - size) // 2 for side in target]
    if target == sides:
        top, left = corner
        return image[top : top + size, left : left + size]
    rule = config.shrink if all(np.less_equal(target, sides)) else "triangle"
    for start, before, after in zip(corner, sides, target, strict=True):
        places, weights = (x[:, start : start + size] for x in _taps(rule, before, after))
        image = np.asarray(image, np.float32)
        scaled = np.zeros((size, *image.shape[1:]), np.float32)
        for place, weight in zip(places, weights, strict=True):
            scaled += weight[:, None, None] * image[place]
        # The other side is first in the next turn, and the first one again after it.
        image = scaled.swapaxes(0, 1)
    return np.rint(image).astype(np.uint8)


@functools.lru_cache(64)
def _taps(rule: str, before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `before` pixels contribute to each of `after`, int64 `[taps, after]`, and how much.

    A new pixel covers the old ones from `i * before / after` to `(i + 1) * before / after`. `area`
    is the share of each old pixel in that, `bilinear` interpolates between the two around its
    centre, and `triangle` weights all pixels less than its width from its centre, or than one old
    pixel, by their distance.
    """
    step, pixels = before / after, np.arange(before)
    start = np.arange(after)[:, None] * step
    if rule == "area":
        share = np.minimum(start + step, pixels + 1) - np.maximum(start, pixels)
    else:
        wide = max(step, 1) if rule == "triangle" else 1
        share = 1 - np.abs(start + (step - 1) / 2 - pixels) / wide
    share = np.maximum(share, 0)
    share /= share.sum(1, keepdims=True)
    # The pixels of a row are neighbours: the first of them, and as many as any row has. Of those
    # with few, the last ones wrap around to pixels without a share.
    first, most = (share > 0).argmax(1), (share > 0).sum(1).max()
    places = (first + np.arange(most)[:, None]) % before
    return places, np.take_along_axis(share.T, places, 0).astype(np.float32)
