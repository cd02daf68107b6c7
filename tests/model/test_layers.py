import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.model import activation, conv, dropout, norm, pool


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def lrn_loop(x, size, k, alpha, beta):
    """Section 3.3 of the paper, one element at a time."""
    out = np.empty_like(x)
    channels = x.shape[-1]
    for where in np.ndindex(x.shape):
        i = where[-1]
        low, high = max(0, i - (size - 1) // 2), min(channels - 1, i + size // 2)
        s = sum(x[(*where[:-1], j)] ** 2 for j in range(low, high + 1))
        out[where] = x[where] / (k + alpha * s) ** beta
    return out


@pytest.mark.parametrize("size,beta", [(5, 0.75), (3, 0.75), (4, 0.5), (1, 0.75), (9, 1.0)])
def test_lrn_equals_a_loop(size, beta):
    x = 3 * numbers(2, 2, 3, 7)
    with jax.enable_x64(True):
        y = norm.local_response_norm(jnp.asarray(x), size=size, k=2.0, alpha=0.1, beta=beta)
    np.testing.assert_allclose(y, lrn_loop(x, size, 2.0, 0.1, beta), rtol=1e-12)


def test_within_map_norm_equals_a_loop():
    x = 3 * numbers(2, 5, 6, 3)
    expected = np.empty_like(x)
    for b, i, j, c in np.ndindex(x.shape):
        window = x[b, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3, c]
        expected[b, i, j, c] = x[b, i, j, c] / (1 + 0.1 * np.sum(window**2)) ** 0.75
    with jax.enable_x64(True):
        y = norm.within_map_norm(jnp.asarray(x), size=5, k=1.0, alpha=0.1, beta=0.75)
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def gradient_by_differences(fn, x, weights, eps=1e-6):
    """d sum(weights * fn(x)) / dx, two evaluations per element."""
    gradient = np.empty_like(x)
    for where in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[where] = eps
        gradient[where] = np.sum(weights * (fn(x + step) - fn(x - step))) / (2 * eps)
    return gradient


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("rule", [norm.local_response_norm, norm.within_map_norm])
def test_norm_gradient_equals_differences(rule, size):
    with jax.enable_x64(True):

        def fn(x):
            return rule(jnp.asarray(x), size=size, k=2.0, alpha=0.3, beta=0.75)

        x, weights = numbers(1, 4, 5, 6), numbers(1, 4, 5, 6, seed=1)
        gradient = jax.vjp(fn, jnp.asarray(x))[1](jnp.asarray(weights))[0]
        np.testing.assert_allclose(gradient, gradient_by_differences(fn, x, weights), atol=1e-8)


def pool_loop(x, window, stride, reduce):
    b, h, w, c = x.shape
    out_h, out_w = (math.ceil(max(n - window, 0) / stride) + 1 for n in (h, w))
    out = np.empty((b, out_h, out_w, c))
    for i, j in itertools.product(range(out_h), range(out_w)):
        patch = x[:, i * stride : i * stride + window, j * stride : j * stride + window]
        out[:, i, j] = reduce(patch, axis=(1, 2))
    return out


SIZES = [(3, 2, 13), (3, 2, 8), (2, 2, 7), (3, 3, 9), (3, 1, 5), (2, 3, 8)]


@pytest.mark.parametrize("window,stride,size", SIZES)
def test_pools_equal_a_loop_with_the_ceil_rule(window, stride, size):
    x = numbers(2, size, size, 3).astype(np.float32)
    y = pool.max_pool(x, window, stride)
    np.testing.assert_array_equal(y, pool_loop(x, window, stride, np.max))
    y = pool.avg_pool(x, window, stride)
    np.testing.assert_allclose(y, pool_loop(x, window, stride, np.mean), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window,stride,size", SIZES)
def test_max_pool_gradient_equals_xlas_with_ties(window, stride, size):
    # A few distinct values, so that most windows hold their maximum several times.
    x = np.random.default_rng(0).integers(0, 3, (2, size, size, 3)).astype(np.float32)
    over = pool.pooled_size(size, window, stride) * stride + window - stride - size

    def plain(x):
        x = jnp.pad(x, ((0, 0), (0, over), (0, over), (0, 0)), constant_values=-jnp.inf)
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), "VALID"
        )

    weights = numbers(*plain(x).shape, seed=1).astype(np.float32)
    ours = jax.vjp(lambda x: pool.max_pool(x, window, stride), x)[1](weights)[0]
    np.testing.assert_allclose(ours, jax.vjp(plain, x)[1](weights)[0], rtol=1e-6, atol=1e-6)


def test_relu_equals_jaxs_with_zeros():
    x = np.random.default_rng(0).integers(-2, 3, (4, 50)).astype(np.float32)
    y, back = jax.vjp(activation.relu, x)
    expected, expected_back = jax.vjp(jax.nn.relu, x)
    np.testing.assert_array_equal(y, expected)
    weights = numbers(4, 50).astype(np.float32)
    np.testing.assert_array_equal(back(weights)[0], expected_back(weights)[0])


@pytest.mark.parametrize("size,beta", [(5, 0.75), (4, 0.5)])
def test_lrn_gradient_equals_jaxs_of_the_plain_form(size, beta):
    x, weights = 3 * numbers(2, 3, 3, 9), numbers(2, 3, 3, 9, seed=1)
    i = np.arange(9)
    distance = i[:, None] - i
    band = ((distance >= -((size - 1) // 2)) & (distance <= size // 2)).astype(float)

    def plain(x):
        return x / (2 + 0.3 * (x * x) @ band) ** beta

    def ours(x):
        return norm.local_response_norm(x, size=size, k=2.0, alpha=0.3, beta=beta)

    with jax.enable_x64(True):
        gradients = [
            jax.vjp(fn, jnp.asarray(x))[1](jnp.asarray(weights))[0] for fn in (ours, plain)
        ]
        np.testing.assert_allclose(*gradients, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("stride,padding,shared_input", [(1, (1, 1), False), (4, (0, 3), True)])
def test_vmapped_conv_equals_a_grouped_one(stride, padding, shared_input):
    x = numbers(3, 12, 12, 5 if shared_input else 10).astype(np.float32)
    kernel = numbers(3, 3, 5, 8, seed=1).astype(np.float32)

    def towers(x, kernel):
        xs = x if shared_input else jnp.stack(jnp.split(x, 2, -1))
        kernels = jnp.stack(jnp.split(kernel, 2, -1))
        axes = (None if shared_input else 0, 0)
        y = jax.vmap(lambda x, k: conv.conv(x, k, stride, padding), in_axes=axes)(xs, kernels)
        return jnp.concatenate(list(y), -1)

    def grouped(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), (padding, padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=1 if shared_input else 2,
        )  # fmt: skip

    y, back = jax.vjp(towers, x, kernel)
    expected, expected_back = jax.vjp(grouped, x, kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    weights = numbers(*y.shape, seed=2).astype(np.float32)
    for ours, theirs in zip(back(weights), expected_back(weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_locally_connected_equals_a_loop():
    x, size, features = numbers(2, 5, 5, 3), 3, 4
    kernel = numbers(5, 5, 3 * size * size, features, seed=1)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.empty((2, 5, 5, features))
    for i, j in itertools.product(range(5), range(5)):
        # Channel-major within a patch, as XLA lays it out.
        patch = padded[:, i : i + size, j : j + size].transpose(0, 3, 1, 2).reshape(2, -1)
        expected[:, i, j] = patch @ kernel[i, j]
    with jax.enable_x64(True):
        y = conv.locally_connected(jnp.asarray(x), jnp.asarray(kernel), size, (1, 1))
    np.testing.assert_allclose(y, expected, rtol=1e-10)


def test_dropout_masks_depend_on_the_example_alone():
    key, indices = jax.random.key(3), np.array([5, 900, 17, 5])
    masks = np.asarray(dropout.dropout_mask(key, indices, 0, (2048,), 0.5))
    assert abs(masks[:3].mean() - 0.5) < 4 * 0.5 / math.sqrt(3 * 2048)
    np.testing.assert_array_equal(masks[0], masks[3])
    alone = dropout.dropout_mask(key, indices[2:3], 0, (2048,), 0.5)
    np.testing.assert_array_equal(masks[2], alone[0])
    other = np.asarray(dropout.dropout_mask(key, indices, 1, (2048,), 0.5))
    for a, b in ((masks[0], masks[1]), (masks[0], other[0])):
        assert abs((a == b).mean() - 0.5) < 0.06  # independent masks agree half the time


@pytest.mark.parametrize("towers", [2, 3, 4, 5])
def test_a_window_across_seams_is_that_of_all_channels_in_one(towers):
    rng = np.random.default_rng(towers)
    x, g = rng.normal(0, 30, (2, towers, 2, 3, 3, 4)).astype(np.float32)
    lrn = functools.partial(norm.local_response_norm, size=5, k=2.0, alpha=0.1, beta=0.75)

    def apart(x):
        return jax.vmap(lambda x: lrn(x, across_towers=True), axis_name="tower")(x)

    def joined(x):
        y = lrn(jnp.concatenate(list(x), -1))
        return jnp.stack(jnp.split(y, towers, -1))

    values, expected = jax.vjp(apart, x), jax.vjp(joined, x)
    np.testing.assert_allclose(values[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(values[1](g)[0], expected[1](g)[0], rtol=1e-4, atol=1e-6)


def test_mean_pooling_has_its_gradient_when_compiled():
    """A traced zero would hide from JAX that the windows are sums."""
    x = numbers(1, 5, 5, 2).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: pool.avg_pool(x, 3, 2).sum()))(x)
    np.testing.assert_allclose(np.asarray(gradient).sum(), 2 * 2 * 2, rtol=1e-5)
