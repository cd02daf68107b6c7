"""Files of weights: ours, those of others, and what only looks like them.

Each function gets the path to write (its suffix is the file's), a good file of ours in both
formats, and returns whether it is to be read.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file

Maker = Callable[[Path, dict[str, Path]], bool]
WEIGHTS: dict[str, tuple[str, Maker]] = {}
KEY = "alexnet_jax"


def odd(name: str, *suffixes: str):
    def add(function):
        for suffix in suffixes or (".safetensors",):
            WEIGHTS[f"{name}, {suffix}"] = (suffix, function)
        return function

    return add


def _arrays(good: dict[str, Path]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(good[".safetensors"], framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def _changed(path: Path, good: dict[str, Path], **arrays) -> None:
    """The good file with other arrays; None removes one. In either format."""
    if path.suffix == ".onnx":
        model = onnx.load(good[".onnx"])
        kept = [t for t in model.graph.initializer if t.name not in arrays]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.initializer.extend(
            numpy_helper.from_array(a, name) for name, a in arrays.items() if a is not None
        )
        path.write_bytes(model.SerializeToString())
        return
    found, about = _arrays(good)
    found = {k: v for k, v in (found | arrays).items() if v is not None}
    save_file(found, path, about)


def _described(path: Path, good: dict[str, Path], text: str) -> bool:
    if path.suffix == ".onnx":
        model = onnx.load(good[".onnx"])
        model.metadata_props[0].value = text
        path.write_bytes(model.SerializeToString())
    else:
        save_file(_arrays(good)[0], path, {KEY: text})
    return False


def _about(good: dict[str, Path], **changes) -> str:
    return json.dumps(json.loads(_arrays(good)[1][KEY]) | changes)


BOTH = (".safetensors", ".onnx")


@odd("as it should be", *BOTH)
def _(path, good):
    path.write_bytes(good[path.suffix].read_bytes())
    return True


@odd("a link to it", *BOTH)
def _(path, good):
    path.symlink_to(good[path.suffix])
    return True


@odd("nothing", *BOTH)
def _(path, good):
    path.touch()
    return False


@odd("no file", *BOTH)
def _(path, good):
    return False


@odd("a link to nowhere", *BOTH)
def _(path, good):
    path.symlink_to("nowhere")
    return False


@odd("a folder", *BOTH)
def _(path, good):
    path.mkdir()
    return False


@odd("a pipe", *BOTH)
def _(path, good):
    os.mkfifo(path)
    return False


@odd("noise", *BOTH)
def _(path, good):
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return False


@odd("a web page", *BOTH)
def _(path, good):
    path.write_text("<html><body>Access denied</body></html>")
    return False


@odd("a pointer of Git LFS", *BOTH)
def _(path, good):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n")
    return False


@odd("half of it", *BOTH)
def _(path, good):
    content = good[path.suffix].read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return False


@odd("a pickle", ".safetensors", ".onnx", ".pth", ".pkl")
def _(path, good):
    path.write_bytes(pickle.dumps({"x": np.zeros(3)}))
    return False


@odd("an archive", ".safetensors", ".onnx", ".zip", ".npz")
def _(path, good):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"")
    return False


@odd("the other format", *BOTH)
def _(path, good):
    path.write_bytes(good[BOTH[path.suffix == BOTH[0]]].read_bytes())
    return False


@odd("a header that says gigabytes")
def _(path, good):
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}" + bytes(100))
    return False


@odd("arrays that overlap")
def _(path, good):
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    head = json.dumps({"a": one, "b": one}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(16))
    return False


@odd("arrays that say terabytes")
def _(path, good):
    one = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    head = json.dumps({"a": one}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(16))
    return False


@odd("a NaN", *BOTH)
def _(path, good):
    bias = _arrays(good)[0]["fc8.bias"].copy()
    bias[0] = np.nan
    _changed(path, good, **{"fc8.bias": bias})
    return False


@odd("an infinity", *BOTH)
def _(path, good):
    bias = _arrays(good)[0]["conv1.bias"].copy()
    bias[-1] = -np.inf
    _changed(path, good, **{"conv1.bias": bias})
    return False


@odd("a half-precision array")
def _(path, good):
    array = _arrays(good)[0]["fc8.weight"]
    _changed(path, good, **{"fc8.weight": array.astype(np.float16)})
    return True


@odd("a bfloat16 array")
def _(path, good):
    array = _arrays(good)[0]["fc8.weight"]
    _changed(path, good, **{"fc8.weight": array.astype(ml_dtypes.bfloat16)})
    return True


@odd("integers")
def _(path, good):
    array = _arrays(good)[0]["fc8.weight"]
    _changed(path, good, **{"fc8.weight": array.astype(np.int8)})
    return False


@odd("a missing array", *BOTH)
def _(path, good):
    _changed(path, good, **{"fc7.bias": None})
    return False


@odd("an array more", *BOTH)
def _(path, good):
    _changed(path, good, **{"fc7.scale": np.ones(3, np.float32)})
    return False


@odd("an array of another shape", *BOTH)
def _(path, good):
    array = _arrays(good)[0]["fc7.weight"]
    _changed(path, good, **{"fc7.weight": np.ascontiguousarray(array[:-1])})
    return False


@odd("no mean", *BOTH)
def _(path, good):
    _changed(path, good, **{"input.mean" if path.suffix == BOTH[0] else "mean": None})
    return False


@odd("a mean without axes", *BOTH)
def _(path, good):
    name = "input.mean" if path.suffix == BOTH[0] else "mean"
    _changed(path, good, **{name: np.zeros((), np.float32)})
    return False


@odd("metadata without end", *BOTH)
def _(path, good):
    return _described(path, good, "[" * 100_000 + "]" * 100_000)


@odd("metadata with a configuration without end", *BOTH)
def _(path, good):
    return _described(path, good, '{"config":' + "[" * 100_000 + "]" * 100_000 + "}")


@odd("metadata with an integer of 400 digits", *BOTH)
def _(path, good):
    about = json.loads(_about(good))
    about["config"]["data"]["scale"] = 10**400
    return _described(path, good, json.dumps(about))


@odd("metadata with an integer of 5000 digits", *BOTH)
def _(path, good):
    return _described(path, good, '{"config": ' + "9" * 5000 + "}")


@odd("metadata with a NaN", *BOTH)
def _(path, good):
    about = json.loads(_about(good))
    about["config"]["data"]["scale"] = float("nan")
    return _described(path, good, json.dumps(about))


@odd("metadata that are a list", *BOTH)
def _(path, good):
    return _described(path, good, "[1]")


@odd("metadata with numbers for names", *BOTH)
def _(path, good):
    return _described(path, good, _about(good, class_names=[1, 2, 3]))


@odd("metadata with a word for names", *BOTH)
def _(path, good):
    return _described(path, good, _about(good, class_names="owl"))


@odd("metadata with too few names", *BOTH)
def _(path, good):
    return _described(path, good, _about(good, class_names=["cat"]))


@odd("metadata with a line break in a name", *BOTH)
def _(path, good):
    _described(path, good, _about(good, class_names=["cat", "dog", "o\nwl"]))
    return True


@odd("metadata with blue first", *BOTH)
def _(path, good):
    return _described(path, good, _about(good, colours="BGR"))


@odd("metadata with another network", *BOTH)
def _(path, good):
    about = json.loads(_about(good))
    about["config"]["model"]["activation"] = "tanh"
    _described(path, good, json.dumps(about))
    return path.suffix == ".safetensors"  # which has no graph that says otherwise


@odd("metadata with a module to import", *BOTH)
def _(path, good):
    about = json.loads(_about(good))
    about["config"]["imports"] = ["a_module_that_is_not_there"]
    return _described(path, good, json.dumps(about))


@odd("another library's network")
def _(path, good):
    save_file({"layer1.0.conv1.weight": np.zeros((64, 64, 3, 3), np.float32)}, path)
    return False


@odd("VGG with torchvision's names")
def _(path, good):
    save_file({"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, path)
    return False


@odd("names that leave the folder")
def _(path, good):
    save_file({"../../x": np.zeros(3, np.float32)}, path)
    return False


def _graph(path: Path, good: dict[str, Path], change) -> bool:
    model = onnx.load(good[".onnx"])
    change(model)
    path.write_bytes(model.SerializeToString())
    return False


def graph(name: str):
    def add(function):
        def make(path, good):
            return bool(_graph(path, good, function))

        WEIGHTS[f"{name}, .onnx"] = (".onnx", make)
        return function

    return add


@graph("Tanh for Relu")
def _(model):
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Tanh"


@graph("another stride")
def _(model):
    node = next(node for node in model.graph.node if node.op_type == "MaxPool")
    next(a for a in node.attribute if a.name == "strides").ints[:] = [1, 1]


@graph("another scale")
def _(model):
    for tensor in model.graph.initializer:
        if tensor.name.startswith("constant"):
            tensor.CopyFrom(numpy_helper.from_array(np.float32(7), tensor.name))


@graph("logits")
def _(model):
    model.graph.output[0].name = model.graph.node[-1].input[0]


@graph("two outputs")
def _(model):
    model.graph.output.append(
        helper.make_tensor_value_info(model.graph.node[4].output[0], TensorProto.FLOAT, None)
    )


@graph("opset 99")
def _(model):
    model.opset_import[0].version = 99


@graph("no graph")
def _(model):
    model.ClearField("graph")


@graph("nodes without weights")
def _(model):
    del model.graph.initializer[:]


@graph("a circle")
def _(model):
    del model.metadata_props[:]
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


@graph("no metadata")
def _(model):
    del model.metadata_props[:]


@graph("dimensions that say terabytes")
def _(model):
    for tensor in model.graph.initializer:
        if tensor.name == "fc7.weight":
            tensor.dims[:] = [2**31, 2**31]


@graph("an array of text")
def _(model):
    tensor = next(t for t in model.graph.initializer if t.name == "fc8.bias")
    tensor.CopyFrom(helper.make_tensor("fc8.bias", TensorProto.STRING, [3], [b"a", b"b", b"c"]))


def _outside(location: str):
    def change(model):
        for tensor in model.graph.initializer:
            external_data_helper.set_external_data(tensor, location, 0, len(tensor.raw_data))
            tensor.ClearField("raw_data")

    return change


for _name, _location in {
    "data at an absolute path": "/etc/passwd", "data above": "../data.bin", "no data": "gone.bin",
    "data without a name": "", "data from a device": "/dev/zero", "data in a folder": "..",
}.items():  # fmt: skip
    graph(_name)(_outside(_location))


@odd("data beside it", ".onnx")
def _(path, good):
    model, data = onnx.load(good[".onnx"]), b""
    for tensor in model.graph.initializer:
        length = len(tensor.raw_data)
        external_data_helper.set_external_data(tensor, f"{path.name}.data", len(data), length)
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    path.with_name(f"{path.name}.data").write_bytes(data)
    return True


@odd("Caffe's graph with weights that are shapes", ".onnx")
def _(path, good):
    light = Path(onnx.__file__).parent / "backend/test/data/light/light_bvlc_alexnet.onnx"
    path.write_bytes(light.read_bytes())
    return False


@odd("other networks of ONNX", ".onnx")
def _(path, good):
    light = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
    path.write_bytes(light.read_bytes())
    return False
