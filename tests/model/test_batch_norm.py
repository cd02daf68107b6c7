"""Batch normalization: added in its own file, and the same wherever the towers run."""

import json

import jax
import numpy as np
import onnxruntime
import pytest

from alexnet_jax.analysis.exchange import compile_step
from alexnet_jax.config import default, from_json, table, validate
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.model.batch_norm import BatchNorm
from alexnet_jax.model.operation import Site
from alexnet_jax.model.tower import (
    build_tower,
    draw_parameters,
    initial_statistics,
    parameter_shapes,
)
from alexnet_jax.parallel import exchange
from alexnet_jax.training import optimizers
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.state import init_state
from alexnet_jax.weights.column import from_towers
from alexnet_jax.weights.files import read, write
from tests.support import (
    PLACEMENTS,
    PLAIN_UPDATE,
    Step,
    noise_batch,
    placement_of,
    random_params,
    three_layers,
)

EPSILON, MOMENTUM = 1e-3, 0.75


def normed(**changes):
    """Two towers of three layers, the first two with batch normalization."""
    config = three_layers()
    config.model.layers.conv1.then = ("batch_norm", "activation", "max_pool")
    config.model.layers.fc2.then = ("batch_norm", "activation")
    config.model.batch_norm.update(epsilon=EPSILON, momentum=MOMENTUM)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    validate(config)
    return config


def by_hand(x, scale, offset, mean, variance):
    return scale * (x - mean) / np.sqrt(variance + EPSILON) + offset


def applied(x, values, training):
    """The operation's output, and its running values afterwards."""
    statistics = {name: values[name] for name in ("mean", "variance")}
    parameters = {name: values[name] for name in ("scale", "offset")}
    at = Site("conv1", 0, training, None, None, 2, parameters, statistics, lambda tree: tree)
    return BatchNorm(MOMENTUM, EPSILON)(x, at), at.statistics


@pytest.mark.parametrize("shape", [(6, 5, 5, 3), (6, 3)], ids=["maps", "units"])
def test_it_is_that_of_the_paper_in_training_and_in_test(shape):
    rng = np.random.default_rng(0)
    # A mean that is a thousand deviations large: squares of single precision would lose them.
    x = rng.normal([100, -3, 0], [0.1, 1, 3], shape).astype(np.float32)
    values = {n: rng.uniform(0.5, 2, 3) for n in ("scale", "offset", "mean", "variance")}
    y, kept = applied(x, jax.tree.map(np.float32, values), training=False)
    np.testing.assert_allclose(y, by_hand(np.float64(x), **values), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(kept["mean"], values["mean"], rtol=1e-6)

    y, kept = applied(x, jax.tree.map(np.float32, values), training=True)
    axes = tuple(range(x.ndim - 1))
    batch = {"mean": np.float64(x).mean(axes), "variance": np.float64(x).var(axes)}
    np.testing.assert_allclose(y, by_hand(np.float64(x), **values | batch), rtol=1e-3, atol=1e-3)
    for name, value in batch.items():
        moved = MOMENTUM * values[name] + (1 - MOMENTUM) * value
        np.testing.assert_allclose(kept[name], moved, rtol=1e-4)


def test_in_a_narrow_network_it_is_computed_in_float32():
    x = jax.numpy.asarray(np.random.default_rng(0).normal(50, 1, (64, 3)), jax.numpy.bfloat16)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    values = {"scale": ones, "offset": zeros, "mean": zeros, "variance": ones}
    y, kept = applied(x, values, training=True)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(kept["mean"], (1 - MOMENTUM) * exact.mean(0), rtol=1e-5)
    assert y.dtype == np.float32  # the layer rounds it once
    np.testing.assert_allclose(np.mean(np.asarray(y), 0), 0, atol=1e-4)


@pytest.mark.parametrize("name", ["vmap", "mesh 2 x 2"])
def test_the_gradient_is_the_slope_of_the_loss(name):
    """Through the statistics as well, and those of the whole batch where it is divided."""
    with jax.enable_x64(True):
        config = normed(batch_size=8, **PLAIN_UPDATE | {"model.activation": "tanh"})
        config.model.layers.conv1.then = ("batch_norm", "activation", "avg_pool")
        step, batch = Step(config, placement_of(*PLACEMENTS[name])), noise_batch(32, 8)
        params = random_params(step.net, 32)
        rng = np.random.default_rng(0)
        for layer in ("conv1", "fc2"):
            for part in ("scale", "offset"):
                params[layer][f"batch_norm.{part}"] += rng.normal(
                    0, 0.2, params[layer][f"batch_norm.{part}"].shape
                )
        statistics = jax.tree.map(np.float64, initial_statistics(step.net, 32))

        def logged(params):
            after, metrics = step(step.start(params, batch_stats=statistics), batch)
            return metrics["loss"], after.params

        gradients = jax.tree.map(np.subtract, params, logged(params)[1])
        for layer, part in [("conv1", "kernel"), ("conv1", "batch_norm.scale"),
                            ("conv1", "batch_norm.offset"), ("fc2", "batch_norm.scale"),
                            ("fc2", "kernel")]:  # fmt: skip
            direction = rng.normal(size=params[layer][part].shape)
            along = np.sum(gradients[layer][part] * direction)
            ends = [
                logged(params | {layer: params[layer] | {part: params[layer][part] + d}})[0]
                for d in (1e-6 * direction, -1e-6 * direction)
            ]
            slope = (ends[0] - ends[1]) / 2e-6
            assert abs(along) > 1e-3
            assert slope == pytest.approx(along, rel=1e-5), (layer, part)
        # A bias before the normalization changes nothing.
        np.testing.assert_allclose(gradients["conv1"]["bias"], 0, atol=1e-12)


def trained(config, placement, steps=20):
    """The losses, and the state afterwards."""
    step = Step(config, placement, steps_per_epoch=40, num_steps=40)
    crop = config.data.crop_size
    state = step.start(
        draw_parameters(step.net, 0, crop), batch_stats=initial_statistics(step.net, crop)
    )
    batches = pipeline.train_batches(
        open_source("digits", "train"), config.data, seed=0, batch_size=config.batch_size
    )
    losses = []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return losses, state


def test_twenty_losses_are_the_same_wherever_the_towers_run():
    # Smooth operations: a rounding may move the maximum of a pool to its neighbour.
    config = normed(**{"optimizer.learning_rate": 0.05, "model.activation": "tanh"})
    config.model.layers.conv1.then = ("batch_norm", "activation", "avg_pool")
    found = {
        name: trained(config, placement_of(*PLACEMENTS[name]))
        for name in ("vmap", "pmap", "mesh 2 x 2")
    }
    losses, state = found["vmap"]
    assert losses[-1] < 0.8 * losses[0]
    for name, (others, after) in found.items():
        np.testing.assert_allclose(others, losses, rtol=1e-4, err_msg=name)
        for layer, parts in state.batch_stats.items():
            for part, value in parts.items():
                assert np.ptp(value) > 0.01
                np.testing.assert_allclose(
                    after.batch_stats[layer][part], value, rtol=1e-3, atol=1e-3, err_msg=name
                )


def test_a_frozen_layer_keeps_its_statistics_and_uses_them():
    config = normed(freeze=("conv1",))
    step, batch = Step(config, placement_of("vmap")), noise_batch(32, 32)
    params = draw_parameters(step.net, 0, 32)
    statistics = initial_statistics(step.net, 32)
    state = step.start(params, batch_stats=statistics)
    after, metrics = step(state, batch)
    for part, value in statistics["conv1"].items():
        np.testing.assert_array_equal(after.batch_stats["conv1"][part], value)
    assert np.ptp(after.batch_stats["fc2"]["batch_norm.mean"]) > 0
    other = {layer: dict(parts) for layer, parts in statistics.items()}
    other["conv1"]["batch_norm.variance"] = statistics["conv1"]["batch_norm.variance"] * 9
    _, changed = step(step.start(params, batch_stats=other), batch)
    assert abs(changed["loss"] - metrics["loss"]) > 1e-4


def test_a_run_that_is_resumed_is_the_same_to_the_bit(tmp_path):
    config = normed(placement="vmap", num_epochs=0.5, checkpoint_every_steps=7)
    config.evaluate.every_epochs = 0.25
    whole = train_and_evaluate(config, tmp_path / "whole")
    config.num_epochs = 0.25
    train_and_evaluate(config, tmp_path / "parts")
    config.num_epochs = 0.5
    parts = train_and_evaluate(config, tmp_path / "parts")
    assert parts == whole
    tower = build_tower(config.model)
    like = init_state(
        parameter_shapes(tower, 32), optimizers.build(config, 40, 20),
        batch_stats=initial_statistics(tower, 32),
    )  # fmt: skip
    ends = []
    for name in ("whole", "parts"):
        with Checkpoints(tmp_path / name) as checkpoints:
            ends.append(checkpoints.restore_latest(like)[1])
    assert np.ptp(ends[0].batch_stats["conv1"]["batch_norm.mean"]) > 0.1
    jax.tree.map(np.testing.assert_array_equal, *(end.variables for end in ends))


def test_one_column_and_onnxruntime_have_the_same_scores(tmp_path):
    config = normed()
    _, state = trained(config, placement_of("vmap"), steps=5)
    variables = state.variables
    mean = np.float32(config.data.channel_mean)
    column = from_towers(config, variables, mean, tuple("0123456789"))
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    logits = jax.vmap(
        lambda v: build_tower(config.model).apply(v, (images - mean) * config.data.scale),
        axis_name="tower",
    )(variables)
    expected = np.asarray(jax.nn.softmax(logits[0]))
    assert np.ptp(expected, axis=0).max() > 0.05
    write(column, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx", providers=["CPUExecutionProvider"]
    )
    image = images.astype(np.float32).transpose(0, 3, 1, 2)
    (found,) = session.run(["probabilities"], {"image": image})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    write(column, tmp_path / "net.safetensors")
    for suffix in ("onnx", "safetensors"):
        again = read(tmp_path / f"net.{suffix}").towers
        jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_it_sends_what_the_table_says():
    config = normed(batch_size=8)
    program = compile_step(config, placement_of("mesh", 2)).as_text()
    points = exchange.points(config, 2)
    names = [point.name for point in points]
    # Sums of 4 or 12 values in two passes, forward and backward, each a ring of two devices.
    expected = {"conv1 batch_norm": 4 * 4, "fc2 batch_norm": 4 * 12}
    assert {p.name: p.elements for p in points if "batch_norm" in p.name} == expected
    compiled = exchange.by_point(exchange.collectives(program, 4), names)
    assert compiled["fc2 batch_norm"] == (4 * 12, 4 * 4 * 12)
    # XLA sends some of conv1's gradients together with the last of its sums. The step adds up three
    # metrics as well.
    gradients = exchange.trained_parameters(config) + 3
    assert compiled["conv1 batch_norm"][0] + compiled["gradients"][0] == 4 * 4 + gradients
    # Two gradients of each of three layers, two more of each normalization, and the loss.
    check = next(point.elements for point in points if point.name == exchange.CHECK)
    assert compiled[exchange.CHECK][0] == check == 11


def test_its_values_count_as_parameters():
    config = normed()
    rows = table.count(config.model, 32)
    shapes = parameter_shapes(build_tower(config.model), 32)
    last = 10  # the last bias, which both towers have
    assert sum(row.parameters for row in rows) == (
        sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) - last
    )
    assert shapes["conv1"]["batch_norm.scale"].shape == (2, 4)


@pytest.mark.parametrize(
    "changes,says",
    [
        ({"accumulate_steps": 2}, r"config\.accumulate_steps = 2: batch_norm after conv1 needs"),
        (
            {"model.layers.conv1.then": ("batch_norm", "activation", "batch_norm")},
            r"config\.model\.layers\.conv1\.then = .*: batch_norm has values of its own",
        ),
        ({"model.batch_norm.momentum": 1.0}, r"batch_norm\.momentum = 1\.0: must be less than 1"),
        ({"model.batch_norm.momentum": -0.1}, r"batch_norm\.momentum = -0\.1: must be at least 0"),
        ({"model.batch_norm.epsilon": 0.0}, r"batch_norm\.epsilon = 0\.0: must be more than 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes, says):
    with pytest.raises(UsageError, match=says):
        normed(**changes)


def test_a_run_of_before_has_its_fields():
    old = json.loads(default().to_json())
    del old["model"]["batch_norm"]
    assert from_json(json.dumps(old), "config.json").to_dict() == default().to_dict()
