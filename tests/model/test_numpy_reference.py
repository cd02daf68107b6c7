"""Every preset against the network by hand in NumPy float64: logits, loss and its slopes."""

import jax
import numpy as np
import pytest

from alexnet_jax.config import presets
from alexnet_jax.model import collectives
from tests import numpy_reference
from tests.support import (
    PLAIN_UPDATE,
    Step,
    dropout_masks,
    noise_batch,
    placement_of,
    random_params,
)

BATCH, CROP = 1, 83


def setup(name):
    """The step of a preset on crops of 83, at a sixteenth of the width, and the images it sees."""
    config = presets.get(name)
    mean = np.random.default_rng(1).integers(90, 150, (256, 256, 3)).astype(np.float32)
    with config.unlocked():
        config.model.width, config.model.num_classes = 1 / 16, 10
        # Norms that bend, with activations of this size.
        config.model.lrn.alpha, config.model.within_map_norm.alpha = 0.01, 0.02
        config.data.update(crop_size=CROP, scale=1 / 64, channel_mean=(110.0, 120.0, 130.0))
        config.data.colour.rule = "none"  # the batch brings shifts all the same
        config.batch_size = BATCH
        config.update_from_flattened_dict(PLAIN_UPDATE)
    step = Step(config, placement_of("vmap"), mean_image=mean)
    batch = noise_batch(CROP, BATCH)
    corner = (256 - CROP) // 2
    mean = mean[corner : corner + CROP, corner : corner + CROP]
    if config.data.mean == "channel":
        mean = config.data.channel_mean
    images = (batch["image"] - np.float64(mean) + batch["colour"][:, None, None]) / 64
    return config, step, random_params(step.net, CROP), batch, images


@pytest.mark.parametrize("name", presets.PRESETS)
def test_logits_equal_the_network_by_hand(name):
    with jax.enable_x64(True):
        config, step, params, _, images = setup(name)
        run = jax.vmap(lambda p: step.net.apply({"params": p}, images), axis_name=collectives.TOWER)
        ours = np.asarray(jax.jit(run)(params))
        expected = numpy_reference.logits(config.model, params, images)
        assert ours.dtype == np.float64 and np.std(expected) > 0.1
        for of_a_tower in ours:
            np.testing.assert_allclose(of_a_tower, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_step_follows_the_slopes_of_the_network_by_hand(name):
    """With dropout, along one random direction in each parameter, both towers at once."""
    with jax.enable_x64(True):
        config, step, params, batch, images = setup(name)
        masks = dropout_masks(step.net, batch, seed=3, step=5)
        after, metrics = step(step.start(params, step=5, seed=3), batch)
        gradients = jax.tree.map(np.subtract, params, after.params)

        def loss(params):
            return numpy_reference.loss(config.model, params, images, batch["label"], masks)

        assert metrics["loss"] == pytest.approx(loss(params), rel=1e-9)
        rng, eps = np.random.default_rng(1), 1e-6
        for layer, leaves in params.items():
            for part, value in leaves.items():
                direction, gradient = rng.normal(size=value.shape), gradients[layer][part]
                if (layer, part) == ("fc8", "bias"):  # one bias, of which each tower has a copy
                    direction[1], gradient = direction[0], gradient * [[1], [0]]
                ends = [
                    loss(params | {layer: leaves | {part: value + d * direction}})
                    for d in (eps, -eps)
                ]
                slope = (ends[0] - ends[1]) / (2 * eps)
                expected = np.sum(gradient * direction)
                assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7), (layer, part)
