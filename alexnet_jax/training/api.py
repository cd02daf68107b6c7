"""The library's own verbs: a new network, a run on data that is given in Python, an evaluation."""

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import presets, validate
from alexnet_jax.config.fields import declared, suggestion
from alexnet_jax.config.find import get_config
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.data.sources import check_classes, given_sources, open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import build_tower, draw_parameters, initial_statistics
from alexnet_jax.parallel.hosts import prepare_process
from alexnet_jax.paths import local
from alexnet_jax.training import evaluate as evaluation
from alexnet_jax.training.events import Evaluation, Event, to_json
from alexnet_jax.training.log import read as read_log
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.training.network import Network
from alexnet_jax.training.origin import classes_of, load


def create(
    preset: str = "article",
    *,
    config: ConfigDict | str | None = None,
    seed: int | None = None,
    class_names: Sequence[str] = (),
    placement: str = "vmap",
    **fields: Any,
) -> Network:
    """Makes a network with new weights.

    Args:
      preset: `article`, `paper`, `source`, `caffe` or a run of 2012 such as `145`.
      config: a configuration, or the name of one, instead of a preset.
      seed: of the weights; None: that of the configuration, which is 0.
      class_names: one name per class, which also sets the number of classes.
      placement: see `Network`.
      **fields: fields of `config.model` and `config.data` by the ends of their names, with `_` for
        the dots: `towers=1`, `num_classes=10`, `width=0.5`, `activation="tanh"`,
        `dropout_rate=0.3`, `lrn_size=3`, `crop_size=64`.

    Returns:
      The network. If the configuration is to subtract the mean image of a data set, the network
      subtracts `config.data.channel_mean` from every pixel instead.

    Raises:
      UsageError: there is no such preset or field, or a value does not fit; one line that names it.
    """
    prepare_process()
    if config is None:
        config = presets.get(preset)
    config = _copy(config)
    if class_names:
        fields = {"num_classes": len(class_names)} | fields
    _set(config, fields)
    config.seed = config.seed if seed is None else seed
    validate(config)
    names = tuple(map(str, class_names))
    if names and len(names) != config.model.num_classes:
        raise UsageError(
            f"class_names are {len(names)}, and the network has {config.model.num_classes} classes"
        )
    tower, crop = build_tower(config.model), config.data.crop_size
    variables: dict[str, Any] = {"params": draw_parameters(tower, config.seed, crop)}
    if tower.has_statistics:
        variables["batch_stats"] = initial_statistics(tower, crop)
    mean = np.asarray(config.data.channel_mean, np.float32)
    inputs = input_rules.with_mean(config.data, mean)
    return Network(config, tower, variables, inputs, names, placement=placement)


def _copy(config: ConfigDict | str) -> ConfigDict:
    """A copy, in which references between fields stay references."""
    found = get_config(config) if isinstance(config, str) else config
    return copy.deepcopy(found).lock()


def _set(config: ConfigDict, fields: Mapping[str, Any]) -> None:
    groups = ("model.", "data.")
    known = {
        path.partition(".")[2].replace(".", "_"): path
        for path in declared()
        if path.startswith(groups)
    }
    for name, value in fields.items():
        if name not in known:
            raise UsageError(f"{name}: no such field of a network{suggestion(name, list(known))}")
        value = tuple(value) if isinstance(value, list) else value
        with config.ignore_type():
            config.update_from_flattened_dict({known[name]: value})


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """A run that has ended.

    Attributes:
      workdir: its folder.
      metrics: the last evaluation of each split, such as `metrics["test"]["top1_error"]`; as in
        `result.json`. Errors are fractions between 0 and 1.
    """

    workdir: Path
    metrics: dict[str, dict[str, Any]]

    @functools.cached_property
    def net(self) -> Network:
        """The trained network."""
        return load(self.workdir)

    @property
    def log(self) -> list[Event]:
        """The events of the run in their order: means of training steps, evaluations and so on."""
        return read_log(self.workdir)

    def __repr__(self) -> str:
        """Returns the folder and the top-1 errors."""
        errors = [f"{split} error {m['top1_error']:.4f}" for split, m in self.metrics.items()]
        return f"Result({str(self.workdir)!r}: {', '.join(errors) or 'no evaluation'})"


def train(
    config: ConfigDict | str,
    workdir: str | Path,
    data: Any = None,
    validation: Any = None,
    test: Any = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    class_names: Sequence[str] = (),
) -> Result:
    """Trains a network, or resumes the run that `workdir` holds.

    Args:
      config: a configuration, or the name of one, such as `"quickstart"`.
      workdir: the folder that the run writes.
      data: what to train on: a pair of arrays (images, labels), or anything else that `as_source`
        takes; None for the data set that `config.data` names.
      validation: what steers the run; None for a share of `data`
        (`config.data.validation_fraction`).
      test: what is evaluated once after the run; None for nothing.
      optimizer: an Optax transformation instead of the one that `config.optimizer` describes. It is
        applied to each tower by itself.
      class_names: one name per class, for `data`.

    Returns:
      The trained network and its metrics.

    Raises:
      UsageError: before anything compiles, for whatever the user can fix; later, if the disk, the
        data or the numbers fail.
      Stopped: Ctrl-C or SIGTERM asked the run to stop, and the state is saved.
    """
    workdir, config = local(str(workdir), "workdir"), _copy(config)
    parallel.prepare_host(config)
    sources = None
    if data is not None:
        sources = given_sources(config, data, validation, test, tuple(map(str, class_names)))
    elif validation is not None or test is not None:
        raise UsageError("validation or test images without data: give data as well")
    result = train_and_evaluate(config, workdir, sources=sources, optimizer=optimizer)
    return Result(workdir, {k: v for k, v in result.items() if isinstance(v, dict)})


def evaluate_workdir(
    config: ConfigDict, workdir: str | Path, views: int, split: str, step: int = 0
) -> dict[str, Any]:
    """Evaluates a trained network on a whole split.

    Args:
      config: the configuration of the network.
      workdir: the folder of a run, or whatever else `load` takes.
      views: views per image: 1, 9 or 10.
      split: `train`, `validation` or `test`.
      step: the step of the checkpoint; 0 for the latest one.

    Returns:
      The fields of an evaluation as the log names them.

    Raises:
      UsageError: there is no such checkpoint or split, or the data set is missing.
    """
    placement = parallel.place_near(config)
    sources = open_sources(config, *classes_of(workdir))
    if split not in sources:
        raise UsageError(f"--split={split}: {workdir} has none; it has {', '.join(sources)}")
    check_classes(sources["train"], sources[split])
    network = load(workdir, step=step)
    eval_step = evaluation.make_eval_step(
        network.tower, network.inputs, placement, views, config.evaluate.metrics
    )
    variables = placement.put_towers(network.variables)
    means = evaluation.evaluate(eval_step, variables, sources[split], config, placement, views)
    event = Evaluation(step=network.step, epoch=0.0, split=split, **dataclasses.asdict(means))
    return {k: v for k, v in to_json(event).items() if k not in ("event", "epoch")}
