"""Networks from workdirs and files of weights, and runs that start from one."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import classes
from alexnet_jax.data import inputs as input_rules
from alexnet_jax.data.sources import open_sources
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import build_tower, initial_statistics, parameter_shapes
from alexnet_jax.parallel.hosts import prepare_process
from alexnet_jax.training.network import Network
from alexnet_jax.training.workdir import class_names, read_config
from alexnet_jax.weights import files, named
from alexnet_jax.weights.column import Column


def config_of(origin: str | Path) -> ConfigDict:
    """Returns the configuration of a trained network.

    Args:
      origin: as for `load`.

    Raises:
      UsageError: there is none.
    """
    origin = named.located(origin)
    if _is_file(origin):
        return files.read(origin).config
    try:
        (origin / "config.json").stat()
    except OSError as error:
        raise UsageError(
            f"{origin}: {error.strerror}: name a folder that `train` wrote, a file "
            f"({', '.join(files.SUFFIXES)}) or a network of the package "
            f"({', '.join(named.names())})"
        ) from error
    return read_config(origin)


def mean_of(origin: str | Path) -> np.ndarray:
    """Returns what a trained network subtracts from images: `[3]` or `[crop, crop, 3]`.

    Raises:
      UsageError: as `config_of`.
    """
    origin = named.located(origin)
    if _is_file(origin):
        return files.read(origin).mean
    return input_rules.of_run(config_of(origin), origin).mean


def classes_of(origin: str | Path) -> tuple[tuple[str, ...], str]:
    """Returns the names of a trained network's classes, if it came with any, and their place.

    Raises:
      UsageError: as `config_of`, or the file of the names is damaged.
    """
    origin = named.located(origin)
    if _is_file(origin):
        return files.read(origin).class_names, str(origin)
    return class_names(config_of(origin), origin)


def load(origin: str | Path, *, step: int = 0, placement: str = "vmap") -> Network:
    """Loads a trained network.

    Args:
      origin: the workdir of a run; a .safetensors or .onnx file, also torchvision's and Caffe's
        AlexNet; or the name of a network that comes with the package, such as `imagenette`.
      step: the step of the checkpoint; 0 for the latest one that is intact.
      placement: see `Network`.

    Raises:
      UsageError: there is no such checkpoint, or the file cannot be read.
    """
    prepare_process()
    origin = named.located(origin)
    if _is_file(origin):
        if step:
            raise UsageError(f"step {step}: {origin} is a file, which holds no steps")
        return of_column(files.read(origin), placement)
    from alexnet_jax.training.checkpoint import Checkpoints  # Orbax takes time to import.

    config = config_of(origin)
    tower, crop = build_tower(config.model), config.data.crop_size
    like = {"params": parameter_shapes(tower, crop)}
    if running := initial_statistics(tower, crop):
        like["batch_stats"] = running
    with Checkpoints(origin) as checkpoints:
        restored = checkpoints.restore_variables(step or None, like)
    if restored is None:
        raise UsageError(f"{origin}: holds no checkpoint: run train first")
    step, variables = restored
    inputs, names = input_rules.of_run(config, origin), _class_names(config, origin)
    return Network(config, tower, variables, inputs, names, step, placement)


def _is_file(origin: Path) -> bool:
    """Returns whether it is named like a file of weights and is not a folder."""
    return origin.suffix in files.SUFFIXES and not origin.is_dir()


def _class_names(config: ConfigDict, workdir: Path) -> tuple[str, ...]:
    names, _ = class_names(config, workdir)
    # The first runs of version 0.1 did not write them: they are those of the data set.
    return names or open_sources(config)["test"].class_names


def of_column(found: Column, placement: str = "vmap") -> Network:
    """Returns the network of a file, with its weights split into towers and stacked."""
    config = found.config
    inputs = input_rules.with_mean(config.data, found.mean)
    tower = build_tower(config.model)
    return Network(config, tower, found.towers, inputs, found.class_names, placement=placement)


def initial(config: ConfigDict, drawn: dict, class_names: tuple[str, ...]) -> dict:
    """Returns the variables that a run starts from: those of `config.init_from`.

    The last layer keeps its random parameters unless the classes are the same, in name (or WordNet
    number) and order.

    Args:
      config: the configuration of the new run.
      drawn: the variables of a run without `init_from`, stacked by tower.
      class_names: its classes.

    Raises:
      UsageError: a layer is missing or has another shape, or a new layer is to be frozen.
    """
    found = load(config.init_from)
    last = config.model.layer_order[-1]
    new = {last} if classes.keys(found.class_names) != classes.keys(class_names) else set()
    for name in config.freeze:
        if name in new:
            raise UsageError(
                f"config.freeze holds {name}, which is new: config.init_from has other classes"
            )
    start: dict = {}
    for collection, layers in drawn.items():
        there = found.variables.get(collection, {})
        start[collection] = {
            name: parts if name in new else _same(config, name, parts, there.get(name, {}))
            for name, parts in layers.items()
        }
    return start


def _same(config: ConfigDict, layer: str, wanted: dict, found: dict) -> dict:
    """Returns the arrays found for a layer.

    Raises:
      UsageError: they are not those that are wanted.
    """
    for part in {**wanted, **found}:
        here, there = (
            np.shape(parts[part]) if part in parts else "missing" for parts in (wanted, found)
        )
        if here != there:
            raise UsageError(
                f"config.init_from = {config.init_from!r}: {layer}.{part} is {there} there, and "
                f"{here} here (towers first); experiments/finetune.py takes the network from the "
                "same file"
            )
    return found
