"""Events of runs that never were, and their logs."""

import json

from alexnet_jax.training.events import Evaluation, TrainingMean, to_json


def training_mean(epoch, loss, error, step=1):
    """The mean of some training steps."""
    return TrainingMean(
        step=step, epoch=epoch, loss=loss, top1_error=error, top5_error=error / 2,
        images_per_second=100.0, data_wait_fraction=0.1, learning_rate=0.1,
    )  # fmt: skip


def evaluation(split, epoch, loss, error, count=9, step=1, top5_error=0.0):
    """An evaluation of a split, by the centre crop."""
    return Evaluation(
        step=step, epoch=epoch, split=split, loss=loss, top1_error=error, top5_error=top5_error,
        num_examples=count,
    )  # fmt: skip


def write_log(workdir, events):
    """Writes `metrics.jsonl` into a new folder."""
    workdir.mkdir(parents=True)
    lines = [json.dumps(to_json(event)) + "\n" for event in events]
    (workdir / "metrics.jsonl").write_text("".join(lines))
