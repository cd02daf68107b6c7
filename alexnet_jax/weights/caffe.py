"""Caffe's AlexNet, as Caffe2 exports it to ONNX, as a column."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from alexnet_jax.config import presets
from alexnet_jax.data.classes import imagenet_classes
from alexnet_jax.errors import UsageError
from alexnet_jax.weights.column import Column, checked

MEAN = (122.67891434, 116.66876762, 104.00698793)
"""R, G, B of Caffe's `ilsvrc_2012_mean.npy`, averaged over its pixels."""


def from_caffe(model: onnx.ModelProto, array: Callable[[str], np.ndarray]) -> Column:
    """BVLC's AlexNet: five Conv, three Gemm, and Caffe's conventions.

    Its order of colours is B, G, R; the first weights are reversed, so that it is R, G, B here.

    Args:
      model: the graph.
      array: returns a constant of the graph by its name.

    Raises:
      UsageError: it is another network.
    """
    config = presets.get("caffe")
    config.data.update(mean="channel", channel_mean=MEAN)
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    norms = [node for node in model.graph.node if node.op_type == "LRN"]
    names = config.model.layer_order
    if [n.op_type for n in layers] != ["Conv"] * 5 + ["Gemm"] * 3 or len(norms) != 2:
        kinds = ", ".join(node.op_type for node in layers) or "none"
        raise UsageError(f"not Caffe's AlexNet: its weights belong to {kinds}")
    arrays = {}
    for name, node in zip(names, layers, strict=True):
        weight, bias = array(node.input[1]), array(node.input[2])
        if node.op_type == "Gemm" and not _attribute(node, "transB", 0):
            weight = weight.T
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = weight, bias
    arrays["conv1.weight"] = np.ascontiguousarray(arrays["conv1.weight"][:, ::-1])
    norm = norms[0]
    config.model.lrn.update(
        size=_attribute(norm, "size", 5), alpha=_attribute(norm, "alpha", 1e-4),
        beta=_attribute(norm, "beta", 0.75), k=_attribute(norm, "bias", 1.0),
    )  # fmt: skip
    config.model.num_classes = len(arrays["fc8.bias"])
    class_names = imagenet_classes() if config.model.num_classes == 1000 else ()
    return checked(Column(config, arrays, np.array(MEAN, np.float32), class_names))


def _attribute(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return otherwise if found is None else helper.get_attribute_value(found)
