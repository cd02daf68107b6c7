"""Losses and gradients that are none: nothing of them reaches the parameters or a checkpoint."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import inputs, optim, parallel
from alexnet_jax.checkpoint import Checkpoints, manifest
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.models import layers, tower
from alexnet_jax.state import init_state
from alexnet_jax.train import make_train_step, train_and_evaluate
from tests.support import PLACEMENTS, placement_of, tiny_config
from tests.test_train import lines, log, short_config


@pytest.fixture
def poisoned(monkeypatch):
    """A function that makes chosen images of the training set NaN, from then on."""
    bad = set()
    real_stream = pipeline.train_batches

    def stream(*args, **kwargs):
        for batch in real_stream(*args, **kwargs):
            hit = np.isin(batch["index"], list(bad))
            yield batch | {"colour": np.where(hit[:, None], np.float32("nan"), batch["colour"])}

    monkeypatch.setattr(pipeline, "train_batches", stream)
    return lambda *indices: bad.update(indices)


def batch_of(config, step):
    return pipeline.train_indices(config.seed, 1437, config.batch_size, step - 1).tolist()


def test_one_bad_image_costs_its_step_and_no_more(tmp_path, poisoned):
    config = short_config()
    poisoned(batch_of(config, 5)[7])
    result = train_and_evaluate(config, tmp_path)
    assert np.isfinite(result["test"]["loss"])
    (line,) = [line for line in log(tmp_path) if line["split"] == "not_finite"]
    assert line["step"] == 5 and line["examples"] == batch_of(config, 5)
    assert line["loss"] == "nan" and "loss" in line["not_finite"]
    assert {"conv1/kernel", "fc8/bias"} <= set(line["not_finite"])
    # Step 6's line is the mean of 6 alone.
    train = {line["step"]: line for line in lines(tmp_path) if line["split"] == "train"}
    assert all(np.isfinite(line["loss"]) for line in train.values())
    assert list(train) == [1, 2, 4, 6, 8]


def test_bad_for_good_it_ends_with_the_evidence_and_the_checkpoint_from_before(tmp_path, poisoned):
    config = short_config()
    config.num_epochs = 1.0
    config.max_not_finite_steps = 3
    for step in (5, 7, 8, 9):
        poisoned(batch_of(config, step)[0])
    with pytest.raises(UsageError) as error:
        train_and_evaluate(config, tmp_path)
    text = str(error.value)
    assert "step 9:" in text and "max_not_finite_steps = 3" in text and "\n" not in text
    evidence = json.loads((tmp_path / "not_finite.json").read_text())
    assert [row["step"] for row in evidence["steps"]] == [7, 8, 9]
    assert str(batch_of(config, 8)[0]) in evidence["images"]
    net, tx = tower.build(config.model), optim.sgd_2012(config, 44, 44)
    like = init_state(tower.init(net, config.seed, config.data.crop_size), tx)
    with Checkpoints(tmp_path) as checkpoints:
        step, state, _ = checkpoints.restore_latest(like)
    assert step == 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_rate_that_explodes_leaves_finite_checkpoints(tmp_path):
    config = short_config()
    config.num_epochs = 2.0
    config.optimizer.learning_rate = 1e12
    with pytest.raises(UsageError, match="not finite"):
        train_and_evaluate(config, tmp_path)
    for line in log(tmp_path):
        assert line["split"] != "train" or np.isfinite(line["loss"])


@jax.custom_vjp
def spoil(x, where):
    del where
    return x


spoil.defvjp(
    lambda x, where: (x, where),
    lambda where, g: (jnp.where(where, jnp.nan, g), None),
)


@pytest.mark.parametrize("name", ["vmap", "pmap", "mesh 2 x 2"])
def test_a_gradient_of_one_tower_stops_all(name, monkeypatch):
    """With a finite loss: NaN enters on the way back, in the second tower alone, at step 1 only."""
    true_lrn = layers.local_response_norm
    counter = {"on": False}

    def lrn(x, *args, **kwargs):
        y = true_lrn(x, *args, **kwargs)
        return spoil(y, (jax.lax.axis_index("tower") == 1) & counter["on"])

    monkeypatch.setattr(layers, "local_response_norm", lrn)
    config = tiny_config()
    placement = placement_of(*PLACEMENTS[name])
    net, tx = tower.build(config.model), optim.sgd_2012(config, 44, 44)
    rule = inputs.build(config.data, None)
    batch = next(
        pipeline.train_batches(
            open_source("digits", "train"), config.data, seed=0, batch_size=config.batch_size
        )
    )
    state = placement.put_towers(init_state(tower.init(net, 0, 32), tx))
    start = jax.tree.map(np.array, parallel.to_host(state))
    steps = {}
    for on in (True, False):
        counter["on"] = on
        steps[on] = make_train_step(config, net, rule, tx, placement, 44)
        state_ = placement.put_towers(start)
        state_, metrics = steps[on](state_, placement.put_batch(batch))
        after, metrics = parallel.to_host((state_, metrics))
        assert np.isfinite(metrics["loss"])
        moved = [
            not np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves((start.params, start.opt_state)),
                jax.tree.leaves((after.params, after.opt_state)),
                strict=True,
            )
            if a.dtype == np.float32
        ]
        assert (after.step == 1).all()
        if on:
            # conv1 and conv2 of that tower lie below; one flag each for kernel and bias.
            assert metrics["not_finite"].max() == 1 and metrics["not_finite"][-1] == 0
            assert metrics["not_finite"].sum() in (2, 4) and not any(moved)
        else:
            assert not metrics["not_finite"].any() and all(moved)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    state = {"params": {"fc8": {"bias": np.array([1, np.inf], np.float32)}}}
    with (
        Checkpoints(tmp_path, keep=1) as checkpoints,
        pytest.raises(ValueError, match=r"step 1 is not saved: .*'bias'.* is not finite"),
    ):
        checkpoints.save(1, state, manifest(state), {}, None)
    assert not list((tmp_path / "checkpoints").iterdir())
