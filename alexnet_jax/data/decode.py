"""From encoded bytes to squares of uint8, by TensorFlow's decoders."""

import functools
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config.fields import FIELDS
from alexnet_jax.data.tensorflow_cpu import import_tensorflow

FORMATS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8")
"""First bytes of the formats that are decoded. TensorFlow knows others, whose headers `pixels` does
not read."""


class UnreadableImage(Exception):
    """One of several images cannot be decoded.

    Attributes:
      position: its position among them.
      reason: one line.
    """

    def __init__(self, position: int, reason: str):
        """Names the image by its position."""
        super().__init__(f"image {position}: {reason}")
        self.position, self.reason = position, reason


def decoder(config: ConfigDict) -> Callable[[Sequence[bytes]], np.ndarray]:
    """Returns a function that decodes and resizes n images in parallel.

    It returns uint8 `[n, S, S, 3]` with `S = image_size`, or raises `UnreadableImage` for the first
    image that has none of `FORMATS`, more than `max_pixels` pixels, or damage.

    Args:
      config: `config.data`.

    Raises:
      UsageError: there is no such `resize` or `shrink`.
    """
    tf = import_tensorflow()
    one, many, _ = _compiled(config.resize, config.shrink, config.image_size)
    max_pixels = config.max_pixels

    def squares(encoded: Sequence[bytes]) -> np.ndarray:
        for position, image in enumerate(encoded):
            if reason := _refusal(image, max_pixels):
                raise UnreadableImage(position, reason)
        try:
            return np.asarray(many(tf.constant(encoded, tf.string)))
        except tf.errors.OpError:
            # The error does not say which image caused it.
            for position, image in enumerate(encoded):
                try:
                    one(tf.constant(image))
                except tf.errors.OpError as error:
                    reason = error.message.split("}}")[-1].split(" [Op:")[0].strip()
                    raise UnreadableImage(position, f"not a readable image ({reason})") from None
            raise

    return squares


def resizer(config: ConfigDict) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from one decoded image, uint8 `[h, w, 3]`, to its square `[S, S, 3]`.

    It is the square that `decoder` makes of a file with these pixels.

    Args:
      config: `config.data`.

    Raises:
      UsageError: there is no such `resize` or `shrink`.
    """
    size = config.image_size
    *_, resized = _compiled(config.resize, config.shrink, size)

    def square(image: np.ndarray) -> np.ndarray:
        return image if image.shape[:2] == (size, size) else np.asarray(resized(image))

    return square


@functools.cache
def _compiled(resize: str, shrink: str, size: int) -> tuple[Callable, Callable, Callable]:
    """Squares as TensorFlow makes them.

    Of one encoded image, eagerly; of any number of them, as one graph; and of one that is decoded.
    """
    tf = import_tensorflow()
    square = to_square(resize, shrink, size)

    def one(encoded: Any) -> Any:
        return square(decode(encoded))

    # One call for a batch: the operations of an image cost less than a call from Python, and those
    # of different images run in parallel, since none of them has a side effect. Nothing here
    # branches or loops in Python, which AutoGraph would take a second to find out.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def many(encoded: Any) -> Any:
        result = tf.TensorSpec([size, size, 3], tf.uint8)
        return tf.map_fn(
            one, encoded, fn_output_signature=result, parallel_iterations=os.cpu_count() or 1
        )

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
    def resized(image: Any) -> Any:
        return square(image)

    return one, many, resized


def decode(encoded: Any) -> Any:
    """JPEG, PNG, BMP or GIF bytes (a scalar string tensor) to uint8 `[h, w, 3]`.

    The bytes tell the format, so ImageNet's PNG file named .JPEG is decoded. TensorFlow converts
    CMYK and YCCK JPEGs to RGB (without a colour profile), grey becomes three equal channels, alpha
    is dropped, and 16 bits become 8. A file that ends early is an error; the operations that crop
    while decoding would accept it silently.
    """
    tf = import_tensorflow()
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def _refusal(encoded: bytes, max_pixels: int) -> str:
    """Why an image is not even decoded; empty if nothing speaks against it."""
    if not encoded.startswith(FORMATS):
        return "not a JPEG, PNG, BMP or GIF"
    if (count := pixels(encoded)) > max_pixels:
        return f"its header says {count} pixels, more than config.data.max_pixels = {max_pixels}"
    return ""


_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold an image's height and width; ITU-T T.81, table B.1."""


def pixels(encoded: bytes) -> int:
    """Height x width according to the header of a JPEG, PNG, BMP or GIF; 0 if it has none.

    Decoders allocate what a header asks for, and a file of a hundred bytes can ask for gigabytes.
    If a header gives several sizes, the largest counts; the frames of a GIF count together, because
    its decoder keeps them all.

    Not by Pillow, which reports the last of several sizes of a JPEG, cannot open some files that
    TensorFlow decodes, and limits the size of GIFs by a variable of the whole process.
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
            # The height of a BMP is negative if its rows are stored from the top.
            frames = _gif_frames(encoded) if magic == b"GIF8" else 0
            return max(abs(width * height), frames)
    return 0


def _jpeg_pixels(encoded: bytes) -> int:
    found, place = 0, 2
    while (place := encoded.find(b"\xff", place)) >= 0 and place + 9 <= len(encoded):
        marker = encoded[place + 1]
        if marker == 0xDA:  # start of scan: only compressed data follows
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # segments without a length
            place += 1 if marker == 0xFF else 2
            continue
        length, _, height, width = struct.unpack_from(">HBHH", encoded, place + 2)
        if marker in _JPEG_SIZES:
            found = max(found, height * width)
        place += 2 + length
    return found


def _gif_frames(encoded: bytes) -> int:
    """Pixels of all frames of a GIF; GIF89a specification, sections 18 to 26."""

    def palette(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    if len(encoded) < 13:
        return 0
    found, place = 0, 13 + palette(encoded[10])
    while place + 10 < len(encoded):
        if encoded[place] == 0x2C:  # image descriptor
            width, height, flags = struct.unpack_from("<HHB", encoded, place + 5)
            found += width * height
            place += 11 + palette(flags)
        elif encoded[place] == 0x21:  # extension
            place += 2
        else:
            break
        while place < len(encoded) and encoded[place]:  # blocks of data, each after its length
            place += 1 + encoded[place]
        place += 1
    return found


def to_square(resize: str, shrink: str, size: int) -> Callable[[Any], Any]:
    """A function from uint8 `[h, w, 3]` to uint8 `[size, size, 3]`.

    Args:
      resize: `short_side` scales the short side to `size` and cuts out the central square (the data
        of 2012, `make-data` of cuda-convnet2); `stretch` scales both sides (Caffe).
      shrink: the interpolation if no side grows. `area`: the mean over the area that a new pixel
        covers (the data of 2012, `make-data/pyext/src/pyext.cpp`); `bilinear`: between the four
        pixels around its centre (Caffe, `cv::resize`); `triangle`: bilinear over all pixels that it
        covers, antialiased. If a side grows, all three are `triangle` (the source of 2012 is
        bicubic there).
      size: in pixels.

    Raises:
      UsageError: there is no such `resize` or `shrink`.
    """
    FIELDS["data.resize"].check("data.resize", resize)
    FIELDS["data.shrink"].check("data.shrink", shrink)
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
