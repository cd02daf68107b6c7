import dataclasses

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import statistics
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from tests.support import tiny_config


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
