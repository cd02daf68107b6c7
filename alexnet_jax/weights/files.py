"""Files of weights, by their suffix: safetensors and ONNX.

What the numbers mean is stored with them (see `metadata`). Two files of others are read as well:
torchvision's AlexNet as safetensors, and Caffe's as ONNX.
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from alexnet_jax import paths
from alexnet_jax.errors import UsageError
from alexnet_jax.weights import metadata
from alexnet_jax.weights.caffe import from_caffe
from alexnet_jax.weights.column import Column
from alexnet_jax.weights.graph_file import Constants, load
from alexnet_jax.weights.onnx_graph import MEAN, check_exported, to_graph
from alexnet_jax.weights.torch_module import to_source
from alexnet_jax.weights.torchvision import from_torchvision, is_torchvision

SUFFIXES = (".safetensors", ".onnx")
"""Of the files that are read."""
WRITTEN = (*SUFFIXES, ".py")
_MEAN = f"input.{MEAN}"


def write(column: Column, path: Path, pixels: bool = False) -> None:
    """Writes `path`, by its suffix, wholly or not at all.

    Args:
      column: the network.
      path: `NAME.safetensors`; `NAME.onnx`; or `NAME.py`, a PyTorch module, with its weights beside
        it as `NAME.safetensors`.
      pixels: whether an ONNX graph takes whole images, which it resizes (`to_graph`).

    Raises:
      UsageError: the suffix is another, the file cannot be written, the format does not have an
        operation of the network, or `pixels` is of no use in it.
    """
    if path.suffix not in WRITTEN:
        raise UsageError(f"{path}: use one of {', '.join(WRITTEN)}")
    if pixels and path.suffix != ".onnx":
        raise UsageError(f"{path}: only an .onnx file takes pixels, whole images of any size")
    if path.suffix == ".onnx":
        contents: dict[Path, str | bytes] = {path: to_graph(column, pixels).SerializeToString()}
    else:
        weights = path.with_suffix(".safetensors")
        arrays = column.arrays | {_MEAN: column.mean}
        contents = {weights: save(arrays, metadata.to_texts(column))}
        if path.suffix == ".py":
            contents[path] = to_source(column, weights.name)
    for place, content in contents.items():
        paths.write_output(place, content)


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
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"{path}: not a network ({reason})") from error


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
    model = load(path)
    about = next((p.value for p in model.metadata_props if p.key == metadata.KEY), None)
    if not about:
        if any(list(tensor.dims) == [64, 3, 11, 11] for tensor in model.graph.initializer):
            raise UsageError(
                "torchvision's AlexNet, which is read from its state_dict: "
                "safetensors.torch.save_file(model.state_dict(), 'alexnet.safetensors')"
            )
        return from_caffe(model)
    constants = Constants(model.graph)
    mean = constants[MEAN]
    if mean.ndim != 4 or len(mean) != 1:
        raise UsageError(f"{MEAN} is {mean.shape}, and the network's [1, 3, height, width]")
    mean = mean[0].transpose(1, 2, 0)
    mean = mean[0, 0] if mean.shape[:2] == (1, 1) else mean
    # `LAYER.PART`; other constants of a graph that `export` wrote have no dot in their names.
    arrays = {name: constants[name] for name in constants.names() if "." in name}
    column = metadata.from_text(about, arrays, mean)
    check_exported(model, column)
    return column
