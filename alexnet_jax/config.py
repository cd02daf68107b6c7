"""Every field of a run, its default and its checks: the one place to look.

The defaults are the full two-tower network of the article on ImageNet. The files of `experiments/`
start from them and change a few.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import optim
from alexnet_jax.data.augment import IMAGENET_EIGENVECTORS, IMAGENET_STDEVS
from alexnet_jax.data.decode import RESIZES, SHRINKS
from alexnet_jax.errors import UsageError
from alexnet_jax.models import layers as ops
from alexnet_jax.models import table
from alexnet_jax.models.alexnet import alexnet
from alexnet_jax.parallel import PLACEMENTS


def default() -> ConfigDict:
    """A fresh, locked configuration: the article's network and the 2012 training rule."""
    config = ConfigDict()
    config.seed = 0
    config.placement = "auto"  # vmap (one device), pmap (one tower a device), mesh (2 x N)
    config.batch_size = 128  # images a step, over all devices and processes
    config.accumulate_steps = 1  # parts that each device works through its share of a batch in
    config.num_epochs = 90.0
    config.stop_at_error = 0.0  # ends once the last of evaluate.splits has no more; 0: never
    config.log_every_steps = 20
    config.checkpoint_every_steps = 1000
    config.warn_stuck_after_steps = 5000  # 0: never; see diagnose.py
    config.warn_slow_step_after_seconds = 600  # with the stacks of all threads; 0: never
    config.max_not_finite_steps = 5  # in a row, not applied, before the run gives up
    config.keep_checkpoints = 2  # the latest so many, besides the best
    config.init_from = ""  # a workdir, .safetensors or .onnx: the weights that it starts from
    config.freeze = ()  # layers whose weights stay as they are
    config.tensorboard = False  # event files in the workdir, beside metrics.jsonl
    config.wandb_project = ""  # of Weights & Biases, where everything is sent as well

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
            test_fraction=0.2,  # of each class, of a folder that has no splits
            image_size=256,  # every image becomes a square of this side
            resize="short_side",  # then the centre square (2012); or stretch (Caffe)
            shrink="area",  # area (2012), bilinear (Caffe), triangle: see data/decode.py
            max_pixels=100_000_000,  # of one image, before it is decoded
            max_unreadable=0,  # images replaced by the next one in order; 0: the first is an error
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
    _check_fields(config)
    _choice(config, "model.activation", tuple(ops.ACTIVATIONS))
    _choice(config, "model.compute_dtype", ("float32", "bfloat16", "float64"))
    _choice(config, "placement", PLACEMENTS)
    _choice(config, "data.resize", RESIZES)
    _choice(config, "data.shrink", SHRINKS)
    _choice(config, "data.mean", ("channel", "image"))
    _choice(config, "data.colour.rule", ("none", "source", "paper"))
    _choice(config, "optimizer.schedule", optim.SCHEDULES)
    _choice(config, "optimizer.rate_scaling", optim.RATE_SCALINGS)
    at_least = (
        ("max_not_finite_steps", 1), ("warn_slow_step_after_seconds", 0),
        ("data.max_pixels", 1), ("data.max_unreadable", 0), ("seed", 0), ("batch_size", 1),
        ("stop_at_error", 0), ("log_every_steps", 1), ("checkpoint_every_steps", 1),
        ("keep_checkpoints", 1), ("accumulate_steps", 1), ("distributed.process_count", 0),
        ("distributed.process_id", -1), ("distributed.start_timeout_seconds", 1),
        ("distributed.lost_after_seconds", 1), ("optimizer.warmup_epochs", 0),
        ("optimizer.trust_coefficient", 0), ("optimizer.rate_scaling_batch", 1),
        ("warn_stuck_after_steps", 0), ("model.num_classes", 2), ("model.towers", 1),
        ("model.pool.window", 1), ("model.pool.stride", 1), ("model.lrn.size", 1),
        ("model.lrn.k", 0), ("model.lrn.alpha", 0), ("model.within_map_norm.size", 1),
        ("model.within_map_norm.k", 0), ("model.within_map_norm.alpha", 0),
        ("data.image_size", 1), ("data.crop_size", 1), ("data.pad", 0),
        ("optimizer.momentum", 0), ("optimizer.weight_decay", 0),
        ("optimizer.exponential_steps", 1), ("optimizer.bias_exponential_steps", 1),
        ("optimizer.plateau_patience", 1), ("optimizer.plateau_drops", 0),
        ("evaluate.batch_size", 1), ("num_epochs", 0), ("optimizer.conv1_freeze_epoch", 0),
        ("data.colour.until_epoch", 0), ("optimizer.bias_rate_multiplier", 0),
    )  # fmt: skip
    for path, low in at_least:
        value = _get(config, path)
        if not value >= low:
            raise UsageError(f"config.{path} = {value!r}: must be at least {low}")
    for path, high in _AT_MOST.items():
        value = _get(config, path)
        if value > high:
            raise UsageError(f"config.{path} = {value!r}: must be at most {high}")
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
    if not 0 < config.data.test_fraction < 1:
        raise UsageError(
            f"config.data.test_fraction = {config.data.test_fraction!r}: must be between 0 and 1"
        )
    for name in config.freeze:
        if name not in config.model.layer_order:
            layers = ", ".join(config.model.layer_order)
            raise UsageError(f"config.freeze holds {name!r}: the layers are {layers}")
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
    for path, shape in _SHAPES.items():
        value = _get(config, path)
        try:
            fits = np.shape(np.asarray(value, float)) == shape
        except (ValueError, TypeError):
            fits = False
        if not fits:
            want = " x ".join(str(side) for side in shape)
            raise UsageError(f"config.{path} = {value!r}: give {want} numbers")
    for path in ("optimizer.drop_epochs", "optimizer.conv1_drop_epochs"):
        for value in _get(config, path):
            if not isinstance(value, (int, float)) or value < 0:
                raise UsageError(f"config.{path} holds {value!r}: give numbers, 0 or more")
    rows = table.count(config.model, data.crop_size)
    last = rows[-1].layer.name
    if config.model.layers[last].features != config.model.num_classes:
        raise UsageError(
            f"config.model.layers.{last}.features = {config.model.layers[last].features} is not "
            f"config.model.num_classes = {config.model.num_classes}: set the latter alone"
        )
    parameters = sum(row.parameters for row in rows)
    if parameters > _MOST_PARAMETERS:
        raise UsageError(
            f"config.model has {parameters:,} parameters, which is more than {_MOST_PARAMETERS:,}: "
            "lower model.width, the features of a layer or data.crop_size"
        )


# What memory or 32-bit counters could not hold, far above what makes sense.
_AT_MOST = {
    "seed": 2**32 - 1, "batch_size": 2**20, "evaluate.batch_size": 2**20, "num_epochs": 1e6,
    "model.num_classes": 10**6, "model.towers": 64, "model.width": 64, "model.lrn.size": 10**4,
    "model.within_map_norm.size": 10**4, "model.pool.window": 10**4, "data.image_size": 2**13,
    "data.crop_size": 2**13, "data.pad": 2**13, "data.max_pixels": 2**40,
    "optimizer.exponential_steps": 10**4, "optimizer.bias_exponential_steps": 10**4,
}  # fmt: skip
_MOST = 2**40  # for any whole number
_MOST_PARAMETERS = 10**10

_SHAPES = {
    "data.channel_mean": (3,), "data.colour.stdevs": (3,), "data.colour.eigenvectors": (3, 3),
}  # fmt: skip


def _check_fields(config: ConfigDict) -> None:
    """Every field there, none besides, each of its default's type and every number finite."""
    model = default()
    rows = config.get("model", {}).get("layers", {})
    with model.unlocked():
        model.model.layers = {name: dict(table.layer_row("conv", 1)) for name in rows}
    expected, found = dict(leaves(model)), dict(leaves(config))
    for path in expected.keys() ^ found.keys():
        raise UsageError(
            f"config.{path} is missing" if path in expected else f"config.{path}: no such field"
        )
    # Groups last: what refers to another field is of its value.
    for path in sorted(expected, key=lambda path: path.count(".")):
        default_value, value = expected[path], found[path]
        kind = type(default_value)
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if kind is float:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits and not (default_value is None and isinstance(value, (int, float, type(None)))):
            name = {int: "a whole number", float: "a number", bool: "True or False"}.get(kind)
            raise UsageError(f"config.{path} = {value!r}: give {name or 'a ' + kind.__name__}")
        for number in _numbers(value):
            if not math.isfinite(number):
                raise UsageError(f"config.{path} = {value!r}: give a finite number")
            if isinstance(number, int) and abs(number) > _MOST:
                raise UsageError(f"config.{path} = {value!r}: must be at most {_MOST}")


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that is no group, as `model.pool.window`, and its value."""
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


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


_LATER = ("init_from", "freeze", "tensorboard", "wandb_project", "data.test_fraction")
"""Fields that runs of before lack; what they did is what the defaults say."""


def completed(config: ConfigDict) -> ConfigDict:
    """The same configuration, with the fields that did not exist when it was written."""
    for path in _LATER:
        *groups, field = path.split(".")
        group = _get(config, ".".join(groups)) if groups else config
        if field not in group:
            group[field] = _get(default(), path)
    return config


def tuples(value: Any) -> Any:
    """What JSON read, with tuples for its lists."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def from_json(text: str, name: str) -> ConfigDict:
    """The configuration that a run wrote to `name`.

    Raises:
      UsageError: if it is not one.
    """
    try:
        config = completed(ConfigDict(tuples(json.loads(text)))).lock()
        validate(config)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(f"{name}: not a configuration of this version: {error}") from error
    return config
