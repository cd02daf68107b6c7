"""Every preset against the network by hand in NumPy float64, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import presets
from alexnet_jax.models import layers, tower
from tests import numpy_reference

BATCH = 2


def setup(name):
    config = presets.get(name)
    with config.unlocked():
        config.model.width, config.model.num_classes = 1 / 16, 11
        config.model.compute_dtype = "float64"
        # Norms that bend, with activations of this size.
        config.model.lrn.alpha, config.model.within_map_norm.alpha = 0.01, 0.02
    net, crop = tower.build(config.model), config.data.crop_size
    rng = np.random.default_rng(0)
    params = jax.tree.map(np.float64, tower.init(net, 0, crop))
    for leaves in params.values():
        kernel = leaves["kernel"]
        kernel *= np.sqrt(2 / np.prod(kernel.shape[1:-1])) / kernel.std()
        leaves["bias"] += rng.normal(0, 0.2, leaves["bias"].shape)
    params["fc8"]["bias"][1] = params["fc8"]["bias"][0]
    images = rng.normal(0, 3, (BATCH, crop, crop, 3))
    key, index, masks = jax.random.key(3), np.array([17, 4]), {}
    for i, layer in enumerate(net.layers):
        if "dropout" in layer.then:
            layer_key = jax.random.fold_in(key, i)
            masks[layer.name] = [
                np.asarray(layers.dropout_mask(layer_key, index, t, (layer.features,), 0.5))
                for t in (0, 1)
            ]
    return config, net, params, images, (key, index), masks


@pytest.mark.parametrize("name", presets.PRESETS)
def test_logits_equal_the_network_by_hand(name):
    with jax.enable_x64(True):
        config, net, params, images, dropout, masks = setup(name)
        for arguments, used in (((), None), (dropout, masks)):

            def run(p, arguments=arguments):
                return net.apply({"params": p}, images, *arguments)

            ours = np.asarray(jax.jit(jax.vmap(run, axis_name=layers.TOWER))(params))
            expected = numpy_reference.logits(config.model, params, images, used)
            assert ours.dtype == np.float64 and np.std(expected) > 1e-2
            for t in (0, 1):
                assert np.abs(ours[t] - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", presets.PRESETS)
def test_gradients_equal_differences_of_the_network_by_hand(name):
    """Along one random direction in each parameter, both towers at once."""
    with jax.enable_x64(True):
        config, net, params, images, dropout, masks = setup(name)
        labels = np.array([3, 7])

        def loss_of_a_tower(p):
            logits = net.apply({"params": p}, images, *dropout)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
            return losses.mean() / 2

        gradients = jax.jit(jax.vmap(jax.grad(loss_of_a_tower), axis_name=layers.TOWER))(params)
        rng, eps = np.random.default_rng(1), 1e-7
        for layer in net.layers:
            for part in ("kernel", "bias"):
                value = params[layer.name][part]
                direction = rng.normal(size=value.shape)
                gradient = np.asarray(gradients[layer.name][part])
                if layer.last and part == "bias":  # one bias, of which each tower has a copy
                    direction[1] = direction[0]
                    gradient = gradient * [[1], [0]]

                def at(step, layer=layer, part=part, value=value, direction=direction):
                    moved = {n: dict(leaves) for n, leaves in params.items()}
                    moved[layer.name][part] = value + step * direction
                    return numpy_reference.loss(config.model, moved, images, labels, masks)

                slope = (at(eps) - at(-eps)) / (2 * eps)
                expected = float((gradient * direction).sum())
                assert slope == pytest.approx(expected, rel=2e-5, abs=1e-7), (layer.name, part)
