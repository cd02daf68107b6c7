"""The kernels for GPUs and TPUs beside the formula in float64, in Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.model import lrn_kernel, lrn_mosaic
from alexnet_jax.model.lrn_kernel import Constants

PAPER = Constants(5, 2.0, 0.1, 0.75)


def formula(x, g, constants):
    """Values and gradient of section 3.3 of the paper, with a matrix that marks the windows."""
    x, g = (np.asarray(v, np.float64) for v in (x, g))
    i = np.arange(x.shape[-1])
    distance = i[:, None] - i  # of channel i from the centre of the window, j
    size, beta = constants.size, constants.beta
    band = ((distance >= -((size - 1) // 2)) & (distance <= size // 2)).astype(float)
    s = constants.k + constants.alpha * (x * x) @ band
    terms = (g * x * s ** -(beta + 1)) @ band.T
    return x * s**-beta, g * s**-beta - 2 * constants.alpha * beta * x * terms


def maps(*shape, dtype="float32"):
    x, g = np.random.default_rng(0).normal(0, 3, (2, *shape))
    return jnp.asarray(x, dtype), jnp.asarray(g, dtype)


each_backend = pytest.mark.parametrize("backend", [lrn_kernel, lrn_mosaic], ids=["gpu", "tpu"])


def kernels(x, g, constants, backend=lrn_kernel):
    y, back = jax.vjp(lambda x: backend.respond(x, constants, True), x)
    return y, back(g)[0]


def assert_near(found, expected, dtype):
    # Half a unit in the last place of bfloat16 is 2^-9 of a value.
    tolerance = 2e-6 if dtype == "float32" else 2**-8
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), b, rtol=tolerance, atol=tolerance * np.abs(b).max() / 10
        )


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "batch,channels", [(1, 48), (3, 96), (128, 6), (3, 128), (2, 1), (1, 131), (1, 256), (2, 384)]
)
def test_values_and_gradients_are_those_of_the_formula(batch, channels, dtype, backend):
    x, g = maps(batch, 3, 5, channels, dtype=dtype)
    assert backend.fits(x, PAPER)
    assert_near(kernels(x, g, PAPER, backend), formula(x, g, PAPER), dtype)


def test_more_images_than_a_block_has_lanes():
    x, g = maps(lrn_mosaic._LANES + 130, 1, 2, 6)
    assert_near(kernels(x, g, PAPER, lrn_mosaic), formula(x, g, PAPER), "float32")


def test_more_pixels_than_a_block_has_rows(monkeypatch):
    monkeypatch.setattr(lrn_mosaic, "_BLOCK", 128 * 6 * 4)
    x, g = maps(3, 3, 3, 6)
    assert_near(kernels(x, g, PAPER, lrn_mosaic), formula(x, g, PAPER), "float32")


@each_backend
@pytest.mark.parametrize("channels", [7, 256])
@pytest.mark.parametrize("size,beta", [(4, 0.75), (1, 0.75), (9, 1.0), (8, 0.5), (3, 0.9)])
def test_windows_of_any_size_and_other_exponents(size, beta, channels, backend):
    constants = Constants(size, 1.0, 0.05, beta)
    x, g = maps(2, 2, 3, channels)
    assert_near(kernels(x, g, constants, backend), formula(x, g, constants), "float32")


@each_backend
def test_under_vmap_the_towers_are_more_pixels(backend):
    x, g = maps(2, 2, 3, 3, 6)
    y, dx = jax.vmap(lambda x, g: kernels(x, g, PAPER, backend))(x, g)
    assert_near((y, dx), formula(x, g, PAPER), "float32")
    _, shared = jax.vmap(lambda g: kernels(x[0], g, PAPER, backend))(g)
    expected = [formula(x[0], g[i], PAPER)[1] for i in range(2)]
    assert_near((shared,), (np.stack(expected),), "float32")


@each_backend
def test_a_sum_is_as_exact_as_float32_where_its_terms_differ_in_size(backend):
    # bfloat16 holds 63.1 ** 2 to 8, and loses each 1.7 ** 2 beside it; tensor float to 2.
    x = jnp.asarray([63.1, 1.7, 1.7, 1.7, 1.7, 63.1], "float32")[None, None, None]
    constants = Constants(5, 1.0, 1.0, 0.75)
    y = kernels(x, x, constants, backend)[0]
    np.testing.assert_allclose(y, formula(x, x, constants)[0], rtol=1e-6)


@pytest.mark.parametrize(
    "x,constants",
    [
        (np.zeros((1, 256), np.float64), PAPER),
        (np.zeros((1, 256), np.float32), Constants(5, 0.0, 0.1, 0.75)),
        (np.zeros((1, 256), np.float32), Constants(65, 2.0, 0.1, 0.75)),
    ],
)
def test_what_they_cannot_do_is_left_to_the_plain_form(x, constants):
    assert not lrn_kernel.fits(x, constants)
