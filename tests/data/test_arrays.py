"""Images given in Python: the squares of files with the same pixels, and every mistake named."""

import io
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import pipeline
from alexnet_jax.data.protocol import Kind
from alexnet_jax.data.sources import (
    fit_classes,
    forms,
    given_sources,
    open_source,
    open_sources,
    open_train,
)
from alexnet_jax.data.sources.arrays import as_source
from alexnet_jax.errors import UsageError
from alexnet_jax.registry import SOURCES
from tests.support import tiny_config

LABELS = np.array([0, 1, 2, 1, 0], np.int64)


def data(**changes):
    config = tiny_config()
    config.data.update(**changes)
    return config.data


def noise(height, width, count=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def squares(source, config):
    return source.squares(config)(np.arange(source.num_examples))


@pytest.fixture(scope="module", params=[(40, 50), (32, 47), (20, 32), (32, 32), (9, 70)], ids=str)
def files(request, tmp_path_factory):
    """Images of one size, and their files in a folder, read in the same order."""
    root, images = tmp_path_factory.mktemp("images"), noise(*request.param)
    for number, image in enumerate(images):
        place = root / "train" / "c"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(image))
    return images, open_source(f"folder:{root}", "train")


FORMS = {
    "array": lambda x, y: (x, y),
    "a list of images": lambda x, y: (list(x), y),
    "pairs": lambda x, y: list(zip(x, y.tolist(), strict=True)),
    "Pillow": lambda x, y: ([Image.fromarray(image) for image in x], y),
    "Pillow with alpha": lambda x, y: ([Image.fromarray(i).convert("RGBA") for i in x], y),
    "bytes": lambda x, y: ([png(image) for image in x], y),
    "some of each": lambda x, y: ([png(x[0]), x[1], Image.fromarray(x[2]), png(x[3]), x[4]], y),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("resize,shrink", [("short_side", "area"), ("stretch", "triangle")])
def test_the_squares_are_those_of_files_with_the_same_pixels(files, form, resize, shrink):
    images, folder = files
    config = data(resize=resize, shrink=shrink)
    source = as_source(FORMS[form](images, LABELS), "train", 3)
    found, labels = squares(source, config)
    assert found.dtype == np.uint8 and labels.dtype.kind == "i"
    np.testing.assert_array_equal(found, squares(folder, config)[0])
    np.testing.assert_array_equal(labels, LABELS)
    if images.shape[1:3] == (32, 32):
        np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("shape", [(5, 32, 32), (5, 32, 32, 1)])
@pytest.mark.parametrize("listed", [False, True])
def test_grey_images_have_three_equal_colours(shape, listed):
    images = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    found, _ = squares(as_source((list(images) if listed else images, LABELS), "train", 3), data())
    for colour in range(3):
        np.testing.assert_array_equal(found[..., colour], images.reshape(5, 32, 32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
@pytest.mark.parametrize("listed", [False, True])
def test_whole_grey_levels_of_other_types_are_taken(dtype, listed):
    images = noise(32, 32)
    given = images.astype(dtype)
    found, _ = squares(as_source((list(given) if listed else given, LABELS), "train", 3), data())
    np.testing.assert_array_equal(found, images)


WRONG = {
    "0 to 1": (noise(8, 8) / np.float32(255), r"float32 \[.*\] from .*: give grey levels"),
    "negative": (noise(8, 8).astype(np.int32) - 9, "from -9 to"),
    "more than 255": (noise(8, 8) * np.float64(2), "to 5[01]0: give grey levels"),
    "NaN": (np.where(noise(8, 8) == 7, np.nan, 0), "nan"),
    "logical": (noise(8, 8) > 7, "bool"),
    "colours first": (noise(8, 8).transpose(0, 3, 1, 2), r"moveaxis\(images, 1, -1\)"),
    "flat": (noise(8, 8).reshape(5, -1), r"uint8 \[5, 192\]"),
    "four colours": (np.zeros((5, 8, 8, 4), np.uint8), r"give \[N, H, W, 3\]"),
    "text": (["a.jpg"] * 5, "of type str"),
    "a number": (3, "of type int"),
    "a damaged file": ([png(noise(8, 8)[0])[:60]] * 5, "image 0: not a readable image"),
    "no image": ([b"text"] * 5, "image 0: not a JPEG"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", WRONG)
def test_other_images_are_refused_in_one_line(what):
    images, says = WRONG[what]
    with pytest.raises(UsageError, match=says) as error:
        squares(as_source((images, LABELS), "train", 3), data())
    assert "train" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "labels,says",
    [
        ([0, 1, 2, 3, 0], "labels are from 0 to 3: give 0 to 2"),
        ([0, 1, -1, 2, 0], "labels are from -1 to 2: give 0 to 2"),
        ([0, 1, 2], r"int64 \[3\]: give one whole number for each of the 5 images"),
        (np.eye(5), r"float64 \[5, 5\]"),
        ([[0], [1, 2]], "give one whole number"),
        (list("abcab"), "give one whole number"),
    ],
)
def test_labels_that_are_no_classes_are_refused_before_the_run(labels, says):
    with pytest.raises(UsageError, match=says):
        as_source((noise(8, 8), labels), "train", 3)


@pytest.mark.parametrize(
    "label,says",
    [(3, "label 3: labels are 0 to 2"), (-1, "label -1"), (2**40, "label 1099"), ("a", "str")],
)
def test_a_label_of_a_sequence_is_refused_when_it_is_read(label, says):
    pairs = [*zip(noise(32, 32), [0, 1, 2, 1], strict=False), (noise(32, 32)[4], label)]
    source = as_source(pairs, "train", 3)
    read = pipeline.checked(source, source.squares(data()))
    read(np.arange(4))
    with pytest.raises(UsageError, match=f"^given, train, image 4 .*{says}"):
        read(np.array([4]))


@pytest.mark.parametrize("given", [3, None, iter([]), [], (np.zeros((0, 8, 8), np.uint8), [])])
def test_what_has_no_items_is_refused(given):
    with pytest.raises(UsageError, match=r"train (images|labels)"):
        as_source(given, "train", 3)


class Own:
    """A data set as others write them: a length and items."""

    def __init__(self, count=30, broken=()):
        self.images = noise(32, 32, count)
        self.labels = np.arange(count) % 3
        self.broken, self.reading, self.most = set(broken), 0, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        assert type(index) is int
        self.reading += 1
        self.most = max(self.most, self.reading)
        time.sleep(0.001)
        self.reading -= 1
        if index in self.broken:
            raise OSError("the disk\nis gone")
        return self.images[index], self.labels[index]


def test_items_are_read_one_at_a_time():
    own = Own()
    read = as_source(own, "train", 3).squares(data())
    threads = [threading.Thread(target=read, args=(np.arange(30),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert own.most == 1


def test_an_item_that_cannot_be_read_is_named_or_replaced():
    source = as_source(Own(broken={4, 7}), "train", 3)
    says = r"^given, train, image 4 cannot be .*: OSError: the disk is gone"
    with pytest.raises(UsageError, match=says):
        list(pipeline.eval_batches(source, data(), batch_size=8))
    with pytest.raises(UsageError, match=says) as error:
        squares(source, data())
    assert isinstance(error.value.__cause__, OSError)
    unreadable = {}
    config = data(max_unreadable=2)
    batches = list(pipeline.eval_batches(source, config, batch_size=8, unreadable=unreadable))
    assert set(unreadable) == {4, 7} and sum(batch["mask"].sum() for batch in batches) == 28


def test_names_of_classes_are_given_or_the_sequences_own_or_the_labels():
    own = Own()
    assert as_source(own, "train", 3).class_names == ("0", "1", "2")
    own.class_names = ["a", "b", "c"]
    assert as_source(own, "train", 3).class_names == ("a", "b", "c")
    assert as_source(own, "train", 3, ("x", "y", "z")).class_names == ("x", "y", "z")
    with pytest.raises(UsageError, match=r"3 class names.* 4 classes.*num_classes = 3"):
        as_source(own, "train", 4)
    source = as_source(own, "train", 3)
    assert as_source(source, "train", 3) is source


def test_the_splits_of_a_run_are_given_or_held_out():
    config = tiny_config()
    config.model.num_classes = 3
    found = given_sources(config, Own(30), test=Own(7))
    counts = {name: (source.split, source.num_examples) for name, source in found.items()}
    assert counts == {"train": ("train", 27), "validation": ("validation", 3), "test": ("test", 7)}
    places = [{s.describe(i) for i in range(s.num_examples)} for s in found.values()]
    assert len(set.union(*places[:2])) == 30
    assert given_sources(config, Own(30), Own(4))["validation"].num_examples == 4
    assert given_sources(config, Own(30), Own(4)).keys() == {"train", "validation"}
    config.data.validation_fraction = 0.0
    assert given_sources(config, Own(30)).keys() == {"train"}


@pytest.fixture
def own_kinds():
    yield SOURCES
    for name in ("own", "named"):
        SOURCES.pop(name, None)


def test_a_source_of_others_is_opened_by_its_name(own_kinds):
    asked = []

    def open_own(rest, split, config):
        asked.append((rest, split, config.image_size))
        return Own({"train": 30, "test": 6}[split])

    own_kinds["own"] = open_own
    config = tiny_config()
    config.data.source = "own:some"
    config.model.num_classes = 3
    found = open_sources(config)
    assert asked == [("some", "train", 32), ("some", "test", 32)]
    assert {n: s.num_examples for n, s in found.items()} == {
        "train": 27, "validation": 3, "test": 6,
    }  # fmt: skip
    assert found["test"].name == "own:some" and found["test"].class_names == ("0", "1", "2")
    assert open_train(config.data).num_examples == 27  # whatever the classes are
    # Without names of its own, it has the classes of the network; with names, the network has its.
    config.batch_size = 16
    assert fit_classes(config) == config
    own_kinds["own"] = lambda *_: Named()
    assert fit_classes(config).model.num_classes == 2
    own_kinds["named"] = Kind(lambda *_: Named(), counted=False)
    config.data.source = "named"
    assert fit_classes(config) is config
    with pytest.raises(UsageError, match=r"2 class names.*num_classes = 2"):
        open_sources(config)


class Named(Own):
    class_names = ("cat", "dog")


@pytest.mark.parametrize(
    "name,says",
    [
        ("folders:x", r"did you mean folder:PATH \(PATH/SPLIT/CLASS/\*\.jpg\)\?"),
        ("folder:", r"did you mean folder:PATH"),
        ("digits:8", r"did you mean digits \(scikit-learn"),
        ("", "give one of .*digits .*tfds:NAME"),
        ("x:y", r"give one of .*, own, named:WORD \(what it is\)"),
        ("given", "given in Python; give them again"),
    ],
)
def test_a_name_that_opens_nothing_says_what_does(own_kinds, name, says):
    own_kinds["own"] = lambda *_: Own()
    own_kinds["named"] = Kind(lambda *_: Named(), rest="WORD", about="what it is")
    with pytest.raises(UsageError, match=says) as error:
        open_source(name, "train")
    assert "\n" not in str(error.value)


def test_the_built_in_sources_stay():
    with pytest.raises(UsageError, match="data source 'folder' is built in"):
        SOURCES["folder"] = lambda *_: Own()
    assert all(name in forms() for name in ("given", "digits", "folder", "prepared", "tfds"))


def test_the_sources_are_listed_without_starting_a_library():
    code = (
        "import sys; from alexnet_jax.registry import SOURCES; assert len(SOURCES) == 5;"
        "assert not {'jax', 'tensorflow', 'tensorflow_datasets', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
