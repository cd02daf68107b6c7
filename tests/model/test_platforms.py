"""What GPUs run in place of the plain forms: the same values, and no others in their programs."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from alexnet_jax.config import presets
from alexnet_jax.model import dense, lrn_kernel, lrn_mosaic, norm, pool
from alexnet_jax.model.lrn_kernel import Constants
from alexnet_jax.model.tower import parameter_shapes
from alexnet_jax.parallel import placement
from alexnet_jax.training.state import init_state
from tests.support import Step, noise_batch, placement_of, random_params

# By JAX 0.12, which still has it; without it `lrn_kernel.fits` is false.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")

SQUARE = dict(size=5, k=1.0, alpha=0.01, beta=0.75)


def lowered(jitted, platform, *args):
    """The program for another platform, before its compiler sees it."""
    # From JAX 0.11 on, Pallas asks which GPU it is when it lowers a kernel.
    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        return jitted.trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_a_norm_that_stores_narrow_numbers_equals_the_wide_one(dtype, tolerance):
    x, g = np.random.default_rng(0).normal(0, 5, (2, 3, 7, 6, 5))
    narrow = partial(norm._narrowly, axes=(1, 2), **SQUARE)
    wide = partial(norm.within_map_norm, **SQUARE)
    values, back = jax.vjp(lambda x: narrow(x), jnp.asarray(x, dtype))
    gradient = back(jnp.asarray(g, dtype))[0]
    assert values.dtype == gradient.dtype == dtype
    with jax.enable_x64(True):
        x, g = (np.asarray(jnp.asarray(v, dtype), np.float64) for v in (x, g))
        expected, back = jax.vjp(wide, x)
        for found, exact in ((values, expected), (gradient, back(g)[0])):
            off = np.abs(np.asarray(found, np.float64) - exact)
            assert off.max() < tolerance * np.abs(exact).max()


@pytest.mark.parametrize("shared", [True, False], ids=["the same inputs", "inputs of their own"])
def test_products_apart_equal_numpys(shared):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 3, 7)), rng.normal(size=(2, 3, 4))
    kernel = rng.normal(size=(2, 7, 4))
    x = x[0] if shared else x

    def towers(x, kernel):
        fn = partial(dense._apart, precision="highest")
        return jax.vmap(fn, in_axes=(None if shared else 0, 0))(x, kernel)

    with jax.enable_x64(True):
        y, back = jax.vjp(towers, x, kernel)
        dx, dkernel = back(g)
    inputs = np.broadcast_to(x, (2, 3, 7))
    np.testing.assert_allclose(y, inputs @ kernel, rtol=1e-12)
    np.testing.assert_allclose(dkernel, inputs.transpose(0, 2, 1) @ g, rtol=1e-12)
    each = g @ kernel.transpose(0, 2, 1)
    np.testing.assert_allclose(dx, each.sum(0) if shared else each, rtol=1e-12)


def second_derivative(fn, x, g):
    """Of the squared gradient of `sum(g * fn(x))`, in a program and not step by step."""

    def squared(x):
        return (jax.grad(lambda x: (g * fn(x)).sum())(x) ** 2).sum()

    return jax.jit(jax.grad(squared))(x)


def test_gradients_have_gradients_on_every_platform():
    rng = np.random.default_rng(0)
    x, g = np.float32(rng.normal(0, 2, (2, 3, 6)))
    lrn, constants = dict(size=4, k=2.0, alpha=0.1, beta=0.75), Constants(4, 2.0, 0.1, 0.75)
    i = np.arange(6)
    band = np.float64((i[:, None] - i >= -1) & (i[:, None] - i <= 2))
    with jax.enable_x64(True):
        wide = np.float64(x), np.float64(g)
        exact = second_derivative(lambda x: x / (2 + 0.1 * (x * x) @ band) ** 0.75, *wide)
        product = second_derivative(lambda x: (x @ x.T) @ (x @ x.T) @ x, *wide)

    def in_parts(multiply):
        return lambda x: multiply(multiply(x, multiply(x.T, multiply(x, x.T))), x)

    found = {
        "norm": second_derivative(lambda x: norm.local_response_norm(x[None, None], **lrn), x, g),
        "kernel": second_derivative(lambda x: lrn_kernel.respond(x, constants, True), x, g),
        "mosaic": second_derivative(
            lambda x: lrn_mosaic.respond(x[None, None], constants, True)[0, 0], x, g
        ),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-5, err_msg=name)
    for multiply in (dense.dense, dense._apart):
        value = second_derivative(in_parts(partial(multiply, precision="highest")), x, g)
        np.testing.assert_allclose(value, product, rtol=1e-4, atol=1e-4 * np.abs(product).max())


def test_each_kernel_is_in_programs_for_its_platform_only():
    x = jnp.zeros((2, 3, 3, 6), jnp.bfloat16)

    def both(x):
        y, back = jax.vjp(
            lambda x: norm.local_response_norm(x, size=5, k=2.0, alpha=0.1, beta=0.75), x
        )
        return back(y)

    text = lowered(jax.jit(both), "cuda", x)
    assert "lrn_forward" in text and "lrn_backward" in text
    assert "triton" in text and "tpu_custom_call" not in text
    text = lowered(jax.jit(both), "tpu", x)
    assert text.count("tpu_custom_call") == 2 and "triton" not in text
    text = lowered(jax.jit(both), "cpu", x)
    assert "tpu_custom_call" not in text and "triton" not in text


@pytest.mark.parametrize("side,window,stride", [(5, 3, 2), (6, 3, 2), (7, 2, 2), (4, 4, 1)])
def test_what_tpus_pool_by_has_the_same_values_and_gradients(side, window, stride, monkeypatch):
    """Also where a window has its maximum twice, which small whole numbers make likely."""
    x, g = np.random.default_rng(0).integers(0, 4, (2, 2, side, side, 3)).astype(np.float32)
    out = pool.pooled_size(side, window, stride)
    x, g = jnp.asarray(x), jnp.asarray(g[:, :1, :1]) * jnp.arange(out * out).reshape(1, out, out, 1)

    def both():
        y, back = jax.vjp(lambda x: pool.max_pool(x, window, stride), x)
        return y, back(g)[0]

    plain = both()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args))
    for found, expected in zip(both(), plain, strict=True):
        np.testing.assert_array_equal(found, expected)
    text = lowered(jax.jit(lambda x: pool.max_pool(x, window, stride)), "cpu", x)
    monkeypatch.undo()
    assert "reduce_window" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_pallas_triton_gpus_normalize_with_operations_of_xla(dtype, monkeypatch):
    monkeypatch.setattr(lrn_kernel, "available", lambda: False)
    x = jnp.asarray(np.random.default_rng(0).normal(0, 3, (2, 3, 3, 6)), dtype)
    lrn = partial(norm.local_response_norm, size=5, k=2.0, alpha=0.1, beta=0.75)
    both = jax.jit(lambda x: jax.vjp(lrn, x)[1](x))
    assert "triton" not in lowered(both, "cuda", x)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, cuda, default, **_: cuda(x))
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    found = lrn(x)
    monkeypatch.undo()
    np.testing.assert_allclose(
        np.float32(found), np.float32(lrn(x)), rtol=tolerance, atol=tolerance
    )


def tiny(preset):
    """A preset at 1/16 of its width, two images per batch."""
    config = presets.get(preset)
    config.unlock()
    config.model.width = 1 / 16
    config.model.num_classes = 10
    config.batch_size = 2
    return config


def step_of(config):
    side = config.data.image_size
    return Step(config, placement_of("vmap"), mean_image=np.full((side, side, 3), 118, np.float32))


@pytest.fixture
def every_platform(monkeypatch):
    """Steps for this CPU have the forms of all platforms, as elsewhere."""
    monkeypatch.setattr(placement, "for_cpu", lambda fn: fn)


def branches_taken(text):
    """The branches whose choice depends on a value; those on a platform depend on a constant."""
    chosen, taken = set(), 0
    pattern = r'(%\w+)(?::\d+)? = "stablehlo.(?:case|if)"\((%\w+)\)'
    for result, index in re.findall(pattern, text):
        if index.startswith("%c") or index in chosen:
            chosen.add(result)
        else:
            taken += 1
    return taken


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
@pytest.mark.parametrize("preset", ["article", "source", "caffe"])
def test_no_step_takes_a_branch_on_an_accelerator(preset, platform, every_platform):
    config = tiny(preset)
    step = step_of(config)
    state = init_state(parameter_shapes(step.net, config.data.crop_size), step.tx)
    batch = noise_batch(config.data.crop_size, config.batch_size)
    text = lowered(step.compiled, platform, state, batch)
    assert branches_taken(text) == (platform == "cpu")
    assert "callback" not in text
    assert ("triton" in text) == (platform == "cuda")
    assert ("tpu_custom_call" in text) == (platform == "tpu")


@pytest.mark.parametrize("preset", ["source", "caffe"])
def test_a_step_for_a_cpu_has_its_forms_alone(preset):
    config = tiny(preset)
    step = step_of(config)
    state = init_state(parameter_shapes(step.net, config.data.crop_size), step.tx)
    batch = noise_batch(config.data.crop_size, config.batch_size)
    jitted: Any = step.compiled
    text = str(jitted.trace(state, batch).jaxpr)
    assert "platform_index" not in text and "pallas" not in text


@pytest.mark.parametrize("preset", ["source", "caffe"])
def test_a_step_with_what_gpus_run_equals_that_of_a_cpu(preset, every_platform, monkeypatch):
    config = tiny(preset)
    # At the rate of the preset the loss of these weights explodes, and rounding with it.
    config.optimizer.learning_rate = 1e-5
    crop = config.data.crop_size

    def two_steps():
        step = step_of(config)
        state, losses = step.start(random_params(step.net, crop)), []
        for seed in (0, 1):
            state, metrics = step(state, noise_batch(crop, config.batch_size, seed))
            losses.append(metrics["loss"])
        return losses, state

    plain = two_steps()
    chosen = []

    def on_a_gpu(*args, default, **branches):
        chosen.append(branches)
        return branches.get("cuda", default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_a_gpu)
    call = lrn_kernel._call
    monkeypatch.setattr(
        lrn_kernel, "_call", lambda constants, _, *maps: call(constants, True, *maps)
    )
    other = two_steps()
    assert any("cuda" in branches for branches in chosen)
    assert any("cpu" in branches for branches in chosen)
    np.testing.assert_allclose(plain[0], other[0], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(plain[1].params), jax.tree.leaves(other[1].params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
