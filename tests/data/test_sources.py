import fractions
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import fit_classes, open_source, open_sources
from alexnet_jax.errors import UsageError
from tests.support import needs_data, tiny_config


def write_image(path, value, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def test_digits_are_scikit_learns_split_in_two():
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(1797)
    for split, count, expected in (("train", 1437, order[:1437]), ("test", 360, order[1437:])):
        source = open_source("digits", split)
        assert (source.num_examples, len(source.class_names)) == (count, 10)
        encoded, labels = source.read(np.arange(count))
        rows = [int(source.describe(i).split()[-1]) for i in range(count)]
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(labels, digits.target[rows])
        pixels = np.array([np.asarray(Image.open(io.BytesIO(data))) for data in encoded])
        np.testing.assert_allclose(pixels / 255 * 16, digits.images[rows], atol=0.5 * 16 / 255)


def test_folders_with_splits_share_their_classes(tmp_path):
    for split, classes in (("train", "abc"), ("test", "ac")):
        for i, name in enumerate(classes):
            for n in range(3):
                write_image(tmp_path / split / name / f"{n}.png", 10 * i + n)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    train = open_source(f"folder:{tmp_path}", "train")
    test = open_source(f"folder:{tmp_path}", "test")
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert (train.num_examples, test.num_examples) == (9, 6)
    encoded, labels = test.read(np.arange(6))
    for i in range(6):
        path = test.describe(i)
        assert Path(path).read_bytes() == encoded[i]
        assert test.class_names[labels[i]] == path.split("/")[-2]


@pytest.mark.parametrize("fraction", ["1/5", "1/4", "1/3", "1/2", "1/10"])
def test_one_folder_is_split_by_a_hash_of_the_names(tmp_path, fraction):
    """Of each class every fifth of the images in the order of the hash, if the share is a fifth."""
    names = {"cat": [f"{n}.JPEG" for n in range(23)], "dog": [f"d{n}.png" for n in range(11)]}
    for label, files in names.items():
        (tmp_path / label).mkdir()
        for name in files:
            (tmp_path / label / name).write_text(f"{label} {name}")
    expected = {"train": [], "test": []}
    share = fractions.Fraction(fraction)
    for label, files in names.items():
        hashed = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
        tested = {n for i, n in enumerate(hashed) if int((i + 1) * share) > int(i * share)}
        for name in files:
            expected["test" if name in tested else "train"].append(f"{label} {name}")
    config = tiny_config().data
    config.test_fraction = float(share)
    for split, wanted in expected.items():
        source = open_source(f"folder:{tmp_path}", split, config)
        encoded, labels = source.read(np.arange(source.num_examples))
        assert sorted(data.decode() for data in encoded) == sorted(wanted)
        for data, label in zip(encoded, labels, strict=True):
            assert data.decode().split()[0] == source.class_names[label]


@pytest.mark.parametrize(
    ("present", "asked", "taken"),
    [
        (("test",), "validation", "test"),
        (("val",), "test", "val"),
        (("validation", "val"), "test", "validation"),
        (("test", "val"), "val", "val"),
        (("test", "validation", "val"), "validation", "validation"),
    ],
)
def test_the_folder_of_the_test_may_be_called_any_of_three_names(tmp_path, present, asked, taken):
    for name in ("train", *present):
        write_image(tmp_path / name / "a" / f"{name}.png", 1)
    source = open_source(f"folder:{tmp_path}", asked)
    assert source.split == taken and source.files == (str(tmp_path / taken / "a" / f"{taken}.png"),)


def test_a_run_has_the_splits_and_the_classes_of_its_folder(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in "abc":
            for n in range(count):
                write_image(tmp_path / split / name / f"{n}.png", n)
    config = tiny_config()
    config.data.source = f"folder:{tmp_path}"
    with pytest.raises(UsageError, match=r"num_classes = 10, but .* has 3 classes"):
        open_sources(config)
    fitted = fit_classes(config)
    assert fitted.model.num_classes == fitted.model.layers.fc8.features == 3
    assert config.model.num_classes == config.model.layers.fc8.features == 10
    sources = open_sources(fitted)
    counts = {name: source.num_examples for name, source in sources.items()}
    assert counts == {"train": 8, "validation": 1, "test": 6}
    folders = {"train": "train", "validation": "train", "test": "test"}
    assert all(f"/{folders[name]}/" in f for name, s in sources.items() for f in s.files)
    config.data.source = "digits"
    assert fit_classes(config) is config


def test_mistakes_in_folders_are_named(tmp_path):
    (tmp_path / "train" / "b").mkdir(parents=True)
    for name, split, says in (
        (f"folder:{tmp_path}", "train", "train has no class folders: no folder holds images"),
        (f"folder:{tmp_path}/nothing", "train", "there is no folder .*/nothing"),
        ("cifar10", "train", "tfds:NAME"),
        ("digits", "validation", "train, test"),
    ):
        with pytest.raises(UsageError, match=says):
            open_source(name, split)


@needs_data
def test_tfds_reads_what_tensorflow_reads():
    import tensorflow as tf

    source = open_source("tfds:imagenet2012", "train")
    files = sorted(Path(os.environ["TFDS_DATA_DIR"]).glob("imagenet2012/*/*-train.tfrecord*"))
    records = [r.numpy() for r in tf.data.TFRecordDataset([str(f) for f in files]).take(40)]
    encoded, labels = source.read(np.arange(40)[::-1])
    for record, image, label in zip(records, encoded[::-1], labels[::-1], strict=True):
        feature = tf.train.Example.FromString(record).features.feature
        assert feature["image"].bytes_list.value[0] == image
        assert feature["label"].int64_list.value[0] == label
    assert source.num_examples == 800 and len(source.class_names) == 1000


def test_a_missing_data_set_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UsageError, match=r"tfds\.load\('cifar10'\)"):
        open_source("tfds:cifar10", "train")
    with pytest.raises(UsageError, match=r"ILSVRC2012_img_train\.tar"):
        open_source("tfds:imagenet2012", "train")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A TFDS data set of three shards, 4, 1 and 5 records long; its folder and (image, label)s."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")
    folder = root / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
        }
    )
    rng, examples, counts = np.random.default_rng(0), [], (4, 1, 5)
    for number, count in enumerate(counts):
        path = folder / f"tiny-train.tfrecord-{number:05d}-of-{len(counts):05d}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(count):
                size = (*rng.integers(4, 30, 2), 3)  # records of different lengths
                image = {"image": rng.integers(0, 256, size, np.uint8), "label": len(examples) % 3}
                record = features.serialize_example(features.encode_example(image))
                parsed = tf.train.Example.FromString(record).features.feature
                examples.append((parsed["image"].bytes_list.value[0], image["label"]))
                writer.write(record)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="tiny", split="train", filetype_suffix="tfrecord"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name="train", shard_lengths=list(counts), num_bytes=0, filename_template=template
            )
        ],
        supervised_keys=("image", "label"),
    )
    return root, examples


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[3:6]", range(3, 6)),
        ("train[4:5]", range(4, 5)),
        ("train[-6:]", range(4, 10)),
        ("train[50%:]", range(5, 10)),
        ("train[8:]+train[:2]", [8, 9, 0, 1]),
    ],
)
def test_records_are_found_across_shards(shards, monkeypatch, split, rows):
    root, examples = shards
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    source = open_source("tfds:tiny", split)
    assert (source.num_examples, len(source.class_names)) == (len(rows), 3)
    assert source.name == "tfds:tiny:1.0.0" and source.class_names == ("x", "y", "z")
    shuffled = np.random.default_rng(1).permutation(len(rows))
    encoded, labels = source.read(shuffled)
    expected = [examples[rows[i]] for i in shuffled]
    assert list(zip(encoded, labels.tolist(), strict=True)) == expected
    assert labels.dtype.kind == "i"


@pytest.mark.parametrize(
    "split", ["train[:0]", "train[5:2]", "train[:x", "train[90000:]", "TRAIN", "validation"]
)
def test_slices_without_images_are_errors(shards, monkeypatch, split):
    monkeypatch.setenv("TFDS_DATA_DIR", str(shards[0]))
    with pytest.raises(UsageError, match=r"tiny/1\.0\.0"):
        open_source("tfds:tiny:1.0.0", split)


def set_format(info):
    info["fileFormat"] = "array_record"


def drop_keys(info):
    del info["supervisedKeys"]


def swap_keys(info):
    info["supervisedKeys"]["tuple"]["items"].reverse()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_format, "stored as array_record"),
        (drop_keys, "one class label each"),
        (swap_keys, "one class label each"),
        (None, "is damaged"),
    ],
)
def test_a_data_set_of_another_kind_is_an_error(shards, tmp_path, monkeypatch, change, says):
    shutil.copytree(shards[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    if change:
        change(info)
    path.write_text(json.dumps(info) if change else "{")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UsageError, match=says):
        open_source("tfds:tiny", "train")


def test_a_version_that_is_not_there_is_an_error(shards, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(shards[0]))
    with pytest.raises(UsageError, match=r"tfds\.load\('tiny:9\.9\.9'\)"):
        open_source("tfds:tiny:9.9.9", "train")


def test_data_sets_lie_in_the_home_folder_unless_a_variable_says_where(
    shards, tmp_path, monkeypatch
):
    shutil.copytree(shards[0], tmp_path / "tensorflow_datasets")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    source = open_source("tfds:tiny", "train")
    assert all(path.startswith(f"{tmp_path}/tensorflow_datasets/") for path in source.files)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="is not prepared"):
        open_source("tfds:tiny", "train")


@pytest.mark.parametrize("place", ["in a record", "in a header", "between records", "at the start"])
def test_a_damaged_shard_is_named(shards, tmp_path, monkeypatch, place):
    """A file cut at any place, or an empty one, is no shorter data set but an error."""
    shutil.copytree(shards[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = open_source("tfds:tiny", "train")
    shard, start = source.files[2], int(source.offset[8]) - 12  # the fourth of five records
    length = {"between records": start, "in a header": start + 6, "in a record": start + 20}
    os.truncate(shard, length.get(place, 0))
    with pytest.raises(UsageError, match=f"{shard} is damaged: .* lists 5 records"):
        open_source("tfds:tiny", "train")


def test_the_newest_version_is_taken_by_number(shards, tmp_path, monkeypatch):
    for version in ("1.0.0", "1.9.0", "1.10.0"):
        shutil.copytree(shards[0] / "tiny" / "1.0.0", tmp_path / "tiny" / version)
        info = tmp_path / "tiny" / version / "dataset_info.json"
        info.write_text(info.read_text().replace("1.0.0", version))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert open_source("tfds:tiny", "train").name == "tfds:tiny:1.10.0"
    assert open_source("tfds:tiny:1.9.0", "train").name == "tfds:tiny:1.9.0"


@pytest.mark.parametrize(
    ("labels", "says"),
    [([-1], "label -1: labels are 0 to 2"), ([3], "label 3"), ([2**40], "label 1099511627776"),
     ([], "0 labels"), ([1, 2], "2 labels")],
)  # fmt: skip
def test_a_record_without_one_of_the_labels_is_named(shards, tmp_path, monkeypatch, labels, says):
    """Such as the -1 of a test set whose labels are hidden."""
    import tensorflow as tf

    shutil.copytree(shards[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    shard = str(next(tmp_path.glob("tiny/*/*-00001-of-*")))
    (record,) = tf.data.TFRecordDataset(shard)
    example = tf.train.Example.FromString(record.numpy())
    example.features.feature["label"].int64_list.value[:] = labels
    with tf.io.TFRecordWriter(shard) as writer:
        writer.write(example.SerializeToString())
    source = open_source("tfds:tiny", "train")
    with pytest.raises(UsageError, match=f"^{shard}, byte 12.*{says}"):
        list(pipeline.eval_batches(source, tiny_config().data, batch_size=10))


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_lost_after_opening_is_named(shards, tmp_path, monkeypatch, damage):
    shutil.copytree(shards[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = open_source("tfds:tiny", "train")
    shard = next(tmp_path.glob("tiny/*/*-00002-of-*"))
    if damage == "cut":
        os.truncate(shard, shard.stat().st_size - 10)
    else:
        shard.unlink()
    assert len(source.read(np.arange(5))[0]) == 5  # the other shards are as they were
    with pytest.raises(UsageError, match=shard.name):
        source.read(np.array([9]))


def test_one_flipped_bit_in_a_record_is_found(shards, tmp_path, monkeypatch):
    """At every place of the last record, its checksum included; images before it still come."""
    shutil.copytree(shards[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = open_source("tfds:tiny", "train")
    shard = next(tmp_path.glob("tiny/*/*-00002-of-*"))
    whole, rng = shard.read_bytes(), np.random.default_rng(0)
    for place in range(int(source.offset[9]), len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(broken)
        assert len(source.read(np.arange(9))[0]) == 9
        with pytest.raises(
            UsageError, match=rf"{shard.name}, byte {source.offset[9]}: the checksum does not match"
        ):
            source.read(np.array([9]))


def test_the_labels_of_one_folder_are_its_classes_and_hidden_ones_are_none(tmp_path):
    for number, name in enumerate(("dog", "cat", ".cache")):
        for n in range(12):
            write_image(tmp_path / name / f"{n}.bmp", 50 * number + n)
    for split, count in (("train", 20), ("test", 4)):
        source = open_source(f"folder:{tmp_path}", split)
        assert source.class_names == ("cat", "dog") and source.num_examples == count
        encoded, labels = source.read(np.arange(count))
        for i, (data, label) in enumerate(zip(encoded, labels, strict=True)):
            path = Path(source.describe(i))
            assert path.read_bytes() == data and path.parent.name == source.class_names[label]


def test_an_image_deleted_after_opening_is_named(tmp_path):
    write_image(tmp_path / "train" / "a" / "gone.png", 1)
    source = open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "train" / "a" / "gone.png").unlink()
    with pytest.raises(UsageError, match=r"gone\.png"):
        source.read(np.array([0]))


def test_what_is_no_source_or_no_split_is_an_error(tmp_path):
    write_image(tmp_path / "divided" / "train" / "a" / "x.png", 1)
    write_image(tmp_path / "plain" / "a" / "x.png", 1)
    (tmp_path / "none").mkdir()
    for name, split, says in (
        ("folder:", "train", "no source is called 'folder:'"),
        ("tfds:", "train", "no source is called 'tfds:'"),
        (f"folder:{tmp_path / 'divided'}", "test", "no split 'test'; it has train"),
        (f"folder:{tmp_path / 'plain'}", "all", "no split 'all'; it has train, test"),
        (f"folder:{tmp_path / 'plain'}", "test", "no image is left for test"),
        (f"folder:{tmp_path / 'plain'}", "val", "no image is left for test"),
        (f"folder:{tmp_path / 'none'}", "train", "has no class folders"),
    ):
        with pytest.raises(UsageError, match=says):
            open_source(name, split)
