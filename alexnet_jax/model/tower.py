"""One tower of the network, as a Flax module that walks the table of layers.

The module runs under a mapped axis `tower` that holds all towers: `vmap`, `pmap` or `shard_map`,
chosen by `parallel`. Towers exchange values only where the table says so.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from alexnet_jax.config.table import Layer, conv_size, read_layers
from alexnet_jax.model import activation, collectives, conv, dense, dropout, norm, pool


@dataclasses.dataclass(frozen=True)
class Norm:
    """Constants of a response normalization; `alpha` multiplies the plain sum of squares."""

    size: int
    k: float
    alpha: float
    beta: float
    across_towers: bool = False


class Tower(nn.Module):
    """One of `towers` equal parts of the network.

    Parameters: `{layer: {"kernel", "bias"}}`, float32 unless initialised otherwise; kernels are
    `[h, w, C, K]`, `[H, W, C * h * w, K]` (local) or `[inputs, outputs]` (dense), where a dense
    layer with `partial_sums` has the rows of this tower's inputs and every output.

    Attributes:
      layers: the table of layers.
      towers: number of towers.
      activation: the activation function.
      pool_window: side of a pooling window in pixels.
      pool_stride: pixels between pooling windows.
      lrn: constants of local response normalization; None where it is disabled.
      within_map_norm: constants of normalization within a map.
      dropout_rate: share of units that dropout sets to zero.
      dropout_rescaled: whether dropout divides the kept units by `1 - dropout_rate` in training;
        otherwise all units are multiplied by it at test time.
      compute_dtype: type of activations and products.
      precision: of float32 products; see `config.model.precision`.
    """

    layers: tuple[Layer, ...]
    towers: int
    activation: Callable[[jax.Array], jax.Array]
    pool_window: int
    pool_stride: int
    lrn: Norm | None
    within_map_norm: Norm
    dropout_rate: float
    dropout_rescaled: bool
    compute_dtype: jnp.dtype
    precision: str

    @nn.compact
    def __call__(
        self,
        images_BxHxWx3: jax.Array,
        dropout_key: jax.Array | None = None,
        index_B: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of the whole network, the same in every tower.

        Args:
          images_BxHxWx3: float images, mean subtracted.
          dropout_key: a key for this step; None at test time.
          index_B: each example's index in its data set, which selects its dropout mask.

        Returns:
          `[B, classes]`, float32 or wider.
        """
        x = images_BxHxWx3.astype(self.compute_dtype)
        for layer in self.layers:
            # The scopes name each exchange in the compiled program; see `parallel.exchange`.
            with jax.named_scope(layer.name):
                x = self._layer(layer, x)
                for op in layer.then:
                    with jax.named_scope(op):
                        x = self._operation(op, layer, x, dropout_key, index_B)
            self.sow("intermediates", f"{layer.name}_out", x)
        return x

    def _layer(self, layer: Layer, x: jax.Array) -> jax.Array:
        if layer.exchange == "inputs" and layer is not self.layers[0]:
            x = collectives.gather_channels(x)
        if layer.kind == "dense":
            x = x.reshape(x.shape[0], -1)
        kernel_shape, bias_shape = self._parameter_shapes(layer, x.shape)
        kernel, bias = _Parameters(kernel_shape, bias_shape, name=layer.name)()
        kernel = kernel.astype(x.dtype)
        y: jax.Array
        if layer.kind == "conv":
            y = conv.conv(x, kernel, layer.stride, layer.padding, self.precision)
        elif layer.kind == "local":
            y = conv.locally_connected(x, kernel, layer.kernel, layer.padding, self.precision)
        elif layer.last:
            parts = dense.partial_products(x, kernel, self.precision)
            y = collectives.sum_over_towers(parts)
            # Every tower has the whole bias. Its gradient is that of 1/towers of the loss, which
            # the second term, zero in value, makes whole without an exchange.
            bias = bias.astype(y.dtype)
            return y + bias + (self.towers - 1) * (bias - lax.stop_gradient(bias))
        elif layer.exchange == "partial_sums":
            parts = dense.partial_products(x, kernel, self.precision)
            y = collectives.scatter_sum(parts, x.dtype)
        else:
            y = dense.dense(x, kernel, self.precision)
        return y + bias.astype(y.dtype)

    def _parameter_shapes(self, layer: Layer, x_shape: tuple[int, ...]):
        channels, features, size = x_shape[-1], layer.features, layer.kernel
        if layer.kind == "conv":
            return (size, size, channels, features), (features,)
        if layer.kind == "local":
            side = conv_size(x_shape[1], layer)
            return (side, side, channels * size * size, features), (side, side, features)
        if layer.exchange == "partial_sums" and not layer.last:
            return (channels, features * self.towers), (features,)
        return (channels, features), (features,)

    def _operation(self, op, layer, x, dropout_key, index_B):
        if op == "activation":
            return self.activation(x)
        if op == "max_pool":
            return pool.max_pool(x, self.pool_window, self.pool_stride)
        if op == "avg_pool":
            return pool.avg_pool(x, self.pool_window, self.pool_stride)
        if op == "dropout":
            return self._dropout(layer, x, dropout_key, index_B)
        if op == "lrn":
            lrn = self.lrn
            return x if lrn is None else norm.local_response_norm(x, **dataclasses.asdict(lrn))
        of = self.within_map_norm
        return norm.within_map_norm(x, size=of.size, k=of.k, alpha=of.alpha, beta=of.beta)

    def _dropout(self, layer, x, dropout_key, index_B):
        keep = 1 - self.dropout_rate
        if keep == 1:
            return x
        if dropout_key is None:
            return x if self.dropout_rescaled else x * keep
        # One stream per layer, numbered by its place in the table.
        key = jax.random.fold_in(dropout_key, self.layers.index(layer))
        tower = lax.axis_index(collectives.TOWER)
        mask = dropout.dropout_mask(key, index_B, tower, x.shape[1:], self.dropout_rate)
        return jnp.where(mask, x / keep if self.dropout_rescaled else x, 0)


class _Parameters(nn.Module):
    """Names and shapes of one layer's kernel and bias; `draw_parameters` draws their values."""

    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        zeros = nn.initializers.zeros_init()
        return (
            self.param("kernel", zeros, self.kernel_shape),
            self.param("bias", zeros, self.bias_shape),
        )


def build_tower(model: ConfigDict) -> Tower:
    """The tower that `config.model` describes.

    Raises:
      UsageError: a field has an impossible value; names it.
    """
    lrn = model.lrn
    return Tower(
        layers=read_layers(model),
        towers=model.towers,
        activation=activation.ACTIVATIONS[model.activation],
        pool_window=model.pool.window,
        pool_stride=model.pool.stride,
        lrn=_norm(lrn, lrn.size, lrn.across_towers) if lrn.enabled else None,
        within_map_norm=_norm(model.within_map_norm, model.within_map_norm.size**2),
        dropout_rate=model.dropout.rate,
        dropout_rescaled=model.dropout.rescaled_in_training,
        compute_dtype=jnp.dtype(model.compute_dtype),
        precision=model.precision,
    )


def _norm(config: ConfigDict, window: int, across_towers: bool = False) -> Norm:
    alpha = config.alpha / window if config.alpha_divided_by_size else config.alpha
    return Norm(config.size, config.k, alpha, config.beta, across_towers)


def parameter_shapes(tower: Tower, crop_size: int) -> dict:
    """Shapes and types of the parameters of all towers, without drawing them.

    Args:
      tower: the network.
      crop_size: side of the square input in pixels.

    Returns:
      `{layer: {"kernel", "bias"}}` of `jax.ShapeDtypeStruct` with a leading axis of towers.
    """

    def init(key: jax.Array) -> Any:
        return tower.init(key, jnp.zeros((1, crop_size, crop_size, 3)))["params"]

    keys = jax.ShapeDtypeStruct((tower.towers,), jax.random.key(0).dtype)
    return jax.eval_shape(jax.vmap(init, axis_name=collectives.TOWER), keys)


def draw_parameters(tower: Tower, seed: int, crop_size: int) -> dict:
    """Initial parameters of all towers: Gaussian weights and constant biases (section 5).

    Each layer and tower has its own stream of random numbers, so the parameters are the same under
    any placement. They are drawn on the host, since compiling a generator for every layer takes
    longer than the first steps of training.

    Args:
      tower: the network.
      seed: of all streams.
      crop_size: side of the square input in pixels.

    Returns:
      `{layer: {"kernel", "bias"}}`, float32 NumPy, each leaf with a leading axis of towers.
    """
    shapes, params = parameter_shapes(tower, crop_size), {}
    for i, layer in enumerate(tower.layers):
        kernel = np.empty(shapes[layer.name]["kernel"].shape, np.float32)
        for t in range(tower.towers):
            stream = np.random.SeedSequence(seed, spawn_key=(i, t))
            generator = np.random.Generator(np.random.Philox(stream))
            generator.standard_normal(out=kernel[t], dtype=np.float32)
        kernel *= layer.init_std
        bias = np.full(shapes[layer.name]["bias"].shape, layer.bias, np.float32)
        params[layer.name] = {"kernel": kernel, "bias": bias}
    return params
