"""One tower of the network, as a Flax module that walks the table of layers.

The module runs under a mapped axis `tower` that holds all towers: `vmap`, `pmap` or `shard_map`,
chosen by `parallel`. Towers exchange values only where the table says so.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from alexnet_jax.config.table import Layer, conv_size, read_layers
from alexnet_jax.model import collectives, conv, dense, derivatives
from alexnet_jax.model.memory import in_parts, stored
from alexnet_jax.model.operation import Operation, Site

STAGES = "stages"


def _identity(tree: Any) -> Any:
    return tree


class Tower(nn.Module):
    """One of `towers` equal parts of the network.

    Parameters: `{layer: {"kernel", "bias"}}`, float32 unless initialised otherwise; kernels are
    `[h, w, C, K]`, `[H, W, C * h * w, K]` (local) or `[inputs, outputs]` (dense), where a dense
    layer with `partial_sums` has the rows of this tower's inputs and every output. The values of an
    operation that follows a layer lie beside them, `[C]` each, as `OPERATION.NAME`; its running
    statistics, by the same names, in the collection `batch_stats`.

    With `mutable=["intermediates"]`, `apply` also returns `{LAYER_out: (x,)}`, the output of each
    layer after its operations; with `mutable=["stages"]`, `{LAYER: {"values": (x, ...)}}`, the
    output of the layer itself, then that of each operation.

    Attributes:
      layers: the table of layers, with the operations that follow each.
      towers: number of towers.
      compute_dtype: type of activations and products.
      precision: of float32 products; see `config.model.precision`.
      winograd: how convolutions are computed; see `config.model.winograd`.
    """

    layers: tuple[Layer, ...]
    towers: int
    compute_dtype: jnp.dtype
    precision: str
    winograd: bool

    @property
    def has_statistics(self) -> bool:
        """Whether an operation has running statistics."""
        return any(op.statistics() for layer in self.layers for op in layer.operations)

    @nn.compact
    def __call__(
        self,
        images_BxHxWx3: jax.Array,
        dropout_key: jax.Array | None = None,
        index_B: jax.Array | None = None,
        *,
        prepare: Callable[[jax.Array], jax.Array] = _identity,
        sum_over_data: Callable[[Any], Any] = _identity,
        frozen: Collection[str] = (),
    ) -> jax.Array:
        """Logits of the whole network, the same in every tower.

        With a key it acts as in training. Running statistics then change: make the collection
        `batch_stats` mutable where `has_statistics`.

        Args:
          images_BxHxWx3: float images, mean subtracted, or what `prepare` makes those of.
          dropout_key: a key for this step; None at test time.
          index_B: each example's index in its data set, which selects its dropout mask.
          prepare: makes the network's input of images, each alone and in its shape; it is applied
            with the first layer.
          sum_over_data: the sum of a tree over the parts of the batch, where devices share it.
          frozen: layers that use and keep their running statistics in training, too.

        Returns:
          `[B, classes]`, float32 or wider.
        """

        def first(x: jax.Array) -> jax.Array:
            return prepare(x).astype(self.compute_dtype)

        x = images_BxHxWx3
        for number, layer in enumerate(self.layers):
            # One stream per layer, numbered by its place in the table.
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
            # The name is also that of a scope, which says where an exchange of the compiled program
            # belongs; see `parallel.exchange`.
            apply = _Layer(
                layer, number, self.towers, self.precision, self.winograd, name=layer.name
            )
            of_input = _identity if number else first
            x = apply(x, key, index_B, of_input, sum_over_data, layer.name in frozen)
            if self.is_mutable_collection("intermediates"):
                # Stored, or XLA would compute it for the next layer and once more for the reader.
                x = stored(x)
                self.sow("intermediates", f"{layer.name}_out", x)
        return x


class _Layer(nn.Module):
    """One layer and the operations that follow it; `draw_parameters` draws its parameters."""

    layer: Layer
    number: int
    towers: int
    precision: str
    winograd: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None,
        index_B: jax.Array | None,
        of_input: Callable[[jax.Array], jax.Array],
        sum_over_data: Callable[[Any], Any],
        frozen: bool,
    ) -> jax.Array:
        layer = self.layer
        if layer.exchange == "inputs" and self.number:
            x = collectives.gather_channels(x)
        shapes = self._shapes(x.shape)
        zeros = nn.initializers.zeros_init()
        kernel = self.param("kernel", zeros, shapes[0])
        bias = self.param("bias", zeros, shapes[1])
        statistics = [
            self._variables(name, op.statistics())
            for name, op in zip(layer.then, layer.operations, strict=True)
        ]
        sites = [
            Site(
                layer=layer.name,
                number=self.number,
                training=key is not None and not (frozen and variables),
                key=key,
                index_B=index_B,
                towers=self.towers,
                parameters={
                    part: self.param(f"{name}.{part}", self._constant(value))
                    for part, value in op.parameters().items()
                },
                statistics={part: variable.value for part, variable in variables.items()},
                sum_over_data=sum_over_data,
            )
            for name, op, variables in zip(layer.then, layer.operations, statistics, strict=True)
        ]

        def compute(x: jax.Array) -> jax.Array:
            x = self._stage(self._products(of_input(x), kernel, bias))
            for name, op, at in zip(layer.then, layer.operations, sites, strict=True):
                with jax.named_scope(name):
                    x = self._stage(op(x, at).astype(x.dtype))
            return x

        if layer.kind == "conv" and key is None and not self.is_mutable_collection(STAGES):
            y = in_parts(compute, x, shapes[0][-1] * conv_size(x.shape[1], layer) ** 2)
        else:
            y = compute(x)
        for at, variables in zip(sites, statistics, strict=True):
            if at.training:
                for part, variable in variables.items():
                    variable.value = at.statistics[part]
        return y

    def _stage(self, x: jax.Array) -> jax.Array:
        """Keeps a value if the collection `stages` is mutable; see `Tower`."""
        if not self.is_initializing():  # All collections are mutable then.
            self.sow(STAGES, "values", x)
        return x

    def _variables(self, name: str, values: dict[str, float]) -> dict[str, nn.Variable]:
        """The running statistics of an operation, by their own names."""
        return {
            part: self.variable("batch_stats", f"{name}.{part}", self._constant(value))
            for part, value in values.items()
        }

    def _constant(self, value: float) -> Callable[..., jax.Array]:
        """An initializer of one value per channel."""
        return lambda *key: jnp.full(self.layer.features, value, jnp.float32)

    def _products(self, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        """What the layer itself computes, without the operations that follow it."""
        layer, kernel = self.layer, kernel.astype(x.dtype)
        if layer.kind == "dense":
            x = x.reshape(x.shape[0], -1)
        y: jax.Array
        if layer.kind == "conv":
            y = conv.conv(x, kernel, layer.stride, layer.padding, self.precision, self.winograd)
        elif layer.kind == "local":
            y = conv.locally_connected(x, kernel, layer.kernel, layer.padding, self.precision)
        elif layer.last:
            parts = dense.partial_products(x, kernel, self.precision)
            y = collectives.sum_over_towers(parts)
            bias = bias.astype(y.dtype)
            if derivatives.are_plain():
                return y + bias
            # Every tower has the whole bias. Its gradient is that of 1/towers of the loss, which
            # the second term, zero in value, makes whole without an exchange.
            return y + bias + (self.towers - 1) * (bias - lax.stop_gradient(bias))
        elif layer.exchange == "partial_sums":
            parts = dense.partial_products(x, kernel, self.precision)
            y = collectives.scatter_sum(parts, x.dtype)
        else:
            y = dense.dense(x, kernel, self.precision)
        return y + bias.astype(y.dtype)

    def _shapes(self, x_shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the kernel and the bias."""
        layer = self.layer
        channels, features, size = x_shape[-1], layer.features, layer.kernel
        if layer.kind == "conv":
            return (size, size, channels, features), (features,)
        if layer.kind == "local":
            side = conv_size(x_shape[1], layer)
            return (side, side, channels * size * size, features), (side, side, features)
        inputs = math.prod(x_shape[1:])
        if layer.exchange == "partial_sums" and not layer.last:
            return (inputs, features * self.towers), (features,)
        return (inputs, features), (features,)


def build_tower(model: ConfigDict) -> Tower:
    """The tower that `config.model` describes.

    Raises:
      UsageError: a field has an impossible value; names it.
    """
    return Tower(
        layers=read_layers(model),
        towers=model.towers,
        compute_dtype=jnp.dtype(model.compute_dtype),
        precision=model.precision,
        winograd=model.winograd,
    )


def _shapes(tower: Tower, crop_size: int, collection: str) -> dict:
    def init(key: jax.Array) -> Any:
        return tower.init(key, jnp.zeros((1, crop_size, crop_size, 3))).get(collection, {})

    keys = jax.ShapeDtypeStruct((tower.towers,), jax.random.key(0).dtype)
    return jax.eval_shape(jax.vmap(init, axis_name=collectives.TOWER), keys)


def _constants(
    tower: Tower, shapes: dict, of: Callable[[Operation], dict[str, float]]
) -> dict[str, dict[str, np.ndarray]]:
    """The initial values of the operations, `{layer: {"OPERATION.NAME"}}`, where there are any."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for layer in tower.layers:
        for name, op in zip(layer.then, layer.operations, strict=True):
            for part, value in of(op).items():
                shape = shapes[layer.name][f"{name}.{part}"].shape
                full = np.full(shape, value, np.float32)
                found.setdefault(layer.name, {})[f"{name}.{part}"] = full
    return found


def parameter_shapes(tower: Tower, crop_size: int) -> dict:
    """Shapes of the parameters of all towers, which are float32, without drawing them.

    Args:
      tower: the network.
      crop_size: side of the square input in pixels.

    Returns:
      `{layer: {"kernel", "bias", ...}}` of `jax.ShapeDtypeStruct` with a leading axis of towers.
    """
    shapes = _shapes(tower, crop_size, "params")
    # Whatever JAX_ENABLE_X64 says.
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes)


def initial_statistics(tower: Tower, crop_size: int) -> dict:
    """The running statistics that a run starts with, of all towers.

    Args:
      tower: the network.
      crop_size: side of the square input in pixels.

    Returns:
      `{layer: {"OPERATION.NAME"}}`, float32 NumPy `[towers, C]`, of the layers that have any.
    """
    if not tower.has_statistics:
        return {}
    return _constants(tower, _shapes(tower, crop_size, "batch_stats"), lambda op: op.statistics())


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
      `{layer: {"kernel", "bias", ...}}`, float32 NumPy, each leaf with a leading axis of towers.
    """
    shapes = parameter_shapes(tower, crop_size)
    params = _constants(tower, shapes, lambda op: op.parameters())
    for i, layer in enumerate(tower.layers):
        kernel = np.empty(shapes[layer.name]["kernel"].shape, np.float32)
        for t in range(tower.towers):
            stream = np.random.SeedSequence(seed, spawn_key=(i, t))
            generator = np.random.Generator(np.random.Philox(stream))
            generator.standard_normal(out=kernel[t], dtype=np.float32)
        kernel *= layer.init_std
        bias = np.full(shapes[layer.name]["bias"].shape, layer.bias, np.float32)
        params[layer.name] = {"kernel": kernel, "bias": bias} | params.get(layer.name, {})
    return params
