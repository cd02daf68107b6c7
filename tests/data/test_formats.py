"""Every kind of file is read as Pillow reads it, or refused before there is memory for it."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data.decode import UnreadableImage, decoder, resizer
from alexnet_jax.data.formats import Unreadable
from alexnet_jax.data.sources.arrays import as_source
from alexnet_jax.errors import UsageError
from tests.data.test_pipeline import data_config

SIDE, FUZZ = 24, int(os.environ.get("FUZZ", "300"))


def config(**changes):
    return data_config(**{"image_size": SIDE, "crop_size": SIDE, "pad": 0} | changes)


def smooth(channels=4, side=SIDE):
    """Colours and alpha that change slowly, so that JPEG keeps them to a few levels."""
    y, x = np.mgrid[:side, :side]
    turned = [np.sin((x * (i + 1) + y * (3 - i)) / 9 + i) for i in range(channels)]
    return np.uint8(127.5 + 127.5 * np.stack(turned, -1))


RGBA = Image.fromarray(smooth())
RGB = RGBA.convert("RGB")
GREY16 = Image.fromarray(smooth(1)[..., 0].astype(np.uint16) * 256 + 77)


def file(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def modes():
    yield from {
        "RGB": RGB, "RGBA": RGBA, "L": RGB.convert("L"), "LA": RGBA.convert("LA"),
        "1": RGB.convert("1"), "CMYK": RGB.convert("CMYK"), "YCbCr": RGB.convert("YCbCr"),
        "I;16": GREY16, **{f"P{n}": RGB.quantize(n) for n in (2, 4, 16, 200)},
    }.items()  # fmt: skip
    clear = RGB.quantize(200)
    clear.info["transparency"] = clear.getpixel((3, 3))
    yield "P with a transparent colour", clear


TURNED = Image.Exif()
TURNED[0x112] = 6  # "shown turned by 90 degrees"
WRITTEN = {
    "JPEG": [{"quality": 95}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2},
             {"keep_rgb": True}, {"exif": TURNED}],
    "PNG": [{}, {"optimize": True}],
    "BMP": [{}],
    "GIF": [{}, {"interlace": 0}, {"save_all": True, "append_images": [RGB.rotate(90)]}],
    "WEBP": [{"lossless": True}, {"quality": 60}, {"exif": TURNED},
             {"save_all": True, "append_images": [RGB.rotate(90)]}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"},
             {"compression": "packbits"}, {"compression": "group4"}, {"big_tiff": True},
             {"save_all": True, "append_images": [RGB.rotate(90)]}, {"tiffinfo": {274: 6}}],
    "PPM": [{}],
}  # fmt: skip
"""What Pillow itself writes."""


def png(bits, colour, rows, *, interlaced=False, width=None):
    """A PNG of raw rows; see https://www.w3.org/TR/png-3, 8.1 for Adam7."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    passes = [rows]
    if interlaced:
        steps = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2),
                 (1, 2, 0, 1))  # fmt: skip
        passes = [rows[top::down, left::right] for top, down, left, right in steps]
    raw = b"".join(b"\0" + row.tobytes() for part in passes for row in part if part.shape[1])
    header = struct.pack(
        ">IIBBBBB", width or rows.shape[1], len(rows), bits, colour, 0, 0, interlaced
    )
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def bmp(bits, rows, *, compression=0, masks=b"", palette=b"", top_down=False, core=False):
    """A BMP of raw rows, each `[bytes]`, padded to four."""
    content = b"".join(bytes(row) + bytes(-len(bytes(row)) % 4) for row in rows)
    height = -SIDE if top_down else SIDE
    if core:
        header = struct.pack("<IHHHH", 12, SIDE, SIDE, 1, bits)
    else:
        header = struct.pack(
            "<IiiHHIIiiII", 40, SIDE, height, 1, bits, compression, len(content), 0, 0, 0, 0
        )
    start = 14 + len(header) + len(masks) + len(palette)
    first = b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start)
    return first + header + masks + palette + content


def runs(rows):
    """Rows of palette indices as RLE8."""
    for row in rows:
        yield b"".join(bytes((1, value)) for value in row) + b"\0\0"


def hand_made():
    colours = smooth(3)
    deep = colours.astype(np.uint16) << 8 | 200
    indices, grey = (smooth(1)[..., 0] >> 4), smooth(1)[..., 0]
    palette = bytes(np.random.default_rng(0).integers(0, 256, 64, np.uint8))
    fifths = (colours.astype(np.uint16) >> 3) @ np.array([1024, 32, 1], np.uint16)
    sixths = (colours.astype(np.uint16) >> np.array([3, 2, 3])) @ np.array([2048, 32, 1], np.uint16)
    words = smooth().astype(np.uint32) @ np.array([65536, 256, 1, 2**24], np.uint32)
    yield "png interlaced", png(8, 2, colours, interlaced=True)
    yield "png grey interlaced", png(8, 0, grey, interlaced=True)
    yield "png 16 bits", png(16, 2, deep.astype(">u2"))
    yield "png 16 bits interlaced", png(16, 2, deep.astype(">u2"), interlaced=True)
    yield "png 16 bits of grey and alpha", png(16, 4, deep[..., :2].astype(">u2"))
    yield "png 16 bits and alpha", png(16, 6, (smooth().astype(np.uint16) << 8 | 9).astype(">u2"))
    for bits in (1, 2, 4):
        levels = np.unpackbits(grey[..., None] >> 8 - bits, axis=2, count=None)[..., -bits:]
        packed = np.packbits(levels.reshape(SIDE, -1), axis=1)
        yield f"png {bits} bits of grey", png(bits, 0, packed, width=SIDE)
    for down in (False, True):
        yield (
            f"bmp 24 bits, top down {down}",
            bmp(24, colours[..., ::-1].reshape(SIDE, -1), top_down=down),
        )
        yield f"bmp 32 bits, top down {down}", bmp(32, smooth().reshape(SIDE, -1), top_down=down)
    yield "bmp 15 bits", bmp(16, fifths.astype("<u2").view(np.uint8))
    yield "bmp 16 bits by masks", bmp(
        16, sixths.astype("<u2").view(np.uint8), compression=3,
        masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F),
    )  # fmt: skip
    for masks in (
        (0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000),
        (0xFF000000, 0xFF0000, 0xFF00),
    ):
        yield (
            f"bmp 32 bits by masks {masks[0]:x}",
            bmp(
                32,
                words.astype("<u4").view(np.uint8),
                compression=3,
                masks=struct.pack("<III", *masks),
            ),
        )
    yield "bmp 4 bits", bmp(4, indices[:, ::2] << 4 | indices[:, 1::2], palette=palette)
    yield "bmp 8 bits", bmp(8, indices, palette=palette + bytes(1024 - 64))
    yield "bmp 8 bits in runs", bmp(8, runs(indices), compression=1, palette=palette + bytes(960))
    yield "bmp of OS/2", bmp(24, colours.reshape(SIDE, -1), core=True)
    cmyk = file(RGB.convert("CMYK"), "JPEG", quality=95)
    marker = cmyk.index(b"\xff\xee")
    yield "jpeg of CMYK without Adobe's marker", cmyk[:marker] + cmyk[marker + 16 :]
    ycck = bytearray(cmyk)
    ycck[marker + 15] = 2
    yield "jpeg of YCCK", bytes(ycck)
    frame = bytearray(file(RGB.quantize(16), "GIF"))
    struct.pack_into("<HH", frame, 6, SIDE // 2, SIDE // 2)
    yield "gif larger than its screen", bytes(frame)


def corpus():
    for mode, image in modes():
        for kind, ways in WRITTEN.items():
            for options in ways:
                if options.get("compression") == "group4" and mode != "1":
                    continue
                try:
                    yield f"{kind} {mode} {options}", file(image, kind, **options)
                except (OSError, ValueError, KeyError, struct.error):
                    continue  # Pillow does not write that.
    yield from hand_made()


def truth(data):
    """Pillow's pixels; of 16 bits of grey, which its `convert` cuts off at 255, the upper 8."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16"):
            return np.repeat(np.asarray(image)[..., None] >> 8, 3, -1).astype(int)
        return np.asarray(image.convert("RGB")).astype(int)


def test_what_is_read_has_pillows_pixels_and_the_rest_is_refused():
    squares, formats, refused, seen = decoder(config()), set(), [], 0
    for name, data in corpus():
        try:
            (square,) = squares([data])
        except UnreadableImage as error:
            refused.append(name)
            assert re.match("not a readable image|grey levels of", error.reason), error
            continue
        expected = truth(data)
        assert expected.shape == (SIDE, SIDE, 3), name
        difference, jpeg = np.abs(square - expected), data.startswith(b"\xff\xd8")
        # TensorFlow's discrete cosine transform is the fast one, which is off by some levels.
        assert difference.max() <= (24 if jpeg else 0) and difference.mean() <= 5, name
        seen += 1
        formats.add(Image.open(io.BytesIO(data)).format)
    assert seen > 150 and formats == {"JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"}
    # Pillow has 32 bits for the first, and does not know the second.
    assert refused == ["PPM I;16 {}", "bmp 32 bits by masks ff"]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_levels_without_a_scale_are_refused(mode):
    with pytest.raises(
        UnreadableImage, match=f"Pillow's mode {mode}; save it with 8 bits"
    ) as error:
        decoder(config())([file(Image.new(mode, (SIDE, SIDE)), "TIFF")])
    assert "\n" not in error.value.reason


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_that_ends_early_is_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    whole, squares = file(Image.fromarray(noise), kind, **WRITTEN[kind][0]), decoder(config())
    squares([whole])
    for end in (0, 1, 2, 7, 19, 31, len(whole) // 2, len(whole) - 20):
        with pytest.raises(UnreadableImage, match=r"not a |empty") as error:
            squares([whole[:end]])
        assert "\n" not in error.value.reason


def test_among_others_each_keeps_its_place():
    """Those that TensorFlow decodes and those that Pillow does."""
    images = [RGB.rotate(45 * n) for n in range(7)]
    kinds = ["PNG", "BMP", "GIF", "PNG", "TIFF", "WEBP", "PNG"]
    files = [
        file(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
        for image, kind in zip(images, kinds, strict=True)
    ]
    expected = [truth(data) for data in files]
    np.testing.assert_array_equal(decoder(config())(files), expected)


def tiff(width, height, **tags):
    """A grey TIFF whose tags claim what they want, with a kilobyte of pixels."""
    content = zlib.compress(bytes(1000))
    entries = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1} | {
        int(tag[1:]): value for tag, value in tags.items()
    }
    entries |= {324: 0, 325: len(content)} if 322 in entries else {273: 0, 279: len(content)}
    start = 8 + 2 + 12 * len(entries) + 4
    entries[324 if 322 in entries else 273] = start
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4) + content


def claims():
    """Small files for which a decoder would take gigabytes."""
    line = Image.new("RGB", (1, 12_000))
    for kind in WRITTEN:
        for image in (line, line.rotate(90, expand=True)):
            yield f"{kind} {image.size}", file(image, kind)
    gif = bytearray(file(RGB.quantize(16), "GIF"))
    frame = gif.index(b",\0\0\0\0") + 5
    for name, place in (("screen", 6), ("frame", frame)):
        large = bytearray(gif)
        struct.pack_into("<HH", large, place, 20_000, 20_000)
        yield f"gif with a large {name}", bytes(large)
    yield "tiff", tiff(20_000, 20_000)
    yield "tiff with large tiles", tiff(10, 10, t322=20_000, t323=20_000)
    for width, height in ((20_000, 20_000), (40_000, -30_000)):
        large = bytearray(bmp(24, []))
        struct.pack_into("<ii", large, 18, width, height)
        yield f"bmp {height}", bytes(large)
    yield "ppm", b"P6 20000 20000 255 " + bytes(1000)
    sides = (15_999).to_bytes(3, "little") * 2
    canvas = b"WEBPVP8X\n\0\0\0\x02\0\0\0" + sides
    yield "webp", b"RIFF" + struct.pack("<I", len(canvas)) + canvas + bytes(99)
    for name, options in (("lossy", {}), ("lossless", {"lossless": True})):
        large = bytearray(file(RGB, "WEBP", **options))
        if name == "lossy":
            struct.pack_into("<HH", large, 26, 16_000, 16_000)
        else:
            struct.pack_into("<I", large, 21, 15_999 | 15_999 << 14)
        yield f"webp {name}", bytes(large)


def peak():
    """The largest memory of this process since `forget`, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def test_what_would_not_fit_into_memory_is_refused_before_there_is_any_for_it():
    squares = decoder(config(image_size=256, crop_size=256))
    squares([file(RGB, "PNG")])
    for name, data in claims():
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = peak()
        with pytest.raises(UnreadableImage, match=r"pixels, more than|exceeds limit") as error:
            squares([data])
        assert "\n" not in error.value.reason and peak() - before < 100, name


def test_an_image_of_many_frames_takes_the_memory_of_one():
    frames = [Image.new("P", (1500, 1500), shade) for shade in range(50)]
    data = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    decoder(config())([data])
    assert peak() - before < 80


@pytest.mark.parametrize("resize", ["short_side", "stretch"])
def test_the_limit_is_that_of_the_enlarged_image(resize):
    """An image of 3 x 30 pixels becomes one of 24 x 240, unless both sides are stretched."""
    image = np.zeros((30, 3, 3), np.uint8)
    data, most = file(Image.fromarray(image), "PNG"), 24 * 240 if resize == "short_side" else 90
    for limit in (most, most - 1):
        allowed = config(resize=resize, max_pixels=limit)
        source = as_source(([image], [0]), "train", 1)
        if limit == most:
            assert decoder(allowed)([data]).shape == resizer(allowed)(image)[None].shape
            continue
        with pytest.raises(UnreadableImage, match=f"{most} pixels, more than"):
            decoder(allowed)([data])
        with pytest.raises(Unreadable, match=f"{most} pixels, more than"):
            resizer(allowed)(image)
        with pytest.raises(UsageError, match=f"image 0: .* {most} pixels, more than"):
            source.squares(allowed)(np.arange(1))


def damaged(rng, count):
    """Files of every kind that were cut, flipped, overwritten or joined."""
    whole = [data for _, data in corpus()]
    for _ in range(count):
        data = bytearray(whole[int(rng.integers(len(whole)))])
        kind, place = int(rng.integers(4)), int(rng.integers(len(data)))
        if kind == 0:
            del data[place:]
        elif kind == 1:
            for _ in range(int(rng.integers(1, 9))):
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        elif kind == 2:  # in the header, where sizes are
            for at in rng.integers(2, min(len(data), 64), 5):
                data[int(at)] = int(rng.choice([0, 1, 127, 128, 255]))
        else:
            data[place:] = whole[int(rng.integers(len(whole)))][place // 2 :]
        yield bytes(data)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it reads nevertheless
def test_damaged_files_are_images_or_refused():
    squares, outcomes = decoder(config(max_pixels=10**6)), {"read": 0, "refused": 0}
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    for data in damaged(np.random.default_rng(0), FUZZ):
        try:
            squares([data])
            outcomes["read"] += 1
        except UnreadableImage as error:
            outcomes["refused"] += 1
            assert error.reason and "\n" not in error.reason
    assert min(outcomes.values()) > FUZZ / 20 and peak() - before < 300
