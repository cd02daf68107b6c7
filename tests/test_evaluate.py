"""Errors, views and the dead-unit count against plain NumPy."""

import jax
import numpy as np
import pytest

from alexnet_jax import evaluate, inputs
from alexnet_jax.data.sources import open_source
from alexnet_jax.diagnose import Watch
from alexnet_jax.models import tower
from tests.support import PLACEMENTS, placement_of, tiny_config


def test_top_errors_equal_a_sort():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 12)), rng.integers(0, 12, 50)
    top1, top5 = evaluate.top_errors(scores, labels)
    ranking = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(top1, ranking[:, 0] != labels)
    np.testing.assert_array_equal(
        top5, [y not in r[:5] for y, r in zip(labels, ranking, strict=True)]
    )


def test_a_network_that_says_nothing_is_wrong():
    for scores in (np.zeros((4, 10)), np.full((4, 10), np.nan)):
        for errors in evaluate.top_errors(scores, np.arange(4)):
            np.testing.assert_array_equal(errors, 1)


def rule(size, crop, mean=(0.0, 0.0, 0.0)):
    return inputs.Inputs(np.array(mean, np.float32), 0.5, 1.0, size, crop)


def test_ten_views_are_corners_centre_and_mirrors():
    image = np.random.default_rng(0).integers(0, 256, (3, 10, 10, 3), np.uint8)
    views = rule(10, 6, (1, 2, 3)).views(image, 10)
    expected = []
    for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
        expected.append((image[:, y : y + 6, x : x + 6] - np.array([1.0, 2, 3])) / 2)
    expected += [view[:, :, ::-1] for view in expected]
    np.testing.assert_allclose(views, np.stack(expected), rtol=1e-6)


def test_nine_views_are_a_grid():
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    views = rule(32, 24).views(image, 9)
    expected = [image[:, y : y + 24, x : x + 24] / 2 for y in (0, 4, 8) for x in (0, 4, 8)]
    np.testing.assert_allclose(views, np.stack(expected), rtol=1e-6)


@pytest.mark.parametrize("views", [1, 10])
def test_evaluation_is_the_mean_over_every_example(views):
    """Against a loop over single images, for batches that leave a remainder."""
    config = tiny_config()
    with config.unlocked():
        config.data.update(image_size=36, crop_size=32, pad=0)
    source = open_source("digits", "test")
    net, own = tower.build(config.model), inputs.build(config.data, None)
    params = tower.init(net, 0, 32)
    run = jax.jit(jax.vmap(lambda p, x: net.apply({"params": p}, x), (0, None), axis_name="tower"))

    from alexnet_jax.data import pipeline

    probabilities, centre, labels = [], [], []
    for batch in pipeline.eval_batches(source, config.data, batch_size=60):
        logits = [run(params, view)[0] for view in own.views(batch["image"], views)]
        probabilities.append(np.mean([jax.nn.softmax(x) for x in logits], axis=0))
        centre.append(logits[4 if views == 10 else 0])
        labels.append(batch["label"])
    labels = np.concatenate(labels)
    best = np.concatenate(probabilities).argmax(1)
    log_p = np.asarray(jax.nn.log_softmax(np.concatenate(centre)))
    for name in ("vmap", "pmap", "mesh 2 x 2"):
        placement = placement_of(*PLACEMENTS[name])
        config.evaluate.batch_size = 52 * views  # 360 = 6 x 52 + 48
        step = evaluate.make_eval_step(net, own, placement, views)
        fields = evaluate.evaluate(
            step, placement.put_towers(params), source, config, placement, views
        )
        assert fields["num_examples"] == 360
        assert fields["loss"] == pytest.approx(-log_p[np.arange(360), labels].mean(), rel=1e-5)
        key = "top1_error" if views == 1 else "top1_error_10_views"
        assert fields[key] == pytest.approx(np.mean(best != labels), abs=1.5 / 360)


def test_dead_units_are_counted_and_named():
    config = tiny_config()
    config.model.layers.conv4.bias = -1e6
    net, own = tower.build(config.model), inputs.build(config.data, None)
    params = tower.init(net, 0, 32)
    params["conv2"]["bias"][0, :3] = -1e6
    placement = placement_of("vmap")
    step = evaluate.make_eval_step(net, own, placement, 1)
    fields = evaluate.evaluate(step, params, open_source("digits", "test"), config, placement, 1)
    dead = fields["dead_units"]
    assert dead["conv4"] == 1
    assert 3 / 16 <= dead["conv2"] < 1
    watch = Watch(config, net.layers)
    lines = watch.units(7, dead)
    assert any(line.startswith("step 7: conv4 is dead") for line in lines)
    assert watch.units(8, dead) == []


def test_a_loss_that_never_moves_is_reported_once_with_its_cause():
    config = tiny_config()
    config.warn_stuck_after_steps = 100
    config.model.layers.conv3.init_std = 0.01
    watch = Watch(config, tower.build(config.model).layers)
    assert watch.loss(99, 2.3026) == [] and watch.loss(100, 2.1) == []
    (line,) = watch.loss(120, 2.3020)
    assert "step 120" in line and "ln(10)" in line and "data.scale" in line
    assert watch.loss(140, 2.3020) == []
