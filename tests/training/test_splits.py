"""What steers a run is the validation split; the test split is looked at when training is over."""

import dataclasses

import numpy as np
import pytest

from alexnet_jax.training import log, loop
from alexnet_jax.training.events import Evaluation, TrainingMean
from alexnet_jax.training.loop import train_and_evaluate
from tests.support import tiny_config


class Spied:
    """A source that tells of every image that is read from it."""

    def __init__(self, source, tell):
        self._source, self._tell = source, tell

    def __getattr__(self, name):
        return getattr(self._source, name)

    def squares(self, config):
        read = self._source.squares(config)

        def told(indices):
            self._tell(indices)
            return read(indices)

        return told


def spy_on(monkeypatch, read):
    """`read[split]` gets (steps done, image) for every image of a run that is read."""
    true_open, steps = loop.open_sources, [0]
    true_step = loop.make_train_step

    def open_sources(config):
        return {
            split: Spied(source, lambda i, split=split: read.setdefault(split, []).extend(
                (steps[0], int(j)) for j in i))
            for split, source in true_open(config).items()
        }  # fmt: skip

    def make_train_step(*args):
        step = true_step(*args)

        def counted(state, batch):
            steps[0] += 1
            return step(state, batch)

        return counted

    monkeypatch.setattr(loop, "open_sources", open_sources)
    monkeypatch.setattr(loop, "make_train_step", make_train_step)


@pytest.mark.parametrize("views", [1, 10])
def test_nothing_but_the_final_evaluation_reads_the_test_split(tmp_path, monkeypatch, views):
    config = tiny_config()
    config.placement = "vmap"
    config.num_epochs = 6 / 40
    config.tensorboard = True  # pictures are of some images
    config.evaluate.update(splits=("train", "validation"), every_epochs=3 / 40, final_views=views)
    config.optimizer.update(schedule="plateau", plateau_patience=1)
    read = {}
    spy_on(monkeypatch, read)
    train_and_evaluate(config, tmp_path)
    steps, images = np.array(read["test"]).T
    assert set(steps) == {6}  # all steps were done
    assert sorted(set(images)) == list(range(360))
    assert {step for step, _ in read["validation"]} >= {0, 3}


def test_the_mean_of_training_and_the_evaluation_of_train_are_different_series(tmp_path):
    config = tiny_config()
    config.placement = "vmap"
    config.num_epochs = 4 / 40
    config.evaluate.update(splits=("train",), every_epochs=4 / 40)
    config.log_every_steps = 4
    train_and_evaluate(config, tmp_path)
    events = [event for event in log.read(tmp_path) if event.step == 4]
    (mean,) = (event for event in events if isinstance(event, TrainingMean))
    whole, test = (event for event in events if isinstance(event, Evaluation))
    assert (whole.split, test.split) == ("train", "test")
    assert whole.loss != mean.loss and whole.num_examples > 1000
    from alexnet_jax.training.parts.viewers import scalars

    names = [set(scalars(event)) for event in (mean, whole, test)]
    assert not names[0] & names[1] and not names[1] & names[2]
    assert "training/loss" in names[0] and "evaluation/train/loss" in names[1]


def test_an_event_survives_its_line():
    from alexnet_jax.training.events import from_json, to_json

    event = Evaluation(3, 0.5, "test", 1.0, 0.5, 0.1, 10, {"conv1": 0.5}, 10, 0.4, 0.2)
    line = to_json(event)
    assert line["top1_error_10_views"] == 0.4 and "views" not in line
    assert from_json(line) == event
    plain = dataclasses.replace(event, views=1, top1_error_views=None, top5_error_views=None)
    assert from_json(to_json(plain)) == plain


def test_lines_of_version_0_1_are_read_as_what_they_were():
    from alexnet_jax.training.events import from_json

    mean = {"step": 2, "epoch": 0.5, "loss": 1.0, "top1_error": 0.5, "top5_error": 0.1,
            "images_per_second": 3.0, "data_wait_fraction": 0.0, "learning_rate": 0.1}  # fmt: skip
    whole = {"step": 2, "epoch": 0.5, "split": "train", "loss": 1.0, "top1_error": 0.5,
             "top5_error": 0.1, "num_examples": 10, "dead_units": {}}  # fmt: skip
    assert isinstance(from_json(mean | {"split": "train"}), TrainingMean)
    assert from_json(whole) == Evaluation(2, 0.5, "train", 1.0, 0.5, 0.1, 10)
    assert from_json({"step": 1, "split": "warning", "warning": "slow"}).warning == "slow"
