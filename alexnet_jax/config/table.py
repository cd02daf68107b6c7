"""A network as a table of layers, and the arithmetic of that table: shapes, counts, exchange.

The configuration holds the table (`config.model.layers`); this module reads it once into frozen
`Layer` records, which the Flax module, `inspect`, the optimizer groups and the exporters share.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from alexnet_jax.config.fields import LAYER_FIELDS
from alexnet_jax.errors import UsageError
from alexnet_jax.registry import OPERATIONS


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
      then: the names of the operations that follow, in order.
      operations: those operations, each a `model.operation.Operation`.
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
    operations: tuple[Any, ...]
    last: bool


@dataclasses.dataclass(frozen=True)
class LayerCount:
    """One layer's row in the arithmetic, over all towers (a bias shared by towers counts once).

    Attributes:
      layer: the record.
      in_channels: channels that one kernel sees.
      out_shape: `(H, W, C)` or `(C,)` after the layer itself, all towers together.
      next_shape: the same after the operations that follow it.
      parameters: weights, biases and the trained values of the operations.
      macs: multiply-adds per image of the matrix product or convolution.
      exchanged: elements that each tower receives for the layer, per image, in the forward pass.
      halos: the same for each operation that follows, by its name, if it receives anything.
    """

    layer: Layer
    in_channels: int
    out_shape: tuple[int, ...]
    next_shape: tuple[int, ...]
    parameters: int
    macs: int
    exchanged: int
    halos: tuple[tuple[str, int], ...]

    @property
    def halo(self) -> int:
        """What all operations that follow receive."""
        return sum(elements for _, elements in self.halos)


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

    LAYER_FIELDS["then"].check(f"model.layers.{name}.then", row.then)
    operations = tuple(OPERATIONS[op].of(model) for op in row.then)
    for op, operation in zip(row.then, operations, strict=True):
        # Its arrays are named by the layer and the operation.
        has_arrays = operation.parameters() or operation.statistics()
        check(not has_arrays or row.then.count(op) == 1, "then",
              f"{op} has values of its own, so it can follow a layer once only")  # fmt: skip
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
        operations=operations,
        last=last,
    )


def conv_size(size: int, layer: Layer) -> int:
    """Outputs of a convolution along one side: floor((size + padding - kernel) / stride) + 1."""
    return (size + sum(layer.padding) - layer.kernel) // layer.stride + 1


def conv_text(size: int, layer: Layer) -> str:
    """The arithmetic of `conv_size`, to be read: `(227 - 11) / 4 + 1 = 55`."""
    padded = size + sum(layer.padding)
    steps = f"({padded} - {layer.kernel}) / {layer.stride}"
    if (padded - layer.kernel) % layer.stride:
        steps = f"floor({steps})"
    before = f"{size} + {sum(layer.padding)} = {padded}; " if padded > size else ""
    return f"{before}{steps} + 1 = {conv_size(size, layer)}"


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The part of the image that the units of a layer's maps see.

    Attributes:
      size: side of the square that one unit sees, in pixels of the network's input.
      stride: pixels between the squares of two neighbouring units.
      start: first row and first column of the square of the first unit; negative where it reaches
        over the border.
    """

    size: int
    stride: int
    start: int

    def box(self, row: int, column: int, crop_size: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of what a unit sees of the crop, ends not included."""
        first = [self.start + self.stride * place for place in (row, column)]
        last = [min(place + self.size, crop_size) for place in first]
        return max(first[0], 0), max(first[1], 0), last[0], last[1]


def receptive_fields(layers: Iterable[Layer]) -> dict[str, ReceptiveField]:
    """Receptive fields of every layer that makes maps, after its operations.

    A window of k pixels, s apart, over units whose fields are r pixels wide and j apart, makes
    fields of r + (k - 1) j pixels, s j apart.
    """
    found: dict[str, ReceptiveField] = {}
    size, stride, start = 1, 1, 0
    for layer in layers:
        if layer.kind == "dense":
            break
        own = (layer.kernel, layer.stride, layer.padding[0])
        for side, step, before in (own, *(op.reach() for op in layer.operations)):
            start -= before * stride
            size += (side - 1) * stride
            stride *= step
        found[layer.name] = ReceptiveField(size, stride, start)
    return found


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
        halos: list[tuple[str, int]] = []
        shape, replicated = out, False
        for name, op in zip(layer.then, layer.operations, strict=True):
            parameters += len(op.parameters()) * width
            halos += [(name, received)] if (received := op.received(shape, towers)) else []
            try:
                shape = op.shape(shape)
                if shape[-1] != width:
                    raise UsageError(f"makes {shape[-1]} channels of {width}; their number stays")
            except UsageError as error:
                path = f"config.model.layers.{layer.name}.then"
                raise UsageError(f"{path} = {layer.then!r}: {name}: {error}") from error
        rows.append(LayerCount(layer, seen, out, shape, parameters, macs, exchanged, tuple(halos)))
    return tuple(rows)
