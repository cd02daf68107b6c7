"""Conversion between towers and the ordinary single-column network with grouped convolutions."""

import numpy as np

from alexnet_jax.config.table import Layer

Parameters = dict[str, dict[str, np.ndarray]]
"""`{layer: {"kernel", "bias"}}`."""


def merge_towers(params: Parameters, layers: tuple[Layer, ...]) -> Parameters:
    """The parameters of one column, from those stacked by tower.

    Args:
      params: `{layer: {"kernel", "bias"}}`, each leaf with a leading axis of towers.
      layers: the table of layers that the parameters belong to.

    Returns:
      The same tree without that axis. Convolution kernels are `[h, w, C / groups, K]` with
      `groups = towers` where the layer has no exchange (the layout of `feature_group_count`);
      dense kernels are `[inputs, outputs]`, with rows in the order height, width, channel of the
      whole network. A dense layer without exchange becomes block diagonal.
    """
    merged = {}
    for i, layer in enumerate(layers):
        kernel = np.asarray(params[layer.name]["kernel"])
        bias = np.asarray(params[layer.name]["bias"])
        if layer.kind == "dense" and layer.exchange != "inputs":
            kernel = _merge_rows(layer, kernel, channels=layers[i - 1].features)
        else:
            kernel = np.concatenate(list(kernel), axis=-1)
        bias = bias[0] if layer.last else np.concatenate(list(bias), axis=-1)
        merged[layer.name] = {"kernel": kernel, "bias": bias}
    return merged


def split_towers(merged: Parameters, layers: tuple[Layer, ...], towers: int) -> Parameters:
    """The inverse of `merge_towers`.

    Of a dense layer without exchange only the blocks on the diagonal are read.

    Args:
      merged: `{layer: {"kernel", "bias"}}`, as `merge_towers` returns it.
      layers: the table of layers.
      towers: number of towers.

    Returns:
      The same tree, each leaf with a leading axis of towers.
    """
    split = {}
    for i, layer in enumerate(layers):
        kernel = np.asarray(merged[layer.name]["kernel"])
        bias = np.asarray(merged[layer.name]["bias"])
        if layer.kind == "dense" and layer.exchange != "inputs":
            kernel = _split_rows(layer, kernel, towers, channels=layers[i - 1].features)
        else:
            kernel = np.stack(np.split(kernel, towers, axis=-1))
        bias = np.stack([bias] * towers if layer.last else np.split(bias, towers, axis=-1))
        split[layer.name] = {"kernel": kernel, "bias": bias}
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
