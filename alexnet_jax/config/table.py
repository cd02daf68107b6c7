"""A network as a table of layers, and the arithmetic of that table: shapes, counts, exchange.

The configuration holds the table (`config.model.layers`); this module reads it once into frozen
`Layer` records, which the Flax module, `inspect`, the optimizer groups and the exporters share.
"""

import dataclasses
import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from alexnet_jax.config.fields import OPERATIONS
from alexnet_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of one tower.

    Attributes:
      name: its key in the parameters, such as `conv1`.
      kind: `conv`, `local` (unshared kernels) or `dense`.
      features: outputs of this tower alone; of the whole network in the last layer.
      kernel: window side in pixels (0 in a dense layer).
      stride: pixels between two applications.
      padding: zeros before and after, in both directions.
      exchange: `none` (own tower only), `inputs` (gathers the other towers' outputs) or
        `partial_sums` (multiplies its own inputs by all outputs' weights and sums over towers).
      init_std: deviation of the initial Gaussian weights.
      bias: initial bias.
      then: the operations that follow, in order, each one of `OPERATIONS`.
      last: whether this is the classifier.
    """

    name: str
    kind: str
    features: int
    kernel: int
    stride: int
    padding: tuple[int, int]
    exchange: str
    init_std: float
    bias: float
    then: tuple[str, ...]
    last: bool


@dataclasses.dataclass(frozen=True)
class LayerCount:
    """One layer's row in the arithmetic, over all towers (a bias shared by towers counts once).

    Attributes:
      layer: the record.
      in_channels: channels that one kernel sees.
      out_shape: `(H, W, C)` or `(C,)` after the layer itself, all towers together.
      next_shape: the same after the operations that follow it.
      parameters: weights and biases.
      macs: multiply-adds per image of the matrix product or convolution.
      exchanged: elements that each tower receives for the layer, per image, in the forward pass.
      halo: the same for a normalization across towers that follows it.
    """

    layer: Layer
    in_channels: int
    out_shape: tuple[int, ...]
    next_shape: tuple[int, ...]
    parameters: int
    macs: int
    exchanged: int
    halo: int


def layer_row(
    kind: str,
    features: int,
    kernel: int = 0,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    exchange: str = "none",
    init_std: float = 0.01,
    bias: float = 0.0,
    then: tuple[str, ...] = ("activation",),
    weight_decay: float | None = None,
) -> ConfigDict:
    """One entry of `config.model.layers`; see `Layer` for the fields.

    `features` counts all towers. `weight_decay` is for this layer's weights; None leaves it to
    `config.optimizer.weight_decay`.
    """
    return ConfigDict(
        dict(
            kind=kind,
            features=features,
            kernel=kernel,
            stride=stride,
            padding=padding,
            exchange=exchange,
            init_std=init_std,
            bias=bias,
            then=then,
            weight_decay=placeholder(float) if weight_decay is None else weight_decay,
        )
    )


def read_layers(model: ConfigDict) -> tuple[Layer, ...]:
    """The table of `config.model`, checked.

    Raises:
      UsageError: naming the field that holds an impossible value.
    """
    names = list(model.layer_order)
    if not names:
        raise UsageError("config.model.layer_order is empty: name at least one layer")
    for name in names:
        if name not in model.layers:
            raise UsageError(f"config.model.layer_order names {name!r}, not in config.model.layers")
    return tuple(_read_layer(model, name, last=name == names[-1]) for name in names)


def _read_layer(model: ConfigDict, name: str, last: bool) -> Layer:
    row = model.layers[name]
    path = f"config.model.layers.{name}"

    def check(ok: bool, field: str, advice: str) -> None:
        if not ok:
            raise UsageError(f"{path}.{field} = {row[field]!r}: {advice}")

    for op in row.then:
        check(op in OPERATIONS, "then", f"{op!r} is not one of {', '.join(OPERATIONS)}")
    check(not last or row.exchange == "partial_sums", "exchange",
          "the classifier sums over towers: use partial_sums")  # fmt: skip
    check(not last or not row.then, "then", "nothing follows the classifier: use ()")
    dense = row.kind == "dense"
    check(dense or row.kernel >= 1, "kernel", "a window needs at least 1 pixel")
    check(row.kind != "local" or row.stride == 1, "stride", "a local layer moves by 1")
    check(dense or row.exchange != "partial_sums", "exchange",
          "partial sums are for dense layers; use inputs")  # fmt: skip
    features = row.features
    if not last:
        features = max(1, round(features * model.width / model.towers))
        if model.width == 1 and row.features % model.towers:
            raise UsageError(
                f"{path}.features = {row.features} does not divide into "
                f"config.model.towers = {model.towers}"
            )
    return Layer(
        name=name,
        kind=row.kind,
        features=features,
        kernel=0 if dense else row.kernel,
        stride=row.stride,
        padding=tuple(row.padding),
        exchange=row.exchange,
        init_std=row.init_std,
        bias=row.bias,
        then=tuple(row.then),
        last=last,
    )


def conv_size(size: int, layer: Layer) -> int:
    """Outputs of a convolution along one side: floor((size + padding - kernel) / stride) + 1."""
    return (size + sum(layer.padding) - layer.kernel) // layer.stride + 1


def count(model: ConfigDict, crop_size: int) -> tuple[LayerCount, ...]:
    """Shapes, parameters, multiply-adds and exchange of every layer.

    Args:
      model: `config.model`.
      crop_size: side of the square RGB input, in pixels.

    Raises:
      UsageError: if a feature map shrinks to nothing; names the layer.
    """
    towers: int = model.towers
    rows: list[LayerCount] = []
    # The input image is whole in every tower, so conv1 sees all of it without an exchange.
    shape, replicated = (crop_size, crop_size, 3), True
    for layer in read_layers(model):
        whole = replicated or layer.exchange != "none"
        width = layer.features * (1 if layer.last else towers)
        if layer.kind == "dense":
            inputs = math.prod(shape)
            seen = inputs if whole else inputs // towers
            out, macs = (width,), seen * width
            parameters = seen * width + width
        else:
            if len(shape) != 3:
                raise UsageError(
                    f"config.model.layers.{layer.name}: no map left for a {layer.kind}"
                )
            side = conv_size(shape[0], layer)
            if side < 1:
                raise UsageError(
                    f"config.model.layers.{layer.name}: a {layer.kernel} x {layer.kernel} kernel "
                    f"does not fit a {shape[0]} x {shape[0]} map (config.data.crop_size or padding)"
                )
            seen = shape[2] if whole else shape[2] // towers
            out = (side, side, width)
            macs = side * side * layer.kernel**2 * seen * width
            shared = 1 if layer.kind == "conv" else side * side
            parameters = shared * (layer.kernel**2 * seen * width + width)
        own = math.prod(shape) // towers
        exchanged = 0
        if towers > 1 and not replicated:
            others = towers - 1
            exchanged = {
                "none": 0,
                "inputs": own * others,
                # Of the classifier everyone gets the whole sum: a ring sends it twice, less own.
                "partial_sums": 2 * width * others // towers
                if layer.last
                else layer.features * others,
            }[layer.exchange]
        following, halo = _after(model, layer, out)
        rows.append(LayerCount(layer, seen, out, following, parameters, macs, exchanged, halo))
        shape, replicated = following, False
    return tuple(rows)


def _after(model: ConfigDict, layer: Layer, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The shape after the operations that follow a layer, and what they exchange."""
    halo = 0
    for op in layer.then:
        if op == "lrn" and model.lrn.enabled and model.lrn.across_towers and model.towers > 1:
            sides = 1 if model.towers == 2 else 2
            halo += sides * (model.lrn.size // 2) * math.prod(shape[:2])
        if op in ("max_pool", "avg_pool"):
            if len(shape) != 3:
                raise UsageError(f"config.model.layers.{layer.name}.then: no map left to pool")
            side = pooled_size(shape[0], model.pool.window, model.pool.stride)
            shape = (side, side, shape[2])
    return shape, halo


def pooled_size(size: int, window: int, stride: int) -> int:
    """Outputs of a pooling along one side: the last window may hang over (cuda-convnet's ceil)."""
    return max(math.ceil((size - window) / stride), 0) + 1
