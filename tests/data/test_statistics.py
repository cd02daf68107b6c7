import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import inputs, statistics
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from tests.support import png_folder, tiny_config


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    mix = np.array([[1.0, 0.6, 0.2], [0, 0.7, 0.5], [0, 0, 0.4]])
    images = (128 + 25 * rng.normal(size=(9, 16, 16, 3)) @ mix).clip(0, 255).astype(np.uint8)
    (root / "train" / "a").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / "train" / "a" / f"{i}.png")
    config = tiny_config()
    with config.unlocked():
        config.data.update(image_size=16, crop_size=12, pad=2)
    return images, statistics.compute(open_source(f"folder:{root}", "train"), config.data)


def test_statistics_equal_numpys(computed):
    images, found = computed
    np.testing.assert_allclose(found.mean_image, images.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.channel_mean, images.mean((0, 1, 2)), rtol=1e-5)
    covariance = np.cov(images.reshape(-1, 3).T, bias=True)
    p, s = found.eigenvectors.astype(np.float64), found.stdevs.astype(np.float64)
    np.testing.assert_allclose(p @ np.diag(s**2) @ p.T, covariance, rtol=1e-4)
    np.testing.assert_allclose(s**2, np.linalg.eigvalsh(covariance), rtol=1e-4)
    assert found.num_examples == 9


def test_a_file_gives_back_what_it_took(computed, tmp_path):
    _, found = computed
    found.save(tmp_path / "s.npz")
    for name, value in dataclasses.asdict(statistics.load(tmp_path / "s.npz")).items():
        np.testing.assert_array_equal(value, getattr(found, name))


@pytest.mark.parametrize(
    "change",
    [
        {"stdevs": np.array([3, 2, 1], np.float32)},
        {"mean_image": np.zeros((16, 15, 3), np.float32)},
        {"channel_mean": np.full(3, np.nan, np.float32)},
        {"eigenvectors": np.ones((3, 3), np.float32)},
        {"num_examples": 0},
        {"mean_image": np.array([object()])},
    ],
)
def test_a_file_of_something_else_is_an_error(computed, tmp_path, change):
    path = tmp_path / "s.npz"
    np.savez(path, **dataclasses.asdict(computed[1]) | change)
    with pytest.raises(UsageError, match=r"s\.npz is not a file of statistics"):
        statistics.load(path)
    path.write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"s\.npz"):
        statistics.load(path)


def test_many_batches_and_a_remainder_count_as_one(tmp_path):
    """70 images, so that a batch of any usual size leaves some over, each with its own level."""
    rng = np.random.default_rng(1)
    levels = np.linspace(10, 240, 70)[:, None, None, None]
    images = (levels + rng.normal(0, 8, (70, 6, 6, 3))).clip(0, 255).astype(np.uint8)
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "train" / "a" / f"{i:02d}.png")
    config = tiny_config()
    with config.unlocked():
        config.data.update(image_size=6, crop_size=6, pad=0)
    told = []
    found = statistics.compute(
        open_source(f"folder:{tmp_path}", "train"), config.data, lambda *done: told.append(done)
    )
    np.testing.assert_allclose(found.mean_image, images.mean(0), rtol=1e-5)
    variances = np.linalg.eigvalsh(np.cov(images.reshape(-1, 3).T, bias=True))
    np.testing.assert_allclose(found.stdevs.astype(np.float64) ** 2, variances, rtol=1e-4)
    assert found.num_examples == 70 and told[-1] == (70, 70)
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(told))


def test_components_are_ascending_and_signed_by_their_largest_entry(computed):
    _, found = computed
    assert (np.diff(found.stdevs) > 0).all()
    for column in found.eigenvectors.T:
        assert max(column, key=abs) > 0


@pytest.mark.parametrize("seed", range(6))
def test_grey_images_have_one_component(tmp_path, seed):
    """Two variances are zero but for rounding, which falls on either side of it."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i, image in enumerate(np.random.default_rng(seed).integers(0, 256, (4, 8, 8), np.uint8)):
        Image.fromarray(image).save(tmp_path / "train" / "a" / f"{i}.png")
    config = tiny_config()
    with config.unlocked():
        config.data.update(image_size=8, crop_size=8, pad=0)
    found = statistics.compute(open_source(f"folder:{tmp_path}", "train"), config.data)
    assert (found.stdevs >= 0).all()
    np.testing.assert_allclose(found.stdevs[:2], 0, atol=1e-3)
    np.testing.assert_allclose(found.eigenvectors[:, 2], np.full(3, 3**-0.5), atol=1e-5)


def test_saving_leaves_one_file_and_makes_its_folder(computed, tmp_path):
    path = tmp_path / "new" / "s.npz"
    for _ in range(2):
        computed[1].save(path)
    assert [p.name for p in path.parent.iterdir()] == ["s.npz"]


@pytest.mark.parametrize(
    "change",
    [
        {"mean_image": np.full((16, 16, 3), 300, np.float32)},
        {"channel_mean": np.full(3, -1, np.float32)},
        {"channel_mean": np.full(3, 100, np.float64)},
        {"stdevs": np.array([-1, 2, 3], np.float32)},
        {"mean_image": np.zeros((0, 0, 3), np.float32)},
        {"mean_image": np.float32(1)},
        {"num_examples": 1.5},
        {"num_examples": np.array([3])},
        {"another": np.zeros(3)},
    ],
)
def test_values_that_no_statistics_have_are_an_error(computed, tmp_path, change):
    path = tmp_path / "s.npz"
    np.savez(path, **dataclasses.asdict(computed[1]) | change)
    with pytest.raises(UsageError, match=r"s\.npz is not a file of statistics"):
        statistics.load(path)


def test_a_missing_cut_or_foreign_file_is_an_error(computed, tmp_path):
    path = tmp_path / "s.npz"
    with pytest.raises(UsageError, match=r"s\.npz"):
        statistics.load(path)
    computed[1].save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-5]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"s\.npz"):
            statistics.load(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(50) + whole[middle + 50 :])  # checksums disagree
    with pytest.raises(UsageError, match=r"s\.npz"):
        statistics.load(path)
    header = whole.index(b"PK\x01\x02")  # of the central directory; 6: version, 8: flags
    for place, value in ((6, 255), (8, 1)):
        damaged = bytearray(whole)
        damaged[header + place] = value
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"s\.npz"):
            statistics.load(path)
    fields = dataclasses.asdict(computed[1])
    fields.pop("stdevs")
    np.savez(path, **fields)
    with pytest.raises(UsageError, match=r"s\.npz"):
        statistics.load(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").replace(path)
    with pytest.raises(UsageError, match=r"s\.npz"):
        statistics.load(path)


def test_a_data_set_is_gone_over_once_until_a_file_of_it_changes(tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(kept))
    passes, compute = [], statistics.compute
    monkeypatch.setattr(statistics, "compute", lambda *a: passes.append(1) or compute(*a))
    png_folder(tmp_path / "images", train=10)
    config = tiny_config()
    config.data.update(source=f"folder:{tmp_path / 'images'}", mean="image")

    def mean(run, config=config):
        return inputs.of_run(config, tmp_path / run, trained=False).mean

    first = mean("a")
    np.testing.assert_array_equal(mean("b"), first)
    assert len(passes) == 1
    whiter = next((tmp_path / "images" / "train").rglob("*.png"))
    Image.fromarray(np.full((36, 40, 3), 255, np.uint8)).save(whiter)
    assert (mean("c") - first).mean() > 5  # a tenth of the images, from 127 on average to 255
    assert len(passes) == 2
    smaller = config.copy_and_resolve_references()
    smaller.data.update(image_size=24, crop_size=24)
    assert mean("d", smaller).shape == (24, 24, 3)
    for file in kept.iterdir():
        file.write_bytes(b"cut")
    np.testing.assert_array_equal(mean("e"), mean("c"))
    assert len(passes) == 4


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "below"))
    png_folder(tmp_path / "images", train=10)
    config = tiny_config()
    config.data.update(source=f"folder:{tmp_path / 'images'}", mean="image")
    assert inputs.of_run(config, tmp_path / "run", trained=False).mean.shape == (32, 32, 3)
