"""Every field of a run, its default and its checks: the one place to look.

The defaults are the full two-tower network of the article on ImageNet. The files of `experiments/`
start from them and change a few.
"""

import difflib
import json
import re
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import optim
from alexnet_jax.data.augment import IMAGENET_EIGENVECTORS, IMAGENET_STDEVS
from alexnet_jax.data.decode import RESIZES, SHRINKS
from alexnet_jax.errors import UsageError
from alexnet_jax.models import layers as ops
from alexnet_jax.models import table
from alexnet_jax.models.alexnet import alexnet


def default() -> ConfigDict:
    """A fresh, locked configuration: the article's network and the 2012 training rule."""
    config = ConfigDict()
    config.seed = 0
    config.placement = "auto"  # vmap (one device), pmap (one tower a device), mesh (2 x N)
    config.batch_size = 128  # images a step, over all devices and processes
    config.accumulate_steps = 1  # parts that each device works through its share of a batch in
    config.num_epochs = 90.0
    config.log_every_steps = 20
    config.checkpoint_every_steps = 1000
    config.warn_stuck_after_steps = 5000  # 0: never; see diagnose.py
    config.keep_checkpoints = 2  # the latest so many, besides the best

    # Several processes, one a host or one a device, each started with the same command.
    config.distributed = ConfigDict(
        dict(
            enabled=False,  # on Slurm, Kubernetes and Cloud TPU this is all there is to say
            coordinator="",  # elsewhere: HOST:PORT of process 0,
            process_count=0,  # how many there are,
            process_id=-1,  # and which this one is, from 0
            start_timeout_seconds=300,  # how long to wait for the others
            lost_after_seconds=100,  # a process not heard of for so long ends the run
        )
    )

    config.model = alexnet()

    config.data = ConfigDict(
        dict(
            source="tfds:imagenet2012",  # digits, tfds:NAME[:VERSION], folder:PATH
            train_split="train",
            test_split="validation",
            image_size=256,  # every image becomes a square of this side
            resize="short_side",  # then the centre square (2012); or stretch (Caffe)
            shrink="area",  # area (2012), bilinear (Caffe), triangle: see data/decode.py
            pad=0,  # pixels reflected around a training image before its crop
            crop_size=224,
            random_crop=True,
            random_flip=True,
            mean="channel",  # channel: the three numbers below; image: computed once, per pixel
            channel_mean=(123.68, 116.78, 103.94),
            scale=1.0,  # after the mean; 1 leaves grey levels, as in 2012
            colour=ConfigDict(
                dict(
                    rule="none",  # none, source, paper: the PCA noise of section 4.1
                    until_epoch=0.0,  # no noise from this epoch on; 0: always on
                    stdevs=IMAGENET_STDEVS,
                    eigenvectors=IMAGENET_EIGENVECTORS,
                )
            ),
        )
    )

    config.optimizer = ConfigDict(
        dict(
            learning_rate=0.01,
            rate_scaling="none",  # linear, sqrt: of the rate, with batch_size / rate_scaling_batch
            rate_scaling_batch=128,
            warmup_epochs=0.0,  # the rates rise from nothing over so many
            trust_coefficient=0.0,  # 0: none; LARS scales each layer's step to its weights by it
            momentum=0.9,
            weight_decay=5e-4,
            decay_biases=False,
            bias_rate_multiplier=1.0,
            biases_follow_schedule=True,
            schedule="steps",  # constant, steps, exponential_steps, plateau, polynomial
            drop_factor=0.1,  # steps and plateau
            drop_epochs=(30.0, 60.0, 80.0),
            conv1_drop_epochs=(),  # empty: with the rest
            conv1_freeze_epoch=0.0,  # 0: never
            polynomial_power=2.0,  # rate x (what is left of the run) ** power
            exponential_factor=250.0,
            exponential_steps=4,
            bias_exponential_factor=10.0,
            bias_exponential_steps=2,
            plateau_patience=3,  # evaluations without a better error before a drop
            plateau_drops=3,  # at most
        )
    )

    config.evaluate = ConfigDict(
        dict(
            every_epochs=1.0,
            batch_size=256,  # images a step; ten views count as ten
            splits=("test",),  # train, test; the last one steers plateau and best checkpoint
            final_views=1,  # after training: 1, 9 or 10 (and the centre crop)
        )
    )
    return config.lock()


def _choice(config: ConfigDict, path: str, options: tuple[str, ...]) -> None:
    value = _get(config, path)
    if value not in options:
        close = difflib.get_close_matches(str(value), options, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(options)}"
        raise UsageError(f"config.{path} = {value!r}: {hint}")


def _get(config: ConfigDict, path: str):
    for name in path.split("."):
        config = config[name]
    return config


def validate(config: ConfigDict) -> None:
    """Checks values and their combinations, before anything is read or compiled.

    Raises:
      UsageError: one line that names the field and the mend.
    """
    _choice(config, "model.activation", tuple(ops.ACTIVATIONS))
    _choice(config, "model.compute_dtype", ("float32", "bfloat16", "float64"))
    _choice(config, "data.resize", RESIZES)
    _choice(config, "data.shrink", SHRINKS)
    _choice(config, "data.mean", ("channel", "image"))
    _choice(config, "data.colour.rule", ("none", "source", "paper"))
    _choice(config, "optimizer.schedule", optim.SCHEDULES)
    _choice(config, "optimizer.rate_scaling", optim.RATE_SCALINGS)
    at_least = (
        ("seed", 0), ("batch_size", 1), ("log_every_steps", 1), ("checkpoint_every_steps", 1),
        ("keep_checkpoints", 1), ("accumulate_steps", 1), ("distributed.process_count", 0),
        ("distributed.process_id", -1), ("distributed.start_timeout_seconds", 1),
        ("distributed.lost_after_seconds", 1), ("optimizer.warmup_epochs", 0),
        ("optimizer.trust_coefficient", 0), ("optimizer.rate_scaling_batch", 1),
        ("warn_stuck_after_steps", 0), ("model.num_classes", 2), ("model.towers", 1),
        ("model.pool.window", 1), ("model.pool.stride", 1), ("model.lrn.size", 1),
        ("model.lrn.k", 0), ("model.lrn.alpha", 0), ("model.within_map_norm.size", 1),
        ("model.within_map_norm.k", 0), ("data.image_size", 1), ("data.crop_size", 1),
        ("data.pad", 0), ("optimizer.momentum", 0), ("optimizer.weight_decay", 0),
        ("optimizer.exponential_steps", 1), ("optimizer.bias_exponential_steps", 1),
        ("optimizer.plateau_patience", 1), ("optimizer.plateau_drops", 0),
        ("evaluate.batch_size", 1), ("num_epochs", 0), ("optimizer.conv1_freeze_epoch", 0),
        ("data.colour.until_epoch", 0), ("optimizer.bias_rate_multiplier", 0),
    )  # fmt: skip
    for path, low in at_least:
        value = _get(config, path)
        if not value >= low:
            raise UsageError(f"config.{path} = {value!r}: must be at least {low}")
    for path in (
        "model.width", "optimizer.learning_rate", "data.scale", "evaluate.every_epochs",
        "optimizer.drop_factor", "optimizer.exponential_factor",
        "optimizer.bias_exponential_factor", "optimizer.polynomial_power",
    ):  # fmt: skip
        value = _get(config, path)
        if not value > 0:
            raise UsageError(f"config.{path} = {value!r}: must be more than 0")
    if not 0 <= config.model.dropout.rate < 1:
        raise UsageError(
            f"config.model.dropout.rate = {config.model.dropout.rate!r}: must be in [0, 1)"
        )
    if config.model.pool.stride > config.model.pool.window:
        raise UsageError(
            f"config.model.pool.stride = {config.model.pool.stride}: larger than the window "
            f"{config.model.pool.window} skips pixels"
        )
    _validate_distributed(config.distributed)
    data = config.data
    if data.crop_size > data.image_size + 2 * data.pad:
        raise UsageError(
            f"config.data.crop_size = {data.crop_size}: larger than data.image_size + 2 data.pad "
            f"= {data.image_size + 2 * data.pad}"
        )
    if data.crop_size > data.image_size:
        raise UsageError(
            f"config.data.crop_size = {data.crop_size}: larger than data.image_size = "
            f"{data.image_size}, which is what a test sees"
        )
    if config.evaluate.final_views not in (1, 9, 10):
        raise UsageError(f"config.evaluate.final_views = {config.evaluate.final_views!r}: 1, 9, 10")
    if not config.evaluate.splits:
        raise UsageError("config.evaluate.splits is empty: name test, train or both")
    for split in config.evaluate.splits:
        if split not in ("train", "test"):
            raise UsageError(f"config.evaluate.splits holds {split!r}: use train and test")
    last = config.model.layer_order[-1] if config.model.layer_order else ""
    if last and config.model.layers[last].features != config.model.num_classes:
        raise UsageError(
            f"config.model.layers.{last}.features = {config.model.layers[last].features} is not "
            f"config.model.num_classes = {config.model.num_classes}: set the latter alone"
        )
    table.count(config.model, data.crop_size)


def _validate_distributed(distributed: ConfigDict) -> None:
    """By hand all of coordinator, count and number are needed; otherwise none is."""
    given = {
        "coordinator": bool(distributed.coordinator),
        "process_count": distributed.process_count > 0,
        "process_id": distributed.process_id >= 0,
    }
    if not any(given.values()):
        return
    if not distributed.enabled:
        raise UsageError("config.distributed.enabled = False, but its other fields say otherwise")
    for field, present in given.items():
        if not present:
            raise UsageError(
                f"config.distributed.{field} = {distributed[field]!r}: coordinator, process_count "
                "and process_id go together"
            )
    if not re.fullmatch(r".+:\d+", distributed.coordinator):
        raise UsageError(
            f"config.distributed.coordinator = {distributed.coordinator!r}: give HOST:PORT"
        )
    if distributed.process_id >= distributed.process_count:
        raise UsageError(
            f"config.distributed.process_id = {distributed.process_id}: they count from 0 to "
            f"process_count - 1 = {distributed.process_count - 1}"
        )


def from_json(text: str, name: str) -> ConfigDict:
    """The configuration that a run wrote to `name`.

    Raises:
      UsageError: if it is not one.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    try:
        config = ConfigDict(tuples(json.loads(text))).lock()
        validate(config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(f"{name}: not a configuration of this version: {error}") from error
    return config
