"""A trained network, whether a run or a file of weights holds it; and runs that start from one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import inputs as input_rules
from alexnet_jax import optim, weights
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.config import from_json
from alexnet_jax.data.sources import open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.models import tower as towers
from alexnet_jax.state import init_state

CLASSES = "classes.json"


@dataclasses.dataclass(frozen=True)
class Network:
    """What is needed to look at images.

    Attributes:
      config: of the run; with the placement to be used here.
      tower: the network.
      params: stacked by tower, NumPy.
      inputs: how it sees images.
      class_names: one a class; none where a file had none.
      step: of the checkpoint; 0 of a file.
    """

    config: ConfigDict
    tower: towers.Tower
    params: dict
    inputs: input_rules.Inputs
    class_names: tuple[str, ...]
    step: int = 0

    def column(self) -> weights.Column:
        """As one column, to be written."""
        return weights.column(self.config, self.params, self.inputs.mean, self.class_names)


def _is_file(origin: Path) -> bool:
    """Whether it is named like a file of weights, and no workdir is called so."""
    return origin.suffix in weights.SUFFIXES and not origin.is_dir()


def config_of(origin: Path) -> ConfigDict:
    """The configuration of a workdir, or the one that a file of weights brings along.

    Raises:
      UsageError: it is neither.
    """
    if _is_file(origin):
        return weights.read(origin).config
    path = origin / "config.json"
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(
            f"{origin}: {error.strerror}: name a folder that `train` wrote, or a file "
            f"({', '.join(weights.SUFFIXES)})"
        ) from error
    return from_json(text, str(path))


def mean_of(origin: Path) -> np.ndarray:
    """What a workdir or a file of weights takes away from images: `[3]` or `[crop, crop, 3]`.

    Raises:
      UsageError: as `config_of`.
    """
    if _is_file(origin):
        return weights.read(origin).mean
    return input_rules.of_run(config_of(origin), origin).mean


def load(config: ConfigDict, origin: Path, step: int = 0) -> Network:
    """A checkpoint of a workdir, or a file of weights.

    Args:
      config: what `config_of(origin)` returned.
      origin: the workdir or the file.
      step: of the checkpoint; 0: the newest that is whole.

    Raises:
      UsageError: there is none.
    """
    if _is_file(origin):
        if step:
            raise UsageError(f"--step={step}: {origin} is a file, which holds no steps")
        return of_column(weights.read(origin))
    tower = towers.build(config.model)
    tx = optim.sgd_2012(config, 1, 1)
    like = init_state(towers.shapes(tower, config.data.crop_size), tx)
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
    # Runs of before wrote none; their data set knows.
    if not isinstance(names, list) or len(names) != config.model.num_classes:
        return open_sources(config)["test"].class_names
    return tuple(map(str, names))


def of_column(found: weights.Column) -> Network:
    """A network read from a file, its parameters split into towers and stacked."""
    config = found.config
    inputs = input_rules.with_mean(config.data, found.mean)
    tower = towers.build(config.model)
    return Network(config, tower, weights.params(found), inputs, found.class_names)


def initial(config: ConfigDict, drawn: dict, class_names: tuple[str, ...]) -> dict:
    """Parameters that a run starts from: those of `config.init_from`, a workdir or a file.

    The last layer stays as drawn unless the classes are the same, in name and order.

    Args:
      config: of the new run.
      drawn: its own parameters, stacked by tower.
      class_names: its own.

    Raises:
      UsageError: a layer is not there or of another shape; or one that is new is to be frozen.
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
            raise UsageError(f"config.freeze holds {name}, which is new: its classes are others")
    return {name: drawn[name] if name in new else found.params[name] for name in drawn}
