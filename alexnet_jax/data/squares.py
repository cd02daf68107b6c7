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
    grows = any(np.greater(target, sides))
    rule = "triangle" if grows else config.shrink
    image, pixel = image.astype(np.float32), np.float32(1)
    # In the order in which TensorFlow adds them up.
    for side in (0, 1) if rule == "triangle" else (1, 0):
        places, shares, scale = _taps(rule, sides[side], target[side])
        pixel, image = pixel * scale, image.swapaxes(0, side)
        kept = np.zeros((size, *image.shape[1:]), np.float32)
        for place, share in zip(places, shares, strict=True):
            window = slice(corner[side], corner[side] + size)
            kept += share[window, None, None] * image[place[window]]
        image = kept.swapaxes(0, side)
    if rule == "area":  # Divided last, as in TensorFlow: sums over areas are often exact.
        image = image * (1 / pixel)
    return np.rint(image).astype(np.uint8)


@functools.lru_cache(64)
def _taps(rule: str, before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Which old pixels a new one is made of, int64 `[taps, after]`, their shares, and a scale.

    In the arithmetic of TensorFlow's kernels, float32 with reciprocals where they have them (as in
    `weights.resize_graph`), since the exact value of a mean is often halfway between two levels.
    New pixel i covers the old ones from `i * scale` to `(i + 1) * scale`. `area` is the part of
    each old pixel in that, in units of old pixels; `bilinear` interpolates between the two around
    its centre, and `triangle` weights all pixels less than its width from its centre, or than one
    old pixel, by their distance: their shares add up to 1.
    """
    one, half, old = np.float32(1), np.float32(0.5), np.arange(before, dtype=np.float32)
    new, ratio = np.arange(after, dtype=np.float32)[:, None], np.float32(after) / np.float32(before)
    scale = one / ratio if rule == "triangle" else np.float32(before) / np.float32(after)
    if rule == "area":
        share = np.minimum(old + one, (new + one) * scale) - np.maximum(old, new * scale)
    else:
        radius = max(scale, one) if rule == "triangle" else one
        share = one - np.abs(old + half - (new + half) * scale) * (one / radius)
    share = np.maximum(share, 0)
    if rule != "area":
        share *= one / share.sum(1, keepdims=True)
    # The pixels of a row are neighbours: the first of them, and as many as any row has. Of those
    # with few, the last ones wrap around to pixels without a share.
    first, most = (share > 0).argmax(1), (share > 0).sum(1).max()
    places = (first + np.arange(most)[:, None]) % before
    return places, np.take_along_axis(share.T, places, 0), scale
