"""What the figures of a run show, read back from their axes."""

import matplotlib.colors
import numpy as np
import pytest

from alexnet_jax.training import drawing


@pytest.mark.parametrize("towers,count", [(2, 48), (1, 20), (3, 5)])
def test_kernels_lie_in_rows_of_sixteen_tower_below_tower(towers, count):
    kernels = np.random.default_rng(0).normal(size=(towers, 4, 5, 3, count))
    kernels[0, ..., 1] = 0
    (axis,) = drawing.kernels(kernels).axes
    grid = np.asarray(axis.images[0].get_array())
    columns, rows = min(count, 16), -(-count // 16)
    assert grid.shape == (towers * (rows * 5 + 1), columns * 6 + 1, 3)
    covered = np.zeros(grid.shape[:2], bool)
    for tower in range(towers):
        for number in range(count):
            top = tower * (rows * 5 + 1) + 1 + 5 * (number // 16)
            left = 1 + 6 * (number % 16)
            tile, kernel = (slice(top, top + 4), slice(left, left + 5)), kernels[tower, ..., number]
            # Grey for 0, and the largest weight of either sign black or white.
            expected = (kernel / (np.abs(kernel).max() or 1) + 1) / 2
            np.testing.assert_allclose(grid[tile], expected)
            covered[tile] = True
    assert (grid[~covered] == 1).all()
    assert len(axis.lines) == towers - 1


def test_predictions_are_bars_of_percent_and_the_right_class_is_marked():
    images = [np.full((2, 2, 3), value, np.uint8) for value in range(5)]
    best = [("cat", 60.0, False), ("a dog of a name that is too long", 30.0, True)]
    figure = drawing.predictions([(image, f"class {i}", best) for i, image in enumerate(images)])
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == [f"class {i}" for i in range(5)]
    for axis, image in zip(shown, images, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
    for below in [axis for axis in figure.axes if axis.patches]:
        assert [bar.get_width() for bar in below.patches] == [60, 30]
        colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in below.patches]
        assert colours == [drawing.COLOURS[5], drawing.COLOURS[4]]
        # The right class has a tick too: colours are not for everybody.
        assert [text.get_text() for text in below.texts] == [
            "cat", "60", "✓ a dog of a name that is…", "30",
        ]  # fmt: skip
        assert below.get_ylim()[0] > below.get_ylim()[1]  # the best on top
