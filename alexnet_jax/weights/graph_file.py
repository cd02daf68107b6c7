"""ONNX graphs in files: their constants and their nodes, from the input to the output."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from alexnet_jax.errors import UsageError

_WINDOW = {"auto_pad": "NOTSET", "dilations": [1, 1], "pads": [0, 0, 0, 0], "strides": [1, 1]}
_ABSENT: dict[str, dict[str, Any]] = {
    "AveragePool": _WINDOW | {"ceil_mode": 0, "count_include_pad": 0},
    "Conv": _WINDOW | {"group": 1},
    "Flatten": {"axis": 1},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "LRN": {"alpha": 1e-4, "beta": 0.75, "bias": 1.0},
    "MaxPool": _WINDOW | {"ceil_mode": 0},
    "Softmax": {"axis": 1},
}
"""What an attribute is where a node does not give it, by the operators' definitions."""


def load(path: Path) -> onnx.ModelProto:
    """A graph with its data, which may be in files of the same folder and nowhere else.

    Raises:
      UsageError: it is not an ONNX graph, or its data is elsewhere, missing or truncated.
    """
    try:
        model = onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"not a valid ONNX file ({reason})") from error
    if not model.graph.node:
        raise UsageError("holds no graph")
    return model


def named(node: onnx.NodeProto) -> str:
    """A node in a message: its kind, and its name or that of its output."""
    return f"{node.op_type} {node.name or node.output[0]!r}"


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node by name, with those that it does not give and text for bytes."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    given = {k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in given.items()}
    return _ABSENT.get(node.op_type, {}) | given


class Constants:
    """The constants of a graph, by name: its initializers and its nodes `Constant`."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Reads none of them yet."""
        self._tensors: dict[str, Any] = {c.name: c for c in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Constant":
                self._tensors[node.output[0]] = node.attribute[0]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """The names of all."""
        return list(self._tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        """One of them.

        Raises:
          UsageError: there is none of that name, or it is not numbers.
        """
        if name not in self._tensors:
            by = f": {named(self._makers[name])} computes it" if name in self._makers else ""
            raise UsageError(f"{name} is not a constant of the graph{by}")
        value = self._tensors[name]
        if isinstance(value, onnx.AttributeProto):
            kind = {"value_float": np.float32, "value_int": np.int64}.get(value.name.rstrip("s"))
            if value.name != "value" and kind is None:
                raise UsageError(f"{name} is a constant of {value.name}: numbers are read")
            value = helper.get_attribute_value(value)
            if kind is not None:
                return np.array(value, kind)
        return numpy_helper.to_array(value)


def chain(model: onnx.ModelProto, constants: Constants) -> list[onnx.NodeProto]:
    """The nodes between the image and the output, in order: each is the first input of the next.

    Raises:
      UsageError: there are several outputs, a node is not ONNX's own, or the first inputs do not
        lead back to an input of the graph.
    """
    graph = model.graph
    if len(graph.output) != 1:
        outputs = ", ".join(output.name for output in graph.output)
        raise UsageError(f"has the outputs {outputs}: a network with one is read")
    makers = {name: node for node in graph.node for name in node.output}
    name, found = graph.output[0].name, []
    while name in makers and name not in constants:
        node = makers[name]
        if node.domain not in ("", "ai.onnx") or model.functions:
            raise UsageError(f"{named(node)} is of {node.domain or 'the file'}, not of ONNX")
        if name != node.output[0]:
            raise UsageError(f"{named(node)}: its output {name} is used; the first is read")
        if len(found) == len(graph.node):
            raise UsageError(f"{named(node)} is computed from itself")
        found.append(node)
        name = next(iter(node.input), "")
    if not found or name in constants or name not in {value.name for value in graph.input}:
        raise UsageError(f"{graph.output[0].name} is not computed from an input of the graph")
    return found[::-1]


def compare(found: Sequence[onnx.NodeProto], wanted: Sequence[onnx.NodeProto], what: str) -> None:
    """Compares the kinds and the attributes of nodes.

    Args:
      found: those of a file, in order.
      wanted: those of the network that it is taken for.
      what: the name of that network.

    Raises:
      UsageError: they differ; names the first node.
    """
    for node, like in itertools.zip_longest(found, wanted):
        if node is None:
            raise UsageError(f"not {what}: ends where there should be a {like.op_type}")
        if like is None or node.op_type != like.op_type:
            should = f"{like.op_type} should be" if like else "it should end"
            raise UsageError(f"not {what}: {named(node)} is where {should}")
        ours, theirs = attributes(like), attributes(node)
        for name in {**ours, **theirs}:
            if ours.get(name) != theirs.get(name):
                has = f"{name}={theirs[name]}" if name in theirs else f"no {name}"
                raise UsageError(
                    f"not {what}: {named(node)} has {has}, which should be {ours.get(name)}"
                )
