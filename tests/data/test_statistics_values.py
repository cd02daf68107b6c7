"""By what the statistics of a data set are found again."""

import os

import numpy as np
import pytest

from alexnet_jax.data import inputs, statistics
from alexnet_jax.data.sources import Subset, open_source
from tests.data.test_pipeline import data_config
from tests.data.test_protocol import Arrays
from tests.support import png_folder, tiny_config


@pytest.fixture
def folder(tmp_path):
    return png_folder(tmp_path, train=4, test=4)


def key(folder, split="train", **changes):
    return statistics.key(open_source(f"folder:{folder}", split), data_config(**changes))


@pytest.mark.parametrize(
    "change", [{"image_size": 31}, {"resize": "stretch"}, {"shrink": "triangle"}, {"split": "test"}]
)
def test_what_changes_the_squares_changes_the_key(folder, change):
    assert key(folder, **change) != key(folder)


@pytest.mark.parametrize(
    "change", [{"crop_size": 24}, {"pad": 0}, {"random_crop": False}, {"scale": 2.0}]
)
def test_what_happens_to_the_squares_later_does_not(folder, change):
    assert key(folder, **change) == key(folder)


@pytest.mark.parametrize("what", ["bytes", "time", "name", "one less"])
def test_a_file_that_changes_changes_the_key(folder, what):
    before, path = key(folder), next((folder / "train").rglob("*.png"))
    status = path.stat()
    if what == "bytes":
        path.write_bytes(path.read_bytes() + b" ")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif what == "time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    elif what == "name":
        path.rename(path.with_name("other.png"))
    else:
        path.with_name("more.png").write_bytes(path.read_bytes())
        before = key(folder)
        path.unlink()
    assert key(folder) != before


def test_files_of_the_same_names_times_and_sizes_in_another_folder_are_others(folder, monkeypatch):
    other = png_folder(folder / "below", train=4, test=4)
    for path in (folder / "train").rglob("*.png"):
        twin, status = other / path.relative_to(folder), path.stat()
        os.utime(twin, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert twin.stat().st_size == status.st_size
    keys = []
    for place in (folder, other):
        monkeypatch.chdir(place)
        keys.append(key("."))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("source", [Arrays(), open_source("digits", "train")], ids=lambda s: s.name)
def test_images_in_memory_have_no_key(source):
    """Nothing but their pixels tells two arrays of the same name and size from one another."""
    for part in (source, Subset(source, np.arange(10), "part")):
        assert statistics.key(part, data_config()) is None


def test_statistics_of_images_in_memory_are_computed_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    config = tiny_config()
    found = [inputs.compute_statistics(config, tmp_path / f"{run}.npz") for run in "ab"]
    assert found[0].num_examples == 1437 - 144 and not (tmp_path / "kept").exists()
    np.testing.assert_array_equal(found[0].mean_image, found[1].mean_image)
