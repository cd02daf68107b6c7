"""The network as other libraries know it: a single column, with its weights.

A *column* is the two towers side by side: grouped convolutions where the towers do not exchange
values. Arrays are named `LAYER.weight` and `LAYER.bias`; a convolution is `[out, in / groups,
height, width]`, a dense layer `[out, in]` with its inputs in the order channel, height, width, as
in Caffe and PyTorch. The trained and the running values of an operation are `LAYER.OPERATION.NAME`,
one per channel. The order of colours is R, G, B, even if it was another in a file of others.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config import table, validate
from alexnet_jax.config.table import Layer
from alexnet_jax.errors import UsageError
from alexnet_jax.model.columns import merge_towers, split_towers

_BLOCK = 16  # floats: a line of the cache


@dataclasses.dataclass(frozen=True)
class Column:
    """A network with its weights.

    Attributes:
      config: of the run; `config.model` and `config.data` say what the weights are for.
      arrays: float32, by name.
      mean: `[3]`, or `[crop, crop, 3]`, in grey levels, R, G, B.
      class_names: one per class, or empty if the origin has none.
    """

    config: ConfigDict
    arrays: dict[str, np.ndarray]
    mean: np.ndarray
    class_names: tuple[str, ...]

    def array(self, name: str) -> np.ndarray:
        """One array.

        Raises:
          UsageError: it is missing.
        """
        if name not in self.arrays:
            raise UsageError(f"{name} is missing")
        return self.arrays[name]

    @functools.cached_property
    def towers(self) -> dict:
        """What a `Tower` takes, stacked by tower: the inverse of `from_towers`.

        Raises:
          UsageError: an array is missing or has another shape; names both shapes.
        """
        return _to_towers(self)

    def of_layer(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one layer, by the rest of their names."""
        start = f"{name}."
        return {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}


def from_towers(
    config: ConfigDict, variables: dict, mean: np.ndarray, class_names: tuple[str, ...]
) -> Column:
    """Stacked towers as a column.

    Args:
      config: of the run.
      variables: `params` and, if an operation has any, `batch_stats`, as a `Tower` has them; each
        leaf with a leading axis of towers.
      mean: `[3]`, or `[crop, crop, 3]`, in grey levels.
      class_names: one per class.

    Raises:
      UsageError: a layer has no counterpart in other libraries: a locally connected one.
    """
    rows = table.count(config.model, config.data.crop_size)
    layers = tuple(row.layer for row in rows)
    merged = merge_towers(variables["params"], layers)
    running = merge_towers(variables.get("batch_stats", {}), layers)
    arrays, shape = {}, (config.data.crop_size, config.data.crop_size, 3)
    for row in rows:
        name, parts = row.layer.name, merged[row.layer.name] | running.get(row.layer.name, {})
        if row.layer.kind == "local":
            raise UsageError(f"config.model.layers.{name}: a local layer cannot be exported")
        kernel = parts.pop("kernel")
        if row.layer.kind == "conv":
            kernel = kernel.transpose(3, 2, 0, 1)
        else:
            if len(shape) == 3:  # rows are in the order height, width, channel
                kernel = kernel.reshape(*shape, -1).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(math.prod(shape), -1).T
        for part, array in {"weight": kernel, **parts}.items():
            arrays[f"{name}.{part}"] = np.ascontiguousarray(array, np.float32)
        shape = row.next_shape
    return Column(config, arrays, np.asarray(mean, np.float32), tuple(class_names))


def _to_towers(column: Column) -> dict:
    config = column.config
    rows = table.count(config.model, config.data.crop_size)
    params, running = {}, {}
    shape = (config.data.crop_size, config.data.crop_size, 3)
    for row in rows:
        name, layer = row.layer.name, row.layer
        outputs = row.out_shape[-1]

        def array(part: str, *wanted: int, name: str = name) -> np.ndarray:
            found = column.array(f"{name}.{part}")
            if found.shape != wanted:
                raise UsageError(f"{name}.{part} is {found.shape}, and the network's is {wanted}")
            return np.ascontiguousarray(found, np.float32)

        if layer.kind == "conv":
            weight = array("weight", outputs, row.in_channels, layer.kernel, layer.kernel)
            kernel = weight.transpose(2, 3, 1, 0)
        else:
            kernel = _transposed(array("weight", outputs, math.prod(shape)))
            if len(shape) == 3:
                height, width, channels = shape
                kernel = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
                kernel = kernel.reshape(math.prod(shape), -1)
        params[name] = {"kernel": np.ascontiguousarray(kernel), "bias": array("bias", outputs)}
        for op_name, op in zip(layer.then, layer.operations, strict=True):
            for part in op.parameters():
                params[name][f"{op_name}.{part}"] = array(f"{op_name}.{part}", outputs)
            for part in op.statistics():
                of_layer = running.setdefault(name, {})
                of_layer[f"{op_name}.{part}"] = array(f"{op_name}.{part}", outputs)
        shape = row.next_shape
    layers = tuple(row.layer for row in rows)
    variables = {"params": split_towers(params, layers, config.model.towers)}
    if running:
        variables["batch_stats"] = split_towers(running, layers, config.model.towers)
    return variables


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """The transposed matrix, written by blocks that stay in the cache: six times as fast."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for first in range(0, len(matrix), _BLOCK):
        result[:, first : first + _BLOCK] = matrix[first : first + _BLOCK].T
    return result


def checked(column: Column) -> Column:
    """The same column in float32, with every array there, of its shape and of finite numbers.

    Raises:
      UsageError: as `Column.towers`; there is an array that the network does not have, one is not
        of floating-point numbers or not finite, or a constant of the network is out of its range.
    """
    config, crop = column.config, column.config.data.crop_size
    validate(config)
    mean = _finite("the mean", column.mean)
    if mean.shape not in ((3,), (crop, crop, 3)):
        raise UsageError(f"the mean is {mean.shape}, and the network's (3,) or {(crop, crop, 3)}")
    arrays = {name: _finite(name, array) for name, array in column.arrays.items()}
    result = dataclasses.replace(column, arrays=arrays, mean=mean)
    _ = result.towers
    known = {f"{layer.name}.{part}" for layer in _layers(config) for part in _parts(layer)}
    if more := ", ".join(sorted(arrays.keys() - known)[:3]):
        raise UsageError(f"the network has no {more}")
    names = column.class_names
    if names and len(names) != config.model.num_classes:
        raise UsageError(f"{len(names)} class names for {config.model.num_classes} classes")
    return result


def _layers(config: ConfigDict) -> list[Layer]:
    return [row.layer for row in table.count(config.model, config.data.crop_size)]


def _parts(layer: Layer) -> Iterator[str]:
    """Yields the names of a layer's arrays."""
    yield from ("weight", "bias")
    for name, op in zip(layer.then, layer.operations, strict=True):
        yield from (f"{name}.{part}" for part in (*op.parameters(), *op.statistics()))


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UsageError(f"{name} is of {array.dtype}: floating-point numbers are read")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UsageError(f"{name} has numbers that are not finite (NaN or infinity)")
    return array
