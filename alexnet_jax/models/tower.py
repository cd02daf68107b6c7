"""One tower of the network, as a Flax module that walks the table of layers.

It runs under a mapped axis `layers.TOWER` that holds its siblings: `vmap`, `pmap` or `shard_map`,
chosen by `parallel`. It meets them only where the table says so.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from alexnet_jax.models import layers as ops
from alexnet_jax.models import table


@dataclasses.dataclass(frozen=True)
class Norm:
    """Constants of a response normalization; alpha as it multiplies the plain sum of squares."""

    size: int
    k: float
    alpha: float
    beta: float
    across_towers: bool = False


class Tower(nn.Module):
    """One of `towers` equal parts of the network.

    Parameters: `{layer: {"kernel", "bias"}}`, float32 unless initialised otherwise; kernels are
    `[h, w, C, K]`, `[H, W, C * h * w, K]` (local) or `[inputs, outputs]` (dense), where a dense
    layer with `partial_sums` holds its own inputs' rows and every output.
    """

    layers: tuple[table.Layer, ...]
    towers: int
    activation: Callable[[jax.Array], jax.Array]
    pool_window: int
    pool_stride: int
    lrn: Norm | None
    within_map_norm: Norm
    dropout_rate: float
    dropout_rescaled: bool
    compute_dtype: jnp.dtype

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
          dropout_key: a key for this step; None when testing.
          index_B: each example's index in its data set, for its own dropout mask.

        Returns:
          `[B, classes]`, float32 or wider.
        """
        x = images_BxHxWx3.astype(self.compute_dtype)
        for layer in self.layers:
            # Scopes name what is exchanged where in the compiled program; see `exchange`.
            with jax.named_scope(layer.name):
                x = self._layer(layer, x)
                for op in layer.then:
                    with jax.named_scope(op):
                        x = self._then(op, layer, x, dropout_key, index_B)
            self.sow("intermediates", f"{layer.name}_out", x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _layer(self, layer: table.Layer, x: jax.Array) -> jax.Array:
        if layer.exchange == "inputs" and layer is not self.layers[0]:
            x = ops.gather_channels(x)
        if layer.kind == "dense":
            x = x.reshape(x.shape[0], -1)
        kernel_shape, bias_shape = self._shapes(layer, x.shape)
        kernel, bias = _Parameters(kernel_shape, bias_shape, name=layer.name)()
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        if layer.kind == "conv":
            return ops.conv(x, kernel, layer.stride, layer.padding) + bias
        if layer.kind == "local":
            return ops.locally_connected(x, kernel, layer.kernel, layer.padding) + bias
        y = x @ kernel
        if layer.last:
            # Every tower holds the whole bias. It sees 1/towers of the loss, so its gradient is
            # 1/towers too: the second term, zero in value, makes up for it without an exchange.
            y = ops.sum_over_towers(y)
            return y + bias + (self.towers - 1) * (bias - lax.stop_gradient(bias))
        if layer.exchange == "partial_sums":
            y = lax.psum_scatter(y, ops.TOWER, scatter_dimension=1, tiled=True)
        return y + bias

    def _shapes(self, layer: table.Layer, x_shape: tuple[int, ...]):
        channels, features, size = x_shape[-1], layer.features, layer.kernel
        if layer.kind == "conv":
            return (size, size, channels, features), (features,)
        if layer.kind == "local":
            side = table.conv_size(x_shape[1], layer)
            return (side, side, channels * size * size, features), (side, side, features)
        if layer.exchange == "partial_sums" and not layer.last:
            return (channels, features * self.towers), (features,)
        return (channels, features), (features,)

    def _then(self, op, layer, x, dropout_key, index_B):
        if op == "activation":
            return self.activation(x)
        if op == "max_pool":
            return ops.max_pool(x, self.pool_window, self.pool_stride)
        if op == "avg_pool":
            return ops.avg_pool(x, self.pool_window, self.pool_stride)
        if op == "dropout":
            return self._dropout(layer, x, dropout_key, index_B)
        # Squares and their sums in at least float32, whatever the network computes in.
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if op == "lrn":
            norm = self.lrn
            y = wide if norm is None else ops.local_response_norm(wide, **dataclasses.asdict(norm))
        else:
            norm = self.within_map_norm
            y = ops.within_map_norm(
                wide, size=norm.size, k=norm.k, alpha=norm.alpha, beta=norm.beta
            )
        return y.astype(x.dtype)

    def _dropout(self, layer, x, dropout_key, index_B):
        keep = 1 - self.dropout_rate
        if keep == 1:
            return x
        if dropout_key is None:
            return x if self.dropout_rescaled else x * keep
        # One stream a layer, named by its place in the table.
        key = jax.random.fold_in(dropout_key, self.layers.index(layer))
        tower = lax.axis_index(ops.TOWER)
        mask = ops.dropout_mask(key, index_B, tower, x.shape[1:], self.dropout_rate)
        return jnp.where(mask, x / keep if self.dropout_rescaled else x, 0)


class _Parameters(nn.Module):
    """Names and shapes of one layer's kernel and bias; `init` draws their values."""

    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        zeros = nn.initializers.zeros_init()
        return (
            self.param("kernel", zeros, self.kernel_shape),
            self.param("bias", zeros, self.bias_shape),
        )


def build(model: ConfigDict) -> Tower:
    """The tower that `config.model` describes.

    Raises:
      UsageError: naming a field that holds an impossible value.
    """
    return Tower(
        layers=table.read_layers(model),
        towers=model.towers,
        activation=ops.ACTIVATIONS[model.activation],
        pool_window=model.pool.window,
        pool_stride=model.pool.stride,
        lrn=_norm(model.lrn, model.lrn.size, model.lrn.across_towers)
        if model.lrn.enabled
        else None,
        within_map_norm=_norm(model.within_map_norm, model.within_map_norm.size**2),
        dropout_rate=model.dropout.rate,
        dropout_rescaled=model.dropout.rescaled_in_training,
        compute_dtype=jnp.dtype(model.compute_dtype),
    )


def _norm(config: ConfigDict, window: int, across_towers: bool = False) -> Norm:
    alpha = config.alpha / window if config.alpha_divided_by_size else config.alpha
    return Norm(config.size, config.k, alpha, config.beta, across_towers)


def shapes(tower: Tower, crop_size: int) -> dict:
    """The parameters of all towers as `jax.ShapeDtypeStruct`, without drawing them."""

    def init(key: jax.Array) -> dict:
        return tower.init(key, jnp.zeros((1, crop_size, crop_size, 3)))["params"]

    keys = jax.ShapeDtypeStruct((tower.towers,), jax.random.key(0).dtype)
    return jax.eval_shape(jax.vmap(init, axis_name=ops.TOWER), keys)


def init(tower: Tower, seed: int, crop_size: int) -> dict:
    """Parameters of all towers, float32 NumPy, every leaf with a leading axis of `towers`.

    Gaussian weights and constant biases (section 5), from one stream a layer and tower: the same
    under any placement. Drawn on the host, since compiling a generator for every layer takes
    longer than the first steps of training.
    """
    tree, params = shapes(tower, crop_size), {}
    for i, layer in enumerate(tower.layers):
        kernel = np.empty(tree[layer.name]["kernel"].shape, np.float32)
        for t in range(tower.towers):
            stream = np.random.SeedSequence(seed, spawn_key=(i, t))
            generator = np.random.Generator(np.random.Philox(stream))
            generator.standard_normal(out=kernel[t], dtype=np.float32)
        kernel *= layer.init_std
        bias = np.full(tree[layer.name]["bias"].shape, layer.bias, np.float32)
        params[layer.name] = {"kernel": kernel, "bias": bias}
    return params
