"""A trained network from a workdir or a file of weights, and runs that start from one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import from_json
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.data.sources import open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import Tower, build_tower, parameter_shapes
from alexnet_jax.training import evaluate as evaluation
from alexnet_jax.training import optimizer as optim
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.events import Evaluation, to_json
from alexnet_jax.training.state import init_state
from alexnet_jax.training.workdir import CLASSES
from alexnet_jax.weights import files
from alexnet_jax.weights.column import Column, from_towers, to_towers


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with everything that is needed to apply it to images.

    Attributes:
      config: the configuration of the run, with the placement to be used here.
      tower: the network.
      params: parameters stacked by tower, NumPy.
      inputs: how images become its input.
      class_names: one name per class; empty if a file of weights has none.
      step: the step of the checkpoint; 0 for a file.
    """

    config: ConfigDict
    tower: Tower
    params: dict
    inputs: input_rules.Inputs
    class_names: tuple[str, ...]
    step: int = 0

    def column(self) -> Column:
        """Returns the network as one column, the form in which files hold it."""
        return from_towers(self.config, self.params, self.inputs.mean, self.class_names)


def _is_file(origin: Path) -> bool:
    """Returns whether it is named like a file of weights and is not a folder."""
    return origin.suffix in files.SUFFIXES and not origin.is_dir()


def config_of(origin: Path) -> ConfigDict:
    """Returns the configuration of a workdir or of a file of weights.

    Raises:
      UsageError: it is neither.
    """
    if _is_file(origin):
        return files.read(origin).config
    path = origin / "config.json"
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(
            f"{origin}: {error.strerror}: name a folder that `train` wrote, or a file "
            f"({', '.join(files.SUFFIXES)})"
        ) from error
    return from_json(text, str(path))


def mean_of(origin: Path) -> np.ndarray:
    """Returns what a workdir or a file subtracts from images: `[3]` or `[crop, crop, 3]`.

    Raises:
      UsageError: as `config_of`.
    """
    if _is_file(origin):
        return files.read(origin).mean
    return input_rules.of_run(config_of(origin), origin).mean


def load(config: ConfigDict, origin: Path, step: int = 0) -> Network:
    """Loads a checkpoint of a workdir, or a file of weights.

    Args:
      config: what `config_of(origin)` returned.
      origin: the workdir or the file.
      step: the step of the checkpoint; 0 for the latest one that is intact.

    Raises:
      UsageError: there is no such checkpoint, or the file cannot be read.
    """
    if _is_file(origin):
        if step:
            raise UsageError(f"--step={step}: {origin} is a file, which holds no steps")
        return of_column(files.read(origin))
    tower = build_tower(config.model)
    tx = optim.sgd_2012(config, 1, 1)
    like = init_state(parameter_shapes(tower, config.data.crop_size), tx)
    with Checkpoints(origin) as checkpoints:
        if step:
            state, _ = checkpoints.restore(step, like)
        elif (restored := checkpoints.restore_latest(like)) is not None:
            step, state, _ = restored
        else:
            raise UsageError(f"{origin}: holds no checkpoint: run train first")
    inputs = input_rules.of_run(config, origin)
    return Network(config, tower, state.params, inputs, _class_names(config, origin), step)


def _class_names(config: ConfigDict, workdir: Path) -> tuple[str, ...]:
    try:
        names = json.loads((workdir / CLASSES).read_text())
    except (OSError, ValueError):
        names = None
    # The first runs of version 0.1 did not write them: they are those of the data set.
    if not isinstance(names, list) or len(names) != config.model.num_classes:
        return open_sources(config)["test"].class_names
    return tuple(map(str, names))


def of_column(found: Column) -> Network:
    """Returns the network of a file, with its parameters split into towers and stacked."""
    config = found.config
    inputs = input_rules.with_mean(config.data, found.mean)
    tower = build_tower(config.model)
    return Network(config, tower, to_towers(found), inputs, found.class_names)


def initial(config: ConfigDict, drawn: dict, class_names: tuple[str, ...]) -> dict:
    """Returns the parameters that a run starts from: those of `config.init_from`.

    The last layer keeps its random parameters unless the classes are the same, in name and order.

    Args:
      config: the configuration of the new run.
      drawn: its random parameters, stacked by tower.
      class_names: its classes.

    Raises:
      UsageError: a layer is missing or has another shape, or a new layer is to be frozen.
    """
    origin = Path(config.init_from)
    found = load(config_of(origin), origin)
    last = config.model.layer_order[-1]
    new = {last} if found.class_names != class_names else set()
    for name, wanted in drawn.items():
        if name in new:
            continue
        for part, array in wanted.items():
            have = found.params.get(name, {}).get(part)
            if have is None or np.shape(have) != np.shape(array):
                raise UsageError(
                    f"config.init_from = {config.init_from!r}: {name}.{part} is "
                    f"{'missing' if have is None else np.shape(have)} there, and "
                    f"{np.shape(array)} here (towers first); experiments/finetune.py takes the "
                    "network from the same file"
                )
    for name in config.freeze:
        if name in new:
            raise UsageError(
                f"config.freeze holds {name}, which is new: config.init_from has other classes"
            )
    return {name: drawn[name] if name in new else found.params[name] for name in drawn}


def evaluate_workdir(
    config: ConfigDict, workdir: Path, views: int, split: str, step: int = 0
) -> dict[str, Any]:
    """Evaluates a checkpoint of `workdir` on a whole split.

    Args:
      config: the configuration of the run.
      workdir: the folder of the run.
      views: views per image: 1, 9 or 10.
      split: `train`, `validation` or `test`.
      step: the step of the checkpoint; 0 for the latest one.

    Returns:
      The fields of an evaluation as the log names them.

    Raises:
      UsageError: there is no such checkpoint or split, or the data set is missing.
    """
    placement = parallel.place(config)
    sources = open_sources(config)
    if split not in sources:
        raise UsageError(f"--split={split}: {workdir} has none; it has {', '.join(sources)}")
    network = load(config, workdir, step)
    eval_step = evaluation.make_eval_step(network.tower, network.inputs, placement, views)
    params = placement.put_towers(network.params)
    means = evaluation.evaluate(eval_step, params, sources[split], config, placement, views)
    event = Evaluation(step=network.step, epoch=0.0, split=split, **dataclasses.asdict(means))
    return {k: v for k, v in to_json(event).items() if k not in ("event", "epoch")}
