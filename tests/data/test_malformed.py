"""Files that are not images: named, or replaced and counted; no crash, hang or silent loss."""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import augment, pipeline
from alexnet_jax.data.formats import sizes
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import open_source, open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.training.loop import train_and_evaluate
from tests.data.test_pipeline import data_config
from tests.support import png_folder
from tests.training.test_train import lines, log, short_config

FORMATS = {
    "jpeg": ("RGB", dict(format="JPEG", quality=90)),
    "grey jpeg": ("L", dict(format="JPEG")),
    "cmyk jpeg": ("CMYK", dict(format="JPEG")),
    "progressive jpeg": ("RGB", dict(format="JPEG", progressive=True)),
    "jpeg with a thumbnail": ("RGB", dict(format="JPEG", comment=b"\xff\xc0 is no header" * 9)),
    "png": ("RGB", dict(format="PNG")),
    "palette png": ("P", dict(format="PNG")),
    "bmp": ("RGB", dict(format="BMP")),
    "gif": ("P", dict(format="GIF")),
}


def encoded(name, rng, size=(48, 40)):
    mode, options = FORMATS[name]
    noise = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, **options)
    return buffer.getvalue()


def huge(name, width=60_000, height=50_000):
    """A small file whose header asks for three thousand million pixels."""
    data = bytearray(encoded(name, np.random.default_rng(0)))
    if "jpeg" in name:
        at = data.index(b"\xff\xc2" if "progressive" in name else b"\xff\xc0\x00") + 5
        struct.pack_into(">HH", data, at, height, width)
    elif "png" in name:
        struct.pack_into(">II", data, 16, width, height)
        import zlib

        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif name == "bmp":
        struct.pack_into("<ii", data, 18, width, -height)
    else:
        struct.pack_into("<HH", data, 6, width, height)
    return bytes(data)


def mutations(rng, count):
    """Bytes that began as images of every format, and were cut, flipped, spliced or overwritten."""
    names = list(FORMATS)
    for case in range(count):
        data = bytearray(encoded(names[case % len(names)], rng))
        kind = case // len(names) % 6
        if kind == 0:
            data = data[: int(rng.integers(len(data)))]
        elif kind == 1:
            for _ in range(int(rng.integers(1, 20))):
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        elif kind == 2:  # in the header, where sizes are
            for at in rng.integers(2, min(len(data), 200), 6):
                data[int(at)] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 3:
            other = encoded(names[int(rng.integers(len(names)))], rng)
            data = data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]
        elif kind == 4:
            start = int(rng.integers(len(data)))
            data[start : start + 64] = rng.bytes(64)
        else:
            data = bytearray(data[:2] + rng.bytes(int(rng.integers(0, 400))))
        yield bytes(data)


CHILD = """
import json, resource, sys
import numpy as np
from alexnet_jax.config import default
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_source

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
config = default().data
config.unlock()
config.update(image_size=32, crop_size=32, max_pixels=10**7, max_unreadable=10**6)
source = open_source(f"folder:{sys.argv[1]}", "train")
next(pipeline.eval_batches(open_source(f"folder:{sys.argv[1]}", "test"), config, batch_size=8))
before, unreadable, seen = peak(), {}, {}
for batch in pipeline.eval_batches(source, config, batch_size=64, unreadable=unreadable):
    for index, mask, image in zip(batch["index"], batch["mask"], batch["image"]):
        if mask:
            seen[source.describe(index)] = int(image.astype(int).sum())
print(json.dumps({"seen": seen, "unreadable": list(unreadable.values()), "grew": peak() - before}))
"""


def test_what_a_fuzzer_makes_of_images_is_an_image_or_is_named(tmp_path):
    """432 of them between 40 whole ones, which come out as they were."""
    rng = np.random.default_rng(0)
    png_folder(tmp_path, train=40)
    whole = set(map(str, (tmp_path / "train").rglob("*.png")))
    for number, data in enumerate(mutations(rng, 432)):
        (tmp_path / "train" / str(number % 10) / f"bad{number}.jpg").write_bytes(data)
    for number, name in enumerate(FORMATS):
        (tmp_path / "train" / str(number) / f"huge{number}.jpg").write_bytes(huge(name))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    every = set(map(str, (tmp_path / "train").rglob("*.*")))
    named = {
        path for path in every if any(line.startswith(f"{path}: ") for line in found["unreadable"])
    }
    assert named | set(found["seen"]) == every and not named & set(found["seen"])
    assert whole <= set(found["seen"]) and len(every) == 40 + 432 + 9
    assert len(named) > 200  # most are no images any more
    assert (
        sum("pixels, more than config.data.max_pixels" in line for line in found["unreadable"]) >= 9
    )
    assert all("\n" not in line for line in found["unreadable"])
    assert found["grew"] < 400, f"{found['grew']} MB"


def test_the_header_says_what_the_image_is():
    """Of those that are decoded, or given memory, as soon as they are opened."""
    rng = np.random.default_rng(1)
    read_first = [name for name in FORMATS if "jpeg" in name or "png" in name]
    for _ in range(10):
        for name in read_first:
            size = tuple(int(side) for side in rng.integers(1, 300, 2))
            assert sizes(encoded(name, rng, size)) == [size], name
    for name in read_first:
        assert sizes(huge(name)) == [(60_000, 50_000)], name
    for size in rng.integers(1, 300, (10, 2)):
        for options in ({"lossless": True}, {"quality": 50}):
            for modes in (["RGB"], ["RGBA"], ["RGB", "RGB"]):
                first, *others = [Image.new(mode, tuple(size)) for mode in modes]
                buffer = io.BytesIO()
                more = {"save_all": True, "append_images": others} if others else {}
                first.save(buffer, "WEBP", **options, **more)
                assert sizes(buffer.getvalue()) == [tuple(size)]
    # Of two headers in one file the larger counts, whichever comes first.
    data, larger = encoded("jpeg", rng), huge("jpeg")
    at = data.index(b"\xff\xc0\x00")
    header, huge_header = data[at : at + 19], larger[at : at + 19]
    for both in (header + huge_header, huge_header + header):
        assert (60_000, 50_000) in sizes(data[:at] + both + data[at + 19 :])
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF89a", b"text"):
        assert sizes(data) == []
    for data in mutations(rng, 300):
        assert all(min(size) >= 0 for size in sizes(data))


def bad_folder(root, places, train=40):
    """`png_folder` with text in place of some of its files, counted as the source counts them."""
    png_folder(root, train)
    source = open_source(f"folder:{root}", "train")
    for place in places:
        Path(source.describe(place)).write_text("no image")
    return source


SMALL = dict(image_size=32, crop_size=32, pad=0)


@pytest.mark.parametrize("name", ["zero bytes", "text", "huge", "folder", "link to nothing"])
def test_the_first_is_an_error_that_names_it(tmp_path, name):
    png_folder(tmp_path, 20)
    path = tmp_path / "train" / "3" / "strange.jpg"
    if name == "folder":
        path.mkdir()
    elif name == "link to nothing":
        path.symlink_to("nowhere")
    else:
        path.write_bytes({"zero bytes": b"", "text": b"text", "huge": huge("jpeg")}[name])
    batches = pipeline.train_batches(
        open_source(f"folder:{tmp_path}", "train"), data_config(**SMALL), seed=0, batch_size=20
    )
    with pytest.raises(UsageError, match=str(path)) as error:
        next(batches)
        next(batches)
    assert "\n" not in str(error.value)


def test_an_image_of_as_many_pixels_as_allowed_is_read_and_one_more_is_an_error(tmp_path):
    png_folder(tmp_path, 1)  # of 36 x 40
    source = open_source(f"folder:{tmp_path}", "train")
    config = data_config(**SMALL, max_pixels=36 * 40)
    (batch,) = pipeline.eval_batches(source, config, batch_size=1)
    assert batch["mask"] == 1
    config.max_pixels = 36 * 40 - 1
    with pytest.raises(UsageError, match=r"1440 pixels, more than config\.data\.max_pixels = 1439"):
        list(pipeline.eval_batches(source, config, batch_size=1))


def test_a_png_called_jpeg_is_an_image(tmp_path):
    path = tmp_path / "train" / "a" / "x.JPEG"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (40, 40), (1, 2, 3)).save(path, format="PNG")
    source = open_source(f"folder:{tmp_path}", "train")
    (batch,) = pipeline.eval_batches(source, data_config(**SMALL), batch_size=1)
    assert (batch["image"] == (1, 2, 3)).all()


def test_the_next_in_order_takes_its_place_wherever_reading_begins(tmp_path):
    bad = {3, 17, 18, 39}
    source = bad_folder(tmp_path, bad)
    config = data_config(**SMALL, max_unreadable=4)
    found = {}
    first = pipeline.train_batches(source, config, seed=5, batch_size=8, unreadable=found)
    whole = [next(first) for _ in range(10)]
    assert set(found) == bad
    for epoch in (0, 1):
        order = augment.order(5, epoch, 40).tolist()
        for step in range(5):
            batch = whole[epoch * 5 + step]
            got = batch["index"].tolist()
            for i, place in enumerate(range(step * 8, step * 8 + 8)):
                walk = [x for x in order[place:] + order[:place] if x not in bad]
                assert got[i] == walk[0]
            # With its own picture, flip and label.
            assert [source.class_names[label] for label in batch["label"]] == [
                Path(source.describe(index)).parent.name for index in got
            ]
            flip = augment.draws(5, epoch, 40, config).flip[got][:, None, None, None]
            squares, _ = source.squares(config)(got)
            np.testing.assert_array_equal(
                batch["image"], np.where(flip, squares[:, :, ::-1], squares)
            )
    # Begun elsewhere, with nothing known yet; and read in two halves.
    later = pipeline.train_batches(source, config, seed=5, batch_size=8, start_step=6)
    halves = [
        pipeline.train_batches(source, config, seed=5, batch_size=8, start_step=6, part=(i, 2))
        for i in range(2)
    ]
    for expected in whole[6:]:
        batch, parts = next(later), [next(half) for half in halves]
        for name, value in expected.items():
            np.testing.assert_array_equal(batch[name], value)
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), value)


def test_more_than_allowed_is_an_error_that_says_how_many_were(tmp_path):
    source = bad_folder(tmp_path, {3, 17, 18})
    config = data_config(**SMALL, max_unreadable=2)
    with pytest.raises(UsageError, match=r"2 were allowed \(config\.data\.max_unreadable\)"):
        list(pipeline.eval_batches(source, config, batch_size=16))


def test_where_none_is_readable_nothing_is_made_up(tmp_path):
    source = bad_folder(tmp_path, range(8), train=8)
    config = data_config(**SMALL, max_unreadable=100)
    with pytest.raises(UsageError, match="no image"):
        list(pipeline.eval_batches(source, config, batch_size=4))


def test_a_prepared_set_holds_the_readable_ones(tmp_path):
    source = bad_folder(tmp_path / "images", {3, 17})
    config = data_config(**SMALL, max_unreadable=2)
    told = []
    prepare(source, config, tmp_path / "prepared" / "train", lambda *done: told.append(done))
    assert told == [(40, 40)]
    squares = open_source(f"prepared:{tmp_path / 'prepared'}", "train")
    assert squares.num_examples == 38
    rows = [i for i in range(40) if i not in (3, 17)]
    image, label = squares.squares(config)(np.arange(38))
    batches = list(pipeline.eval_batches(source, config, batch_size=40))
    np.testing.assert_array_equal(image, batches[0]["image"][rows])
    np.testing.assert_array_equal(label, batches[0]["label"][rows])
    about = json.loads((tmp_path / "prepared" / "train" / "split.json").read_text())
    assert len(about["unreadable"]) == 2 and source.describe(3) in about["unreadable"][0]


def test_a_run_counts_them_and_names_each_once(tmp_path):
    png_folder(tmp_path / "images", train=160)
    config = short_config()
    config.data.source, config.data.max_unreadable = f"folder:{tmp_path / 'images'}", 3
    config.evaluate.splits = ("train", "validation")
    config.num_epochs = 2.0
    bad = {"train": (3, 17, 39), "validation": (2,), "test": (5, 0)}
    sources = open_sources(config)
    places = [sources[split].describe(index) for split in bad for index in bad[split]]
    for place in places:
        Path(place).write_text("no image")
    result = train_and_evaluate(config, tmp_path / "run")
    counted = {split: result[split]["num_examples"] for split in bad}
    assert counted == {"train": 144 - 3, "validation": 16 - 1, "test": 8 - 2}
    assert [line for line in lines(tmp_path / "run") if "unreadable" in line][-1]["unreadable"] == 3
    warned = [line["warning"] for line in log(tmp_path / "run") if line["event"] == "warning"]
    assert sorted(line.partition(": ")[0] for line in warned) == sorted(places)
    assert all(line.endswith("; another takes its place") for line in warned)
