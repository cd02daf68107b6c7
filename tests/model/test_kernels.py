"""What kernels show by themselves."""

import numpy as np
import pytest

from alexnet_jax.model.kernels import colour_share


def test_colour_is_what_is_not_grey():
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.normal(size=(2, 5, 5, 1, 7)), 3, axis=3)
    assert colour_share(grey).shape == (2, 7)
    np.testing.assert_allclose(colour_share(grey), 0, atol=1e-12)
    colour = rng.normal(size=(1, 5, 5, 3, 4))
    colour -= colour.mean(3, keepdims=True)
    np.testing.assert_allclose(colour_share(colour), 1)
    # Two of three dimensions of noise are colour.
    noise = rng.normal(size=(1, 11, 11, 3, 400))
    assert colour_share(noise).mean() == pytest.approx(2 / 3, abs=0.01)
    assert (colour_share(np.zeros((1, 3, 3, 3, 1))) == 0).all()
