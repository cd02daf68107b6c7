"""Squares that are made without TensorFlow are those that it makes."""

import numpy as np
import pytest

from alexnet_jax.data.decode import UnreadableImage, decoder, resizer
from alexnet_jax.data.formats import Unreadable
from alexnet_jax.data.squares import square, square_of
from alexnet_jax.errors import UsageError
from tests.data.test_formats import FUZZ, config, corpus, damaged
from tests.data.test_pipeline import between, covered, triangle


def outcome(read, data):
    """The square of a file, or why there is none."""
    try:
        return read(data)
    except (Unreadable, UnreadableImage) as error:
        return getattr(error, "reason", str(error))


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it reads nevertheless
@pytest.mark.parametrize(
    ("files", "least"),
    [
        ((data for _, data in corpus()), 150),
        (damaged(np.random.default_rng(1), FUZZ), FUZZ / 20),
    ],
    ids=["whole", "damaged"],
)
def test_every_file_has_the_pixels_or_the_error_of_training(files, least):
    asked = config(max_pixels=10**6)
    squares, images, scaled = decoder(asked), 0, 0
    for data in files:
        found = outcome(lambda x: square_of(x, asked), data)
        expected = outcome(lambda x: squares([x])[0], data)
        if isinstance(expected, str):
            assert isinstance(found, str) and found == expected
            continue
        images += 1
        difference = np.abs(found - expected.astype(int))
        # Some damaged files have another size, and are scaled.
        scaled += difference.max() > 0
        assert difference.max() <= 1 and scaled <= FUZZ / 50
    assert images > least


@pytest.mark.parametrize("resize", ["short_side", "stretch"])
@pytest.mark.parametrize(
    ("shrink", "weights"), [("area", covered), ("bilinear", between), ("triangle", triangle)]
)
@pytest.mark.parametrize("size", [(61, 47), (40, 90), (24, 33), (33, 24), (12, 9), (9, 31)])
def test_a_square_is_what_the_rule_says(size, shrink, weights, resize):
    width, height = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    sides = [int(n * 24 / min(size) + 0.5) for n in (height, width)]
    sides = (24, 24) if resize == "stretch" else sides
    weights = weights if sides[0] <= height and sides[1] <= width else triangle
    exact = np.einsum("ih,jw,hwc->ijc", weights(height, sides[0]), weights(width, sides[1]), image)
    top, left = (sides[0] - 24) // 2, (sides[1] - 24) // 2
    found = square(image, config(resize=resize, shrink=shrink))
    assert found.dtype == np.uint8
    assert np.abs(found - exact[top : top + 24, left : left + 24]).max() < 0.5 + 1e-3


@pytest.mark.parametrize("resize", ["short_side", "stretch"])
@pytest.mark.parametrize("shrink", ["area", "bilinear", "triangle"])
def test_squares_round_as_those_of_training(shrink, resize):
    """Halfway between two grey levels the order of the sums decides, which is TensorFlow's."""
    asked = config(resize=resize, shrink=shrink, image_size=250)
    trained, rng, wrong = resizer(asked), np.random.default_rng(0), 0
    for sides in [(250, 333), (240, 210), (150, 400), (333, 500), (60, 90)]:
        image = rng.integers(0, 256, (*sides, 3), np.uint8)
        wrong += (square(image, asked) != trained(image)).sum()
    assert wrong <= 3  # of 937,500


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match=r"config\.data\.shrink = 'cubic'"):
        square(np.zeros((30, 30, 3), np.uint8), config(shrink="cubic"))
