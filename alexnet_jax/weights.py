"""Weights in and out: safetensors and ONNX, as the one column that other libraries know.

A *column* is the two towers side by side: grouped convolutions where the towers do not meet.
Arrays are named `LAYER.weight` and `LAYER.bias`; a convolution is `[out, in / groups, height,
width]`, a dense layer `[out, in]` with its inputs in the order channel, height, width, as in Caffe
and PyTorch. What the numbers mean travels with them: the configuration (crop, scale, mean, LRN's
conventions), the class names, and RGB as the order of colours, whatever the origin had.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ml_collections import ConfigDict
from onnx import TensorProto, helper, numpy_helper
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from alexnet_jax import presets
from alexnet_jax.config import default, from_json
from alexnet_jax.errors import UsageError
from alexnet_jax.models import layers as ops
from alexnet_jax.models import table
from alexnet_jax.models.towers import merge_towers, split_towers

SUFFIXES = (".safetensors", ".onnx")
_ABOUT = "alexnet_jax"
_MEAN = "input.mean"

CAFFE_MEAN = (122.67891434, 116.66876762, 104.00698793)
"""R, G, B of Caffe's `ilsvrc_2012_mean.npy`, averaged over its pixels."""
TORCH_MEAN, TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of torchvision's transforms, on pixels in 0..1."""
_TORCH_LAYERS = {
    "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8",
    "conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Column:
    """A network with its weights.

    Attributes:
      config: of the run; `config.model` and `config.data` say what the weights are for.
      arrays: float32, by name.
      mean: `[3]`, or `[crop, crop, 3]`, in grey levels, R, G, B.
      class_names: one a class, or none where the origin had none.
    """

    config: ConfigDict
    arrays: dict[str, np.ndarray]
    mean: np.ndarray
    class_names: tuple[str, ...]


# --------------------------------------------------------------------------- towers and column


def column(
    config: ConfigDict, params: dict, mean: np.ndarray, class_names: tuple[str, ...]
) -> Column:
    """Stacked tower parameters as a column.

    Raises:
      UsageError: a layer has no counterpart outside: a locally connected one.
    """
    rows = table.count(config.model, config.data.crop_size)
    merged = merge_towers(params, tuple(row.layer for row in rows))
    arrays, shape = {}, (config.data.crop_size, config.data.crop_size, 3)
    for row in rows:
        name, kernel = row.layer.name, np.asarray(merged[row.layer.name]["kernel"], np.float32)
        if row.layer.kind == "local":
            raise UsageError(f"config.model.layers.{name}: a local layer cannot be exported")
        if row.layer.kind == "conv":
            kernel = kernel.transpose(3, 2, 0, 1)
        else:
            if len(shape) == 3:  # rows are in the order height, width, channel
                kernel = kernel.reshape(*shape, -1).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(math.prod(shape), -1).T
        arrays[f"{name}.weight"] = np.ascontiguousarray(kernel)
        arrays[f"{name}.bias"] = np.ascontiguousarray(merged[name]["bias"], np.float32)
        shape = row.next_shape
    return Column(config, arrays, np.asarray(mean, np.float32), tuple(class_names))


def params(found: Column) -> dict:
    """The inverse: parameters stacked by tower.

    Raises:
      UsageError: an array is missing or of another shape; names both shapes.
    """
    config = found.config
    rows = table.count(config.model, config.data.crop_size)
    merged, shape = {}, (config.data.crop_size, config.data.crop_size, 3)
    for row in rows:
        name, layer = row.layer.name, row.layer
        outputs = row.out_shape[-1]
        if layer.kind == "conv":
            wanted = (outputs, row.in_channels, layer.kernel, layer.kernel)
        else:
            wanted = (outputs, math.prod(shape))
        weight, bias = (_array(found.arrays, f"{name}.{part}") for part in ("weight", "bias"))
        for part, array, size in (("weight", weight, wanted), ("bias", bias, (outputs,))):
            if array.shape != size:
                raise UsageError(f"{name}.{part} is {array.shape}, and the network's is {size}")
        if layer.kind == "conv":
            kernel = weight.transpose(2, 3, 1, 0)
        else:
            kernel = weight.T
            if len(shape) == 3:
                height, width, channels = shape
                kernel = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
                kernel = kernel.reshape(math.prod(shape), -1)
        merged[name] = {"kernel": np.ascontiguousarray(kernel, np.float32), "bias": bias}
        shape = row.next_shape
    return split_towers(merged, tuple(row.layer for row in rows), config.model.towers)


def _array(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise UsageError(f"{name} is missing")
    return arrays[name]


# --------------------------------------------------------------------------- files


def write(found: Column, path: Path) -> None:
    """Writes `path`, by its suffix.

    Raises:
      UsageError: of another suffix, or it cannot be written.
    """
    try:
        if path.suffix == ".safetensors":
            partial = path.with_suffix(".partial")
            save_file(found.arrays | {_MEAN: found.mean}, partial, {_ABOUT: _about(found)})
            partial.replace(path)
        elif path.suffix == ".onnx":
            path.write_bytes(graph(found).SerializeToString())
        else:
            raise UsageError(f"{path}: use one of {', '.join(SUFFIXES)}")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write {path}: {error}") from error


def read(path: Path) -> Column:
    """Reads what `write` wrote, torchvision's AlexNet as safetensors, or Caffe's as ONNX.

    Nothing is unpickled.

    Raises:
      UsageError: it is none of them; says what it is.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: use one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_onnx(path)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, IndexError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"{path}: not a network ({reason})") from error
    except Exception as error:  # protobuf's own
        if "DecodeError" not in type(error).__name__:
            raise
        raise UsageError(f"{path}: not an ONNX file ({error})") from error


def _about(found: Column) -> str:
    config = json.loads(found.config.to_json())
    return json.dumps({"config": config, "class_names": list(found.class_names), "colours": "RGB"})


def _own(text: str, arrays: dict[str, np.ndarray], mean: np.ndarray) -> Column:
    about = json.loads(text)
    config = from_json(json.dumps(about["config"]), "its configuration")
    found = Column(config, arrays, mean, tuple(about["class_names"]))
    params(found)  # every array is there and of its shape
    return found


def _read_safetensors(path: Path) -> Column:
    with safe_open(path, framework="numpy") as file:
        about = (file.metadata() or {}).get(_ABOUT)
        arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    if about:
        mean = _array(arrays, _MEAN)
        return _own(about, {n: a for n, a in arrays.items() if n != _MEAN}, mean)
    if "features.0.weight" in arrays:
        return _torchvision(arrays)
    raise UsageError("neither written by `export` nor torchvision's AlexNet")


def _torchvision(arrays: dict[str, np.ndarray]) -> Column:
    """One column of 64, 192, 384, 256, 256 kernels without LRN, after One weird trick."""
    config = default()
    model, data = config.model, config.data
    model.towers, model.lrn.enabled = 1, False
    for name, features in zip(
        ("conv1", "conv2", "conv3", "conv4", "conv5"), (64, 192, 384, 256, 256), strict=True
    ):
        model.layers[name].features = features
    model.layers.conv1.padding = (2, 2)
    own = {
        f"{ours}.{part}": np.asarray(_array(arrays, f"{theirs}.{part}"), np.float32)
        for ours, theirs in _TORCH_LAYERS.items()
        for part in ("weight", "bias")
    }
    model.num_classes = len(own["fc8.bias"])
    # (x / 255 - mean) / std, with the deviations, one a colour, in the first weights.
    data.scale, data.shrink = 1 / 255, "triangle"
    data.channel_mean = tuple(255 * m for m in TORCH_MEAN)
    own["conv1.weight"] = own["conv1.weight"] / np.float32(TORCH_STD)[None, :, None, None]
    names = imagenet_classes() if model.num_classes == 1000 else ()
    found = Column(config, own, np.float32(data.channel_mean), names)
    params(found)
    return found


def imagenet_classes() -> tuple[str, ...]:
    """`WNID NAME` of the 1000 classes of 2012, in the order of the WordNet numbers."""
    text = (Path(__file__).parent / "data" / "imagenet_classes.txt").read_text()
    return tuple(text.splitlines())


# --------------------------------------------------------------------------- ONNX


def graph(found: Column) -> onnx.ModelProto:
    """The network from pixels to probabilities.

    Input `image`, float32 `[N, 3, crop, crop]`, R, G, B in 0-255; output `probabilities`,
    `[N, classes]`. Towers are groups; their LRN, which stops at the seam, is one node a tower.
    """
    config, model = found.config, found.config.model
    crop = config.data.crop_size
    builder = _Graph()
    mean = found.mean.reshape(1, 1, 1, 3) if found.mean.ndim == 1 else found.mean[None]
    x = builder.add("Sub", "image", builder.constant("mean", mean.transpose(0, 3, 1, 2)))
    x = builder.add("Mul", x, builder.constant("scale", np.float32(config.data.scale)))
    shape = (crop, crop, 3)
    for number, row in enumerate(table.count(model, crop)):
        layer = row.layer
        weight, bias = (
            builder.constant(f"{layer.name}.{part}", found.arrays[f"{layer.name}.{part}"])
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
                side = ops.pooled_size(side, model.pool.window, model.pool.stride)
        shape = row.next_shape
    builder.add("Softmax", x, axis=1, name="probabilities")
    batch = "N"
    made = helper.make_graph(
        builder.nodes,
        "alexnet_jax",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, crop, crop])],
        [helper.make_tensor_value_info(
            "probabilities", TensorProto.FLOAT, [batch, model.num_classes])],
        builder.constants,
    )  # fmt: skip
    result = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(result, {_ABOUT: _about(found)})
    onnx.checker.check_model(result)
    return result


class _Graph:
    """Nodes and constants, named as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        value = np.ascontiguousarray(value, np.asarray(value).dtype)
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes) -> Any:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name if outputs == 1 else names

    def then(self, op: str, x: str, model: ConfigDict, side: int) -> str:
        """What follows a layer, on maps of `side` pixels."""
        if op == "activation":
            return self.add({"relu": "Relu", "tanh": "Tanh"}.get(model.activation, "Sigmoid"), x)
        if op in ("max_pool", "avg_pool"):
            window, stride = model.pool.window, model.pool.stride
            over = (ops.pooled_size(side, window, stride) - 1) * stride + window - side
            # What hangs over is no pixel: never a maximum, and not counted in a mean.
            shape = dict(kernel_shape=[window] * 2, strides=[stride] * 2,
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
        settings = dict(size=norm.size, alpha=alpha, beta=norm.beta, bias=norm.k)
        if norm.across_towers or model.towers == 1:
            return self.add("LRN", x, **settings)
        parts = self.add("Split", x, outputs=model.towers, axis=1)
        return self.add("Concat", *(self.add("LRN", part, **settings) for part in parts), axis=1)

    def _within_map(self, x: str, norm: ConfigDict) -> str:
        """Over a square of one map; ONNX has no node for it. The window is clipped at the edge."""
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


def _read_onnx(path: Path) -> Column:
    model = onnx.load(path, load_external_data=False)
    if not model.graph.node:
        raise UsageError("holds no graph")
    constants = {c.name: c for c in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = next(a.t for a in node.attribute if a.name == "value")

    def array(name: str) -> np.ndarray:
        if name not in constants:
            raise UsageError(f"{name} is not a constant of the graph")
        return np.asarray(numpy_helper.to_array(constants[name]), np.float32)

    about = next((p.value for p in model.metadata_props if p.key == _ABOUT), None)
    if about:
        mean = array("mean")[0].transpose(1, 2, 0)
        mean = mean[0, 0] if mean.shape[:2] == (1, 1) else mean
        names = [n for n in constants if n.rpartition(".")[2] in ("weight", "bias")]
        return _own(about, {name: array(name) for name in names}, mean)
    return _caffe(model, array)


def _caffe(model: onnx.ModelProto, array: Callable[[str], np.ndarray]) -> Column:
    """BVLC's AlexNet as Caffe2 exports it: five Conv, three Gemm, and Caffe's conventions.

    Colours are B, G, R there; the first weights are turned, so that everything is R, G, B here.
    """
    config = presets.get("caffe")
    config.data.update(mean="channel", channel_mean=CAFFE_MEAN)
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
    found = Column(
        config, arrays, np.float32(CAFFE_MEAN),
        imagenet_classes() if config.model.num_classes == 1000 else (),
    )  # fmt: skip
    params(found)
    return found


def _attribute(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return otherwise if found is None else helper.get_attribute_value(found)
