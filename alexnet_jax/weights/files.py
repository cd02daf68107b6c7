"""Files of weights, by their suffix: safetensors and ONNX.

What the numbers mean is stored with them (see `metadata`). Two files of others are read as well:
torchvision's AlexNet as safetensors, and Caffe's as ONNX.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from alexnet_jax.errors import UsageError
from alexnet_jax.weights import metadata
from alexnet_jax.weights.caffe import from_caffe
from alexnet_jax.weights.column import Column
from alexnet_jax.weights.onnx_graph import MEAN, to_graph
from alexnet_jax.weights.torchvision import from_torchvision, is_torchvision

SUFFIXES = (".safetensors", ".onnx")
_MEAN = f"input.{MEAN}"


def write(column: Column, path: Path) -> None:
    """Writes `path`, by its suffix.

    Raises:
      UsageError: the suffix is another, or the file cannot be written.
    """
    try:
        if path.suffix == ".safetensors":
            partial = path.with_suffix(".partial")
            about = {metadata.KEY: metadata.to_text(column)}
            save_file(column.arrays | {_MEAN: column.mean}, partial, about)
            partial.replace(path)
        elif path.suffix == ".onnx":
            path.write_bytes(to_graph(column).SerializeToString())
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


def _read_safetensors(path: Path) -> Column:
    with safe_open(path, framework="numpy") as file:
        about = (file.metadata() or {}).get(metadata.KEY)
        arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    if about:
        if _MEAN not in arrays:
            raise UsageError(f"{_MEAN} is missing")
        mean = arrays.pop(_MEAN)
        return metadata.from_text(about, arrays, mean)
    if is_torchvision(arrays):
        return from_torchvision(arrays)
    raise UsageError("neither written by `export` nor torchvision's AlexNet")


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

    about = next((p.value for p in model.metadata_props if p.key == metadata.KEY), None)
    if about:
        mean = array(MEAN)[0].transpose(1, 2, 0)
        mean = mean[0, 0] if mean.shape[:2] == (1, 1) else mean
        # `LAYER.PART`; other constants of a graph that `export` wrote have no dot in their names.
        names = [name for name in constants if "." in name]
        return metadata.from_text(about, {name: array(name) for name in names}, mean)
    return from_caffe(model, array)
