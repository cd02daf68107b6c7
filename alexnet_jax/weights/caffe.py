"""Caffe's AlexNet, as Caffe2 exports it to ONNX, as a column."""

import numpy as np
import onnx
from ml_collections import ConfigDict
from onnx import helper

from alexnet_jax.config import presets
from alexnet_jax.data.classes import imagenet_classes
from alexnet_jax.errors import UsageError
from alexnet_jax.weights.column import Column, checked
from alexnet_jax.weights.graph_file import Constants, attributes, chain, compare, named
from alexnet_jax.weights.onnx_graph import nodes_of

MEAN = (122.67891434, 116.66876762, 104.00698793)
"""R, G, B of Caffe's `ilsvrc_2012_mean.npy`, averaged over its pixels."""

_NAME = "Caffe's AlexNet"
_SIDES = {224, 227}
"""Of the image in a file: the public one says 224, and Caffe trained and ran it on 227."""


def from_caffe(model: onnx.ModelProto) -> Column:
    """BVLC's AlexNet: five Conv, three Gemm, and Caffe's conventions.

    Its order of colours is B, G, R; the first weights are reversed, so that it is R, G, B here.

    Raises:
      UsageError: it is another network; names the first node that differs.
    """
    config = presets.get("caffe")
    config.data.update(mean="channel", channel_mean=MEAN)
    constants = Constants(model.graph)
    nodes = chain(model, constants)
    _check_image(next(i for i in model.graph.input if i.name == nodes[0].input[0]))
    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    nodes = [node for node in nodes if not _passes_on(node, constants, version)]
    for norm in [attributes(node) for node in nodes if node.op_type == "LRN"][:1]:
        config.model.lrn.update(
            size=norm["size"], alpha=norm["alpha"], beta=norm["beta"], k=norm["bias"]
        )
    compare([_as_exported(node, constants) for node in nodes], _exported(config), _NAME)
    arrays: dict[str, np.ndarray] = {}
    layers = [node for node in nodes if node.op_type in ("Conv", "Gemm")]
    for name, node in zip(config.model.layer_order, layers, strict=True):
        if len(node.input) < 3:
            raise UsageError(f"not {_NAME}: {named(node)} has no bias")
        weight = constants[node.input[1]]
        if node.op_type == "Gemm" and not attributes(node)["transB"]:
            weight = weight.T
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = weight, constants[node.input[2]]
    arrays["conv1.weight"] = arrays["conv1.weight"][:, ::-1]
    config.model.num_classes = arrays["fc8.bias"].size
    class_names = imagenet_classes() if config.model.num_classes == 1000 else ()
    return checked(Column(config, arrays, np.array(MEAN, np.float32), class_names))


def _exported(config: ConfigDict) -> list[onnx.NodeProto]:
    """The nodes that `export` writes for the network, after its subtraction of the mean."""
    some = np.zeros(3, np.float32)
    names = [f"{name}.{part}" for name in config.model.layer_order for part in ("weight", "bias")]
    return nodes_of(Column(config, dict.fromkeys(names, some), some, ()))[0][2:]


def _check_image(value: onnx.ValueInfoProto) -> None:
    """Raises a `UsageError` if the input of a graph is images of another size."""
    shape = [side.dim_value for side in value.type.tensor_type.shape.dim]
    if len(shape) != 4 or shape[1] not in (0, 3) or not {*shape[2:]} <= {0, *_SIDES}:
        raise UsageError(f"not {_NAME}: {value.name} is {shape}, and its images [N, 3, 227, 227]")


def _passes_on(node: onnx.NodeProto, constants: Constants, version: int) -> bool:
    """Whether a node does nothing at test time.

    Raises:
      UsageError: it is dropout as in training.
    """
    if node.op_type == "Dropout":
        mode = node.input[2] if len(node.input) > 2 else ""  # since version 12
        is_test = version >= 7 or attributes(node).get("is_test", 0)
        if not is_test or (mode and constants[mode].any()):
            raise UsageError(f"not {_NAME}: {named(node)} acts as in training")
    return node.op_type in ("Dropout", "Identity")


def _as_exported(node: onnx.NodeProto, constants: Constants) -> onnx.NodeProto:
    """The same node as `export` would write it, where there are several ways."""
    kind, given = node.op_type, attributes(node)
    for name in ("broadcast", "consumed_inputs", "storage_order"):  # of other outputs and versions
        given.pop(name, None)
    if kind == "Conv" and "kernel_shape" not in given:
        given["kernel_shape"] = list(constants[node.input[1]].shape[2:])
    elif kind == "Gemm":
        given["transB"] = 1  # which way the weights are is seen when they are read
    elif kind in ("Flatten", "Softmax") and given["axis"] < 0:
        given["axis"] += 2 if kind == "Softmax" else 4
    elif kind == "MaxPool":
        # The windows fit exactly, so that padding at the end adds none if it is less than a stride.
        pads, strides = given["pads"], given["strides"]
        is_less = len(pads) == 4 and all(0 <= pad < min(strides) for pad in pads[2:])
        if not given["ceil_mode"] and not any(pads[:2]) and is_less:
            given["pads"] = [0] * 4
        given["ceil_mode"] *= any(given["pads"])
    elif kind == "Reshape" and _gives_rows(node, constants):
        kind, given = "Flatten", {"axis": 1}
    result = helper.make_node(kind, node.input, node.output, node.name)
    result.attribute.extend(helper.make_attribute(name, value) for name, value in given.items())
    return result


def _gives_rows(node: onnx.NodeProto, constants: Constants) -> bool:
    """Whether a Reshape makes one row of the 6 x 6 maps of each image."""
    given = attributes(node)
    shape = list(given["shape"]) if "shape" in given else constants[node.input[1]].tolist()
    return not given.get("allowzero") and (shape[1:] == [9216] or shape in ([0, -1], [1, -1]))
