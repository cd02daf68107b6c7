"""The presets and the logged rows of 2012 against what the sources say of them."""

import jax
import numpy as np
import pytest

from alexnet_jax.analysis.inspect import convention_table, conventions
from alexnet_jax.config import presets, table, validate
from alexnet_jax.config.networks import NETWORKS, convnet
from alexnet_jax.data import inputs, pipeline
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.model import collectives
from alexnet_jax.model.tower import build_tower, draw_parameters
from tests import numpy_reference
from tests.support import needs_data, random_params

ALL = [*presets.PRESETS, *presets.ROWS]
# Deviations from layers-145.cfg and from models/bvlc_alexnet/train_val.prototxt; the paper's 0.01.
DEVIATIONS = {
    "article": [0.01] * 8,
    "paper": [0.01] * 8,
    "source": [0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01],
    "caffe": [0.01] * 5 + [0.005, 0.005, 0.01],
}


@pytest.mark.parametrize("name", ALL)
def test_every_preset_is_a_network_with_a_stated_error(name):
    config = presets.get(name)
    validate(config)
    rows = table.count(config.model, config.data.crop_size)
    assert rows[4].next_shape[:2] == (6, 6)  # what fc6 sees, in every one of them
    assert (presets.PRESETS | presets.ROWS)[name].__doc__


@pytest.mark.parametrize("name", presets.PRESETS)
def test_initial_weights_have_the_presets_deviation(name):
    net = build_tower(presets.get(name).model)
    assert [layer.init_std for layer in net.layers] == DEVIATIONS[name]


def test_counts_of_the_half_network_are_the_sources():
    config = presets.get("145-half")
    rows = table.count(config.model, 224)
    assert sum(row.parameters for row in rows) == 59_798_312
    assert sum(row.macs for row in rows) == 391_514_384


def test_without_exchange_nothing_crosses_below_the_classifier():
    rows = table.count(presets.get("150").model, 224)
    assert [row.layer.name for row in rows if row.exchanged] == ["fc8"]


def test_the_convention_table_marks_what_differs():
    source = conventions(presets.get("source"))
    assert source["LRN alpha"] == "0.0001 / n"
    text = convention_table(presets.get("caffe"))
    lines = {line[:18].strip(): line[20:].split("  ") for line in text.splitlines()}
    cells = {name: [c.strip() for c in row if c.strip()] for name, row in lines.items()}
    assert cells["LRN window"] == ["across towers", "inside a tower", "inside a tower"]
    assert cells["LRN alpha"][1:] == ["0.0001", "="]
    assert cells["after conv1"][1:] == ["=", "LRN, pool, act"]
    for name in ALL:
        assert max(map(len, convention_table(presets.get(name)).splitlines())) <= 100, name


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(UsageError, match="article, paper, source, caffe"):
        presets.get("2012")


# The layers of each network, by hand: its weights, as (inputs that a kernel sees) x outputs x
# positions, their decay, and what follows.
MAX, AVERAGE = ("max_pool", "activation"), ("activation", "avg_pool")
NORMED = "within_map_norm"
LOCAL = ("activation",)
CIFAR = {
    "80sec": [
        (75 * 32, 0.004, MAX), (800 * 32, 0.004, AVERAGE), (800 * 64, 0.004, AVERAGE),
        (9 * 64 * 64, 0.03, ("activation",)), (64 * 10, 0.03, ()),
    ],
    "19pct": [
        (75 * 32, 0.004, MAX), (800 * 32, 0.004, AVERAGE), (800 * 64, 0.004, AVERAGE),
        (9 * 64 * 10, 3.0, ()),
    ],
    "18pct": [
        (75 * 32, 0.004, (*MAX, NORMED)), (800 * 32, 0.004, (*AVERAGE, NORMED)),
        (800 * 64, 0.004, AVERAGE), (9 * 64 * 10, 1.0, ()),
    ],
    "13pct": [
        (75 * 64, 0.0, ("activation", "max_pool")), (1600 * 64, 0.0, ("activation", "max_pool")),
        (576 * 32 * 36, 0.004, LOCAL), (288 * 32 * 36, 0.004, LOCAL), (36 * 32 * 10, 0.004, ()),
    ],
    "11pct": [
        (75 * 64, 0.0, ("activation", "max_pool", "lrn")),
        (1600 * 64, 0.0, ("activation", "lrn", "max_pool")),
        (576 * 64 * 36, 0.004, LOCAL), (576 * 32 * 36, 0.004, LOCAL), (36 * 32 * 10, 0.01, ()),
    ],
}  # fmt: skip
STDS = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "local3": 0.04, "local4": 0.04, "fc64": 0.1}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cifar_networks_equal_the_networks_by_hand(name):
    """Their tables, and their logits against NumPy, with norms of an alpha that shows."""
    model = convnet(name)
    net = build_tower(model)
    with jax.enable_x64(True):
        params = random_params(net, 24)
        sizes = [params[layer.name]["kernel"].size for layer in net.layers]
        decays = [model.layers[layer.name].weight_decay for layer in net.layers]
        assert [*zip(sizes, decays, [layer.then for layer in net.layers], strict=True)] == CIFAR[
            name
        ]
        for layer in net.layers[:-1]:
            assert layer.init_std == STDS[layer.name]
        assert net.layers[-1].init_std == (0.1 if name == "80sec" else 0.01)
        norms = model.lrn, model.within_map_norm
        constants = [(n.size, n.k, n.alpha, n.beta, n.alpha_divided_by_size) for n in norms]
        if name == "11pct":
            assert constants[0] == (9, 1.0, 1e-3, 0.75, True)
        if name == "18pct":
            assert constants[1] == (3, 1.0, 5e-5, 0.75, True)
        model.compute_dtype = "float64"
        model.lrn.alpha = model.within_map_norm.alpha = 0.5
        net = build_tower(model)
        images = np.random.default_rng(0).normal(0, 1, (2, 24, 24, 3))
        run = jax.vmap(lambda p: net.apply({"params": p}, images), axis_name=collectives.TOWER)
        expected = numpy_reference.logits(model, params, images)
        assert np.std(expected) > 0.1
        np.testing.assert_allclose(jax.jit(run)(params)[0], expected, rtol=1e-9, atol=1e-9)


@needs_data
@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_first_loss_is_in_the_known_range(name):
    """In training mode on photographs: near ln(1000) = 6.91; cuda-convnet logged 7.16, 7.06."""
    config = presets.get(name)
    net, crop = build_tower(config.model), config.data.crop_size
    rule = inputs.build(config.data, np.full((256, 256, 3), 117.0))
    batches = pipeline.train_batches(
        open_source("tfds:imagenet2012", "train"), config.data, seed=0, batch_size=64
    )
    batch = next(batches)
    assert batch["image"].shape == (64, crop, crop, 3)

    def logits(params):
        images = rule.train(batch, noise=True)
        return net.apply({"params": params}, images, jax.random.key(0), batch["index"])

    run = jax.jit(jax.vmap(logits, axis_name=collectives.TOWER))
    z = np.asarray(run(draw_parameters(net, 0, crop)), np.float64)[0]
    z -= z.max(1, keepdims=True)
    losses = np.log(np.exp(z).sum(1)) - z[np.arange(64), batch["label"]]
    assert 6.85 < losses.mean() < 7.2
