"""Plain derivatives beside the hand-written ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.model import activation, norm, pool
from alexnet_jax.model.derivatives import are_plain, plain_derivatives


def test_plain_derivatives_end_with_their_context():
    with pytest.raises(KeyError), plain_derivatives():
        with plain_derivatives():
            assert are_plain()
        assert are_plain()
        raise KeyError
    assert not are_plain()


def lrn(x):
    return norm.local_response_norm(x, size=5, k=2.0, alpha=0.1, beta=0.75)


@pytest.mark.parametrize(
    "operation",
    [lrn, activation.relu, lambda x: pool.max_pool(x, 3, 2), lambda x: pool.max_pool(x, 2, 3)],
    ids=["lrn", "relu", "overlapping pool", "sparse pool"],
)
def test_of_equal_values_the_first_has_the_plain_derivative_too(operation):
    """Of maps of few different values, in which most windows hold equal ones, and zeros."""
    x = np.random.default_rng(0).integers(-1, 2, (2, 7, 7, 6)).astype(np.float32)
    y, by_hand = jax.vjp(operation, x)
    cotangent = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    with plain_derivatives():
        plain_y, plain = jax.vjp(operation, x)
        tangent = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
        _, forward = jax.jvp(operation, (x,), (tangent,))
    np.testing.assert_allclose(plain_y, y, rtol=1e-6)
    expected = by_hand(cotangent)[0]
    np.testing.assert_allclose(plain(cotangent)[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((forward * cotangent).sum(), (expected * tangent).sum(), rtol=1e-4)


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (2, 2)])
def test_a_maximum_with_nan_is_nan(place):
    x = np.zeros((1, 3, 3, 1), np.float32)
    x[0, place[0], place[1], 0] = np.nan
    with plain_derivatives():
        assert jnp.isnan(pool.max_pool(x, 3, 2)).all()
    assert jnp.isnan(pool.max_pool(x, 3, 2)).all()
