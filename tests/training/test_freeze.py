"""Frozen layers: no gradient, no exchange, no change, and no say in whether a step counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import parallel
from alexnet_jax.analysis.exchange import compile_step
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.model import norm
from alexnet_jax.model.tower import build_tower, draw_parameters
from alexnet_jax.parallel import exchange
from alexnet_jax.training import optimizers
from alexnet_jax.training.state import init_state
from alexnet_jax.training.step import make_train_step
from tests.support import PLACEMENTS, placement_of, tiny_config

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def frozen(*names):
    config = tiny_config()
    config.freeze = names
    return config


def products(config, name):
    """How many convolutions and matrix products the compiled step has."""
    text = compile_step(config, placement_of(name)).as_text()
    return text.count(" convolution("), text.count(" dot(")


@pytest.mark.parametrize("name", ["vmap", "pmap"])
def test_the_compiled_step_multiplies_less(name):
    towers = 2 if name == "vmap" else 1
    # Under vmap conv3, whose inputs all towers share, is one product, and its kernel's gradient.
    shared = towers - 1
    assert products(frozen(), name) == (14 * towers - 2 * shared, 9)
    # Forward passes alone; of fc6's products the gradient of its inputs is not needed.
    assert products(frozen(*CONVOLUTIONS), name) == (5 * towers - shared, 8)
    # A frozen layer between trained ones passes the gradient on.
    assert products(frozen("conv3", "fc7"), name) == (13 * towers - shared, 8)
    assert products(frozen("conv1"), name) == (12 * towers - 2 * shared, 9)


def batch_of(config):
    rng = np.random.default_rng(0)
    size, side = config.batch_size, config.data.crop_size
    return {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "colour": np.zeros((size, 3), np.float32),
        "label": rng.integers(0, 10, size, np.int32),
        "index": np.arange(size, dtype=np.int32),
    }


def take(config, name, steps=1):
    """The state before and after some steps, and the metrics of the last."""
    placement = placement_of(*PLACEMENTS[name])
    tower, tx = build_tower(config.model), optimizers.build(config, 44, 44)
    rule = input_rules.build(config.data, None)
    before = init_state(draw_parameters(tower, 0, config.data.crop_size), tx)
    state = placement.put_towers(before)
    step = make_train_step(config, tower, rule, tx, placement, 44)
    for _ in range(steps):
        state, metrics = step(state, placement.put_batch(batch_of(config)))
    return before, *parallel.to_host((state, metrics))


def velocities(state):
    """Of each parameter that has one, gathered from all groups of parameters."""
    found = {}
    for _, trace in optax.tree_utils.tree_get_all_with_path(state.opt_state, "trace"):
        for layer, parts in trace.items():
            arrays = {part: v for part, v in parts.items() if isinstance(v, np.ndarray)}
            found.setdefault(layer, {}).update(arrays)
    return found


@functools.cache
def first_step_of_all(name):
    return take(frozen(), name)


@pytest.mark.parametrize(
    "name,names",
    [("vmap", CONVOLUTIONS), ("pmap", CONVOLUTIONS), ("mesh 2 x 2", ("conv2", "fc7", "fc8"))],
)
def test_frozen_layers_stay_and_the_others_learn_as_before(name, names):
    before, full, metrics = first_step_of_all(name)
    _, after, metrics_after = take(frozen(*names), name)
    assert metrics_after["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    for layer, leaves in before.params.items():
        for part, value in leaves.items():
            if layer in names:
                assert after.params[layer][part].tobytes() == value.tobytes()
                continue
            # The update is that of a step which computes every gradient.
            expected, found = (velocities(state)[layer][part] for state in (full, after))
            assert np.abs(expected).max() > 0
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * abs(expected).max())
            np.testing.assert_allclose(
                after.params[layer][part], full.params[layer][part], rtol=1e-6, atol=1e-9
            )


def test_after_many_steps_they_are_still_the_same_and_have_no_velocity():
    before, after, _ = take(frozen(*CONVOLUTIONS), "vmap", steps=5)
    velocity = velocities(after)
    for layer in CONVOLUTIONS:
        assert not velocity[layer]
        for part, value in before.params[layer].items():
            assert after.params[layer][part].tobytes() == value.tobytes()
    assert sorted(name for name, parts in velocity.items() if parts) == ["fc6", "fc7", "fc8"]


@jax.custom_vjp
def spoil(x):
    return x


spoil.defvjp(lambda x: (x, None), lambda _, g: (jnp.full_like(g, jnp.nan),))


@pytest.mark.parametrize("name,accumulate_steps", [("vmap", 1), ("pmap", 2)])
def test_nan_in_the_gradient_of_a_frozen_layer_stops_nothing(name, accumulate_steps, monkeypatch):
    true_lrn = norm.local_response_norm
    monkeypatch.setattr(
        norm, "local_response_norm", lambda x, **constants: spoil(true_lrn(x, **constants))
    )
    config = frozen()
    config.accumulate_steps = accumulate_steps
    before, after, metrics = take(config, name)
    assert metrics["not_finite"].sum() == 8  # of two layers' kernel and bias, in two towers
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(a, b)
    config.freeze = ("conv1", "conv2")
    before, after, metrics = take(config, name)
    # One flag for every parameter and the loss, as without freezing.
    assert metrics["not_finite"].shape == (17,) and not metrics["not_finite"].any()
    for layer in ("conv3", "fc8"):
        assert not np.array_equal(before.params[layer]["kernel"], after.params[layer]["kernel"])


def test_their_gradients_are_not_exchanged():
    placement = placement_of(*PLACEMENTS["mesh 2 x 2"])
    sums = {}
    for names in ((), ("fc6", "fc7", "fc8")):
        config = frozen(*names)
        points = exchange.points(config, 2)
        text = compile_step(config, placement).as_text()
        found = exchange.by_point(exchange.collectives(text, 4), [point.name for point in points])
        (point,) = (point for point in points if point.name == exchange.GRADIENTS)
        sums[names], _ = found[exchange.GRADIENTS]
        assert sums[names] == pytest.approx(point.elements + 3, abs=30)
    assert sums["fc6", "fc7", "fc8"] < sums[()] / 4


def test_everything_but_the_classifier():
    config = frozen(*CONVOLUTIONS, "fc6", "fc7")
    assert products(config, "pmap") == (5, 4)
    before, after, _ = take(config, "pmap")
    moved = {
        layer
        for layer, leaves in before.params.items()
        if not np.array_equal(leaves["kernel"], after.params[layer]["kernel"])
    }
    assert moved == {"fc8"}
