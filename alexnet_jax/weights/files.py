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
DTYPES = ("float32", "float16")
"""Of the numbers in a .safetensors file that is written."""
_MEAN = f"input.{MEAN}"


def write(column: Column, path: Path, pixels: bool = False, dtype: str = "float32") -> None:
    """Writes `path`, by its suffix, wholly or not at all.

    Args:
      column: the network.
      path: `NAME.safetensors`; `NAME.onnx`; or `NAME.py`, a PyTorch module, with its weights beside
        it as `NAME.safetensors`.
      pixels: whether an ONNX graph takes whole images, which it resizes (`to_graph`).
      dtype: one of `DTYPES`, of all arrays of a .safetensors file. float16 halves the file and
        rounds each number by at most 1 / 2048 of itself, or 3e-8 if that is more.

    Raises:
      UsageError: the suffix is another, the file cannot be written, the format does not have an
        operation of the network, `pixels` or `dtype` is of no use in it, or a number is outside the
        range of `dtype`.
    """
    if path.suffix not in WRITTEN:
        raise UsageError(f"{path}: use one of {', '.join(WRITTEN)}")
    if pixels and path.suffix != ".onnx":
        raise UsageError(f"{path}: only an .onnx file takes pixels, whole images of any size")
    if dtype not in DTYPES:
        raise UsageError(f"dtype = {dtype!r}: use one of {', '.join(DTYPES)}")
    if dtype != "float32" and path.suffix != ".safetensors":
        raise UsageError(f"{path}: only a .safetensors file can be of {dtype}")
    if path.suffix == ".onnx":
        contents: dict[Path, str | bytes] = {path: to_graph(column, pixels).SerializeToString()}
    else:
        weights = path.with_suffix(".safetensors")
        arrays = column.arrays | {_MEAN: column.mean}
        arrays = {name: _rounded(name, array, dtype) for name, array in arrays.items()}
        contents = {weights: save(arrays, metadata.to_texts(column))}
        if path.suffix == ".py":
            contents[path] = to_source(column, weights.name)
    for place, content in contents.items():
        paths.write_output(place, content)


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in another type.

    Raises:
      UsageError: a number is outside its range.
    """
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    finite = np.isfinite(array)  # The others stay what they are.
    if not np.isfinite(rounded[finite]).all():
        raise UsageError(
            f"{name} has numbers up to {np.abs(array[finite]).max():.6g}, and {dtype} ends at "
            f"{np.finfo(dtype).max:.6g}: export the network as float32"
        )
    return rounded


def read(path: Path) -> Column:
    """Reads what `write` wrote, torchvision's AlexNet as safetensors, or Caffe's as ONNX.

    Numbers of any floating-point type, such as float16 and bfloat16, become float32. Nothing is
    unpickled.

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
