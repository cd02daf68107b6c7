"""From encoded bytes to a square uint8 image, as TensorFlow graph functions."""

from collections.abc import Callable
from typing import Any

from alexnet_jax.data.tensorflow_cpu import import_tensorflow
from alexnet_jax.errors import UsageError

RESIZES = ("short_side", "stretch")


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


def to_square(resize: str, size: int) -> Callable[[Any], Any]:
    """A function from uint8 `[h, w, 3]` to uint8 `[size, size, 3]`.

    Args:
      resize: `short_side` scales the short side to `size` and keeps the centre square (the data of
        2012, `make-data.py` of cuda-convnet2, which averages areas where this one is bilinear with
        antialiasing); `stretch` scales both sides (Caffe).
      size: in pixels.

    Raises:
      UsageError: there is no such `resize`.
    """
    if resize not in RESIZES:
        raise UsageError(f"data.resize is '{resize}'; it is one of {', '.join(RESIZES)}")
    tf = import_tensorflow()

    def target(image: Any) -> Any:
        if resize == "stretch":
            return tf.constant([size, size])
        sides = tf.shape(image)[:2]
        short = tf.reduce_min(sides)
        return (2 * sides * size + short) // (2 * short)  # sides * size / short, rounded

    def scale(image: Any, sides: Any) -> Any:
        scaled = tf.image.resize(image, sides, "bilinear", antialias=True)
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
