import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import augment, pipeline
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from tests.support import tiny_config


def data_config(**changes):
    config = tiny_config()
    with config.unlocked():
        config.data.update(random_flip=True, **changes)
    return config.data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve lossless images of 20 x 20, six of each class."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{i}.png")
    return f"folder:{root}"


def pixels_of(source, index):
    return np.asarray(Image.open(source.describe(index)).convert("RGB"))


@pytest.mark.parametrize("pad", [0, 3])
def test_a_batch_holds_the_crops_that_the_draws_say(folder, pad):
    config = data_config(source=folder, image_size=20, crop_size=16, pad=pad)
    source = open_source(folder, "train")
    batches = pipeline.train_batches(source, config, seed=5, batch_size=4)
    for step in range(7):
        batch = next(batches)
        epoch, number = divmod(step, 3)
        expected = augment.order(5, epoch, 12)[4 * number : 4 * number + 4]
        np.testing.assert_array_equal(batch["index"], expected)
        draws = augment.draws(5, epoch, 12, config)
        for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
            whole = np.pad(pixels_of(source, index), ((pad, pad), (pad, pad), (0, 0)), "reflect")
            top, left = draws.offset[index]
            crop = whole[top : top + 16, left : left + 16]
            crop = crop[:, ::-1] if draws.flip[index] else crop
            np.testing.assert_array_equal(image, crop)
            assert source.class_names[label] == source.describe(index).split("/")[-2]


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """The folder's images, which need resizing here, as squares of 16."""
    root = tmp_path_factory.mktemp("prepared")
    done = []
    config = data_config(image_size=16, crop_size=12)
    prepare(
        open_source(folder, "train"), config, root / "train", lambda n, of: done.append((n, of))
    )
    assert done == [(12, 12)]
    return root


def test_prepared_images_make_the_same_batches(folder, prepared):
    config = data_config(image_size=16, crop_size=12)
    original = open_source(folder, "train")
    squares = open_source(f"prepared:{prepared}", "train")
    assert squares.class_names == original.class_names
    for make in (pipeline.train_batches, pipeline.eval_batches):
        arguments = {"seed": 3} if make is pipeline.train_batches else {}
        pair = [
            list(itertools.islice(make(source, config, batch_size=5, **arguments), 7))
            for source in (original, squares)
        ]
        assert len(pair[0]) == (7 if arguments else 3)
        for expected, ours in zip(*pair, strict=True):
            assert set(ours) == set(expected)
            for name, value in expected.items():
                np.testing.assert_array_equal(ours[name], value)
                assert ours[name].dtype == value.dtype


def test_prepared_images_cut_under_a_run_are_an_error(prepared, tmp_path):
    """And not the end of the process, which a mapped file would be."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    source = open_source(f"prepared:{tmp_path}", "train")
    config = data_config(image_size=16, crop_size=12)
    batches = pipeline.train_batches(source, config, seed=0, batch_size=4)
    next(batches)
    os.truncate(tmp_path / "train" / "images.npy", 1000)
    with pytest.raises(UsageError, match=r"train/images\.npy: the file was cut"):
        for _ in range(10):
            next(batches)


def test_what_does_not_fit_prepared_images_is_named(folder, prepared, tmp_path):
    source = open_source(f"prepared:{prepared}", "train")
    with pytest.raises(UsageError, match=r"data\.image_size is 20.*prepared with 16"):
        pipeline.eval_batches(source, data_config(image_size=20), batch_size=4)
    config = data_config(image_size=16, resize="stretch")
    with pytest.raises(UsageError, match=r"data\.resize is 'stretch'"):
        pipeline.eval_batches(source, config, batch_size=4)
    config = data_config(image_size=16, shrink="bilinear")
    with pytest.raises(UsageError, match=r"data\.shrink is 'bilinear'.*prepared with 'area'"):
        pipeline.eval_batches(source, config, batch_size=4)
    with pytest.raises(UsageError, match="there is train"):
        open_source(f"prepared:{prepared}", "test")
    with pytest.raises(UsageError, match="prepare` writes one"):
        open_source(f"prepared:{tmp_path}", "train")
    with pytest.raises(UsageError, match="prepared already"):
        prepare(open_source(folder, "train"), config, prepared / "train", print)
    for name in ("images.npy", "labels.npy", "split.json"):
        copy = shutil.copytree(prepared, tmp_path / name) / "train" / name
        copy.write_bytes(copy.read_bytes()[:-5])
        with pytest.raises(UsageError, match="is damaged"):
            open_source(f"prepared:{tmp_path / name}", "train")


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (np.zeros((3, 4, 4, 3), np.float32), np.zeros(3, np.int32), "images.npy is float32"),
        (np.zeros((3, 4, 5, 3), np.uint8), np.zeros(3, np.int32), r"images.npy is uint8 \(3, 4, 5"),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int32), r"images.npy is uint8 \(3, 4, 4"),
        (np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3, np.int64), "labels.npy is int64"),
        (np.zeros((3, 4, 4, 3), np.uint8), np.zeros(2, np.int32), r"labels.npy is int32 \(2,\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int32), r"labels.npy is int32 \(0,\)"),
        (np.zeros((3, 4, 4, 3), np.uint8), np.int32([0, 2, 1]), "labels without a name"),
        (np.zeros((3, 4, 4, 3), np.uint8), np.int32([0, -1, 1]), "labels without a name"),
        (np.zeros((3, 4, 4, 3), np.uint8), np.int32([0, 0, 1]), None),
    ],
)
def test_prepared_arrays_that_do_not_fit_together_are_an_error(tmp_path, images, labels, says):
    folder = tmp_path / "train"
    folder.mkdir()
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    about = dict(class_names=["a", "b"], resize="short_side", shrink="area")
    (folder / "split.json").write_text(json.dumps(about))
    if says is None:
        assert open_source(f"prepared:{tmp_path}", "train").num_examples == 3
    else:
        with pytest.raises(UsageError, match=f"is damaged .*{says}"):
            open_source(f"prepared:{tmp_path}", "train")


def test_an_unfinished_attempt_to_prepare_is_no_split_and_is_replaced(folder, prepared, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    config = data_config(image_size=16, crop_size=12)
    with pytest.raises(KeyboardInterrupt):
        prepare(open_source(folder, "train"), config, tmp_path / "train", stop)
    with pytest.raises(UsageError, match="is not a prepared split"):
        open_source(f"prepared:{tmp_path}", "train")
    (tmp_path / "train" / "images.npy").write_bytes(bytes(100_000))
    prepare(open_source(folder, "train"), config, tmp_path / "train", lambda done, total: None)
    for name in ("images.npy", "labels.npy", "split.json"):
        whole = (prepared / "train" / name).read_bytes()
        assert (tmp_path / "train" / name).read_bytes() == whole


def test_some_squares_are_those_of_the_whole_test(folder, prepared):
    config = data_config(image_size=16, crop_size=12)
    original = open_source(folder, "train")
    chosen = np.array([7, 0, 11, 7])
    (batch,) = pipeline.eval_batches(original, config, batch_size=12)
    for source in (original, open_source(f"prepared:{prepared}", "train")):
        images, labels = source.squares(config)(chosen)
        np.testing.assert_array_equal(images, batch["image"][chosen])
        np.testing.assert_array_equal(labels, batch["label"][chosen])
    with pytest.raises(UsageError, match=r"image_size is 20"):
        source.squares(data_config(image_size=20))


def test_the_numbers_of_a_batch_are_known_without_reading_it(folder):
    source = open_source(folder, "train")
    config = data_config(source=folder, image_size=20, crop_size=16)
    batches = pipeline.train_batches(source, config, seed=4, batch_size=5)
    for step in range(6):  # three epochs of two batches
        found = pipeline.train_indices(4, 12, 5, step)
        np.testing.assert_array_equal(found, next(batches)["index"])


def test_resuming_and_sharing_change_nothing():
    source, config = open_source("digits", "train"), data_config()
    whole = pipeline.train_batches(source, config, seed=1, batch_size=96)
    steps = [next(whole) for _ in range(18)]  # past the end of an epoch of 14 batches
    later = pipeline.train_batches(source, config, seed=1, batch_size=96, start_step=13)
    parts = [
        pipeline.train_batches(source, config, seed=1, batch_size=96, start_step=13, part=(p, 2))
        for p in range(2)
    ]
    for step in range(13, 18):
        resumed, halves = next(later), [next(part) for part in parts]
        for name, expected in steps[step].items():
            np.testing.assert_array_equal(resumed[name], expected)
            np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), expected)
    epoch = np.concatenate([batch["index"] for batch in steps[:14]])
    assert len(set(epoch)) == 14 * 96
    assert not np.array_equal(steps[0]["index"], steps[14]["index"])


def test_evaluation_counts_every_example_once():
    config = data_config(image_size=8, crop_size=8, pad=0)
    rng = np.random.default_rng(0)
    for _ in range(6):
        count, processes = int(rng.integers(1, 361)), int(rng.integers(1, 4))
        batch_size = processes * int(rng.integers(1, 60))
        source = FirstOf(open_source("digits", "test"), count)
        seen, lengths = [], []
        for p in range(processes):
            batches = list(
                pipeline.eval_batches(source, config, batch_size=batch_size, part=(p, processes))
            )
            lengths.append(len(batches))
            for batch in batches:
                assert batch["image"].shape == (batch_size // processes, 8, 8, 3)
                seen += list(batch["index"][batch["mask"] > 0])
        assert sorted(seen) == list(range(count))
        assert len(set(lengths)) == 1


class FirstOf:
    """The first `count` examples of a source."""

    def __init__(self, source, count):
        self._source, self.num_examples = source, count

    def __getattr__(self, name):
        return getattr(self._source, name)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (33, 33)])
@pytest.mark.parametrize("resize", ["short_side", "stretch"])
def test_resizing_agrees_with_another_library(tmp_path, size, resize):
    """A smooth picture, so that two antialiased bilinear filters may differ in rounding only."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    picture = np.stack([200 * x, 200 * y, 100 * (x + y)], -1).astype(np.uint8)
    path = tmp_path / "train" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(picture).save(path)
    config = data_config(image_size=20, crop_size=20, pad=0, resize=resize, shrink="triangle")
    source = open_source(f"folder:{tmp_path}", "train")
    (batch,) = pipeline.eval_batches(source, config, batch_size=1)
    image = Image.fromarray(picture)
    if resize == "stretch":
        expected = np.asarray(image.resize((20, 20), Image.BILINEAR))
    else:
        scale = 20 / min(size)
        scaled = image.resize((round(width * scale), round(height * scale)), Image.BILINEAR)
        left, top = (scaled.width - 20) // 2, (scaled.height - 20) // 2
        expected = np.asarray(scaled)[top : top + 20, left : left + 20]
    assert np.abs(batch["image"][0].astype(int) - expected).max() <= 2


def covered(length, size):
    """`[size, length]`: the share of each pixel in each of `size` equal parts of a side."""
    edges = np.arange(size + 1) * length / size
    low, high = np.maximum(edges[:-1, None], np.arange(length)), np.arange(length) + 1
    share = np.minimum(edges[1:, None], high) - low
    return np.maximum(share, 0) * size / length


def between(length, size):
    """`[size, length]`: the two pixels about the centre of each part, by their distance."""
    place = (np.arange(size) + 0.5) * length / size - 0.5
    return np.maximum(1 - np.abs(place[:, None] - np.arange(length)), 0)


def triangle(length, size):
    """`[size, length]`: all pixels less than a part, and at least a pixel, from its centre."""
    place = (np.arange(size) + 0.5) * length / size - 0.5
    wide = max(length / size, 1)
    share = np.maximum(1 - np.abs(place[:, None] - np.arange(length)) / wide, 0)
    return share / share.sum(1, keepdims=True)


def resized(tmp_path, size, weights, **rule):
    """(the pipeline's square of a picture of noise, the same by a matrix for each side)."""
    width, height = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    path = tmp_path / "train" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(picture).save(path)
    config = data_config(image_size=20, crop_size=20, pad=0, **rule)
    source = open_source(f"folder:{tmp_path}", "train")
    (batch,) = pipeline.eval_batches(source, config, batch_size=1)
    sides = [int(n * 20 / min(size) + 0.5) for n in (height, width)]
    sides = (20, 20) if rule["resize"] == "stretch" else sides
    scaled = np.einsum(
        "ih,jw,hwc->ijc", weights(height, sides[0]), weights(width, sides[1]), picture
    )
    top, left = (sides[0] - 20) // 2, (sides[1] - 20) // 2
    return batch["image"][0], scaled[top : top + 20, left : left + 20]


def assert_rounded(found, exact):
    """To the nearest grey level; float32 decides where two are equally near."""
    assert np.abs(found - exact).max() < 0.5 + 1e-3


@pytest.mark.parametrize("resize", ["short_side", "stretch"])
@pytest.mark.parametrize(
    ("shrink", "weights"), [("area", covered), ("bilinear", between), ("triangle", triangle)]
)
@pytest.mark.parametrize("size", [(61, 47), (40, 90), (20, 33), (33, 20)])
def test_smaller_pictures_are_what_the_rule_says(tmp_path, shrink, weights, size, resize):
    assert_rounded(*resized(tmp_path, size, weights, shrink=shrink, resize=resize))


@pytest.mark.parametrize("shrink", ["area", "bilinear", "triangle"])
@pytest.mark.parametrize(
    ("size", "resize"),
    [
        ((12, 9), "short_side"),
        ((9, 31), "short_side"),
        ((12, 61), "stretch"),
        ((61, 12), "stretch"),
    ],
)
def test_where_a_side_grows_every_rule_is_a_triangle(tmp_path, shrink, size, resize):
    assert_rounded(*resized(tmp_path, size, triangle, shrink=shrink, resize=resize))


def test_an_image_that_is_none_is_named(tmp_path):
    for name in ("good", "bad"):
        path = tmp_path / "train" / "a" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    config = data_config(image_size=20, crop_size=20, pad=0)
    source = open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(UsageError, match=r"bad\.png"):
        list(pipeline.eval_batches(source, config, batch_size=2))


def test_batches_that_do_not_fit_are_errors():
    source, config = open_source("digits", "test"), data_config()
    for size, processes in ((361, 1), (10, 3), (0, 1)):
        with pytest.raises(UsageError, match="batch_size"):
            next(
                pipeline.train_batches(source, config, seed=0, batch_size=size, part=(0, processes))
            )


def test_the_program_ends_while_batches_are_being_read():
    """TensorFlow would wait for ever for a thread that is in Python when the interpreter stops."""
    program = """
import time
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_source
from tests.support import tiny_config

reading = []

class Slow:
    def __init__(self, source): self.source = source
    def __getattr__(self, name): return getattr(self.source, name)
    def squares(self, config):
        read = self.source.squares(config)
        def slowly(indices):
            reading.append(1)
            time.sleep(0.3)
            squares = read(indices)
            reading.pop()
            return squares
        return slowly

source = Slow(open_source("digits", "train"))
batches = pipeline.train_batches(source, tiny_config().data, seed=0, batch_size=64)
next(batches)
assert reading
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=root)


def test_threads_that_make_batches_give_way_where_they_should():
    """Those that read and those that decode, and no other; only Linux has priorities of threads."""
    program = """
import os, sys, threading
from pathlib import Path
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_source
from tests.support import tiny_config

def priority(thread):
    return os.getpriority(os.PRIO_PROCESS, thread)

class Watched:
    def __init__(self): self.source, self.reading = open_source("digits", "train"), set()
    def __getattr__(self, name): return getattr(self.source, name)
    def squares(self, config):
        read = self.source.squares(config)
        def watched(indices):
            self.reading.add(priority(threading.get_native_id()))
            return read(indices)
        return watched

config = tiny_config().data
for given in (False, True):
    expected = 19 if given and sys.platform == "linux" else 0
    trained, tested = Watched(), Watched()
    next(pipeline.train_batches(trained, config, seed=0, batch_size=64, gives_way=given))
    next(pipeline.eval_batches(tested, config, batch_size=64, gives_way=given))
    assert trained.reading == tested.reading == {expected}, (given, trained.reading, tested.reading)
    threads = [(int(f.parent.name), f.read_text()) for f in Path("/proc/self/task").glob("*/comm")]
    decoding = {priority(thread) for thread, name in threads if name == "tf_Compute\\n"}
    assert decoding == ({expected} if sys.platform == "linux" else set()), (given, threads)
assert priority(threading.main_thread().native_id) == 0
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=root)


@pytest.mark.parametrize("rule", ["source", "paper"])
def test_the_colour_of_an_example_follows_its_own_draw(folder, rule):
    config = data_config(source=folder, image_size=20, crop_size=16, pad=0)
    config.colour.rule = rule
    s = np.array(config.colour.stdevs)
    scale = s if rule == "source" else 255 * (s / 255) ** 2
    source = open_source(folder, "train")
    gaussians = augment.draws(5, 0, 12, config).gaussians
    batch = next(pipeline.train_batches(source, config, seed=5, batch_size=12))
    for index, colour in zip(batch["index"], batch["colour"], strict=True):
        components = zip(scale, np.transpose(config.colour.eigenvectors), strict=True)
        expected = sum(
            0.1 * a * s * p for a, (s, p) in zip(gaussians[index], components, strict=True)
        )
        np.testing.assert_allclose(colour, expected, rtol=1e-5, atol=1e-5)


def test_places_past_the_end_repeat_the_last_example(folder):
    config = data_config(source=folder, image_size=20, crop_size=16, pad=0)
    source = open_source(folder, "train")
    batches = list(pipeline.eval_batches(source, config, batch_size=8))
    assert [batch["mask"].tolist() for batch in batches] == [[1] * 8, [1] * 4 + [0] * 4]
    for batch in batches:
        for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
            np.testing.assert_array_equal(image, pixels_of(source, index))
            assert source.class_names[label] == source.describe(index).split("/")[-2]
    assert batches[1]["index"].tolist() == [8, 9, 10, 11, 11, 11, 11, 11]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_every_kind_become_rgb(tmp_path, mode):
    """Grey is repeated, alpha dropped; one flat colour, which JPEG keeps to a level or two."""
    path = tmp_path / "train" / "a" / ("x.jpg" if mode == "CMYK" else "x.png")
    path.parent.mkdir(parents=True)
    image = Image.new("RGB", (20, 20), (200, 100, 50)).convert(mode)
    if mode == "RGBA":
        image.putalpha(100)
    image.save(path, **({"quality": 95} if mode == "CMYK" else {}))
    expected = {"L": (124, 124, 124)}.get(mode, (200, 100, 50))
    if mode == "P":
        expected = np.asarray(image.convert("RGB"))  # dithered: a palette has few colours
    config = data_config(image_size=20, crop_size=20, pad=0)
    source = open_source(f"folder:{tmp_path}", "train")
    (batch,) = pipeline.eval_batches(source, config, batch_size=1)
    assert np.abs(batch["image"][0].astype(int) - expected).max() <= (2 if mode == "CMYK" else 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_an_image_that_ends_early_is_named(tmp_path, suffix):
    path = tmp_path / "train" / "a" / f"cut.{suffix}"
    path.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    config = data_config(image_size=20, crop_size=20, pad=0)
    source = open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(UsageError, match=rf"cut\.{suffix}.*replace or remove"):
        next(pipeline.train_batches(source, config, seed=0, batch_size=1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"crop_size": 41}, "crop_size 41 does not fit"),
        ({"pad": -1, "crop_size": 30}, r"config\.data\.pad = -1: must be at least 0"),
        ({"pad": 32}, r"config\.data\.pad = 32: must be less than data\.image_size"),
        ({"resize": "long_side"}, r"config\.data\.resize = 'long_side'"),
        ({"shrink": "cubic"}, r"config\.data\.shrink = 'cubic'"),
    ],
)
def test_values_that_do_not_fit_are_errors_before_the_first_batch(change, says):
    config = data_config(**{"image_size": 32, "crop_size": 32, "pad": 4} | change)
    with pytest.raises(UsageError, match=says):
        pipeline.train_batches(open_source("digits", "test"), config, seed=0, batch_size=4)
