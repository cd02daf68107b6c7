"""The network as an ONNX graph."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from alexnet_jax.config import table
from alexnet_jax.errors import UsageError
from alexnet_jax.model.operation import GraphSite
from alexnet_jax.weights import metadata
from alexnet_jax.weights.column import Column
from alexnet_jax.weights.graph_file import Constants, compare, named
from alexnet_jax.weights.resize_graph import add_square

MEAN = "mean"
"""The name of the mean image among the constants of a graph."""

_OPSET = 17

IMAGE, PIXELS, PROBABILITIES = "image", "pixels", "probabilities"
"""The names of the input of a graph, of its input if it resizes images, and of its output."""


def to_graph(column: Column, pixels: bool = False) -> onnx.ModelProto:
    """The network from pixels to probabilities.

    The input is `image`, float32 `[N, 3, crop, crop]`, R, G, B in 0-255; the output is
    `probabilities`, `[N, classes]`. Towers are groups; LRN inside a tower is one node per tower.

    Args:
      column: the network.
      pixels: whether the input is whole images instead, which the graph resizes and crops:
        `pixels`, uint8 `[N, height, width, 3]`, or 4 with an alpha, which is dropped.

    Raises:
      UsageError: an operation cannot be exported; names it and the layer that it follows.
    """
    crop, classes = column.config.data.crop_size, column.config.model.num_classes
    nodes, constants = nodes_of(column, pixels)
    if pixels:
        kind, shape = (PIXELS, TensorProto.UINT8), ["N", "height", "width", "colours"]
        what = "Images of one size, any: R, G, B, and an alpha or none. The graph resizes them."
    else:
        kind, shape = (IMAGE, TensorProto.FLOAT), ["N", 3, crop, crop]
        what = f"The crops of {crop} x {crop} pixels: R, G, B, grey levels from 0 to 255."
    made = helper.make_graph(
        nodes,
        "alexnet_jax",
        [helper.make_tensor_value_info(*kind, shape, what)],
        [helper.make_tensor_value_info(
            PROBABILITIES, TensorProto.FLOAT, ["N", classes],
            f"Of the classes that the metadata {metadata.CLASSES} names, in their order.",
        )],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    result = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    helper.set_model_props(result, metadata.to_texts(column))
    onnx.checker.check_model(result)
    return result


def nodes_of(
    column: Column, pixels: bool = False
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The nodes of the graph of a network, in order, and its constants by name.

    Args:
      column: the network.
      pixels: as in `to_graph`.

    Raises:
      UsageError: as `to_graph`.
    """
    config, model = column.config, column.config.model
    crop = config.data.crop_size
    builder = _Graph()
    if pixels:
        add_square(builder, PIXELS, config.data, IMAGE)
    mean = column.mean.reshape(1, 1, 1, 3) if column.mean.ndim == 1 else column.mean[None]
    x = builder.add("Sub", IMAGE, builder.constant(mean.transpose(0, 3, 1, 2), MEAN))
    x = builder.add("Mul", x, builder.constant(np.float32(config.data.scale)))
    shape = (crop, crop, 3)
    for number, row in enumerate(table.count(model, crop)):
        layer = row.layer
        arrays = {
            part: builder.constant(array, f"{layer.name}.{part}")
            for part, array in column.of_layer(layer.name).items()
        }
        weight, bias = arrays["weight"], arrays["bias"]
        if layer.kind == "conv":
            before, after = layer.padding
            x = builder.add(
                "Conv", x, weight, bias, kernel_shape=[layer.kernel] * 2,
                strides=[layer.stride] * 2, pads=[before, before, after, after],
                group=model.towers if number and layer.exchange == "none" else 1,
            )  # fmt: skip
        else:
            if len(shape) == 3:
                x = builder.add("Flatten", x, axis=1)
            x = builder.add("Gemm", x, weight, bias, transB=1)
        shape = row.out_shape
        for name, op in zip(layer.then, layer.operations, strict=True):
            at = GraphSite(
                shape=shape,
                towers=model.towers,
                parameters={part: arrays[f"{name}.{part}"] for part in op.parameters()},
                statistics={part: arrays[f"{name}.{part}"] for part in op.statistics()},
            )
            try:
                x = op.onnx(builder, x, at)
            except UsageError as error:
                raise UsageError(f"{name} after {layer.name} {error}") from error
            shape = op.shape(shape)
    builder.add("Softmax", x, axis=1, name=PROBABILITIES)
    return builder.nodes, builder.constants


def check_exported(model: onnx.ModelProto, column: Column) -> None:
    """Checks that a graph is the one that `to_graph` makes of what was read from it.

    Raises:
      UsageError: it is not; names the first node or constant that differs.
    """
    pixels = [value.name for value in model.graph.input] == [PIXELS]
    nodes, wanted = nodes_of(column, pixels)
    what, constants = "the network that its metadata describes", Constants(model.graph)
    opsets = [(o.domain, o.version) for o in model.opset_import]
    if model.functions or opsets != [("", _OPSET)]:
        raise UsageError(f"not {what}: it is of opset {_OPSET} without functions")
    compare(model.graph.node, nodes, what)
    for node, like in zip(model.graph.node, nodes, strict=True):
        if (list(node.input), list(node.output)) != (list(like.input), list(like.output)):
            raise UsageError(f"not {what}: {named(node)} is connected otherwise")
    for name, array in wanted.items():
        if "." not in name and not np.array_equal(constants[name], array):
            raise UsageError(f"not {what}: the constant {name} is another")
    if [output.name for output in model.graph.output] != [PROBABILITIES]:
        raise UsageError(f"not {what}: its output is {PROBABILITIES}")


class _Graph:
    """Nodes and constants, named as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any, name: str = "") -> str:
        """Adds a constant; one without a name gets one that no array of a column has."""
        value = np.asarray(value, order="C")
        name = name or f"constant{len(self.constants)}"
        self.constants[name] = value
        return name

    def add(
        self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name if outputs == 1 else names
