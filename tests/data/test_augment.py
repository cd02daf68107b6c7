import dataclasses

import numpy as np
import pytest

from alexnet_jax.config.fields import IMAGENET_EIGENVECTORS
from alexnet_jax.data import augment
from alexnet_jax.errors import UsageError
from tests.support import tiny_config


def data_config(**changes):
    config = tiny_config()
    sides = dict(image_size=256, crop_size=224, pad=0)
    with config.unlocked():
        config.data.update(sides | dict(random_flip=True) | changes)
    return config.data


@pytest.mark.parametrize(("seed", "epoch", "pad"), [(0, 0, 0), (0, 1, 4), (1, 0, 0), (7, 12, 1)])
def test_order_crops_flips_and_colours_have_a_stream_each(seed, epoch, pad):
    """As NumPy alone draws them: the streams are numbered in this order."""

    def stream(number):
        seeds = np.random.SeedSequence([seed, number, epoch])
        return np.random.Generator(np.random.Philox(seeds))

    found = augment.draws(seed, epoch, 500, data_config(pad=pad))
    np.testing.assert_array_equal(augment.order(seed, epoch, 500), stream(0).permutation(500))
    places = 256 + 2 * pad - 224 + 1
    np.testing.assert_array_equal(found.offset, stream(1).integers(0, places, (500, 2), np.int32))
    np.testing.assert_array_equal(found.flip, stream(2).integers(0, 2, 500, bool))
    gaussians = stream(3).standard_normal((500, 3))
    np.testing.assert_array_equal(found.gaussians, gaussians.astype(np.float32))


@pytest.mark.parametrize(("field", "drawn"), [("random_crop", "offset"), ("random_flip", "flip")])
def test_turning_one_augmentation_off_leaves_the_others_as_they_were(field, drawn):
    on, off = (augment.draws(1, 2, 300, data_config(**{field: value})) for value in (True, False))
    for name, value in dataclasses.asdict(on).items():
        assert np.array_equal(getattr(off, name), value) == (name != drawn)


def test_crops_are_uniform_over_33_by_33_places_and_flips_are_fair():
    n = 200_000
    draws = augment.draws(0, 3, n, data_config())
    counts = np.zeros((33, 33))
    np.add.at(counts, tuple(draws.offset.T), 1)
    expected = n / 33**2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = 33**2 - 1
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)
    assert abs(draws.flip.mean() - 0.5) < 4 * 0.5 / np.sqrt(n)


@pytest.mark.parametrize(
    ("image_size", "pad", "crop_size", "place"),
    [(256, 0, 224, 16), (32, 4, 32, 4), (33, 0, 24, 4), (24, 2, 24, 2), (24, 0, 24, 0)],
)
def test_without_augmentation_every_crop_is_the_centre(image_size, pad, crop_size, place):
    sides = dict(image_size=image_size, pad=pad, crop_size=crop_size)
    draws = augment.draws(0, 0, 10, data_config(**sides, random_crop=False, random_flip=False))
    assert (draws.offset == place).all() and not draws.flip.any()


def test_draws_differ_by_epoch_and_seed_and_depend_on_nothing_else():
    config = data_config()
    base = augment.draws(1, 2, 1000, config)
    np.testing.assert_array_equal(base.offset, augment.draws(1, 2, 1000, config).offset)
    for other in (augment.draws(1, 3, 1000, config), augment.draws(2, 2, 1000, config)):
        assert (base.offset == other.offset).all(1).mean() < 0.02
        assert abs((base.flip == other.flip).mean() - 0.5) < 0.1
    orders = [augment.order(seed, epoch, 500) for seed in range(3) for epoch in range(3)]
    for number, order in enumerate(orders):
        np.testing.assert_array_equal(np.sort(order), np.arange(500))
        assert all((order == other).mean() < 0.05 for other in orders[:number])


@pytest.mark.parametrize("rule", ["source", "paper"])
def test_colour_noise_has_the_covariance_of_its_rule(rule):
    """sum_i v_i p_i p_i^T with v the variance that the rule gives component i."""
    config = data_config()
    config.colour.rule = rule
    s, p = np.array(config.colour.stdevs), np.array(config.colour.eigenvectors)
    # source: 0.1 s in grey levels. paper: eigenvalues of pixels in 0..1, back in grey levels.
    deviation = 0.1 * s if rule == "source" else 0.1 * (s / 255) ** 2 * 255
    expected = sum(deviation[i] ** 2 * np.outer(p[:, i], p[:, i]) for i in range(3))
    draws = augment.draws(0, 0, 100_000, config)
    shift = augment.colour_shift(draws.gaussians, config.colour)
    covariance = shift.T.astype(np.float64) @ shift / len(shift)
    assert np.linalg.norm(covariance - expected) < 0.02 * np.linalg.norm(expected)
    assert np.abs(shift.mean(0)).max() < 4 * np.sqrt(np.diag(expected).max() / len(shift))


def test_no_colour_rule_is_no_shift_and_an_unknown_one_an_error():
    colour = data_config().colour
    colour.rule = "none"
    assert not augment.colour_shift(np.ones((4, 3), np.float32), colour).any()
    colour.rule = "fancy"
    with pytest.raises(UsageError, match="fancy"):
        augment.colour_shift(np.ones((4, 3), np.float32), colour)


def test_ten_views_start_at_the_corners_and_the_centre():
    expected = [[0, 0], [0, 32], [32, 0], [32, 32], [16, 16]]
    np.testing.assert_array_equal(augment.ten_view_offsets((256, 256), 224), expected)
    expected = [[0, 0], [0, 96], [33, 0], [33, 96], [16, 48]]
    np.testing.assert_array_equal(augment.ten_view_offsets((257, 320), 224), expected)


def test_the_published_components_are_orthonormal():
    p = np.array(IMAGENET_EIGENVECTORS)
    np.testing.assert_allclose(p.T @ p, np.eye(3), atol=1e-6)


def test_a_crop_larger_than_the_image_is_an_error():
    config = data_config()
    config.crop_size = 300
    with pytest.raises(UsageError, match="crop_size 300"):
        augment.draws(0, 0, 5, config)
