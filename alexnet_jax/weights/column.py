"""The network as other libraries know it: a single column, with its weights.

A *column* is the two towers side by side: grouped convolutions where the towers do not exchange
values. Arrays are named `LAYER.weight` and `LAYER.bias`; a convolution is `[out, in / groups,
height, width]`, a dense layer `[out, in]` with its inputs in the order channel, height, width, as
in Caffe and PyTorch. The order of colours is R, G, B, even if it was another in a file of others.
"""

import dataclasses
import math

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config import table
from alexnet_jax.errors import UsageError
from alexnet_jax.model.columns import merge_towers, split_towers


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


def from_towers(
    config: ConfigDict, params: dict, mean: np.ndarray, class_names: tuple[str, ...]
) -> Column:
    """Stacked tower parameters as a column.

    Args:
      config: of the run.
      params: `{layer: {"kernel", "bias"}}`, each leaf with a leading axis of towers.
      mean: `[3]`, or `[crop, crop, 3]`, in grey levels.
      class_names: one per class.

    Raises:
      UsageError: a layer has no counterpart in other libraries: a locally connected one.
    """
    rows = table.count(config.model, config.data.crop_size)
    merged = merge_towers(params, tuple(row.layer for row in rows))
    arrays, shape = {}, (config.data.crop_size, config.data.crop_size, 3)
    for row in rows:
        name, kernel = row.layer.name, np.asarray(merged[row.layer.name]["kernel"], np.float32)
        if row.layer.kind == "local":
            raise UsageError(f"config.model.layers.{name}: a local layer cannot be exported")
        if row.layer.kind == "conv":
            kernel = kernel.transpose(3, 2, 0, 1)
        else:
            if len(shape) == 3:  # rows are in the order height, width, channel
                kernel = kernel.reshape(*shape, -1).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(math.prod(shape), -1).T
        arrays[f"{name}.weight"] = np.ascontiguousarray(kernel)
        arrays[f"{name}.bias"] = np.ascontiguousarray(merged[name]["bias"], np.float32)
        shape = row.next_shape
    return Column(config, arrays, np.asarray(mean, np.float32), tuple(class_names))


def to_towers(column: Column) -> dict:
    """The inverse of `from_towers`: parameters stacked by tower.

    Raises:
      UsageError: an array is missing or has another shape; names both shapes.
    """
    config = column.config
    rows = table.count(config.model, config.data.crop_size)
    merged, shape = {}, (config.data.crop_size, config.data.crop_size, 3)
    for row in rows:
        name, layer = row.layer.name, row.layer
        outputs = row.out_shape[-1]
        if layer.kind == "conv":
            wanted = (outputs, row.in_channels, layer.kernel, layer.kernel)
        else:
            wanted = (outputs, math.prod(shape))
        weight, bias = column.array(f"{name}.weight"), column.array(f"{name}.bias")
        for part, array, size in (("weight", weight, wanted), ("bias", bias, (outputs,))):
            if array.shape != size:
                raise UsageError(f"{name}.{part} is {array.shape}, and the network's is {size}")
        if layer.kind == "conv":
            kernel = weight.transpose(2, 3, 1, 0)
        else:
            kernel = weight.T
            if len(shape) == 3:
                height, width, channels = shape
                kernel = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
                kernel = kernel.reshape(math.prod(shape), -1)
        merged[name] = {"kernel": np.ascontiguousarray(kernel, np.float32), "bias": bias}
        shape = row.next_shape
    return split_towers(merged, tuple(row.layer for row in rows), config.model.towers)


def checked(column: Column) -> Column:
    """The same column, with every array there and of its shape.

    Raises:
      UsageError: as `to_towers`.
    """
    to_towers(column)
    return column
