"""Convolutions by Winograd's algorithm, against sums in NumPy and XLA's direct convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from alexnet_jax.config import completed, presets
from alexnet_jax.model import conv, winograd
from alexnet_jax.model.derivatives import for_cpu
from alexnet_jax.model.tower import build_tower

CASES = [
    # images, kernel, stride, padding
    ((24, 13, 13, 48), (3, 3, 48, 48), 1, (1, 1)),
    ((24, 17, 10, 64), (3, 3, 64, 40), 1, (0, 2)),
    ((16, 15, 14, 48), (5, 5, 48, 50), 1, (2, 2)),
    ((16, 64, 71, 3), (11, 11, 3, 48), 4, (0, 3)),
    ((16, 30, 40, 24), (5, 5, 24, 96), 2, (2, 1)),
    ((16, 40, 52, 8), (9, 9, 8, 112), 2, (3, 4)),
]


def direct(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def drawn(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


@pytest.mark.parametrize("tile,size", [(2, 3), (4, 3), (5, 3), (6, 3), (2, 5), (3, 5), (4, 5)])
def test_the_matrices_compute_a_correlation(tile, size):
    image, kernel, out = winograd._matrices(tile, size)
    d, g = drawn(tile + size - 1), drawn(size, seed=1)
    found = out.T @ ((kernel @ g) * (image @ d))
    np.testing.assert_allclose(found, np.correlate(d, g, "valid"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("images,shape,stride,padding", CASES)
def test_values_and_gradients_are_those_of_direct_sums(images, shape, stride, padding, monkeypatch):
    """In float64 the two would agree to 1e-14; the bound is that of the rounding in float32."""
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", 4e6)  # two chunks or more
    x, kernel = drawn(*images).astype(np.float32), drawn(*shape, seed=1).astype(np.float32)
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, kernel)]
        y, back = jax.vjp(functools.partial(direct, stride=stride, padding=padding), *wide)
        g = drawn(*y.shape, seed=2)
        expected = [np.asarray(a) for a in (y, *back(jnp.asarray(g)))]

    @jax.jit
    def all_three(x, kernel, g):
        return (
            winograd.conv(x, kernel, stride, padding),
            winograd.input_gradient(kernel, g, stride, padding),
            winograd.kernel_gradient(x, g, shape[:2], stride, padding),
        )

    found = all_three(x, kernel, g.astype(np.float32))
    assert [ours is None for ours in found] == [False, stride > 1, False]
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None:
            rms = np.sqrt((theirs**2).mean())
            assert ours.shape == theirs.shape
            assert np.sqrt(((ours - theirs) ** 2).mean()) < 1e-5 * rms
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-4 * rms)


@pytest.mark.parametrize("shared", [True, False])
def test_each_tower_has_its_own(shared):
    images, shape, stride, padding = CASES[3] if shared else CASES[0]
    x = drawn(*(() if shared else (2,)), *images).astype(np.float32)
    kernels = drawn(2, *shape, seed=1).astype(np.float32)
    axes = (None if shared else 0, 0)

    def towers(fast):
        def one(x, kernel):
            return conv.conv(x, kernel, stride, padding, "highest", fast)

        @jax.jit
        def all_three(x, kernels):
            y, back = jax.vjp(jax.vmap(one, in_axes=axes), x, kernels)
            return y, *back(jnp.asarray(drawn(*y.shape, seed=2), jnp.float32))

        return all_three(x, kernels)

    pairs = list(zip(towers(True), towers(False), strict=True))
    # It is another algorithm, but for the gradient of images where the stride is not 1.
    assert [bool((a != b).any()) for a, b in pairs] == [True, not shared, True]
    for fast, slow in pairs:
        scale = float(jnp.abs(slow).max())
        np.testing.assert_allclose(fast, slow, rtol=0, atol=3e-5 * scale)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("side", range(5, 31))
def test_tiles_have_the_fewest_products_that_eight_points_allow(side, size):
    """A tile of m has m + q - 1 points, along each side, and the last tile may hang over."""
    x = jax.ShapeDtypeStruct((64, side, side, 64), np.float32)
    plan = winograd._plan(x, (size, size, 64, 64), 1, (size // 2, size // 2))
    needed = {m: (-(-side // m) * (m + size - 1)) ** 2 for m in range(1, 10 - size)}
    assert needed[plan.tile] == min(needed.values()) and plan.tile <= side + 1
    assert plan.tile * plan.tiles[0] >= side > plan.tile * (plan.tiles[0] - 1)


@pytest.mark.parametrize(
    "images,shape,stride",
    [
        ((7, 13, 13, 192), (3, 3, 192, 192), 1),  # few tiles
        ((127, 7, 7, 256), (3, 3, 256, 384), 1),  # a prime number of images, large kernels
        ((128, 32, 32, 32), (3, 3, 32, 64), 1),  # few channels
        ((128, 13, 13, 256), (1, 1, 256, 384), 1),  # no tile for this kernel
        ((128, 13, 13, 256), (3, 5, 256, 384), 1),
    ],
)
def test_where_it_would_take_longer_sums_are_direct(images, shape, stride):
    x, kernel = (jax.ShapeDtypeStruct(s, np.float32) for s in (images, shape))
    assert jax.eval_shape(lambda x, k: winograd.conv(x, k, stride, (1, 1)), x, kernel) is None


@pytest.mark.parametrize(
    "platform,dtype,fast,has",
    [
        ("cpu", "float32", True, True), ("cpu", "float32", False, False),
        ("cpu", "bfloat16", True, False), ("cuda", "float32", True, False),
        ("tpu", "float32", True, False),
    ],
)  # fmt: skip
def test_cpus_alone_have_it_in_float32_where_it_is_on(platform, dtype, fast, has):
    images, shape, stride, padding = CASES[0]
    args = [jax.ShapeDtypeStruct(s, dtype) for s in (images, shape)]
    fn = jax.jit(lambda x, kernel: conv.conv(x, kernel, stride, padding, "highest", fast))
    text = export.export(fn, platforms=[platform])(*args).mlir_module()
    assert ("stablehlo.convolution" in text, "stablehlo.dot_general" in text) == (not has, has)


@pytest.mark.parametrize("on", [True, False])
def test_the_field_of_the_config_decides(on):
    config = presets.get("paper")
    config.model.winograd = on
    tower = build_tower(config.model)
    images = jax.ShapeDtypeStruct((128, 224, 224, 3), np.float32)
    keys = jax.ShapeDtypeStruct((2,), jax.random.key(0).dtype)

    def run(key, images):
        return tower.init_with_output(key, images)[0]

    towers = jax.vmap(for_cpu(run), in_axes=(0, None), axis_name="tower")
    text = str(jax.make_jaxpr(towers)(keys, images))
    assert ("conv_general_dilated" in text, "scan" in text) == (not on, on)


def test_runs_from_before_the_field_had_direct_sums():
    config = presets.get("paper").copy_and_resolve_references()
    assert config.model.winograd
    with config.unlocked():
        del config.model["winograd"]
    assert not completed(config).model.winograd
