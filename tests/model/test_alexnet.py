"""The network against the article's figures and the counts of section 3.4 of the reference."""

import jax
import numpy as np
import pytest

from alexnet_jax.config import default, table, validate
from alexnet_jax.errors import UsageError
from alexnet_jax.model import collectives
from alexnet_jax.model.columns import merge_towers, split_towers
from alexnet_jax.model.tower import build_tower, draw_parameters
from tests.support import random_params

# The article, layer by layer: after the convolution, and after what follows it, both towers.
ARTICLE = {
    "conv1": ((55, 55, 96), (27, 27, 96)),
    "conv2": ((27, 27, 256), (13, 13, 256)),
    "conv3": ((13, 13, 384), (13, 13, 384)),
    "conv4": ((13, 13, 384), (13, 13, 384)),
    "conv5": ((13, 13, 256), (6, 6, 256)),
    "fc6": ((4096,), (4096,)),
    "fc7": ((4096,), (4096,)),
    "fc8": ((1000,), (1000,)),
}
PARAMETERS = {
    "conv1": 34_944, "conv2": 307_456, "conv3": 885_120, "conv4": 663_936, "conv5": 442_624,
    "fc6": 37_752_832, "fc7": 16_781_312, "fc8": 4_097_000,
}  # fmt: skip
MACS = {
    "conv1": 105_415_200, "conv2": 223_948_800, "conv3": 149_520_384, "conv4": 112_140_288,
    "conv5": 74_760_192, "fc6": 37_748_736, "fc7": 16_777_216, "fc8": 4_096_000,
}  # fmt: skip


def abstract_run(config):
    """Parameter and activation shapes of one tower, from the module itself, without computing."""
    net = build_tower(config.model)
    crop = config.data.crop_size

    def run(key):
        images = jax.numpy.zeros((2, crop, crop, 3))
        variables = net.init(key, images)
        return variables["params"], net.apply(variables, images, mutable=["intermediates"])

    keys = jax.ShapeDtypeStruct((config.model.towers,), jax.random.key(0).dtype)
    return jax.eval_shape(jax.vmap(run, axis_name=collectives.TOWER), keys)


def test_the_table_is_the_articles():
    config = default()
    for row in table.count(config.model, 224):
        name = row.layer.name
        assert (row.out_shape, row.next_shape) == ARTICLE[name]
        assert (row.parameters, row.macs) == (PARAMETERS[name], MACS[name])


def test_what_follows_each_layer_is_the_articles():
    normalized, dense = ("activation", "max_pool", "lrn"), ("activation", "dropout")
    then = {layer.name: layer.then for layer in table.read_layers(default().model)}
    assert then == {
        "conv1": normalized, "conv2": normalized, "conv3": ("activation",),
        "conv4": ("activation",), "conv5": ("activation", "max_pool"), "fc6": dense, "fc7": dense,
        "fc8": (),
    }  # fmt: skip


def test_the_module_has_the_articles_shapes_and_the_tables_parameters():
    params, (logits, state) = abstract_run(default())
    assert logits.shape == (2, 2, 1000)
    for name, (_, after) in ARTICLE.items():
        (activation,) = state["intermediates"][f"{name}_out"]
        per_tower = (*after[:-1], after[-1] // (1 if name == "fc8" else 2))
        assert activation.shape == (2, 2, *per_tower)
        counted = sum(int(np.prod(leaf.shape)) for leaf in params[name].values())
        shared = params[name]["bias"].shape[1] if name == "fc8" else 0
        assert counted - shared == PARAMETERS[name]


def test_one_tower_has_the_ungrouped_counts():
    config = default()
    config.model.towers = 1
    rows = table.count(config.model, 224)
    assert sum(row.parameters for row in rows) == 62_378_344
    assert sum(row.macs for row in rows) == 1_135_256_096
    params, _ = abstract_run(config)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)) == 62_378_344


def test_the_exchange_is_four_points():
    exchanged = {row.layer.name: row.exchanged for row in table.count(default().model, 224)}
    assert exchanged == {
        "conv1": 0, "conv2": 0, "conv3": 21_632, "conv4": 0, "conv5": 0,
        "fc6": 4_608, "fc7": 2_048, "fc8": 1_000,
    }  # fmt: skip


def changed(**changes):
    config = default()
    config.model.width = 1 / 16
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"model__activation": "tanh"},
        {"model__activation": "sigmoid"},
        {"model__lrn__enabled": False},
        {"model__layers__conv1__then": ("activation", "lrn", "max_pool")},
        {"model__pool__window": 2},
        {"model__dropout__rate": 0.0},
        {"model__layers__fc6__exchange": "partial_sums"},
        {"model__towers": 1},
    ],
)
def test_every_switch_changes_what_the_network_computes(changes):
    """Each switch, alone, gives other logits in training than the article's network."""
    logits = []
    for config in (changed(), changed(**changes)):
        validate(config)
        net = build_tower(config.model)
        params = draw_parameters(net, 0, 83)
        images = 50 * np.random.default_rng(0).standard_normal((2, 83, 83, 3)).astype(np.float32)
        run = jax.vmap(
            lambda p, net=net, images=images: net.apply(
                {"params": p}, images, jax.random.key(1), np.arange(2)
            ),
            axis_name=collectives.TOWER,
        )
        logits.append(np.asarray(jax.jit(run)(params))[0])
    assert logits[0].shape == logits[1].shape
    assert np.abs(logits[0] - logits[1]).max() > 1e-4 * np.abs(logits[0]).max()


def test_merging_and_splitting_are_inverse():
    for exchange in ("inputs", "partial_sums"):
        config = changed(model__layers__fc6__exchange=exchange)
        net = build_tower(config.model)
        params = random_params(net, 224)
        merged = merge_towers(params, net.layers)
        assert merged["conv2"]["kernel"].shape == (5, 5, 3, 16)
        assert merged["fc6"]["kernel"].shape == (6 * 6 * 16, 256)
        jax.tree.map(np.testing.assert_array_equal, split_towers(merged, net.layers, 2), params)


@pytest.mark.parametrize(
    "changes,field",
    [
        ({"model__towers": 5, "model__width": 1.0}, "model.layers.conv1.features"),
        ({"model__layers__conv1__kernel": 300}, "model.layers.conv1"),
        ({"model__layers__conv1__kind": "cnov"}, "model.layers.conv1.kind"),
        ({"model__layers__conv1__then": ("pool",)}, "model.layers.conv1.then"),
        ({"model__layers__fc8__exchange": "inputs"}, "model.layers.fc8.exchange"),
        ({"model__layers__fc6__then": ("max_pool",)}, "model.layers.fc6.then"),
        ({"model__activation": "rely"}, "model.activation"),
        ({"data__crop_size": 300}, "data.crop_size"),
        ({"model__dropout__rate": 1.0}, "model.dropout.rate"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_an_impossible_value_is_named(changes, field):
    with pytest.raises(UsageError, match=rf"^config\.{field}"):
        validate(changed(**changes))
