"""What the device does to images, against a transcription in NumPy."""

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import cache
from alexnet_jax.data import inputs
from alexnet_jax.data.sources import open_train
from alexnet_jax.errors import UsageError
from alexnet_jax.training import evaluate
from tests.support import tiny_config

SIZE, CROP = 11, 6
CENTRE = slice(2, 8)  # of margin 5 the smaller half comes first
CORNERS = ((0, 0), (0, 5), (5, 0), (5, 5), (2, 2))
GRID = [(y, x) for y in (0, 2, 5) for x in (0, 2, 5)]
CHANNEL_MEAN = np.float32([120.5, 110.25, 100.0])
MEAN_IMAGE = np.random.default_rng(5).uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)


def rule_of(mean, colour="source"):
    """The rule of a configuration, and what it takes away from a crop."""
    config = tiny_config()
    with config.unlocked():
        config.data.update(image_size=SIZE, crop_size=CROP, scale=0.25, mean=mean)
        config.data.update(channel_mean=tuple(map(float, CHANNEL_MEAN)))
        config.data.colour.rule = colour
    subtracted = {"channel": CHANNEL_MEAN, "image": MEAN_IMAGE[CENTRE, CENTRE]}[mean]
    return inputs.build(config.data, MEAN_IMAGE if mean == "image" else None), subtracted


def bytes_of(side, count=3):
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize("mean", ["channel", "image"])
@pytest.mark.parametrize("colour", ["source", "paper", "none"])
@pytest.mark.parametrize("noise", [True, False])
def test_a_training_image_loses_the_mean_takes_the_shift_and_is_scaled(mean, colour, noise):
    rule, subtracted = rule_of(mean, colour)
    shift = np.random.default_rng(1).normal(0, 20, (3, 3)).astype(np.float32)
    batch = {"image": bytes_of(CROP), "colour": shift}
    expected = batch["image"].astype(np.float64) - subtracted
    if noise:
        expected += shift[:, None, None, :]
        if colour == "source":
            expected /= 1.1
    found = jax.jit(rule.train)(batch, noise)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected * 0.25, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mean", ["channel", "image"])
@pytest.mark.parametrize("number,places", [(1, [(2, 2)]), (9, GRID), (10, CORNERS)])
def test_views_are_crops_in_order_then_their_mirrors(mean, number, places):
    """The mean of every view, mirrored ones too, is the centre of the mean image as it is."""
    rule, subtracted = rule_of(mean)
    images = bytes_of(SIZE)
    crops = [images[:, y : y + CROP, x : x + CROP] for y, x in places]
    if number == 10:
        crops += [crop[:, :, ::-1] for crop in crops]
    expected = (np.stack(crops).astype(np.float64) - subtracted) * 0.25
    found = rule.of_crops(rule.views(images, number))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    centre = expected[evaluate.centre_view(number)]
    np.testing.assert_allclose(rule.centre(images), centre, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("number,places", [(1, [(1, 4)]), (9, ""), (10, "")])
def test_views_of_images_that_are_not_squares_reach_every_border(number, places):
    rule, subtracted = rule_of("image")
    images = np.random.default_rng(2).integers(0, 256, (2, 9, 15, 3), np.uint8)
    ends = {"top": 0, "middle": 1, "bottom": 3}, {"left": 0, "centre": 4, "right": 9}
    grid = [(y, x) for y in ends[0].values() for x in ends[1].values()]
    corners = [(0, 0), (0, 9), (3, 0), (3, 9), (1, 4)]
    crops = [
        images[:, y : y + CROP, x : x + CROP] for y, x in places or {9: grid, 10: corners}[number]
    ]
    if number == 10:
        crops += [crop[:, :, ::-1] for crop in crops]
    expected = (np.stack(crops).astype(np.float64) - subtracted) * 0.25
    found = rule.of_crops(rule.views(images, number))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_grey_levels_between_whole_numbers_stay_between_them():
    rule, subtracted = rule_of("channel")
    images = np.random.default_rng(2).uniform(0, 255, (2, 7, CROP, 3))
    found = rule.centre(images)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, (images[:, :CROP] - subtracted) * 0.25)
    assert rule.centre(images.astype(np.float32)).dtype == np.float32
    assert rule.centre(images.astype(np.float16)).dtype == np.float32


@pytest.mark.parametrize("size", [(CROP - 1, 20), (20, CROP - 1)])
@pytest.mark.parametrize("number", [1, 9, 10])
def test_images_smaller_than_the_crop_are_refused(size, number):
    with pytest.raises(UsageError, match=f"{size[0]} x {size[1]} pixels: give at least 6 x 6"):
        rule_of("channel")[0].views(np.zeros((1, *size, 3), np.uint8), number)


IMAGES = np.random.default_rng(6).integers(0, 256, (2, 4, 5, 3), np.uint8)
GREY = IMAGES[..., :1].repeat(3, -1)


@pytest.mark.parametrize(
    "given,expected",
    [
        (IMAGES, IMAGES),
        (jax.numpy.asarray(IMAGES), IMAGES),
        (IMAGES[0], IMAGES[:1]),
        (list(IMAGES), IMAGES),
        ([jax.numpy.asarray(IMAGES[0]), IMAGES[1]], IMAGES),
        ([Image.fromarray(image) for image in IMAGES], IMAGES),
        (GREY[..., :1], GREY),
        (GREY[..., 0], GREY),
        (GREY[0, ..., 0], GREY[:1]),
        (list(GREY[..., 0]), GREY),
    ],
)
def test_images_of_every_form_are_a_batch(given, expected):
    found = inputs.as_batch(given)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_a_batch_of_floats_is_not_rounded_and_can_be_traced():
    levels = np.float32(IMAGES) + np.float32(0.3)
    assert inputs.as_batch(levels).dtype == np.float32
    np.testing.assert_array_equal(inputs.as_batch(levels), levels)
    gradient = jax.grad(lambda x: (inputs.as_batch(x) ** 2).sum())(levels[0, ..., 0])
    np.testing.assert_allclose(gradient, 6 * levels[0, ..., 0], rtol=1e-6)


@pytest.mark.parametrize(
    "given,says",
    [
        (IMAGES.transpose(0, 3, 1, 2), r"uint8 \[2, 3, 4, 5\]"),
        (IMAGES > 3, "bool"),
        (IMAGES[None], r"\[1, 2, 4, 5, 3\]"),
        (np.array(["a.jpg"]), "give grey levels"),
        ([IMAGES[0], IMAGES[1, :3]], r"sizes \[\(3, 5\), \(4, 5\)\]"),
        ([], "sizes"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(given, says):
    with pytest.raises(UsageError, match=says):
        inputs.as_batch(given)


def folder_of_levels(root, levels):
    """`root/SPLIT/a/*.png`: images of SIZE pixels, noise around a grey level of their split."""
    for split, level in levels.items():
        (root / split / "a").mkdir(parents=True)
        for number, noise in enumerate(bytes_of(SIZE, count=4)):
            image = (level + noise // 8).astype(np.uint8)
            Image.fromarray(image).save(root / split / "a" / f"{number}.png")


@pytest.mark.parametrize("validation_split,count", [("test", 4), ("", 3)])
def test_a_runs_mean_image_is_of_what_it_trains_on_and_stays_with_it(
    tmp_path, monkeypatch, validation_split, count
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    folder_of_levels(tmp_path / "images", {"train": 40, "test": 90})
    config = tiny_config()
    with config.unlocked():
        config.data.update(source=f"folder:{tmp_path / 'images'}", mean="image")
        config.data.update(image_size=SIZE, crop_size=CROP, pad=0)
        config.data.validation_split = validation_split
    source = open_train(config.data)  # without the image that is held out where there is no split
    images = [Image.open(source.describe(i)) for i in range(source.num_examples)]
    assert len(images) == count and all("/train/" in image.filename for image in images)
    mean = np.mean([np.asarray(image) for image in images], axis=0, dtype=np.float64)
    found = inputs.of_run(config, tmp_path / "run", trained=False).mean
    np.testing.assert_allclose(found, mean[CENTRE, CENTRE], rtol=1e-6)
    (tmp_path / "images").rename(tmp_path / "gone")
    np.testing.assert_array_equal(inputs.of_run(config, tmp_path / "run").mean, found)


@pytest.mark.parametrize(
    "environment,folder",
    [
        ({"JAX_COMPILATION_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/alexnet_jax"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/alexnet_jax"),
        ({}, "/home/me/.cache/alexnet_jax"),
    ],
)
def test_what_is_kept_for_other_runs_lies_where_the_environment_says(
    monkeypatch, environment, folder
):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(cache.folder()) == folder
