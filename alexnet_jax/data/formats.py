"""Formats of image files: the sizes that their headers claim, and which library decodes them.

For a data set TensorFlow decodes JPEG and PNG (`data.decode`), and Pillow the others, which
TensorFlow does not read or reads otherwise: the palette of a BMP as grey levels, a GIF with all its
frames. Of single files `data.squares` makes the same pixels without TensorFlow.
"""

import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

NAMES = "JPEG, PNG, BMP, GIF, WebP, TIFF or PPM"
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Endings of the names of such files. What a file is, its first bytes tell."""

JPEG, _PNG, _WEBP = b"\xff\xd8\xff", b"\x89PNG", b"RIFF"
# Opened by these classes and not by `PIL.Image.open`, whose limit is a variable of the process.
_PILLOW: dict[bytes, Callable[[io.BytesIO], Any]] = {
    JPEG: JpegImageFile, _PNG: PngImageFile, b"BM": BmpImageFile, b"GIF8": GifImageFile,
    _WEBP: WebPImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
    **dict.fromkeys((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImageFile),
}  # fmt: skip

_TILE = 322, 323
"""Tags of a TIFF file: the sides of its tiles, each of which is decoded as a whole."""

_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold an image's height and width; ITU-T T.81, table B.1."""

Allow = Callable[[int, int], None]
"""Called with a width and a height before there is memory for them; raises `Unreadable`."""


class Unreadable(Exception):
    """An image is not read; the message is the reason in one line."""


def tensorflow_reads(encoded: bytes, allow: Allow) -> bool:
    """Returns whether TensorFlow decodes a file as Pillow does; otherwise `by_pillow` reads it.

    Decoders allocate what a header asks for, and a file of a hundred bytes can ask for gigabytes.

    Raises:
      Unreadable: the file is empty, its format is none of `NAMES`, or `allow` refuses a size.
    """
    if not encoded:
        raise Unreadable("the file is empty")
    if not encoded.startswith(tuple(_PILLOW)):
        raise Unreadable(f"not a {NAMES}")
    for width, height in sizes(encoded):
        allow(width, height)
    return encoded.startswith(_PNG) or (encoded.startswith(JPEG) and not _bare_cmyk(encoded))


def by_pillow(encoded: bytes, allow: Allow) -> np.ndarray:
    """Decodes an image, the first if there are several, to uint8 `[h, w, 3]`.

    The pixels are those of Pillow's `convert("RGB")`, except that of 16 bits of grey the upper 8
    are taken, as everywhere of 16 bits of a colour.

    Raises:
      Unreadable: the file is damaged, has more than 16 bits of grey, or `allow` refuses its size.
    """
    kind = next(kind for magic, kind in _PILLOW.items() if encoded.startswith(magic))
    try:
        if kind is PngImageFile:  # Pillow reads some damaged ones that TensorFlow refuses.
            PngImageFile(io.BytesIO(encoded)).verify()
        with kind(io.BytesIO(encoded)) as image:
            allow(*image.size)
            tags = getattr(image, "tag_v2", {})
            allow(tags.get(_TILE[0], 0), tags.get(_TILE[1], 0))
            if image.mode in ("I", "F"):
                raise Unreadable(f"grey levels of Pillow's mode {image.mode}; save it with 8 bits")
            if image.mode.startswith("I;16"):
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.broadcast_to(grey[:, :, None], (*grey.shape, 3))
            return np.asarray(image.convert("RGB"))
    except Unreadable:
        raise
    except Exception as error:  # Pillow raises many kinds for files that are damaged.
        text = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"not a readable image ({text})") from error


def sizes(encoded: bytes) -> list[tuple[int, int]]:
    """Every width and height in the header of a JPEG, PNG or WebP; none of what Pillow only opens.

    Pillow reads other headers without decoding, but it reports the last of several sizes of a JPEG,
    and allocates the canvas of a WebP when it is opened.
    """
    if encoded.startswith(JPEG):
        found = [at + 1 for marker, at in _segments(encoded) if marker in _JPEG_SIZES]
        sides = [struct.unpack_from(">HH", encoded, at) for at in found]
        return [(width, height) for height, width in sides]
    if encoded.startswith(_PNG) and len(encoded) >= 24:
        return [struct.unpack_from(">II", encoded, 16)]
    if encoded.startswith(_WEBP) and len(encoded) >= 30:
        return _webp_sizes(encoded)
    return []


def _segments(encoded: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment of a JPEG before its pixels, and where its content starts."""
    place = 2
    while (place := encoded.find(b"\xff", place)) >= 0 and place + 9 <= len(encoded):
        marker = encoded[place + 1]
        if marker == 0xDA:  # start of scan: only compressed data follows
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # segments without a length
            place += 1 if marker == 0xFF else 2
            continue
        yield marker, place + 4
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4])


def _bare_cmyk(encoded: bytes) -> bool:
    """Whether a JPEG has four colours and no marker of Adobe's.

    Libraries disagree on whether 0 is all ink or none in it; Pillow says all.
    """
    segments = [(marker, encoded[at : at + 6]) for marker, at in _segments(encoded)]
    four = any(marker in _JPEG_SIZES and start[5:] == b"\x04" for marker, start in segments)
    return four and not any(m == 0xEE and start[:5] == b"Adobe" for m, start in segments)


def _webp_sizes(encoded: bytes) -> list[tuple[int, int]]:
    """See https://developers.google.com/speed/webp/docs/riff_container, and RFC 6386, 9.1."""
    first, content = encoded[12:16], encoded[20:30]
    if first == b"VP8X":
        return [
            (
                1 + int.from_bytes(content[4:7], "little"),
                1 + int.from_bytes(content[7:10], "little"),
            )
        ]
    if first == b"VP8L":
        bits = int.from_bytes(content[1:5], "little")
        return [(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))]
    width, height = struct.unpack_from("<HH", content, 6)
    return [(width & 0x3FFF, height & 0x3FFF)]
