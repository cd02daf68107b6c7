"""One protocol for every source: what the pipeline needs of it, and what it need not have."""

import gc
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.data import augment, decode, pipeline
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.protocol import Source
from alexnet_jax.data.sources import Subset, open_source
from alexnet_jax.data.sources.arrays import as_source
from alexnet_jax.errors import UsageError
from tests.support import needs_data, png_folder, tiny_config

MEMBERS = {"name", "split", "num_examples", "class_names", "files", "squares", "describe"}


class Arrays:
    """A guest's source, with the members of the protocol and nothing else."""

    name, split, class_names, files = "arrays", "train", ("cat", "dog"), ()

    def __init__(self, count=30, side=32, broken=()):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        self.labels = rng.integers(0, 2, count, np.int32)
        self.num_examples, self.broken = count, set(broken)

    def squares(self, config):
        if self.images.shape[1] != config.image_size:
            raise UsageError(f"arrays: config.data.image_size must be {self.images.shape[1]}")

        def read(indices):
            for index in indices:
                if int(index) in self.broken:
                    raise UsageError(f"{self.describe(index)}: broken")
            return self.images[indices], self.labels[indices]

        return read

    def describe(self, index):
        return f"array {index}"


def data(**changes):
    config = tiny_config()
    config.data.update(random_flip=True, **changes)
    return config.data


def test_the_protocol_is_this_small():
    own = {name for name in vars(Source) if not name.startswith("_")}
    assert own == MEMBERS
    assert all(hasattr(Arrays(), name) for name in MEMBERS)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Every kind of source that can be opened without a download."""
    root = tmp_path_factory.mktemp("kinds")
    png_folder(root / "images", train=20)
    folder = open_source(f"folder:{root / 'images'}", "train")
    prepare(folder, data(), root / "prepared" / "train", lambda done, total: None)
    return {
        "digits": open_source("digits", "train"),
        "folder": folder,
        "prepared": open_source(f"prepared:{root / 'prepared'}", "train"),
        "subset": Subset(folder, np.arange(2, 12), "some"),
        "arrays": Arrays(),
        "pairs": as_source((Arrays().images, Arrays().labels), "train", 2),
    }


def assert_keeps_the_protocol(source):
    for name in MEMBERS:
        assert hasattr(source, name)
    assert isinstance(source.name, str) and isinstance(source.split, str)
    assert source.num_examples >= 1
    assert all(isinstance(name, str) for name in (*source.class_names, *source.files))
    read, last = source.squares(data()), source.num_examples - 1
    images, labels = read(np.array([last, 0, 1, 0]))
    assert images.dtype == np.uint8 and images.shape == (4, 32, 32, 3)
    assert labels.dtype.kind == "i" and labels.shape == (4,)
    assert labels.min() >= 0 and labels.max() < len(source.class_names)
    np.testing.assert_array_equal(images[1], images[3])
    for place, index in enumerate((last, 0)):
        alone, label = read(np.array([index], np.int32))
        np.testing.assert_array_equal(alone[0], images[place])
        assert label[0] == labels[place]
    assert len({source.describe(i) for i in range(source.num_examples)}) == source.num_examples


@pytest.mark.parametrize("kind", ["digits", "folder", "prepared", "subset", "arrays", "pairs"])
def test_every_kind_of_source_keeps_it(opened, kind):
    assert_keeps_the_protocol(opened[kind])


@needs_data
@pytest.mark.parametrize("name", ["tfds:cifar10", "tfds:imagenet2012"])
def test_tfds_keeps_it(name):
    assert_keeps_the_protocol(open_source(name, "train[:50]"))


def test_the_source_of_a_guest_is_trained_on_and_tested():
    source, config = Arrays(), data()
    batches = pipeline.train_batches(source, config, seed=3, batch_size=8)
    for step in range(7):  # more than two epochs of three batches
        batch, epoch = next(batches), step // 3
        draws = augment.draws(3, epoch, 30, config)
        order = augment.order(3, epoch, 30)[step % 3 * 8 :][:8]
        np.testing.assert_array_equal(batch["index"], order)
        np.testing.assert_array_equal(batch["label"], source.labels[order])
        crops = augment.crop(
            source.images[order], draws.offset[order], draws.flip[order], crop_size=32, pad=2
        )
        np.testing.assert_array_equal(batch["image"], crops)
    whole = list(pipeline.eval_batches(source, config, batch_size=16))
    real = [batch["mask"] > 0 for batch in whole]
    for name, expected in (("image", source.images), ("label", source.labels)):
        found = np.concatenate([batch[name][m] for batch, m in zip(whole, real, strict=True)])
        np.testing.assert_array_equal(found, expected)


def test_the_source_of_a_guest_is_divided_and_prepared(tmp_path):
    source = Arrays()
    part = Subset(source, np.array([4, 9, 20]), "part")
    prepare(part, data(), tmp_path / "part", lambda done, total: None)
    images, labels = open_source(f"prepared:{tmp_path}", "part").squares(data())(np.arange(3))
    np.testing.assert_array_equal(images, source.images[[4, 9, 20]])
    np.testing.assert_array_equal(labels, source.labels[[4, 9, 20]])


def test_unreadable_images_of_a_guest_are_named_or_replaced():
    source = Arrays(broken={3, 4, 11})
    with pytest.raises(UsageError, match=r"array 3: broken; replace or remove it$"):
        list(pipeline.eval_batches(source, data(), batch_size=8))
    unreadable = {}
    config = data(max_unreadable=3)
    batches = list(pipeline.eval_batches(source, config, batch_size=8, unreadable=unreadable))
    assert unreadable == {i: f"array {i}: broken" for i in (3, 4, 11)}
    assert sum(batch["mask"].sum() for batch in batches) == 27
    train = pipeline.train_batches(source, config, seed=0, batch_size=10)
    for epoch in range(2):
        seen = np.concatenate([next(train)["index"] for _ in range(3)])
        order = augment.order(0, epoch, 30)
        kept = ~np.isin(order, [3, 4, 11])
        np.testing.assert_array_equal(seen[kept], order[kept])
        assert not set(seen) & {3, 4, 11}


def test_a_stand_in_that_cannot_be_read_either_is_replaced_in_turn():
    unreadable, config = {}, data(max_unreadable=3)
    source = Arrays(broken={7, 8, 9})
    batches = pipeline.eval_batches(source, config, batch_size=8, unreadable=unreadable)
    assert next(batches)["index"].tolist() == [*range(7), 10]
    assert set(unreadable) == {7, 8, 9}


def test_an_image_that_could_not_be_read_once_is_read_again():
    source = Arrays()
    true_squares, failed = source.squares, []

    def squares(config):
        read = true_squares(config)

        def once(indices):
            if 5 in indices and not failed:
                failed.append(1)
                raise UsageError("array 5: the network is down")
            return read(indices)

        return once

    source.squares = squares
    unreadable = {}
    batches = list(pipeline.eval_batches(source, data(), batch_size=10, unreadable=unreadable))
    assert failed and not unreadable and all(batch["mask"].all() for batch in batches)


def test_an_error_that_no_single_image_causes_is_raised():
    source = Arrays()

    def squares(config):
        def read(indices):
            if len(indices) > 1:
                raise UsageError("arrays: only one at a time")
            return source.images[indices], source.labels[indices]

        return read

    source.squares = squares
    with pytest.raises(UsageError, match="only one at a time"):
        list(pipeline.eval_batches(source, data(), batch_size=10))


def test_what_a_source_cannot_make_is_an_error_before_the_first_batch():
    for make in (pipeline.eval_batches, pipeline.train_batches):
        seed = {"seed": 0} if make is pipeline.train_batches else {}
        with pytest.raises(UsageError, match="image_size must be 16"):
            make(Arrays(side=16), data(), batch_size=4, **seed)


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_batches_that_are_dropped_end_their_threads_and_let_go_of_the_source(taken):
    threads = Path("/proc/self/task")

    def run():
        source = Arrays()
        batches = pipeline.train_batches(source, data(), seed=0, batch_size=4)
        for _ in range(taken):
            next(batches)
        return weakref.ref(source), len(list(threads.iterdir()))

    run()  # TensorFlow keeps some threads for later
    before = len(list(threads.iterdir()))
    source, meanwhile = run()
    assert meanwhile > before or not taken
    deadline = time.monotonic() + 10
    while len(list(threads.iterdir())) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(threads.iterdir())) <= before
    gc.collect()
    assert source() is None


class Labelled(Arrays):
    """A guest's source that hands out what it is given."""

    def __init__(self, labels, images=None):
        super().__init__(count=len(labels))
        self.labels = np.asarray(labels)
        self.images = self.images if images is None else images


def one_item_wrong(label):
    pairs = [(image, 1) for image in Arrays(count=6).images]
    pairs[4] = (pairs[4][0], label)
    return as_source(pairs, "train", 2)


@pytest.mark.parametrize("label", [-1, 2, 255, -(2**31), 2**31, 2**63 - 1])
@pytest.mark.parametrize("batches", ["train", "eval"])
@pytest.mark.parametrize("make", [one_item_wrong, lambda label: Labelled([0, 1, 0, 1, label, 1])])
def test_a_label_that_is_no_class_is_refused_wherever_it_comes_from(label, batches, make):
    """And is not counted among the images that cannot be read."""
    source, config = make(label), data(max_unreadable=5)
    read = {
        "train": lambda: pipeline.train_batches(source, config, seed=0, batch_size=3),
        "eval": lambda: pipeline.eval_batches(source, config, batch_size=3),
    }[batches]
    says = f"^{source.describe(4)} has the label {label}: labels are 0 to 1"
    with pytest.raises(UsageError, match=says) as error:
        for _ in zip(range(4), read(), strict=False):
            pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(6), r"labels are float64 \[6\]"),
        (np.zeros((6, 1), int), r"labels are int64 \[6, 1\]"),
        (["0"] * 6, "labels are <U1"),
        (np.zeros(6, bool), "labels are bool"),
    ],
)
def test_labels_of_another_kind_are_refused(labels, says):
    with pytest.raises(UsageError, match=says):
        next(pipeline.eval_batches(Labelled(labels), data(), batch_size=6))


@pytest.mark.parametrize(
    "images", [np.zeros((6, 32, 32, 3), np.float32), np.zeros((6, 32, 32, 1), np.uint8)]
)
def test_images_that_are_no_squares_of_grey_levels_are_refused(images):
    with pytest.raises(UsageError, match=r"images are .*: give uint8 \[6, S, S, 3\]"):
        next(pipeline.eval_batches(Labelled([0] * 6, images), data(), batch_size=6))


def test_many_images_are_decoded_as_each_of_them_alone():
    source, config = open_source("digits", "train"), data(image_size=20, crop_size=20)
    encoded, _ = source.read(np.arange(40))
    squares = decode.decoder(config)
    together = squares(encoded)
    for image, square in zip(encoded, together, strict=True):
        np.testing.assert_array_equal(squares([image])[0], square)


def test_the_first_image_that_cannot_be_decoded_is_named_by_its_position():
    encoded, _ = open_source("digits", "train").read(np.arange(4))
    cut = encoded[2][: len(encoded[2]) // 2]
    for bad, reason in ((b"text", "not a JPEG, PNG, BMP"), (cut, "not a readable image")):
        with pytest.raises(decode.UnreadableImage, match=reason) as error:
            decode.decoder(data())([*encoded[:2], bad, encoded[3]])
        assert error.value.position == 2 and "\n" not in error.value.reason
