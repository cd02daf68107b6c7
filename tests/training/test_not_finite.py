"""Losses and gradients that are not finite reach neither the parameters nor a checkpoint."""

import json

import jax
import numpy as np
import pytest

from alexnet_jax.data import pipeline
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import build_tower, parameter_shapes
from alexnet_jax.training import optimizers
from alexnet_jax.training.checkpoint import Checkpoints, manifest
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.state import init_state
from tests.training.test_train import log, short_config


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


def without_validation():
    """A run over all 1,437 training images, 44 steps per epoch."""
    config = short_config()
    config.data.validation_fraction = 0.0
    config.evaluate.splits = ("train",)
    return config


def batch_of(config, step):
    return pipeline.train_indices(config.seed, 1437, config.batch_size, step - 1).tolist()


def newest_checkpoint(config, workdir):
    """The step and the state."""
    net, tx = build_tower(config.model), optimizers.build(config, 44, 44)
    like = init_state(parameter_shapes(net, config.data.crop_size), tx)
    with Checkpoints(workdir) as checkpoints:
        step, state, _ = checkpoints.restore_latest(like)
    return step, state


def test_bad_for_good_it_ends_with_the_evidence_and_the_checkpoint_from_before(tmp_path, poisoned):
    config = without_validation()
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
    step, state = newest_checkpoint(config, tmp_path)
    assert step == 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_rate_that_explodes_leaves_finite_checkpoints(tmp_path):
    config = without_validation()
    config.num_epochs = 2.0
    config.checkpoint_every_steps = 1
    config.optimizer.learning_rate = 1e12
    with pytest.raises(UsageError, match="not finite"):
        train_and_evaluate(config, tmp_path)
    means = [line for line in log(tmp_path) if line["event"] == "training"]
    assert means and all(np.isfinite(line["loss"]) for line in means)
    step, state = newest_checkpoint(config, tmp_path)
    assert step == 1  # every later step is not finite
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    state = {"params": {"fc8": {"bias": np.array([1, np.inf], np.float32)}}}
    with (
        Checkpoints(tmp_path, keep=1) as checkpoints,
        pytest.raises(ValueError, match=r"step 1 is not saved: .*'bias'.* is not finite"),
    ):
        checkpoints.save(1, state, manifest(state), {})
    assert not list((tmp_path / "checkpoints").iterdir())
