"""What pages share: templates, and pictures that need no other file."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from alexnet_jax import templates

_SMALL = 64
"""Pixels of a side up to which a photograph is a PNG, drawn with sharp pixels."""


def render(template: str, /, **values: Any) -> str:
    """A page from a template in `templates/`."""
    return templates.render("alexnet_jax.analysis", template, html=True, **values)


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `2,000 images`; the plural is given where it is not made with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def uri(kind: str, content: bytes) -> str:
    """A picture of a kind, such as `png`, as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png(pixels: np.ndarray) -> str:
    """Pixels, uint8 `[h, w, 3]` or grey `[h, w]`, as a data URI."""
    return _encoded(pixels, "png")


def photo(pixels: np.ndarray) -> str:
    """A photograph, uint8 `[h, w, 3]`, as a data URI: small ones exactly, others as JPEG."""
    return _encoded(pixels, "png" if max(pixels.shape) <= _SMALL else "jpeg")


def grey(values: np.ndarray) -> str:
    """Values `[h, w]` as a grey picture: the smallest is black and the largest is white."""
    low, high = float(values.min()), float(values.max())
    return png(np.rint(255 * (values - low) / (high - low or 1.0)).astype(np.uint8))


def _encoded(pixels: np.ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=85, optimize=True)
    return uri(kind, buffer.getvalue())
