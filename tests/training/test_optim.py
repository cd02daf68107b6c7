"""The update rule of 2012 against a NumPy transcription, for every preset and group."""

import jax
import numpy as np
import optax
import pytest

from alexnet_jax.config import presets
from alexnet_jax.training import optimizers, schedules
from alexnet_jax.training.state import init_state


def rates_by_hand(name, group, epoch):
    """What each source says of the rate, written out: (rate at an epoch, decay)."""
    drops = lambda *epochs: 0.1 ** sum(epoch >= e for e in epochs)  # noqa: E731
    if name == "article":
        return 0.01 * drops(30, 60, 80)
    if name == "paper":
        return 0.01  # its drops come from outside, as a scale
    if name == "caffe":
        return (0.02 if group == "biases" else 0.01) * drops(20, 40, 60, 80)
    if name == "170":  # dexp[250, 4] over 95 epochs; biases dexp[10, 2]
        if group == "biases":
            return 0.02 * (0.1 if epoch >= 47.5 else 1)
        return 0.01 * 250 ** (-sum(epoch >= 95 * i / 4 for i in (1, 2, 3)) / 3)
    assert name in ("source", "148")
    if group == "biases":
        return 0.02
    if group == "conv1":
        return 0.0 if epoch >= 72 else 0.01 * drops(25, 51, 67)
    return 0.01 * drops(25, 51, 79)


def a_tree(config, rng):
    return {
        name: {
            "kernel": rng.normal(size=(2, 3)).astype(np.float32),
            "bias": rng.normal(size=3).astype(np.float32),
        }
        for name in config.model.layer_order
    }


@pytest.mark.parametrize("start", [0, 24, 50, 66, 71, 78])
@pytest.mark.parametrize("name", ["article", "paper", "source", "caffe", "170", "148"])
def test_five_steps_around_a_drop(name, start):
    """One step per epoch, from `start` on, so that the drops of each source fall inside."""
    config = presets.get(name)
    epochs = int(config.num_epochs)
    tx = optimizers.build(config, steps_per_epoch=1, num_steps=epochs)
    rng = np.random.default_rng(start)
    params = a_tree(config, rng)
    state = tx.init(params)
    zero = jax.tree.map(np.zeros_like, params)
    update = jax.jit(tx.update)
    for _ in range(start):  # no gradient, no weights: only the step count moves
        _, state = update(zero, state, zero)
    expected = jax.tree.map(np.float64, params)
    velocity = jax.tree.map(np.zeros_like, expected)
    for epoch in range(start, start + 5):
        scale = 0.1 if name == "paper" and epoch >= start + 2 else 1.0
        gradients = a_tree(config, rng)
        updates, state = update(gradients, state, params, rate_scale=scale)
        params = optax.apply_updates(params, updates)
        for layer, leaves in expected.items():
            for part, w in leaves.items():
                group = "biases" if part == "bias" else "conv1" if layer == "conv1" else "weights"
                rate = scale * rates_by_hand(name, group, epoch)
                decay = 0.0 if part == "bias" else 5e-4
                v = 0.9 * velocity[layer][part] - rate * (gradients[layer][part] + decay * w)
                velocity[layer][part], leaves[part] = v, w + v
    for layer, leaves in expected.items():
        for part, w in leaves.items():
            np.testing.assert_allclose(params[layer][part], w, rtol=1e-5, atol=1e-6)


def test_the_common_rule_differs_at_a_drop():
    """`optax.sgd` has the rate outside the velocity: the difference is what is tested above."""
    config = presets.get("article")
    config.optimizer.drop_epochs = (2.0,)
    schedule = schedules.schedule(config, 1, 5)
    ours = optimizers.build(config, 1, 5)
    theirs = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))
    rng = np.random.default_rng(0)
    start = {name: {"kernel": leaves["kernel"]} for name, leaves in a_tree(config, rng).items()}
    ends = []
    for tx in (ours, theirs):
        params, state = start, tx.init(start)
        for _ in range(4):
            updates, state = tx.update(jax.tree.map(np.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
        ends.append(np.asarray(params["fc8"]["kernel"]))
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


def test_a_trust_ratio_makes_the_rule_that_of_lars():
    """Against `optax.lars`, and its formula by hand for the first step."""
    config = presets.get("article")
    config.optimizer.update(schedule="constant", trust_coefficient=0.001, learning_rate=2.0)
    rng = np.random.default_rng(3)
    start = a_tree(config, rng)
    kernels = {layer: {"kernel": True, "bias": False} for layer in start}
    ours = optimizers.build(config, 1, 9)
    theirs = optax.lars(
        2.0, 5e-4, weight_decay_mask=kernels, trust_ratio_mask=kernels, momentum=0.9
    )
    gradients = [a_tree(config, rng) for _ in range(5)]
    ends = []
    for tx in (ours, theirs):
        params, state = start, tx.init(start)
        for gradient in gradients:
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)
    w = np.float64(start["fc6"]["kernel"])
    g = gradients[0]["fc6"]["kernel"] + 5e-4 * w
    step = 2.0 * 0.001 * np.linalg.norm(w) / np.linalg.norm(g) * g
    first, _ = ours.update(gradients[0], ours.init(start), start)
    np.testing.assert_allclose(first["fc6"]["kernel"], -step, rtol=1e-4)


@pytest.mark.parametrize("platforms", ["cuda,cpu", "cuda"])
def test_a_rate_for_the_log_is_computed_on_the_host_if_jax_runs_there(platforms, monkeypatch):
    """Device 3 stands for an accelerator; the value is that of NumPy."""
    config = presets.get("article")
    config.optimizer.update(schedule="polynomial", polynomial_power=2.0)
    schedule, seen = schedules.schedule(config, 10, 1000), []

    def watched(step):
        seen.append(schedule(step))
        return seen[-1]

    def local_devices(backend):
        if backend not in platforms:
            raise RuntimeError(f"Unknown backend {backend}")
        return jax.devices()[:1]

    monkeypatch.setattr(jax, "local_devices", local_devices)
    with jax.default_device(jax.devices()[3]), jax.transfer_guard("disallow"):
        rates = [schedules.on_host(watched)(step) for step in (0, 400, 999)]
    assert rates == pytest.approx([0.01, 0.01 * 0.6**2, 0.01 * 0.001**2], rel=1e-4)
    assert {type(rate) for rate in rates} == {float}
    assert {device.id for rate in seen for device in rate.devices()} == {0}


def test_a_rate_grows_with_the_batch_rises_and_falls():
    config = presets.get("article")
    config.batch_size = 1024
    rates = lambda: [float(schedules.schedule(config, 10, 1000)(s)) for s in (0, 24, 49, 50, 500)]  # noqa: E731
    assert rates() == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.001])
    config.optimizer.rate_scaling = "linear"
    assert rates() == pytest.approx([0.08, 0.08, 0.08, 0.08, 0.008])
    config.optimizer.rate_scaling = "sqrt"
    assert rates()[0] == pytest.approx(0.01 * 8**0.5)
    config.optimizer.update(rate_scaling="none", warmup_epochs=5.0, schedule="polynomial")
    left = lambda step: 0.01 * (1 - step / 1000) ** 2  # noqa: E731
    expected = [left(0) / 50, left(24) / 2, left(49), left(50), left(500)]
    assert rates() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["paper", "source", "caffe"])
def test_the_state_begins_as_optax_says(name):
    config = presets.get(name)
    tx = optimizers.build(config, steps_per_epoch=1, num_steps=10)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda *x: np.stack(x), a_tree(config, rng), a_tree(config, rng))
    expected = jax.vmap(tx.init)(params)
    found = init_state(params, tx).opt_state
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_frozen_layers_stay_and_the_rest_does_not():
    config = presets.get("article")
    config.freeze = ("conv1", "fc7")
    tx = optimizers.build(config, 1, 9)
    rng = np.random.default_rng(0)
    start = params = a_tree(config, rng)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(a_tree(config, rng), state, params)
        params = optax.apply_updates(params, updates)
    moved = {name for name in start for kind in ("kernel", "bias")
             if not np.array_equal(params[name][kind], start[name][kind])}  # fmt: skip
    assert moved == set(start) - {"conv1", "fc7"}


def test_biases_decay_where_they_should():
    config = presets.get("article")
    config.optimizer.decay_biases = True
    tx = optimizers.build(config, 1, 9)
    params = a_tree(config, np.random.default_rng(0))
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    jax.tree.map(
        lambda u, w: np.testing.assert_allclose(u, -0.01 * 5e-4 * w, rtol=1e-5), updates, params
    )


def test_the_plateau_counts_tests_without_a_better_error():
    """Patience 2, at most 2 drops: equal is not better, and a drop begins the count anew."""
    optimizer = presets.get("paper").optimizer
    optimizer.update(plateau_patience=2, plateau_drops=2, drop_factor=0.1)
    plateau = schedules.Plateau()
    errors = (0.5, 0.6, 0.4, 0.4, 0.4, 0.45, 0.39, 0.39, 0.5, 1, 1, 1)
    factors = [plateau.observe(error, optimizer) for error in errors]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])
