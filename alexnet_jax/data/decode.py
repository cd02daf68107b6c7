"""From encoded bytes to squares of uint8."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config.fields import FIELDS
from alexnet_jax.data.formats import Unreadable, by_pillow, tensorflow_reads
from alexnet_jax.data.tensorflow_cpu import import_tensorflow


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

    It returns uint8 `[n, S, S, 3]` with `S = image_size`, or raises `UnreadableImage` for an image
    that is in none of the formats of `data.formats`, is too large (`resizer`) or is damaged.

    Args:
      config: `config.data`.

    Raises:
      UsageError: there is no such `resize` or `shrink`.
    """
    tf = import_tensorflow()
    size, allowed, square = config.image_size, functools.partial(allow, config), resizer(config)
    one, many, _ = _compiled(config.resize, config.shrink, size)

    def squares(encoded: Sequence[bytes]) -> np.ndarray:
        result, places = np.empty((len(encoded), size, size, 3), np.uint8), []
        for position, image in enumerate(encoded):
            try:
                if tensorflow_reads(image, allowed):
                    places.append(position)
                else:
                    # One at a time: many large images would not fit into memory.
                    result[position] = square(by_pillow(image, allowed))
            except Unreadable as error:
                raise UnreadableImage(position, str(error)) from None
        try:
            if places:
                result[places] = many(tf.constant([encoded[i] for i in places], tf.string))
        except tf.errors.OpError:
            # The error does not say which image caused it.
            for position in places:
                try:
                    one(tf.constant(encoded[position]))
                except tf.errors.OpError as error:
                    reason = error.message.split("}}")[-1].split(" [Op:")[0].strip()
                    raise UnreadableImage(position, f"not a readable image ({reason})") from None
            raise
        return result

    return squares


def resizer(config: ConfigDict) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from one decoded image, uint8 `[h, w, 3]`, to its square `[S, S, 3]`.

    It is the square that `decoder` makes of a file with these pixels. The function raises
    `Unreadable` if the image has more than `max_pixels`, or would have them once its short side is
    scaled to S.

    Args:
      config: `config.data`.

    Raises:
      UsageError: there is no such `resize` or `shrink`.
    """
    size = config.image_size
    *_, resized = _compiled(config.resize, config.shrink, size)

    def square(image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (size, size):
            return image
        allow(config, image.shape[1], image.shape[0])
        return np.asarray(resized(image))

    return square


def allow(config: ConfigDict, width: int, height: int) -> None:
    """Raises `Unreadable` if an image of this size does not fit into memory, or its enlargement."""
    size, (short, long) = config.image_size, sorted((width, height))
    limit = f"more than config.data.max_pixels = {config.max_pixels}"
    if (count := width * height) > config.max_pixels:
        raise Unreadable(f"{width} x {height} are {count} pixels, {limit}")
    if config.resize == "short_side" and 0 < short < size:
        scaled = long * size // short
        if (count := scaled * size) > config.max_pixels:
            raise Unreadable(
                f"{width} x {height} would be scaled to {size} x {scaled}, {count} pixels, {limit}"
            )


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
    """JPEG or PNG bytes (a scalar string tensor) to uint8 `[h, w, 3]`.

    The bytes tell the format, so ImageNet's PNG file named .JPEG is decoded. TensorFlow converts
    CMYK and YCCK JPEGs to RGB (without a colour profile), grey becomes three equal channels, alpha
    is dropped, and 16 bits become the upper 8. A file that ends early is an error; the operations
    that crop while decoding would accept it silently.
    """
    tf = import_tensorflow()
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


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
