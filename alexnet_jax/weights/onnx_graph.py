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

MEAN = "mean"
"""The name of the mean image among the constants of a graph."""


def to_graph(column: Column) -> onnx.ModelProto:
    """The network from pixels to probabilities.

    The input is `image`, float32 `[N, 3, crop, crop]`, R, G, B in 0-255; the output is
    `probabilities`, `[N, classes]`. Towers are groups; LRN inside a tower is one node per tower.

    Raises:
      UsageError: an operation cannot be exported; names it and the layer that it follows.
    """
    config, model = column.config, column.config.model
    crop = config.data.crop_size
    builder = _Graph()
    mean = column.mean.reshape(1, 1, 1, 3) if column.mean.ndim == 1 else column.mean[None]
    x = builder.add("Sub", "image", builder.constant(mean.transpose(0, 3, 1, 2), MEAN))
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
    builder.add("Softmax", x, axis=1, name="probabilities")
    made = helper.make_graph(
        builder.nodes,
        "alexnet_jax",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, crop, crop])],
        [helper.make_tensor_value_info(
            "probabilities", TensorProto.FLOAT, ["N", model.num_classes])],
        builder.constants,
    )  # fmt: skip
    result = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(result, {metadata.KEY: metadata.to_text(column)})
    onnx.checker.check_model(result)
    return result


class _Graph:
    """Nodes and constants, named as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, name: str = "") -> str:
        """Adds a constant; one without a name gets one that no array of a column has."""
        value = np.asarray(value, order="C")
        name = name or f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(
        self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name if outputs == 1 else names
