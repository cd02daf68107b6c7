"""Images that are computed a few at a time, against all at once and the network by hand."""

import jax
import numpy as np
import pytest

from alexnet_jax.model import memory
from alexnet_jax.model.collectives import TOWER
from alexnet_jax.model.derivatives import for_cpu, plain_derivatives
from alexnet_jax.model.tower import STAGES, build_tower, initial_statistics
from tests import numpy_reference
from tests.support import placement_of, random_params, tiny_config


@pytest.mark.parametrize(
    "count,fit,size", [(1, 4, 1), (9, 4, 3), (12, 4, 4), (8, 4, 4), (4, 4, 4), (3, 4, 3), (7, 5, 7)]
)
def test_a_part_has_as_many_images_as_fit_and_divide_all(count, fit, size, monkeypatch):
    monkeypatch.setattr(memory, "_PART", 12 * fit)
    seen = []

    def fn(x):
        seen.append(len(x))
        return x[:, :2] * 2

    x = np.random.default_rng(count).normal(size=(count, 3, 4)).astype(np.float32)
    for traced_for_cpu, sizes in ((True, {size}), (False, {count})):
        seen.clear()
        run = jax.jit(lambda x: memory.in_parts(fn, x, elements=12))
        run = jax.jit(for_cpu(run)) if traced_for_cpu else run
        np.testing.assert_array_equal(run(x), 2 * x[:, :2])
        assert set(seen) == sizes


def test_plain_derivatives_have_no_parts(monkeypatch):
    monkeypatch.setattr(memory, "_PART", 1)

    def plain(x):
        with plain_derivatives():
            return memory.in_parts(lambda x: x * 2, x, elements=1)

    x = np.ones((4, 3), np.float32)
    assert "scan" not in str(jax.make_jaxpr(for_cpu(plain))(x))


@pytest.mark.parametrize(
    "placement,data,across", [("vmap", 1, True), ("pmap", 1, False), ("mesh", 2, True)]
)
def test_a_network_in_parts_is_the_network_by_hand(placement, data, across, monkeypatch):
    """LRN across the towers exchanges values within a part."""
    config = tiny_config()
    config.model.lrn.across_towers, config.model.lrn.alpha = across, 0.01
    net, placement = build_tower(config.model), placement_of(placement, data)
    params = random_params(net, 32)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)

    def run(params, images):
        return placement.join_over_data(net.apply({"params": params}, images))

    compiled = placement.spread(run, ("tower", "batch"), "same")
    arguments = placement.put_towers(params), placement.put_batch(images)
    whole = compiled(*arguments)
    monkeypatch.setattr(memory, "_PART", 1)
    in_parts = placement.spread(run, ("tower", "batch"), "same")
    assert "stablehlo.while" in in_parts.lower(*arguments).as_text()
    found = np.asarray(in_parts(*arguments))
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)
    expected = numpy_reference.logits(config.model, params, images.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_layer_in_parts_has_its_running_statistics_and_keeps_no_stages(monkeypatch):
    monkeypatch.setattr(memory, "_PART", 1)
    config = tiny_config()
    with config.unlocked():
        config.model.layer_order = ("conv1", "fc8")
    config.model.layers.conv1.then = ("batch_norm", "activation", "max_pool")
    net, rng = build_tower(config.model), np.random.default_rng(0)
    images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    statistics = jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape), initial_statistics(net, 32))
    variables = {"params": random_params(net, 32), "batch_stats": statistics}

    def run(*collections):
        def one(variables):
            return net.apply(variables, images, mutable=collections)[1]

        return jax.jit(for_cpu(jax.vmap(one, axis_name=TOWER)))(variables)

    in_parts = run("intermediates")
    assert set(in_parts) == {"intermediates"}
    row, values = config.model.layers.conv1, variables["params"]["conv1"]
    for tower, found in enumerate(in_parts["intermediates"]["conv1_out"][0]):
        of = {name: value[tower] for name, value in (values | statistics["conv1"]).items()}
        x = numpy_reference.conv(images, of["kernel"], row.stride, tuple(row.padding)) + of["bias"]
        x = (x - of["batch_norm.mean"]) / np.sqrt(of["batch_norm.variance"] + 1e-5)
        x = np.maximum(x * of["batch_norm.scale"] + of["batch_norm.offset"], 0)
        expected = numpy_reference.pool(
            x, config.model.pool.window, config.model.pool.stride, np.max
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    stages = run(STAGES)[STAGES]["conv1"]["values"]
    assert [x.shape[:2] for x in stages] == [(2, 4)] * 4  # before any operation, and after each
    np.testing.assert_allclose(stages[-1], in_parts["intermediates"]["conv1_out"][0], rtol=1e-4)
