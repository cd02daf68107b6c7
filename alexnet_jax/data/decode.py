"""From encoded bytes to a square uint8 image, as TensorFlow graph functions."""

import struct
from collections.abc import Callable
from typing import Any

from alexnet_jax.data.tensorflow_cpu import import_tensorflow
from alexnet_jax.errors import UsageError

RESIZES = ("short_side", "stretch")
SHRINKS = ("area", "bilinear", "triangle")


def decode(encoded: Any) -> Any:
    """JPEG, PNG, BMP or GIF bytes (a scalar string tensor) to uint8 `[h, w, 3]`.

    The format is told by the bytes, so ImageNet's PNG called .JPEG is fine. CMYK and YCCK JPEGs
    are converted to RGB by TensorFlow itself (without a colour profile), grey ones are repeated,
    alpha is dropped, 16 bits become 8. Files that end early are an error: the operations that crop
    while decoding would take them in silence.
    """
    tf = import_tensorflow()
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


FORMATS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8")
"""How the files begin that are decoded; TensorFlow knows others, whose headers nobody checks."""

_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold an image's sides; ITU-T T.81, table B.1."""


def pixels(encoded: bytes) -> int:
    """Height x width as the header of a JPEG, PNG, BMP or GIF says; 0 where it says nothing.

    Decoders allocate what a header asks for, and a file of a hundred bytes can ask for gigabytes.
    The largest counts where there are several.
    """
    if encoded.startswith(b"\xff\xd8"):
        return _jpeg_pixels(encoded)
    for magic, layout, offset in (
        (b"\x89PNG", ">II", 16),
        (b"GIF8", "<HH", 6),
        (b"BM", "<ii", 18),
    ):
        if encoded.startswith(magic) and len(encoded) >= offset + struct.calcsize(layout):
            width, height = struct.unpack_from(layout, encoded, offset)
            return abs(width * height)  # a negative height of a BMP: rows from the top
    return 0


def _jpeg_pixels(encoded: bytes) -> int:
    found, place = 0, 2
    while (place := encoded.find(b"\xff", place)) >= 0 and place + 9 <= len(encoded):
        marker = encoded[place + 1]
        if marker == 0xDA:  # the scan: nothing but the image follows
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # without a length
            place += 1 if marker == 0xFF else 2
            continue
        length, _, height, width = struct.unpack_from(">HBHH", encoded, place + 2)
        if marker in _JPEG_SIZES:
            found = max(found, height * width)
        place += 2 + length
    return found


def to_square(resize: str, shrink: str, size: int) -> Callable[[Any], Any]:
    """A function from uint8 `[h, w, 3]` to uint8 `[size, size, 3]`.

    Args:
      resize: `short_side` scales the short side to `size` and keeps the centre square (the data of
        2012, `make-data` of cuda-convnet2); `stretch` scales both sides (Caffe).
      shrink: what a pixel of a smaller picture is. `area`: the mean of the area it covers (the data
        of 2012, `make-data/pyext/src/pyext.cpp`); `bilinear`: of the four pixels about its centre
        (Caffe, `cv::resize`); `triangle`: bilinear over all pixels it covers, antialiased. Where a
        side grows it is the same in all three (the source of 2012 is bicubic there).
      size: in pixels.

    Raises:
      UsageError: there is no such `resize` or `shrink`.
    """
    if resize not in RESIZES:
        raise UsageError(f"data.resize is '{resize}'; it is one of {', '.join(RESIZES)}")
    if shrink not in SHRINKS:
        raise UsageError(f"data.shrink is '{shrink}'; it is one of {', '.join(SHRINKS)}")
    tf = import_tensorflow()

    def target(image: Any) -> Any:
        if resize == "stretch":
            return tf.constant([size, size])
        sides = tf.shape(image)[:2]
        short = tf.reduce_min(sides)
        return (2 * sides * size + short) // (2 * short)  # sides * size / short, rounded

    def scale(image: Any, sides: Any) -> Any:
        def triangle() -> Any:
            return tf.image.resize(image, sides, "bilinear", antialias=True)

        if shrink == "triangle":
            return centre(triangle(), sides)
        smaller = tf.reduce_all(sides <= tf.shape(image)[:2])
        scaled = tf.cond(smaller, lambda: tf.image.resize(image, sides, shrink), triangle)
        return centre(scaled, sides)

    def centre(image: Any, sides: Any) -> Any:
        top, left = tf.unstack((sides - size) // 2)
        return image[top : top + size, left : left + size]

    def square(image: Any) -> Any:
        sides = target(image)
        image = tf.cond(
            tf.reduce_all(sides == tf.shape(image)[:2]),
            lambda: centre(image, sides),
            lambda: tf.cast(tf.round(scale(image, sides)), tf.uint8),
        )
        return tf.ensure_shape(image, [size, size, 3])

    return square
