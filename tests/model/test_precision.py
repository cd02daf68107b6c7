"""The precision of every product, and of sums over towers, in the step as XLA receives it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.analysis.exchange import lower_step
from alexnet_jax.analysis.inspect import conventions
from alexnet_jax.config import completed, networks
from alexnet_jax.model.collectives import TOWER
from alexnet_jax.model.dense import partial_products
from alexnet_jax.model.tower import build_tower, draw_parameters
from alexnet_jax.parallel import exchange
from tests.support import PLACEMENTS, placement_of, tiny_config


def precisions(text):
    """Of every convolution and every matrix product in StableHLO: a pair of words each."""
    lines = text.splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    dots = [line for line in lines if "stablehlo.dot" in line]
    config = re.compile(
        r"precision_config = \[#stablehlo<precision (\w+)>, #stablehlo<precision (\w+)>"
    )
    return (
        [config.search(line).groups() for line in convolutions],
        [re.search(r"precision = \[(\w+), (\w+)\]", line).groups() for line in dots],
    )


@pytest.mark.parametrize("precision", ["highest", "high", "default"])
@pytest.mark.parametrize("name", ["vmap", "pmap"])
def test_every_product_has_the_precision_of_the_config(name, precision):
    config = tiny_config()
    config.model.precision = precision
    config.model.layers.fc6.exchange = "partial_sums"
    convolutions, dots = precisions(lower_step(config, placement_of(name)).as_text())
    # Of five layers: forward, gradient of the kernel, and, but for the images', of the input. Under
    # vmap each tower convolves by itself, but for the inputs of conv3, which are the same for all;
    # its matrix products are batched.
    assert len(convolutions) == ((5 + 5 + 4) * 2 - 2 if name == "vmap" else 5 + 5 + 4)
    assert len(dots) == 3 + 3 + 3
    assert {*convolutions, *dots} == {(precision.upper(),) * 2}


def test_unshared_kernels_too():
    config = tiny_config()
    with config.unlocked():
        config.model = networks.convnet("13pct")
        config.data.update(image_size=24, crop_size=24)
        config.model.width = 1 / 8
    convolutions, dots = precisions(lower_step(config, placement_of("vmap")).as_text())
    # Two convolutions, and for each of two local layers one with a kernel of zeros and ones, exact
    # in any precision, that collects the patches, and its transpose; two local layers multiply
    # patches and kernels, one dense layer.
    assert convolutions.count(("HIGHEST", "HIGHEST")) == 2 + 2 + 1
    assert convolutions.count(("HIGHEST", "DEFAULT")) == len(convolutions) - 5 == 2 + 2
    assert dots == [("HIGHEST", "HIGHEST")] * 3 * 3


def test_runs_from_before_the_field_did_what_jax_does_by_default():
    config = tiny_config()
    assert conventions(config)["precision"] == "float32 products"
    config = config.copy_and_resolve_references()
    with config.unlocked():
        del config.model["precision"]
    assert completed(config).model.precision == "default"
    assert conventions(config)["precision"] == "TF32 on GPU, bfloat16 on TPU"
    config.model.compute_dtype = "bfloat16"
    assert conventions(config)["precision"] == "bfloat16 products"


# ------------------------------------------------------------------ sums over towers


def row_split(dtype):
    """fc6 and fc8 multiply the inputs of their own tower; only the sums are exchanged."""
    config = tiny_config()
    config.model.compute_dtype = dtype
    config.model.layers.fc6.update(exchange="partial_sums", then=())
    config.model.layers.fc7.update(exchange="none", then=())
    return config


@pytest.mark.parametrize("name", ["vmap", "pmap", "mesh 1 x 2"])
def test_partial_sums_of_a_bfloat16_network_are_added_in_float32(name):
    config = row_split("bfloat16")
    tower = build_tower(config.model)
    params = draw_parameters(tower, 0, 32)
    rng = np.random.default_rng(0)
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        params[layer]["kernel"][1] = params[layer]["kernel"][0]
    # What fc6 adds up nearly cancels: the rounding of each part would be most of what is left.
    fc6 = params["fc6"]["kernel"]
    fc6[1] = rng.normal(0, 1e-3, fc6[1].shape) - fc6[0]
    images = rng.normal(0, 1, (4, 32, 32, 3)).astype(np.float32)

    def run(params, images):
        logits, state = tower.apply({"params": params}, images, mutable=["intermediates"])
        return logits, {name: x for name, (x,) in state["intermediates"].items()}

    placement = placement_of(*PLACEMENTS[name])
    step = placement.spread(run, ("tower", "same"), ("tower", "tower"))
    logits, outputs = jax.tree.map(np.asarray, step(placement.put_towers(params), images))
    assert logits.dtype == np.float32 and outputs["fc6_out"].dtype == jnp.bfloat16
    for layer, inputs, found, rounding in (
        ("fc6", "conv5_out", np.concatenate(list(np.float64(outputs["fc6_out"])), -1), 2.0**-8),
        ("fc8", "fc7_out", np.float64(logits[0]), 0),
    ):
        x_TxBxI = np.float64(outputs[inputs]).reshape(2, 4, -1)
        kernel_TxIxO = np.float64(params[layer]["kernel"].astype(jnp.bfloat16))
        parts_TxBxO = x_TxBxI @ kernel_TxIxO
        exact = parts_TxBxO.sum(0)
        terms = 2 * x_TxBxI.shape[-1]
        # Of a float32 sum of so many terms, rounded to bfloat16 in the end where that is its type.
        bound = terms * 2.0**-24 * (abs(x_TxBxI) @ abs(kernel_TxIxO)).sum(0) + rounding * abs(exact)
        assert (abs(found - exact) <= bound).all(), layer
        rounded = np.float64(parts_TxBxO.astype(jnp.bfloat16)).sum(0)
        assert (abs(rounded - exact) > bound).mean() > 0.5, layer


def test_in_float32_it_is_the_plain_product_to_the_bit():
    rng = np.random.default_rng(0)
    x, kernel, g = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 96), (96, 24), (8, 24))
    )

    def both(product):
        y, gradients = jax.vjp(product, x, kernel)
        return y, *gradients(g)

    plain = jax.jit(lambda: both(jnp.matmul))()
    ours = jax.jit(lambda: both(lambda x, kernel: partial_products(x, kernel, "highest")))()
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["pmap", "mesh 2 x 2"])
@pytest.mark.parametrize("freeze", [(), ("conv1", "conv2", "conv3")])
def test_bytes_that_the_towers_exchange_equal_the_formula(name, dtype, freeze):
    config = tiny_config()
    config.model.compute_dtype = dtype
    config.model.lrn.across_towers = True
    config.model.layers.fc6.exchange = "partial_sums"
    config.freeze = freeze
    placement = placement_of(*PLACEMENTS[name])
    points = exchange.points(config, placement.data_parallel)
    # Before XLA changes it: on CPU it exchanges bfloat16 as float32.
    program = lower_step(config, placement).as_text("hlo", debug_info=True)
    found = exchange.collectives(program, placement.mesh.devices.size)
    sums = exchange.by_point(found, [point.name for point in points])
    images = config.batch_size // placement.data_parallel
    for point in points:
        once = images if point.axis == TOWER else 1
        extra = (0, 0)
        if point.name == exchange.GRADIENTS:
            extra = (3, 12)  # the sums of the metrics
        assert sums[point.name] == pytest.approx(
            (point.elements * once + extra[0], point.bytes * once + extra[1]), abs=100 * (extra[0])
        ), point
    by_name = {point.name: point for point in points}
    width = 2 if dtype == "bfloat16" else 4
    assert by_name["fc6"].bytes == 128 * (4 + width)
    assert by_name["conv3"].bytes == 512 * (width if freeze else 2 * width)
