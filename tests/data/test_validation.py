"""The images that steer a run: a split of their own, or a share that is not trained on."""

import shutil

import numpy as np
import pytest

from alexnet_jax.config import presets
from alexnet_jax.data import inputs, pipeline, sources, statistics
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import Subset, fit_classes, hold_out, open_source, open_sources
from alexnet_jax.errors import UsageError
from tests.support import needs_data, png_folder, tiny_config

TRAIN = 50


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Digits' names as classes: a folder, the same prepared, and one without splits."""
    root = tmp_path_factory.mktemp("sources")
    png_folder(root / "images", train=TRAIN, test=10)
    shutil.copytree(root / "images" / "test", root / "images" / "val")
    shutil.copytree(root / "images" / "train", root / "undivided")
    for split in ("train", "test", "val"):
        source = open_source(f"folder:{root / 'images'}", split)
        prepare(source, tiny_config().data, root / "prepared" / split, lambda done, total: None)
    return root


KINDS = ("digits", "folder", "undivided", "prepared", pytest.param("tfds", marks=needs_data))


def config_of(kind, root, **changes):
    config = tiny_config()
    name = {
        "digits": "digits",
        "folder": f"folder:{root / 'images'}",
        "undivided": f"folder:{root / 'undivided'}",
        "prepared": f"prepared:{root / 'prepared'}",
        "tfds": "tfds:cifar10",
    }[kind]
    config.data.update(source=name, **changes)
    return config


def places(source):
    return [source.describe(i) for i in range(source.num_examples)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.1, 0.34])
def test_train_and_validation_are_disjoint_and_together_all(kind, fraction, root):
    config = config_of(kind, root, validation_fraction=fraction)
    whole = open_source(config.data.source, "train")
    found = open_sources(config)
    train, validation = found["train"], found["validation"]
    assert validation.num_examples == round(fraction * whole.num_examples)
    assert sorted(places(train) + places(validation)) == sorted(places(whole))
    assert len(set(places(whole))) == whole.num_examples
    order = {place: i for i, place in enumerate(places(whole))}
    for part in (train, validation):
        rows = [order[place] for place in places(part)]
        assert rows == sorted(rows)
        assert (part.name, part.files) == (whole.name, whole.files)
        assert part.class_names == whole.class_names
    assert places(found["test"]) == places(open_source(config.data.source, "test"))


def test_a_tenth_of_the_digits():
    found = open_sources(tiny_config())
    counts = {split: source.num_examples for split, source in found.items()}
    assert counts == {"train": 1437 - 144, "validation": 144, "test": 360}


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_are_those_of_the_source(kind, root):
    config = config_of(kind, root)
    whole = open_source(config.data.source, "train")
    read, order = whole.squares(config.data), {p: i for i, p in enumerate(places(whole))}
    for source in (open_sources(config)["train"], open_sources(config)["validation"]):
        chosen = np.array([3, 0, source.num_examples - 1, 0])
        images, labels = source.squares(config.data)(chosen)
        expected = read(np.array([order[source.describe(i)] for i in chosen]))
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
        assert images.dtype == np.uint8 and labels.dtype.kind == "i"


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_every_seed_holds_out_the_same_images(kind, root):
    found = []
    for seed in (0, 1, 2012):
        config = config_of(kind, root)
        config.seed = seed
        found.append(places(open_sources(config)["validation"]))
    assert found[0] == found[1] == found[2]


def test_the_choice_is_spread_over_the_source():
    """Sources are ordered by class or by writer, so that the first tenth would be one of them."""
    whole = open_source("digits", "train")
    _, validation = hold_out(whole, 0.1)
    assert validation.rows.min() < 50 and validation.rows.max() > 1387
    labels = validation.squares(tiny_config().data)(np.arange(144))[1]
    assert set(labels) == set(range(10))


@pytest.mark.parametrize(("fraction", "held_out"), [(0.001, 1), (0.1, 1), (0.3, 3), (0.9, 9)])
def test_the_share_is_rounded_and_at_least_one(fraction, held_out):
    first = Subset(open_source("digits", "train"), np.arange(10), "train")
    train, validation = hold_out(first, fraction)
    assert (train.num_examples, validation.num_examples) == (10 - held_out, held_out)


def test_something_is_left_to_train_on():
    first = Subset(open_source("digits", "train"), np.arange(10), "train")
    with pytest.raises(UsageError, match=r"validation_fraction = 0\.99: leaves none of the 10"):
        hold_out(first, 0.99)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_share_all_images_are_trained_on(kind, root):
    config = config_of(kind, root, validation_fraction=0.0)
    found = open_sources(config)
    assert set(found) == {"train", "test"}
    assert places(found["train"]) == places(open_source(config.data.source, "train"))


@pytest.mark.parametrize("kind", ["folder", "prepared"])
def test_a_split_for_validation_leaves_the_training_images_whole(kind, root):
    config = config_of(kind, root, validation_split="val")
    found = open_sources(config)
    assert found["train"].num_examples == TRAIN
    assert places(found["validation"]) == places(open_source(config.data.source, "val"))
    assert found["validation"] is not found["test"]


def test_no_split_is_opened_twice(root, monkeypatch):
    opened, true_open = [], sources.open_source

    def open_source(name, split, *rest):
        opened.append(split)
        return true_open(name, split, *rest)

    monkeypatch.setattr(sources, "open_source", open_source)
    open_sources(config_of("folder", root))
    assert opened == ["train", "test"]
    opened.clear()
    found = open_sources(config_of("folder", root, validation_split="test"))
    assert opened == ["train", "test"] and found["validation"] is found["test"]
    opened.clear()
    config = config_of("folder", root, test_split="train")
    found = open_sources(config)
    assert opened == ["train"] and found["test"].num_examples == TRAIN


def test_classes_are_those_of_the_network(root):
    config = config_of("folder", root)
    config.model.num_classes = 9
    with pytest.raises(UsageError, match=r"has 10 classes: set --config\.model\.num_classes=10"):
        open_sources(config)


@pytest.mark.parametrize("changes", [{}, {"validation_split": "val"}, {"validation_fraction": 0.0}])
def test_the_mean_image_is_of_the_images_that_are_trained_on(root, tmp_path, monkeypatch, changes):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    config = config_of("folder", root, mean="image", **changes)
    train = open_sources(config)["train"]
    images, _ = train.squares(config.data)(np.arange(train.num_examples))
    mean = inputs.of_run(config, tmp_path / "run", trained=False).mean
    np.testing.assert_allclose(mean, images.astype(float).mean(0), rtol=1e-5)


def test_statistics_are_kept_for_each_choice_of_images(root, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    passes, compute = [], statistics.compute
    monkeypatch.setattr(statistics, "compute", lambda *a: passes.append(1) or compute(*a))
    counts = []
    for number, fraction in enumerate((0.1, 0.0, 0.2, 0.1)):
        config = config_of("folder", root, validation_fraction=fraction)
        found = inputs.compute_statistics(config, tmp_path / f"{number}.npz")
        counts.append(found.num_examples)
    assert counts == [45, 50, 40, 45] and len(passes) == 3


def test_the_key_of_statistics_is_that_of_the_images_not_of_their_number(root):
    data = tiny_config().data
    whole = open_source(f"folder:{root / 'images'}", "train")
    halves = [Subset(whole, np.arange(25) + i, "train") for i in (0, 25)]
    assert len({statistics.key(source, data) for source in (whole, *halves)}) == 3
    assert statistics.key(Subset(whole, np.arange(25), "train"), data) == statistics.key(
        halves[0], data
    )


def test_statistics_need_neither_a_test_split_nor_the_classes_of_a_network(root, tmp_path):
    config = config_of("folder", root)
    config.data.test_split = "nowhere"
    config.model.num_classes = 9
    assert inputs.compute_statistics(config, tmp_path / "s.npz").num_examples == 45


def test_unreadable_images_are_replaced_within_the_training_images(tmp_path):
    png_folder(tmp_path, train=TRAIN)
    config = tiny_config()
    config.data.update(source=f"folder:{tmp_path}", max_unreadable=3)
    train, validation = (open_sources(config)[split] for split in ("train", "validation"))
    for source, index in ((train, 7), (train, 30), (validation, 2)):
        with open(source.describe(index), "w") as file:
            file.write("no image")
    unreadable = {}
    batches = pipeline.train_batches(
        train, config.data, seed=0, batch_size=15, unreadable=unreadable
    )
    seen = np.concatenate([next(batches)["index"] for _ in range(6)])
    assert set(unreadable) == {7, 30} and not set(seen) & {7, 30}
    assert unreadable[7].startswith(train.describe(7))
    unreadable = {}
    (batch,) = pipeline.eval_batches(validation, config.data, batch_size=5, unreadable=unreadable)
    assert set(unreadable) == {2} and batch["mask"].tolist() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("there,kept", [("test", ""), ("val", "validation"), ("test val", "")])
def test_a_preset_for_imagenet_does_not_validate_on_a_folders_test_images(tmp_path, there, kept):
    png_folder(tmp_path, 20)
    for name in there.split():
        shutil.copytree(tmp_path / "test", tmp_path / f"{name} ")
    shutil.rmtree(tmp_path / "test")
    for name in there.split():
        (tmp_path / f"{name} ").rename(tmp_path / name)
    config = presets.get("source")
    config.data.source = f"folder:{tmp_path}"
    assert fit_classes(config).data.validation_split == kept
