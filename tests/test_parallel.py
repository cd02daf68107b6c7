"""The same loss, gradients and training under every placement, and in one merged column."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import evaluate, inputs, optim, parallel
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.config import default
from alexnet_jax.data import pipeline
from alexnet_jax.data.prepared_source import Prepared
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.models import layers, tower
from alexnet_jax.models.towers import merge_towers
from alexnet_jax.state import init_state
from alexnet_jax.train import make_train_step, train_and_evaluate
from tests.reference import grouped_network
from tests.support import PLACEMENTS, placement_of, tiny_config

BATCH = 8


def article_net(exchange="inputs"):
    """The full depth and input size, a sixteenth as wide, weights large enough to matter."""
    config = default()
    config.model.width = 1 / 16
    config.model.num_classes = 37  # odd, and no multiple of anything
    config.model.layers.fc6.exchange = exchange
    config.model.compute_dtype = "float64"
    for name in config.model.layer_order:
        config.model.layers[name].init_std = 0.05
        config.model.layers[name].bias = 0.1
    return config


def a_batch(classes, size=224, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, size, size, 3), np.uint8),
        "label": rng.integers(0, classes, BATCH).astype(np.int32),
        "index": rng.permutation(1000)[:BATCH].astype(np.int32),
        "colour": rng.normal(0, 5, (BATCH, 3)).astype(np.float32),
    }


def loss_and_gradients(config, placement, batch, key):
    net = tower.build(config.model)
    params = jax.tree.map(np.float64, tower.init(net, 0, config.data.crop_size))

    def step(params, batch):
        images = batch["image"].astype(jnp.float32) - 120

        def loss_fn(params):
            logits = net.apply({"params": params}, images, key, batch["index"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.sum() / BATCH / net.towers, losses.sum() / BATCH

        gradients, loss = jax.grad(loss_fn, has_aux=True)(params)
        return placement.sum_over_data(gradients), placement.sum_over_data(loss)

    run = placement.spread(step, ("tower", "batch"), ("tower", "same"))
    gradients, loss = run(placement.put_towers(params), placement.put_batch(batch))
    return float(loss), jax.tree.map(np.asarray, gradients), jax.tree.map(np.asarray, params)


def merged_loss_and_gradients(config, params, batch, key):
    net = tower.build(config.model)
    masks = {}
    for i, layer in enumerate(net.layers):
        if "dropout" in layer.then:
            layer_key = jax.random.fold_in(key, i)
            parts = [
                layers.dropout_mask(layer_key, batch["index"], t, (layer.features,), 0.5)
                for t in range(2)
            ]
            masks[layer.name] = jnp.concatenate(parts, -1)
    images = batch["image"].astype(np.float64) - 120

    def loss_fn(merged):
        logits = grouped_network(config.model, merged, images, masks)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(merge_towers(params, net.layers))
    return float(loss), gradients


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("exchange", ["inputs", "partial_sums"])
def test_loss_and_every_gradient_equal_the_merged_network(exchange):
    """In float64: in float32 a rounding now and then moves the maximum of a pool to its neighbour.

    Such a tie changes one element's path, not its size, and shows as 1e-3 of a small gradient.
    """
    with jax.enable_x64(True):
        check_loss_and_gradients(exchange)


def check_loss_and_gradients(exchange):
    config, key = article_net(exchange), jax.random.key(7)
    batch = a_batch(config.model.num_classes)
    net_layers = tower.build(config.model).layers
    first = None
    for name, (kind, data) in PLACEMENTS.items():
        if name in ("mesh 1 x 2", "mesh 2 x 2") and exchange == "inputs":
            continue
        placement = placement_of(kind, data)
        loss, gradients, params = loss_and_gradients(config, placement, batch, key)
        if first is None:
            first = merged_loss_and_gradients(config, params, batch, key)
        assert loss == pytest.approx(first[0], rel=1e-9), name
        merged = merge_towers(gradients, net_layers)
        for layer, leaves in first[1].items():
            for part, expected in leaves.items():
                assert np.linalg.norm(expected) > 0
                assert relative(merged[layer][part], expected) < 1e-8, (name, layer, part)
        # Every tower's copy of the last bias gets the whole gradient.
        np.testing.assert_allclose(gradients["fc8"]["bias"][0], gradients["fc8"]["bias"][1])


def noisy_config():
    """Digits with crops, flips, PCA noise and dropout: every source of chance is on."""
    config = tiny_config()
    config.update_from_flattened_dict(
        {"data.colour.rule": "source", "data.random_flip": True, "batch_size": 64}
    )
    for name in config.model.layer_order:
        config.model.layers[name].init_std = 0.1  # so that it learns from the first step on
    assert config.model.dropout.rate == 0.5 and config.data.random_crop
    return config


def train_steps(config, placement, steps):
    """Losses of `steps` steps over the digits as `train` would feed them."""
    source = open_source("digits", "train")
    net, tx = tower.build(config.model), optim.sgd_2012(config, 22, 22)
    rule = inputs.build(config.data, None)
    step = make_train_step(config, net, rule, tx, placement, steps_per_epoch=22)
    params = tower.init(net, config.seed, config.data.crop_size)
    state = placement.put_towers(init_state(params, tx))
    batches = pipeline.train_batches(
        source, config.data, seed=config.seed, batch_size=config.batch_size
    )
    losses = []
    for _ in range(steps):
        state, metrics = step(state, placement.put_batch(next(batches)))
        losses.append(float(parallel.to_host(metrics)["loss"]))
    return losses


def test_twenty_steps_give_the_same_losses_everywhere():
    losses = {
        name: train_steps(noisy_config(), placement_of(kind, data), 20)
        for name, (kind, data) in PLACEMENTS.items()
    }
    assert np.ptp(losses["vmap"]) > 0.1  # it does move
    for name, values in losses.items():
        np.testing.assert_allclose(values[:3], losses["vmap"][:3], rtol=1e-6, err_msg=name)
        # Later a rounding may move the maximum of a pool to its neighbour, and that grows: on some
        # processors to 1e-3.
        np.testing.assert_allclose(values, losses["vmap"], rtol=3e-3, err_msg=name)


@pytest.mark.parametrize("name,parts", [("vmap", 4), ("mesh 4 x 2", 8)])
def test_a_batch_in_parts_gives_the_same_losses(name, parts):
    placement, config = placement_of(*PLACEMENTS[name]), noisy_config()
    whole = train_steps(config, placement, 10)
    config.accumulate_steps = parts
    np.testing.assert_allclose(train_steps(config, placement, 10), whole, rtol=1e-4)


def test_a_checkpoint_walks_over_placements(tmp_path):
    """vmap, pmap, 4 x 2, vmap, five steps or so on each, and one run that stays."""
    config = noisy_config()
    ends = {}
    for name, placements in {
        "walks": ("vmap", "pmap", "mesh", "vmap"),
        "stays": ("vmap",),
    }.items():
        for i, placement in enumerate(placements, 1):
            config.placement = placement
            config.num_epochs = i / len(placements)
            result = train_and_evaluate(config, tmp_path / name)
            assert result["placement"] == placement
        assert result["steps"] == 22
        net, tx = tower.build(config.model), optim.sgd_2012(config, 22, 22)
        like = init_state(tower.init(net, config.seed, config.data.crop_size), tx)
        with Checkpoints(tmp_path / name) as checkpoints:
            step, state, _ = checkpoints.restore_latest(like)
        assert step == 22
        ends[name] = state.params
    for (path, walked), stayed in zip(
        jax.tree_util.tree_leaves_with_path(ends["walks"]), jax.tree.leaves(ends["stays"]),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(walked, stayed, atol=1e-5, err_msg=str(path))


class HostsOf:
    """A mesh over so many processes and devices each, to be asked who owns what."""

    def __init__(self, processes, devices_each, towers):
        owners = np.repeat(np.arange(processes), devices_each)
        devices = [types.SimpleNamespace(process_index=int(owner)) for owner in owners]
        self.devices = np.array(devices).reshape(-1, towers)
        self.shape = {parallel.DATA: len(self.devices), "tower": towers}


@pytest.mark.parametrize("towers", [1, 2, 4])
def test_each_process_reads_the_examples_of_its_devices(towers, monkeypatch, tmp_path):
    """And all of them together each example once, for any number of hosts, devices, examples."""
    squares = tmp_path / "squares"
    squares.write_bytes(bytes(3 * 400))
    rng = np.random.default_rng(towers)
    for _ in range(30):
        processes, each = int(rng.integers(1, 9)), int(2 ** rng.integers(0, 4))
        if processes * each % towers or (each % towers and towers % each):
            continue
        mesh = HostsOf(processes, each, towers)
        placement = parallel.Placement("mesh", mesh)
        config = default()
        config.evaluate.batch_size = int(rng.integers(1, 200))
        config.data.image_size = 1
        views, count = int(rng.choice([1, 9, 10])), int(rng.integers(1, 400))
        size = evaluate.batch_size(config, views, placement)
        share = size // placement.data_parallel
        seen = {}
        for process in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            which, parts = placement.batch_part
            own = range(which * size // parts, (which + 1) * size // parts)
            rows = [r for r, group in enumerate(mesh.devices) for d in group
                    if d.process_index == process]  # fmt: skip
            assert {i // share for i in own} == set(rows)
            labels = np.zeros(count, np.int32)
            source = Prepared("", "", ("a",), squares, 1, 0, labels, "short_side", "area")
            batches = pipeline.eval_batches(
                source, config.data, batch_size=size, part=(which, parts)
            )
            seen[which] = [
                i for batch in batches for i in batch["index"][batch["mask"] > 0]
            ]  # processes that share a group of devices read the same
        assert sorted(i for part in seen.values() for i in part) == list(range(count))


def test_the_placement_follows_from_the_devices():
    config = default()
    assert parallel.place(config).describe().startswith("mesh 4 x 2")
    for name in ("vmap", "pmap"):
        config.placement = name
        assert parallel.place(config).name == name
        assert parallel.place(config).data_parallel == 1


@pytest.mark.parametrize(
    "changes,field",
    [
        ({"placement": "mesh", "batch_size": 130}, "batch_size"),
        ({"placement": "mesh", "model.towers": 3}, "placement"),
        ({"placement": "pmap", "model.towers": 16}, "placement"),
        ({"placement": "mesh", "evaluate.batch_size": 6}, "evaluate.batch_size"),
        ({"placement": "mesh", "accumulate_steps": 3}, "accumulate_steps"),
    ],
)
def test_devices_that_do_not_fit_are_named(changes, field):
    config = default()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=rf"^config\.{field} ="):
        parallel.place(config)
