"""The training step, through `make_train_step` and `Placement.spread` as a run builds it."""

import jax
import numpy as np
import optax
import pytest

from alexnet_jax.model.columns import merge_towers
from alexnet_jax.model.tower import draw_parameters, initial_statistics
from tests import numpy_reference
from tests.reference import grouped_network
from tests.support import (
    PLACEMENTS,
    PLAIN_UPDATE,
    Step,
    dropout_masks,
    noise_batch,
    placement_of,
    random_params,
    tiny_config,
)

BATCH = 8


def configured(changes):
    """The tiny configuration with other values, in batches of eight."""
    config = tiny_config()
    config.batch_size = BATCH
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def dense_config(**changes):
    """Two dense layers of 2 x 5 and 10 units, without dropout, on crops of 4 x 4 pixels."""
    return configured({
        "model.layer_order": ("fc7", "fc8"), "model.width": 1.0, "model.layers.fc7.features": 10,
        "model.layers.fc7.then": ("activation",), "model.layers.fc7.exchange": "none",
        "data.crop_size": 4, "data.image_size": 4, **changes,
    })  # fmt: skip


def images_of(batch):
    """What the network sees of a batch of the tiny configuration."""
    return (batch["image"] - 78.0 + batch["colour"][:, None, None]) / 64


# ------------------------------------------------------------------ gradients

# Each placement with another variant of the network.
VARIANTS = {
    "vmap": {},
    "pmap": {"model.layers.fc6.exchange": "partial_sums"},
    "mesh 2 x 2": {"accumulate_steps": 2},
    "mesh 4 x 2": {"model.layers.fc6.exchange": "partial_sums", "model.lrn.across_towers": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_gradient_is_the_slope_of_the_logged_loss_and_that_of_one_column(name):
    """In float64: in float32 a rounding may move the maximum of a pool to its neighbour."""
    with jax.enable_x64(True):
        config = configured(PLAIN_UPDATE | {"model.lrn.alpha": 0.1} | VARIANTS[name])
        step, batch = Step(config, placement_of(*PLACEMENTS[name])), noise_batch(32, BATCH)
        params = random_params(step.net, 32)

        def logged(params):
            after, metrics = step(step.start(params, step=5, seed=3), batch)
            return metrics["loss"], after.params

        loss, after = logged(params)
        gradients = jax.tree.map(np.subtract, params, after)
        merged, expected = gradients_of_one_column(config, step.net, params, batch)
        assert loss == pytest.approx(merged, rel=1e-9)
        # Every tower's copy of the last bias gets the whole gradient.
        np.testing.assert_allclose(*gradients["fc8"]["bias"], rtol=1e-12)
        for layer, leaves in merge_towers(gradients, step.net.layers).items():
            for part, gradient in leaves.items():
                size = np.linalg.norm(expected[layer][part])
                assert size > 1e-3
                assert np.linalg.norm(gradient - expected[layer][part]) < 1e-8 * size, (layer, part)

        rng, eps = np.random.default_rng(1), 1e-6
        for layer in params:
            for part, value in params[layer].items():
                direction = rng.normal(size=value.shape)
                along = np.sum(gradients[layer][part] * direction)
                if (layer, part) == ("fc8", "bias"):  # one bias, of which each tower has a copy
                    direction[1] = direction[0]
                    along = np.sum(gradients[layer][part][0] * direction[0])
                ends = [
                    logged(params | {layer: params[layer] | {part: value + d * direction}})[0]
                    for d in (eps, -eps)
                ]
                slope = (ends[0] - ends[1]) / (2 * eps)
                assert slope == pytest.approx(along, rel=1e-5, abs=1e-8), (layer, part)


def gradients_of_one_column(config, net, params, batch):
    """Loss and gradients of the merged network, with the dropout masks of seed 3 and step 5."""
    masks = dropout_masks(net, batch, seed=3, step=5)
    masks = {name: np.concatenate(pair, -1) for name, pair in masks.items()}

    def loss_fn(merged):
        logits = grouped_network(config.model, merged, images_of(batch), masks)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    merged = merge_towers(params, net.layers)
    return jax.tree.map(np.array, jax.jit(jax.value_and_grad(loss_fn))(merged))


def test_gradients_sent_in_bfloat16_are_rounded_and_the_metrics_are_not():
    batch, ends = noise_batch(32, BATCH), {}
    for dtype in ("float32", "bfloat16"):
        config = configured(PLAIN_UPDATE | {
            "gradient_sum_dtype": dtype, "model.compute_dtype": "float32"
        })  # fmt: skip
        step = Step(config, placement_of(*PLACEMENTS["mesh 4 x 2"]))
        params = jax.tree.map(np.float32, random_params(step.net, 32))
        after, metrics = step(step.start(params), batch)
        ends[dtype] = metrics["loss"], jax.tree.map(np.subtract, params, after.params)
    assert ends["float32"][0] == ends["bfloat16"][0]
    for exact, rounded in zip(*(jax.tree.leaves(x) for _, x in ends.values()), strict=True):
        error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
        assert 1e-5 < error < 2.0**-6


# ------------------------------------------------------------------ metrics


@pytest.mark.parametrize(
    "name,parts", [("vmap", 1), ("vmap", 4), ("pmap", 2), ("mesh 2 x 2", 1), ("mesh 4 x 2", 2)]
)
def test_loss_and_errors_are_exact_where_the_logits_are_known(name, parts):
    """One dense layer that hands pixels through: the first ten pixels' red are the logits."""
    config = dense_config(**{
        "model.layer_order": ("fc8",), "data.channel_mean": (0.0,) * 3, "data.scale": 1.0,
        "batch_size": 16, "accumulate_steps": parts,
    })  # fmt: skip
    step = Step(config, placement_of(*PLACEMENTS[name]))
    kernel = np.zeros((2, 48, 10), np.float32)
    kernel[0, np.arange(0, 15, 3), np.arange(5)] = 1  # half of the classes by each tower
    kernel[1, np.arange(15, 30, 3), np.arange(5, 10)] = 1
    rank = np.array([0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 4, 5, 6, 8, 9])  # of each label
    rng = np.random.default_rng(0)
    logits = np.stack([rng.choice(np.arange(40, 60), 10, replace=False) for _ in rank])
    label = np.argsort(-logits, 1)[np.arange(16), rank]
    batch = noise_batch(4, 16) | {"label": label.astype(np.int32), "colour": np.zeros((16, 3), "f")}
    batch["image"].reshape(16, 48)[:, 0:30:3] = logits
    params = {"fc8": {"kernel": kernel, "bias": np.zeros((2, 10), np.float32)}}
    _, metrics = step(step.start(params), batch)
    own = logits[np.arange(16), label][:, None]
    assert metrics["loss"] == pytest.approx(np.log(np.exp(logits - own).sum(1)).mean(), rel=1e-6)
    assert metrics["top1_error"] == 9 / 16 and metrics["top5_error"] == 4 / 16
    assert not metrics["not_finite"].any()


# ------------------------------------------------------------------ updates


def gradients_by_hand(params, batch):
    """Of the two dense layers, in NumPy: each copy of the last bias gets the whole gradient."""
    x = images_of(batch).reshape(len(batch["label"]), -1)
    (k7, b7), (k8, b8) = ((params[name]["kernel"], params[name]["bias"]) for name in ("fc7", "fc8"))
    hidden = [np.maximum(x @ k7[t] + b7[t], 0) for t in (0, 1)]
    p = np.exp(hidden[0] @ k8[0] + hidden[1] @ k8[1] + b8[0])
    d = (p / p.sum(1, keepdims=True) - np.eye(10)[batch["label"]]) / len(x)
    back = [d @ k8[t].T * (hidden[t] > 0) for t in (0, 1)]
    return {
        "fc7": {"kernel": np.stack([x.T @ b for b in back]), "bias": np.stack(back).sum(1)},
        "fc8": {"kernel": np.stack([h.T @ d for h in hidden]), "bias": np.stack([d.sum(0)] * 2)},
    }


def numbers_of(opt_state):
    """The velocity, and the counters of the schedules."""
    values = jax.tree.leaves(opt_state)
    return (
        [x for x in values if np.issubdtype(x.dtype, np.floating)],
        [x for x in values if np.issubdtype(x.dtype, np.integer)],
    )


@pytest.mark.parametrize("name", ["vmap", "pmap", "mesh 2 x 2", "mesh 4 x 2"])
def test_nine_steps_equal_the_rule_of_2012_in_numpy(name):
    """Over drops of the rate, of a plateau, and a step that is not finite.

    That one changes no parameter and no velocity, but it counts: the rate drops at the same number.
    """
    config = dense_config(**{
        "model.compute_dtype": "float64", "model.layers.fc8.weight_decay": 0.25,
        "optimizer.momentum": 0.75, "optimizer.weight_decay": 0.125, "optimizer.drop_factor": 0.5,
        "optimizer.learning_rate": 0.125, "optimizer.bias_rate_multiplier": 2.0,
        "optimizer.schedule": "steps", "optimizer.drop_epochs": (2.0, 3.0),
        "optimizer.conv1_drop_epochs": (1.0,),
    })  # fmt: skip
    with jax.enable_x64(True):
        step = Step(config, placement_of(*PLACEMENTS[name]), steps_per_epoch=2)
        expected = random_params(step.net, 4)
        state = step.start(expected, seed=7)
        velocity = jax.tree.map(np.zeros_like, expected)
        for number in range(9):
            scale = 1.0 if number < 7 else 0.25
            state = state.replace(rate_scale=np.full(2, scale, np.float32))
            batch, before = noise_batch(4, BATCH, seed=number), state
            if number == 3:  # the step before a drop: one bad image in the last part of the batch
                batch["colour"][-1, 0] = np.nan
            state, metrics = step(state, batch)
            if number == 3:
                # Of fc7 and fc8, bias before kernel, and the loss; ReLU lets no NaN back to a bias.
                assert metrics["not_finite"].tolist() == [0, 2, 2, 2, 2]
                assert np.isnan(metrics["loss"])
                jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
                (old, counts), (new, counted) = map(numbers_of, (before.opt_state, state.opt_state))
                jax.tree.map(np.testing.assert_array_equal, new, old)
                np.testing.assert_array_equal(counted, np.add(counts, 1))
            else:
                assert not metrics["not_finite"].any()
                gradients = gradients_by_hand(expected, batch)
                for (layer, part), (decay, drops, factor) in {
                    ("fc7", "kernel"): (0.125, [2], 1),
                    ("fc7", "bias"): (0, [4, 6], 2),
                    ("fc8", "kernel"): (0.25, [4, 6], 1),
                    ("fc8", "bias"): (0, [4, 6], 2),
                }.items():
                    rate = 0.125 * factor * scale * 0.5 ** sum(number >= drop for drop in drops)
                    w, v = expected[layer][part], velocity[layer][part]
                    v = 0.75 * v - rate * (gradients[layer][part] + decay * w)
                    velocity[layer][part], expected[layer][part] = v, w + v
            assert (state.step == number + 1).all()
            assert (state.seed == 7).all() and (state.rate_scale == scale).all()
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
                state.params, expected,
            )  # fmt: skip


@pytest.mark.parametrize("name", ["vmap", "pmap", "mesh 2 x 2"])
def test_a_gradient_of_one_tower_that_overflows_stops_both(name):
    """The loss is finite: what overflows is the second tower's fc7 kernel alone."""
    config = dense_config(**{"model.layers.fc7.then": ()})
    step = Step(config, placement_of(*PLACEMENTS[name]))
    params = jax.tree.map(lambda x: np.zeros_like(x, np.float32), random_params(step.net, 4))
    params["fc7"]["kernel"][0] = 0.01
    batch = noise_batch(4, BATCH) | {"label": np.full(BATCH, 9, np.int32)}
    # What the unit asks of its inputs, while it is zero itself and adds nothing to the logits.
    params["fc8"]["kernel"][1, 0] = np.where(np.arange(10) == 9, -3e38, 0)
    batch["image"][:] = 255  # 177 / 64 after the mean
    batch["colour"][:] = 40.0
    state = step.start(params)
    after, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"])
    # Of fc7 and fc8, bias before kernel, and of the loss: on how many towers each is not finite.
    assert metrics["not_finite"].tolist() == [0, 1, 0, 0, 0]
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    assert (after.step == 1).all()


# ------------------------------------------------------------------ colour noise


@pytest.mark.parametrize("until,noisy", [(0.0, range(6)), (1.5, range(3))])
def test_colour_noise_ends_at_its_step(until, noisy):
    config = dense_config(**{"data.colour.rule": "source", "data.colour.until_epoch": until})
    step, batch = Step(config, placement_of("vmap"), steps_per_epoch=2), noise_batch(4, BATCH)
    params = random_params(step.net, 4)
    for number in range(6):
        state = step.start(jax.tree.map(np.float32, params), step=number)
        plain = batch["image"] - 78.0
        shifted = (plain + batch["colour"][:, None, None]) / 1.1
        images = (shifted if number in noisy else plain) / 64
        expected = numpy_reference.loss(config.model, params, images, batch["label"])
        assert step(state, batch)[1]["loss"] == pytest.approx(expected, rel=1e-5), number


# ------------------------------------------------------------------ dropout

UNITS = 150  # of each tower


def masks_seen(step, seed=0, number=0, batch=None):
    """Which units of fc6 and fc7 stay, as the update shows it.

    Both layers see nothing but their biases, and fc7 unit u sees fc6 unit u. Each example has a
    class of its own, so that the columns of fc8's gradient are what fc7 made of each.

    Returns:
      What fc7 puts out: `[towers, examples, units]`, in the order of the batch.
    """
    batch = dropout_batch() if batch is None else batch
    params = jax.tree.map(lambda x: np.zeros_like(x, np.float32), random_params(step.net, 4))
    params["fc6"]["bias"][:] = 1
    params["fc7"]["bias"][:] = 0.25
    for tower in (0, 1):
        params["fc7"]["kernel"][tower, tower * UNITS + np.arange(UNITS), np.arange(UNITS)] = 1
    after, _ = step(step.start(params, number, seed), batch)
    gradient = params["fc8"]["kernel"] - after.params["fc8"]["kernel"]
    seen = gradient[..., [9]] - gradient[..., batch["label"]]  # nobody is of class 9
    return len(batch["label"]) * seen.transpose(0, 2, 1)


def dropout_batch():
    return noise_batch(4, BATCH) | {"label": np.arange(BATCH, dtype=np.int32)}


def dropout_step(name="vmap", **changes):
    config = dense_config(**{
        "model.layer_order": ("fc6", "fc7", "fc8"), "model.layers.fc6.features": 2 * UNITS,
        "model.layers.fc7.features": 2 * UNITS, "model.layers.fc7.exchange": "inputs",
        "model.layers.fc7.then": ("activation", "dropout"), "optimizer.momentum": 0.0,
        "optimizer.weight_decay": 0.0, "optimizer.learning_rate": 1.0, **changes,
    })  # fmt: skip
    return Step(config, placement_of(*PLACEMENTS[name]))


def independent(a, b):
    """Whether two masks agree about half the time: within five deviations."""
    return abs((a == b).mean() - 0.5) < 2.5 / np.sqrt(a.size)


def test_dropout_is_drawn_anew_for_every_step_seed_layer_tower_and_example():
    step = dropout_step()
    first = masks_seen(step)
    # 2 x (0 or 2 + 1 / 4), or nothing.
    np.testing.assert_allclose(np.unique(first.round(4)), [0, 0.5, 4.5])
    fc7, fc6 = first > 0.25, first > 2
    assert abs(fc7.mean() - 0.5) < 2.5 / np.sqrt(fc7.size)
    assert abs(fc6[fc7].mean() - 0.5) < 2.5 / np.sqrt(fc7.sum())  # apart from the next layer's
    assert independent(fc7[0], fc7[1])  # the towers
    for one in range(1, BATCH):
        assert independent(fc7[:, 0], fc7[:, one])
    for other in (masks_seen(step, number=1), masks_seen(step, seed=1)):
        assert independent(fc7, other > 0.25)
    np.testing.assert_array_equal(masks_seen(step), first)


@pytest.mark.parametrize(
    "name,parts", [("vmap", 2), ("pmap", 1), ("mesh 2 x 2", 1), ("mesh 4 x 2", 2)]
)
def test_an_examples_dropout_does_not_depend_on_where_it_is(name, parts):
    """Under each placement, in another order and beside others."""
    batch, others = dropout_batch(), dropout_batch()
    expected = masks_seen(dropout_step(), 3, 5, batch)
    order = np.random.default_rng(2).permutation(BATCH)
    others["index"] = batch["index"][order]
    others["index"][:3] += 1000
    step = dropout_step(name, accumulate_steps=parts)
    np.testing.assert_allclose(masks_seen(step, 3, 5, batch), expected, atol=1e-4)
    found = masks_seen(step, 3, 5, others)
    np.testing.assert_allclose(found[:, 3:], expected[:, order][:, 3:], atol=1e-4)
    assert independent(found[:, :3] > 0.25, expected[:, order][:, :3] > 0.25)


@pytest.mark.parametrize("rate,rescaled", [(0.5, False), (0.2, True), (0.2, False)])
def test_dropout_keeps_its_share_and_rescales_where_it_should(rate, rescaled):
    step = dropout_step(**{
        "model.dropout.rate": rate, "model.dropout.rescaled_in_training": rescaled,
    })  # fmt: skip
    seen, factor = masks_seen(step), 1 / (1 - rate) if rescaled else 1
    np.testing.assert_allclose(
        np.unique(seen.round(4)), [0, 0.25 * factor, (factor + 0.25) * factor], atol=1e-4
    )
    kept = (seen > 0.1).mean()
    assert abs(kept - (1 - rate)) < 2.5 / np.sqrt(seen.size)


@pytest.mark.parametrize("name", ["vmap", "mesh 2 x 2"])
def test_a_step_that_is_not_finite_changes_no_running_statistics(name):
    config = dense_config(**{"model.layers.fc7.then": ("batch_norm", "activation")})
    step = Step(config, placement_of(*PLACEMENTS[name]))
    first = initial_statistics(step.net, 4)
    state = step.start(draw_parameters(step.net, 0, 4), batch_stats=first)
    bad = noise_batch(4, BATCH)
    bad["colour"][-1, 0] = np.nan
    state, metrics = step(state, bad)
    assert metrics["not_finite"].any()
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, first)
    state, metrics = step(state, noise_batch(4, BATCH))
    assert not metrics["not_finite"].any()
    for name in ("batch_norm.mean", "batch_norm.variance"):
        assert not np.isclose(state.batch_stats["fc7"][name], first["fc7"][name]).any()
