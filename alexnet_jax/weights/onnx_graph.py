"""The network as an ONNX graph."""

from typing import Any

import numpy as np
import onnx
from ml_collections import ConfigDict
from onnx import TensorProto, helper, numpy_helper

from alexnet_jax.config import table
from alexnet_jax.config.table import pooled_size
from alexnet_jax.weights import metadata
from alexnet_jax.weights.column import Column


def to_graph(column: Column) -> onnx.ModelProto:
    """The network from pixels to probabilities.

    The input is `image`, float32 `[N, 3, crop, crop]`, R, G, B in 0-255; the output is
    `probabilities`, `[N, classes]`. Towers are groups; LRN inside a tower is one node per tower.
    """
    config, model = column.config, column.config.model
    crop = config.data.crop_size
    builder = _Graph()
    mean = column.mean.reshape(1, 1, 1, 3) if column.mean.ndim == 1 else column.mean[None]
    x = builder.add("Sub", "image", builder.constant("mean", mean.transpose(0, 3, 1, 2)))
    x = builder.add("Mul", x, builder.constant("scale", np.float32(config.data.scale)))
    shape = (crop, crop, 3)
    for number, row in enumerate(table.count(model, crop)):
        layer = row.layer
        weight, bias = (
            builder.constant(f"{layer.name}.{part}", column.arrays[f"{layer.name}.{part}"])
            for part in ("weight", "bias")
        )
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
        side = row.out_shape[0] if len(row.out_shape) == 3 else 0
        for op in layer.then:
            x = builder.then(op, x, model, side)
            if op in ("max_pool", "avg_pool"):
                side = pooled_size(side, model.pool.window, model.pool.stride)
        shape = row.next_shape
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

    def constant(self, name: str, value: np.ndarray | np.float32) -> str:
        value = np.asarray(value, order="C")
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(
        self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name if outputs == 1 else names

    def then(self, op: str, x: str, model: ConfigDict, side: int) -> str:
        """An operation that follows a layer, on maps of `side` pixels."""
        if op == "activation":
            return self.add({"relu": "Relu", "tanh": "Tanh"}.get(model.activation, "Sigmoid"), x)
        if op in ("max_pool", "avg_pool"):
            window, stride = model.pool.window, model.pool.stride
            over = (pooled_size(side, window, stride) - 1) * stride + window - side
            # ONNX's padding is never a maximum and is not counted in a mean.
            shape: dict[str, Any] = dict(kernel_shape=[window] * 2, strides=[stride] * 2,
                         pads=[0, 0, max(over, 0), max(over, 0)])  # fmt: skip
            return self.add("MaxPool" if op == "max_pool" else "AveragePool", x, **shape)
        if op == "dropout":
            keep = 1 - model.dropout.rate
            if model.dropout.rescaled_in_training or keep == 1:
                return x
            return self.add("Mul", x, self.constant(f"keep{len(self.nodes)}", np.float32(keep)))
        if op == "lrn":
            return self._lrn(x, model) if model.lrn.enabled else x
        return self._within_map(x, model.within_map_norm)

    def _lrn(self, x: str, model: ConfigDict) -> str:
        norm = model.lrn
        alpha = norm.alpha if norm.alpha_divided_by_size else norm.alpha * norm.size
        settings: dict[str, Any] = dict(size=norm.size, alpha=alpha, beta=norm.beta, bias=norm.k)
        if norm.across_towers or model.towers == 1:
            return self.add("LRN", x, **settings)
        parts = self.add("Split", x, outputs=model.towers, axis=1)
        return self.add("Concat", *(self.add("LRN", part, **settings) for part in parts), axis=1)

    def _within_map(self, x: str, norm: ConfigDict) -> str:
        """Normalization over a square of one map, for which ONNX has no node.

        The window is clipped at the border.
        """
        alpha = norm.alpha if norm.alpha_divided_by_size else norm.alpha * norm.size**2
        before, after = norm.size // 2, norm.size - 1 - norm.size // 2
        means = self.add(
            "AveragePool", self.add("Mul", x, x), kernel_shape=[norm.size] * 2, strides=[1, 1],
            pads=[before, before, after, after], count_include_pad=1,
        )  # fmt: skip
        number = len(self.nodes)
        scaled = self.add("Mul", means, self.constant(f"alpha{number}", np.float32(alpha)))
        base = self.add("Add", scaled, self.constant(f"k{number}", np.float32(norm.k)))
        root = self.add("Pow", base, self.constant(f"beta{number}", np.float32(norm.beta)))
        return self.add("Div", x, root)
