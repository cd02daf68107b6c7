"""Conversion between towers and the ordinary single-column network with grouped convolutions."""

import numpy as np

from alexnet_jax.config.table import Layer

Parameters = dict[str, dict[str, np.ndarray]]
"""`{layer: {"kernel", "bias", ...}}`: what else there is has one value per channel."""


def merge_towers(params: Parameters, layers: tuple[Layer, ...]) -> Parameters:
    """The parameters of one column, from those stacked by tower; or the running statistics.

    Args:
      params: `{layer: {"kernel", "bias", ...}}`, each leaf with a leading axis of towers.
      layers: the table of layers that the parameters belong to.

    Returns:
      The same tree without that axis. Convolution kernels are `[h, w, C / groups, K]` with
      `groups = towers` where the layer has no exchange (the layout of `feature_group_count`);
      dense kernels are `[inputs, outputs]`, with rows in the order height, width, channel of the
      whole network. A dense layer without exchange becomes block diagonal.
    """
    merged = {}
    for i, layer in enumerate(layers):
        if layer.name not in params:
            continue
        parts = merged[layer.name] = {}
        for part, array in params[layer.name].items():
            array = np.asarray(array)
            if part == "kernel" and layer.kind == "dense" and layer.exchange != "inputs":
                parts[part] = _merge_rows(layer, array, channels=layers[i - 1].features)
            elif part == "bias" and layer.last:
                parts[part] = array[0]
            else:
                parts[part] = np.concatenate(list(array), axis=-1)
    return merged


def split_towers(merged: Parameters, layers: tuple[Layer, ...], towers: int) -> Parameters:
    """The inverse of `merge_towers`.

    Of a dense layer without exchange only the blocks on the diagonal are read.

    Args:
      merged: `{layer: {"kernel", "bias", ...}}`, as `merge_towers` returns it.
      layers: the table of layers.
      towers: number of towers.

    Returns:
      The same tree, each leaf with a leading axis of towers.
    """
    split = {}
    for i, layer in enumerate(layers):
        if layer.name not in merged:
            continue
        parts = split[layer.name] = {}
        for part, array in merged[layer.name].items():
            array = np.asarray(array)
            if part == "kernel" and layer.kind == "dense" and layer.exchange != "inputs":
                parts[part] = _split_rows(layer, array, towers, channels=layers[i - 1].features)
            elif part == "bias" and layer.last:
                parts[part] = np.stack([array] * towers)
            else:
                parts[part] = np.stack(np.split(array, towers, axis=-1))
    return split


# A tower that multiplies its own inputs holds the rows of its own channels at every pixel; in one
# column the channels of all towers lie side by side within each pixel.


def _merge_rows(layer: Layer, kernel: np.ndarray, channels: int) -> np.ndarray:
    towers, inputs, outputs = kernel.shape
    pixels = inputs // channels
    rows = kernel.reshape(towers, pixels, channels, outputs)
    if layer.exchange == "partial_sums":
        return rows.transpose(1, 0, 2, 3).reshape(-1, outputs)
    block = np.zeros((pixels, towers, channels, towers, outputs), kernel.dtype)
    for t in range(towers):
        block[:, t, :, t] = rows[t]
    return block.reshape(towers * inputs, towers * outputs)


def _split_rows(layer: Layer, kernel: np.ndarray, towers: int, channels: int) -> np.ndarray:
    outputs = kernel.shape[1]
    rows = kernel.reshape(-1, towers, channels, outputs).transpose(1, 0, 2, 3)
    rows = rows.reshape(towers, -1, outputs)
    if layer.exchange == "partial_sums":
        return rows
    return np.stack([np.split(rows[t], towers, axis=-1)[t] for t in range(towers)])
