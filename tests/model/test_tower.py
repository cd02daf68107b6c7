"""One tower: what it computes in bfloat16, its parameters, and its table of layers."""

import jax
import numpy as np
import pytest

from alexnet_jax.config import presets, table
from alexnet_jax.model import collectives, conv
from alexnet_jax.model.activation import Activate
from alexnet_jax.model.operation import Operation
from alexnet_jax.model.tower import build_tower, draw_parameters, parameter_shapes
from alexnet_jax.registry import OPERATIONS
from tests import numpy_reference
from tests.support import tiny_config


def small(order, **changes):
    """A few layers of the tiny configuration."""
    config = tiny_config()
    with config.unlocked():
        config.model.layer_order = order
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("op", ["lrn", "within_map_norm"])
def test_a_norm_in_a_bfloat16_network_is_that_of_float32_rounded_once(op):
    """Of whole numbers to 255, which bfloat16 holds; its sums of squares would be off by 1e-2."""
    config = small(("conv1", "fc8"), **{
        "model.layers.conv1.then": (op,), "model.layers.conv1.features": 12, "model.width": 1.0,
        "model.layers.conv1.kernel": 1, "model.layers.conv1.padding": (0, 0), "model.towers": 1,
        "model.compute_dtype": "bfloat16", "model.lrn.alpha": 1e-4,
        "model.within_map_norm.alpha": 1e-3,
    })  # fmt: skip
    net = build_tower(config.model)
    params = jax.tree.map(np.zeros_like, draw_parameters(net, 0, 8))
    params["conv1"]["kernel"][0, 0, 0, np.arange(12) % 3, np.arange(12)] = 1  # the pixels, thrice
    images = np.random.default_rng(0).integers(1, 256, (4, 8, 8, 3)).astype(np.float32)

    def run(params):
        return net.apply({"params": params}, images, mutable=["intermediates"])

    logits, state = jax.jit(jax.vmap(run, axis_name=collectives.TOWER))(params)
    (found,) = state["intermediates"]["conv1_out"]
    assert found.dtype == jax.numpy.bfloat16
    x = images[..., np.arange(12) % 3].astype(np.float64)
    expected = (
        numpy_reference.lrn(x, 5, 2.0, 1e-4, 0.75)
        if op == "lrn"
        else numpy_reference.map_norm(x, 5, 1.0, 1e-3 / 25, 0.75)
    )
    half_a_step = 2.0 ** (np.floor(np.log2(expected)) - 8)  # of 8 bits
    assert (np.abs(np.float64(found[0]) - expected) <= 1.001 * half_a_step).all()
    assert expected.max() < 200  # it does divide
    assert logits.dtype == np.float32


class Widened(Operation):
    """Returns float32, whatever the type of the network."""

    def __call__(self, x, at):
        return x.astype(np.float32)


def test_layers_compute_in_the_networks_type_and_logits_are_float32(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "widened", Widened)
    config = small(("conv1", "fc6", "fc8"), **{
        "model.compute_dtype": "bfloat16", "model.layers.conv1.then": ("activation", "widened"),
    })  # fmt: skip
    net = build_tower(config.model)

    def run(params):
        images = np.zeros((2, 32, 32, 3), np.float32)
        return net.apply({"params": params}, images, mutable=["intermediates"])

    params = parameter_shapes(net, 32)
    logits, state = jax.eval_shape(jax.vmap(run, axis_name=collectives.TOWER), params)
    kinds = {name: str(out[0].dtype) for name, out in state["intermediates"].items()}
    # The classifier adds the towers' sums, which are wide.
    assert kinds == {"conv1_out": "bfloat16", "fc6_out": "bfloat16", "fc8_out": "float32"}
    assert str(logits.dtype) == "float32"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}


def test_initial_weights_differ_by_seed_layer_and_tower_and_repeat():
    config = small(("conv3", "conv4", "fc6", "fc7", "fc8"), **{
        "model.layers.conv4.exchange": "inputs", "model.layers.conv4.features": 384,
        "model.layers.conv3.bias": 0.5, "model.layers.fc7.init_std": 0.02, "data.crop_size": 4,
    })  # fmt: skip
    net = build_tower(config.model)
    first, again, other = (draw_parameters(net, seed, 4) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = {
        (seed, name, t): params[name]["kernel"][t].ravel()[:600]
        for seed, params in ((1, first), (2, other))
        for name in ("conv4", "fc6", "fc7")
        for t in (0, 1)
    }
    drawn = np.stack(list(kernels.values()))
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 5 / np.sqrt(600)
    for name, std in (("fc6", 0.05), ("fc7", 0.02)):
        kernel = first[name]["kernel"]
        assert abs(kernel.std() / std - 1) < 5 / np.sqrt(2 * kernel.size)
        assert abs(kernel.mean()) < 5 * std / np.sqrt(kernel.size)
    assert (first["conv3"]["bias"] == 0.5).all() and (first["fc7"]["bias"] == 0).all()


@pytest.mark.parametrize("towers", [1, 2, 4])
@pytest.mark.parametrize("exchange", ["none", "inputs", "partial_sums"])
def test_the_tables_counts_are_those_of_the_parameters(exchange, towers):
    """Local layers too; a bias that all towers hold counts once."""
    config = small(("conv1", "conv2", "conv3", "fc6", "fc7", "fc8"), **{
        "model.width": 1.0, "model.towers": towers, "model.layers.conv1.features": 8,
        "model.layers.conv2.features": 8, "model.layers.conv2.kind": "local",
        "model.layers.conv3.features": 16, "model.layers.fc6.features": 24,
        "model.layers.fc7.features": 32, "model.layers.fc7.exchange": exchange,
        "model.layers.conv3.exchange": "none" if exchange == "none" else "inputs",
        "model.layers.conv3.then": ("activation", "avg_pool"),
    })  # fmt: skip
    rows = table.count(config.model, 12)
    shapes = parameter_shapes(build_tower(config.model), 12)
    sizes = {
        name: sum(int(np.prod(leaf.shape)) for leaf in leaves.values())
        for name, leaves in shapes.items()
    }
    sizes["fc8"] -= 10 * (towers - 1)
    assert {row.layer.name: row.parameters for row in rows} == sizes
    # Multiply-adds: each weight once, at every position of a convolution.
    for row in rows:
        kernel = int(np.prod(shapes[row.layer.name]["kernel"].shape))
        positions = row.out_shape[0] * row.out_shape[1] if row.layer.kind == "conv" else 1
        assert row.macs == positions * kernel, row.layer.name
    assert [row.next_shape for row in rows] == [
        (6, 6, 8), (3, 3, 8), (1, 1, 16), (24,), (32,), (10,),
    ]  # fmt: skip


def test_what_towers_exchange_by_hand():
    """Of four towers: each receives what the three others hold."""
    config = small(("conv1", "conv3", "fc6", "fc7", "fc8"), **{
        "model.width": 1.0, "model.towers": 4, "model.layers.conv1.features": 16,
        "model.layers.conv3.features": 8, "model.layers.fc6.features": 40,
        "model.layers.fc6.exchange": "partial_sums", "model.layers.fc7.features": 20,
        "model.layers.fc7.exchange": "none", "model.lrn.across_towers": True,
    })  # fmt: skip
    rows = table.count(config.model, 8)  # maps of 8 and, after the pool, 4
    assert {row.layer.name: row.exchanged for row in rows} == {
        "conv1": 0,  # of images, which all towers hold
        "conv3": 4 * 4 * 12,
        "fc6": 10 * 3,  # its own ten sums from three others
        "fc7": 0,
        "fc8": 2 * 10 * 3 // 4,  # a ring
    }
    # Two channels on either side of the 4 x 4 maps, for the inner towers.
    assert [row.halo for row in rows] == [2 * 2 * 4 * 4, 0, 0, 0, 0]
    config.model.towers = 2
    assert [row.halo for row in table.count(config.model, 8)] == [2 * 4 * 4, 0, 0, 0, 0]


def test_the_first_layers_windows_begin_at_the_corner():
    """Of 224 pixels: cuda-convnet's last window hangs over by three, and nothing precedes."""
    layer = table.read_layers(presets.get("article").model)[0]
    image = np.arange(224.0 * 224 * 3, dtype=np.float32).reshape(1, 224, 224, 3)
    kernel = np.zeros((11, 11, 3, 1), np.float32)
    for tap in (0, 10):
        picked = kernel.copy()
        picked[tap, tap, 1] = 1
        found = np.asarray(conv.conv(image, picked, layer.stride, layer.padding))[0, :, :, 0]
        expected = np.zeros((55, 55), np.float32)
        inside = image[0, tap::4, tap::4, 1][:55, :55]
        expected[: len(inside), : len(inside)] = inside
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
def test_each_activation_is_itself(name):
    x = np.linspace(-3, 3, 25)
    by_hand = {"relu": np.maximum(x, 0), "tanh": np.tanh(x), "sigmoid": 1 / (1 + np.exp(-x))}
    config = tiny_config()
    config.model.activation = name
    operation = Activate.of(config.model)
    found = operation(x.astype(np.float32), None)
    np.testing.assert_allclose(found, by_hand[name], rtol=1e-5)


@pytest.mark.parametrize("size,kernel,stride,padding", [
    (224, 11, 4, (0, 3)), (225, 11, 4, (0, 0)), (13, 3, 1, (1, 1)), (20, 5, 3, (2, 1)),
])  # fmt: skip
def test_the_tables_maps_are_as_large_as_those_of_a_convolution(size, kernel, stride, padding):
    config = small(("conv1", "fc8"))
    config.model.layers.conv1.update(kernel=kernel, stride=stride, padding=padding)
    layer = table.read_layers(config.model)[0]
    out = jax.eval_shape(
        lambda x, k: conv.conv(x, k, stride, padding),
        jax.ShapeDtypeStruct((1, size, size, 3), np.float32),
        jax.ShapeDtypeStruct((kernel, kernel, 3, 1), np.float32),
    )
    assert out.shape[1] == table.conv_size(size, layer)


@pytest.mark.parametrize("rescaled,factor", [(True, 1.0), (False, 0.75)])
def test_outputs_are_scaled_at_test_time_where_training_does_not_rescale(rescaled, factor):
    logits = {}
    for rate in (0.0, 0.25):
        config = small(("fc6", "fc8"), **{
            "model.dropout.rate": rate, "model.dropout.rescaled_in_training": rescaled,
        })  # fmt: skip
        net = build_tower(config.model)
        params, images = draw_parameters(net, 0, 4), np.ones((2, 4, 4, 3), np.float32)
        run = jax.vmap(lambda p, net=net, x=images: net.apply({"params": p}, x), axis_name="tower")
        logits[rate] = run(params)
    assert np.abs(logits[0.0]).max() > 0.1
    np.testing.assert_allclose(logits[0.25], factor * logits[0.0], rtol=1e-4, atol=1e-6)
