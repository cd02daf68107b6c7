"""Image files: formats, modes, depths, sizes, and damage to them.

Whether a file is an image, and of which pixels, is Pillow's to say.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, features

SIZE = (48, 40)


def _picture(mode: str, size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 30, (height, width))
    planes = [(x * 255 / width), (y * 255 / height), (x + y) * 255 / (width + height)]
    rgb = np.stack([(plane * 0.88 + noise) for plane in planes], -1).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(rgb)
    if mode in ("I;16", "I"):
        return Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(rgb[..., 0].astype(np.float32) / 255)
    if mode in ("RGBA", "LA", "PA"):
        image = image.convert("LA" if mode != "RGBA" else "RGBA")
        image.putalpha(Image.fromarray(rgb[..., 2]))
        return image.convert(mode)
    return image.convert(mode)


def _encoded(kind: str, mode: str, size: tuple[int, int] = SIZE, **options) -> bytes:
    buffer = io.BytesIO()
    _picture(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG from its parts: the rows with their filter bytes, and other chunks before them."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join([
        b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", head), *more,
        _chunk(b"IDAT", zlib.compress(rows, 9)), _chunk(b"IEND", b""),
    ])  # fmt: skip


def _png16() -> bytes:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 65536, (40, 48, 3)).astype(">u2")
    return png(48, 40, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


def _png_of_bits(depth: int, colour: int, *more: bytes) -> bytes:
    rng = np.random.default_rng(0)
    rows = b"".join(b"\0" + rng.bytes(48 * depth // 8) for _ in range(40))
    return png(48, 40, depth, colour, rows, *more)


def _bmp16() -> bytes:
    pixels = np.random.default_rng(0).bytes(48 * 40 * 2)
    head = struct.pack("<IiiHHIIiiII", 40, 48, 40, 1, 16, 0, len(pixels), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + head + pixels


def _bmp_top_down() -> bytes:
    pixels = np.random.default_rng(0).bytes(48 * 40 * 3)
    head = struct.pack("<IiiHHIIiiII", 40, 48, -40, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + head + pixels


def _bmp_rle8() -> bytes:
    palette = b"".join(bytes((i, 255 - i, i // 2, 0)) for i in range(256))
    pixels = b"".join(bytes((48, row * 6)) + b"\0\0" for row in range(40)) + b"\0\1"
    start = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, 48, 40, 1, 8, 1, len(pixels), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + palette + pixels


def _gif_of_large_frame(side: int) -> bytes:
    """A screen of 10 x 10 and one frame of `side` x `side`."""
    image = Image.new("P", (side, side))
    buffer = io.BytesIO()
    image.save(buffer, "GIF")
    content = bytearray(buffer.getvalue())
    content[6:10] = struct.pack("<HH", 10, 10)
    return bytes(content)


def _frames(kind: str, count: int, size: tuple[int, int] = SIZE, **options) -> bytes:
    first, *more = (_picture("RGB", size, seed=i) for i in range(count))
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=more, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _whole() -> Iterator[tuple[str, str, bytes]]:
    """Yields (what, suffix, content) of files that are as they should be."""
    for mode in ("L", "RGB", "CMYK", "YCbCr"):
        yield f"JPEG {mode}", "jpg", _encoded("JPEG", mode)
    for name, options in {
        "progressive": {"progressive": True}, "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1}, "quality 1": {"quality": 1}, "quality 100": {"quality": 100},
        "optimized": {"optimize": True}, "restart": {"restart_marker_rows": 1},
        "comment": {"comment": b"x" * 60000}, "icc": {"icc_profile": b"not a profile"},
        "dpi": {"dpi": (1, 60000)},
        "exif that is damaged": {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff"},
    }.items():  # fmt: skip
        yield f"JPEG {name}", "jpg", _encoded("JPEG", "RGB", **options)
    for number in range(1, 9):
        yield f"JPEG turned {number}", "jpg", _encoded("JPEG", "RGB", exif=_exif(number))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield f"PNG {mode}", "png", _encoded("PNG", mode)
    yield "PNG 16 bits RGB", "png", _png16()
    palette = _chunk(b"PLTE", np.random.default_rng(1).bytes(48))
    for depth in (1, 2, 4, 8, 16):
        yield f"PNG grey of {depth} bits", "png", _png_of_bits(depth, 0)
        if depth < 8:
            yield f"PNG palette of {depth} bits", "png", _png_of_bits(depth, 3, palette)
    yield "PNG palette with alpha", "png", _png_of_bits(4, 3, palette, _chunk(b"tRNS", bytes(9)))
    yield "PNG grey with a clear grey", "png", _png_of_bits(8, 0, _chunk(b"tRNS", b"\0\7"))
    yield "PNG gamma", "png", _png_of_bits(8, 0, _chunk(b"gAMA", struct.pack(">I", 1)))
    yield "PNG without palette", "png", _png_of_bits(8, 3)
    yield "PNG animated", "png", _frames("PNG", 3)
    for mode in ("1", "L", "P", "RGB"):
        yield f"GIF {mode}", "gif", _encoded("GIF", mode)
    yield "GIF animated", "gif", _frames("GIF", 5)
    yield "GIF clear", "gif", _encoded("GIF", "P", transparency=0)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"BMP {mode}", "bmp", _encoded("BMP", mode)
    yield "BMP 16 bits", "bmp", _bmp16()
    yield "BMP from the top", "bmp", _bmp_top_down()
    yield "BMP RLE", "bmp", _bmp_rle8()
    for mode in ("L", "RGB", "RGBA"):
        yield f"WebP {mode}", "webp", _encoded("WEBP", mode)
        yield f"WebP {mode} lossless", "webp", _encoded("WEBP", mode, lossless=True)
    yield "WebP animated", "webp", _frames("WEBP", 3)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F"):
        yield f"TIFF {mode}", "tif", _encoded("TIFF", mode)
    for way in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"TIFF {way}", "tiff", _encoded("TIFF", "RGB", compression=way)
    yield "TIFF of pages", "tif", _frames("TIFF", 3)
    for kind, mode, suffix in (
        ("PPM", "1", "pbm"), ("PPM", "L", "pgm"), ("PPM", "RGB", "ppm"), ("PPM", "I;16", "pgm"),
        ("TGA", "RGB", "tga"), ("TGA", "P", "tga"), ("PCX", "RGB", "pcx"), ("SGI", "RGB", "sgi"),
        ("ICO", "RGBA", "ico"), ("DDS", "RGBA", "dds"), ("XBM", "1", "xbm"), ("MSP", "1", "msp"),
        ("MPO", "RGB", "mpo"), ("JPEG2000", "RGB", "jp2"), ("JPEG2000", "L", "j2k"),
        ("PDF", "RGB", "pdf"), ("EPS", "RGB", "eps"), ("AVIF", "RGB", "avif"),
        ("IM", "RGB", "im"), ("SPIDER", "F", "spi"), ("BLP", "P", "blp"),
    ):  # fmt: skip
        name = {"JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind)
        if name is None or features.check(name):
            yield f"{kind} {mode}", suffix, _encoded(kind, mode)


def _sizes() -> Iterator[tuple[str, str, bytes]]:
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("GIF", "gif"), ("BMP", "bmp"),
                         ("WEBP", "webp"), ("TIFF", "tif")):  # fmt: skip
        for size in ((1, 1), (1, 12000), (12000, 1), (3, 1000)):
            yield f"{kind} of {size[0]} x {size[1]}", suffix, _encoded(kind, "RGB", size)
    row = b"\0" + bytes(3 * 100)
    for width, height in ((30000, 30000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0), (100000, 900)):
        yield f"PNG that says {width} x {height}", "png", png(width, height, 8, 2, row * 10)
    yield (
        "PNG of 20000 x 20000 of one colour",
        "png",
        png(20000, 20000, 1, 0, (b"\0" + bytes(2500)) * 20000),
    )
    yield (
        "PNG of 9000 x 9000 of one colour",
        "png",
        png(9000, 9000, 8, 2, (b"\0" + bytes(27000)) * 9000),
    )
    yield "GIF of a large frame on a small screen", "gif", _gif_of_large_frame(20000)
    yield "GIF of 300 frames of 3000 x 3000", "gif", _many_frames(300, 3000)
    content = bytearray(_encoded("JPEG", "RGB"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 65500, 65500)
    yield "JPEG that says 65500 x 65500", "jpg", bytes(content)
    content = bytearray(_encoded("BMP", "RGB"))
    content[18:26] = struct.pack("<ii", 60000, 60000)
    yield "BMP that says 60000 x 60000", "bmp", bytes(content)
    content = bytearray(_encoded("GIF", "RGB"))
    content[6:10] = struct.pack("<HH", 65535, 65535)
    yield "GIF that says 65535 x 65535", "gif", bytes(content)
    chunk = _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(200_000_000), 9))
    yield "PNG with 200 MB of text", "png", _png_of_bits(8, 0, chunk)
    chunk = _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200_000_000), 9))
    yield "PNG with 200 MB of profile", "png", _png_of_bits(8, 0, chunk)


def _many_frames(count: int, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (side, side)).save(buffer, "GIF")
    content = buffer.getvalue()
    start = 13 + 3 * 2 ** ((content[10] & 7) + 1) * (content[10] >> 7)  # after the palette
    return content[:start] + content[start:-1] * count + b";"


def _damaged() -> Iterator[tuple[str, str, bytes]]:
    rng = np.random.default_rng(0)
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("GIF", "gif"), ("BMP", "bmp"),
                         ("WEBP", "webp"), ("TIFF", "tif")):  # fmt: skip
        content = _encoded(kind, "RGB")
        size = len(content)
        for percent in (1, 20, 60, 98):
            yield f"{kind} cut at {percent} %", suffix, content[: size * percent // 100]
        for share in (0.02, 0.5):
            odd, place = bytearray(content), int(size * share)
            odd[place : place + 20] = rng.bytes(20)
            yield f"{kind} overwritten at {share}", suffix, bytes(odd)
        odd = bytearray(content)
        odd[size // 3] ^= 16
        yield f"{kind} with a flipped bit", suffix, bytes(odd)
        yield f"{kind} with more behind", suffix, content + rng.bytes(1000)
        yield f"{kind} behind something", suffix, b"\n" + content
        yield f"{kind} twice", suffix, content + content
        yield f"{kind} with zeros at the end", suffix, content[: size // 2] + bytes(size // 2)
        yield f"{kind} named .jpg", "jpg", content
        yield f"{kind} named .png", "png", content
        yield f"{kind} named .PNG.JPEG", "PNG.JPEG", content
    for name, content in {
        "nothing": b"", "one byte": b"\xff", "zeros": bytes(3000), "noise": rng.bytes(3000),
        "a web page": b"<!doctype html><html><body>404</body></html>", "SVG": b"<svg/>",
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1",
        "a zip": b"PK\x05\x06" + bytes(18), "a pickle": b"\x80\x04K\x01.", "JSON": b"{}",
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "start of JPEG": b"\xff\xd8\xff\xe0",
        "start of PNG": b"\x89PNG\r\n\x1a\n", "start of GIF": b"GIF89a",
        "start of TIFF": b"II*\0\xff\xff\xff\x7f", "start of WebP": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "TIFF that is a circle": b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "start of PSD": b"8BPS\0\1",
        "FITS": b"SIMPLE  =                    T" + bytes(200), "video": b"\0\0\0\x18ftypmp42",
    }.items():  # fmt: skip
        yield f"{name} named .jpg", "jpg", content


def images() -> Iterator[tuple[str, str, bytes]]:
    """Yields (what, suffix, content)."""
    yield from _whole()
    yield from _sizes()
    yield from _damaged()


def truth(content: bytes, limit: int = 10**8) -> Image.Image | None:
    """The RGB image as Pillow reads it, strictly; None if it does not."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > limit or image.format in ("EPS", "PDF"):
                return None
            if image.mode.startswith("I;16"):  # which Pillow clips in place of scaling
                grey = np.rint(np.asarray(image) / 257).astype(np.uint8)
                return Image.fromarray(grey).convert("RGB")
            if image.mode in ("I", "F"):  # of no known range
                return None
            return image.convert("RGB")
    except Exception:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
