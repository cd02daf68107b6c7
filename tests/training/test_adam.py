"""Adam and AdamW against a NumPy transcription of their papers, by group of parameters."""

import jax
import numpy as np
import optax
import pytest

from alexnet_jax.errors import UsageError
from alexnet_jax.training import optimizers
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.origin import load
from tests.support import PLACEMENTS, Step, noise_batch, placement_of, random_params, three_layers
from tests.training.test_step import BATCH, dense_config, gradients_by_hand

LAYERS = ("conv1", "fc2", "fc3")


class ByHand:
    """Algorithm 1 of Kingma and Ba, with decay in the gradient or, as in AdamW, beside it."""

    def __init__(self, w, decoupled):
        self.w, self.decoupled = np.float64(w), decoupled
        self.m, self.v, self.t = np.zeros_like(self.w), np.zeros_like(self.w), 0

    def step(self, g, rate, decay, b1):
        self.t += 1
        g = g if self.decoupled else g + decay * self.w
        self.m = b1 * self.m + (1 - b1) * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m, v = self.m / (1 - b1**self.t), self.v / (1 - 0.999**self.t)
        beside = decay * self.w if self.decoupled else 0
        self.w = self.w - rate * (m / (np.sqrt(v) + 1e-8) + beside)


@pytest.mark.parametrize("rule", ["adam", "adamw"])
def test_twenty_steps_of_every_group(rule):
    """Rates drop, biases have their own, one layer has its own decay and another is frozen."""
    config = three_layers()
    with config.unlocked():
        config.freeze = ("conv1",)
        config.model.layers.fc3.weight_decay = 0.5
        config.optimizer.update(
            rule=rule, learning_rate=0.05, momentum=0.8, weight_decay=0.25, schedule="steps",
            drop_epochs=(10.0,), drop_factor=0.5, bias_rate_multiplier=2.0,
        )  # fmt: skip
    tx = optimizers.build(config, steps_per_epoch=1, num_steps=20)
    rng = np.random.default_rng(0)
    tree = lambda: {  # noqa: E731
        layer: {part: rng.normal(size=5).astype(np.float32)
                for part in ("kernel", "bias", "norm.scale")}
        for layer in LAYERS
    }  # fmt: skip
    params = start = tree()
    by_hand = {
        (layer, part): ByHand(w, rule == "adamw")
        for layer, parts in params.items() if layer != "conv1" for part, w in parts.items()
    }  # fmt: skip
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(20):
        gradients, scale = tree(), 1.0 if step < 15 else 0.25
        updates, state = update(gradients, state, params, rate_scale=scale)
        params = optax.apply_updates(params, updates)
        for (layer, part), hand in by_hand.items():
            kernel = part == "kernel"
            rate = 0.05 * scale * (1 if kernel else 2) * (0.5 if step >= 10 else 1)
            decay = (0.5 if layer == "fc3" else 0.25) if kernel else 0.0
            hand.step(gradients[layer][part], rate, decay, b1=0.8)
    for (layer, part), hand in by_hand.items():
        np.testing.assert_allclose(params[layer][part], hand.w, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, params["conv1"], start["conv1"])


@pytest.mark.parametrize("rule,name", [("adam", "mesh 2 x 2"), ("adamw", "pmap")])
def test_a_step_that_is_not_finite_leaves_both_moments_and_their_count(rule, name):
    config = dense_config(**{
        "model.compute_dtype": "float64", "optimizer.rule": rule, "optimizer.momentum": 0.75,
        "optimizer.weight_decay": 0.125, "optimizer.learning_rate": 0.01,
        "optimizer.schedule": "steps", "optimizer.drop_epochs": (2.0,),
        "optimizer.conv1_drop_epochs": (),
    })  # fmt: skip
    with jax.enable_x64(True):
        step = Step(config, placement_of(*PLACEMENTS[name]), steps_per_epoch=2)
        params = random_params(step.net, 4)
        state = step.start(params)
        by_hand = jax.tree.map(lambda w: ByHand(w, rule == "adamw"), params)
        for number in range(6):
            batch = noise_batch(4, BATCH, seed=number)
            if number == 2:
                batch["colour"][-1, 0] = np.nan
            else:
                weights = jax.tree.map(lambda hand: hand.w, by_hand)
                gradients = gradients_by_hand(weights, batch)
                rate = 0.01 if number < 4 else 0.001  # The drop comes by the number of the step.
                for layer, parts in by_hand.items():
                    for part, hand in parts.items():
                        decay = 0.125 if part == "kernel" else 0.0
                        hand.step(gradients[layer][part], rate, decay, b1=0.75)
            state, _ = step(state, batch)
        for layer, parts in by_hand.items():
            for part, hand in parts.items():
                np.testing.assert_allclose(state.params[layer][part], hand.w, rtol=1e-7, atol=1e-9)


def test_the_first_step_of_a_run_moves_every_weight_by_the_rate(tmp_path):
    """Which is what Adam's bias correction makes of one gradient, whatever its size."""
    config = three_layers()
    with config.unlocked():
        config.placement, config.num_epochs = "vmap", 2 / 40
        config.optimizer.update(rule="adam", learning_rate=0.001, weight_decay=0.0)
        config.checkpoint_every_steps, config.keep_checkpoints = 1, 2
    train_and_evaluate(config, tmp_path)
    first, second = (load(tmp_path, step=step).params["fc2"]["kernel"] for step in (1, 2))
    assert (tmp_path / "checkpoints" / "2" / "optimizer").is_dir()
    moved = np.abs(second - first)
    assert np.median(moved) == pytest.approx(0.001, rel=0.5) and moved.max() < 0.0015


def test_a_trust_ratio_is_refused():
    config = three_layers()
    config.optimizer.update(rule="adamw", trust_coefficient=0.01)
    with pytest.raises(UsageError, match=r"trust_coefficient = 0\.01: only the rule sgd_2012 has"):
        optimizers.build(config, 1, 1)
