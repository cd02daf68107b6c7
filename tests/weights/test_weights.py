"""Weights in and out, against onnxruntime, Caffe's own graph and PyTorch's layout."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

from alexnet_jax.cli.main import main
from alexnet_jax.config import default, presets
from alexnet_jax.data.classes import imagenet_classes, shown_name
from alexnet_jax.data.sources.folder import Folder
from alexnet_jax.errors import UsageError
from alexnet_jax.model.tower import build_tower, draw_parameters
from alexnet_jax.training import origin as trained
from alexnet_jax.training.loop import train_and_evaluate
from alexnet_jax.weights import caffe, torchvision
from alexnet_jax.weights.column import Column, from_towers
from alexnet_jax.weights.files import read, write
from tests.support import png_folder, tiny_config
from tests.training.test_train import short_config
from tests.weights.test_onnx_reference import GRAPH


def lively(config, seed=0):
    """Parameters of such a size that every layer and both towers matter."""
    params = draw_parameters(build_tower(config.model), seed, config.data.crop_size)
    rng = np.random.default_rng(seed)
    for leaves in params.values():
        kernel = leaves["kernel"]
        kernel *= np.sqrt(2 / np.prod(kernel.shape[1:-1])) / kernel.std()
        leaves["bias"] += rng.normal(0, 0.1, leaves["bias"].shape).astype(np.float32)
    last = params[config.model.layer_order[-1]]["bias"]
    last[1:] = last[0]
    return params


def changed(**changes):
    config = tiny_config()
    config.model.width = 1 / 8
    config.data.scale = 1 / 64
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


CONFIGS = {
    "article": {},
    "lrn across the seam": {
        "model__lrn__across_towers": True, "model__lrn__alpha_divided_by_size": True,
        "model__lrn__alpha": 0.02, "model__lrn__k": 1.0,
    },
    "one tower, tanh": {"model__towers": 1, "model__activation": "tanh"},
    "sigmoid, dropout scaled in tests": {
        "model__activation": "sigmoid", "model__dropout__rescaled_in_training": False,
        "model__dropout__rate": 0.2,
    },
    "no exchange, rows split": {
        "model__layers__conv3__exchange": "none", "model__layers__fc6__exchange": "partial_sums",
        "model__layers__fc7__exchange": "none",
    },
    "means and a norm within maps": {
        "model__layers__conv1__then": ("activation", "avg_pool", "within_map_norm"),
        "model__layers__conv2__then": ("within_map_norm", "activation", "max_pool"),
        "model__within_map_norm__alpha": 0.5,
    },
    "even windows within maps": {
        "model__within_map_norm__size": 4, "model__within_map_norm__alpha": 0.5,
        "model__layers__conv2__then": ("within_map_norm", "activation", "max_pool"),
    },
    "lrn off, apart pools": {"model__lrn__enabled": False, "model__pool__window": 2},
}  # fmt: skip


def network(config, mean=None):
    params = lively(config)
    mean = np.float32(config.data.channel_mean) if mean is None else mean
    names = tuple(f"class {i}" for i in range(config.model.num_classes))
    found = from_towers(config, {"params": params}, mean, names)
    return params, found


def ours(found, images_BxSxSx3):
    """Probabilities by JAX, of whole uint8 images as big as the crop."""
    from alexnet_jax import parallel
    from alexnet_jax.training import evaluate
    from tests.support import placement_of

    net = trained.of_column(found)
    placement = placement_of("vmap")
    step = evaluate.make_predict_step(net.tower, net.inputs, placement, 1)
    return np.asarray(
        parallel.to_host(step(placement.put_towers(net.variables), {"image": images_BxSxSx3}))[0]
    )


def theirs(path, images_BxHxWx3):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = images_BxHxWx3.astype(np.float32).transpose(0, 3, 1, 2)
    return session.run(["probabilities"], {"image": image})[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_onnxruntime_gives_the_same_probabilities(name, tmp_path):
    config = changed(**CONFIGS[name])
    params, found = network(config)
    write(found, tmp_path / "net.onnx")
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    expected = ours(found, images)
    # They do depend on the image, though sigmoids let little of it through.
    assert np.ptp(expected, axis=0).max() > (0 if "sigmoid" in name else 0.01)
    np.testing.assert_allclose(theirs(tmp_path / "net.onnx", images), expected, atol=1e-5)
    # And back, from both forms.
    write(found, tmp_path / "net.safetensors")
    for suffix in ("onnx", "safetensors"):
        again = read(tmp_path / f"net.{suffix}")
        assert again.config.to_dict() == config.to_dict()
        assert again.class_names == found.class_names
        np.testing.assert_array_equal(again.mean, found.mean)
        restored = again.towers["params"]
        for layer, leaves in params.items():
            for part, value in leaves.items():
                np.testing.assert_array_equal(restored[layer][part], value, err_msg=layer)


def test_a_mean_image_travels_along(tmp_path):
    config = changed()
    mean = np.random.default_rng(0).uniform(50, 200, (32, 32, 3)).astype(np.float32)
    _, found = network(config, mean)
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for suffix in ("onnx", "safetensors"):
        write(found, tmp_path / f"net.{suffix}")
        again = read(tmp_path / f"net.{suffix}")
        np.testing.assert_array_equal(again.mean, mean)
        np.testing.assert_array_equal(ours(again, images), ours(found, images))
    np.testing.assert_allclose(
        theirs(tmp_path / "net.onnx", images), ours(found, images), atol=1e-5
    )


def caffes_graph(seed, norm):
    """The public graph of others, with random weights for its constants; input as it runs, 227.

    `norm` holds the attributes of its LRN nodes. fc7 has its weights the other way round.
    """
    model = onnx.load(GRAPH)
    graph, rng = model.graph, np.random.default_rng(seed)
    shapes = {node.output[0]: None for node in graph.node[:16]}
    known = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    for node in (node for node in graph.node if node.op_type == "LRN"):
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in norm.items())
    next(a for a in layers[6].attribute if a.name == "transB").i = 0
    made = {}
    sizes = iter([(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3),
                  (256, 192, 3, 3), (4096, 9216), (4096, 4096), (1000, 4096)])  # fmt: skip
    for node in layers:
        size = next(sizes)
        deviation = np.sqrt(2 / np.prod(size[1:]))
        weight = rng.normal(0, deviation, size).astype(np.float32)
        made[node.input[1]] = np.ascontiguousarray(weight.T) if node is layers[6] else weight
        made[node.input[2]] = rng.normal(0, 0.1, size[0]).astype(np.float32)
    assert shapes.keys() == made.keys() and "data_0" in known
    del graph.node[:16]
    keep = {"OC2_DUMMY_1": np.array([-1, 9216], np.int64)} | made
    del graph.initializer[:]
    for name, value in keep.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    del graph.input[1:]
    for dimension, side in zip(
        graph.input[0].type.tensor_type.shape.dim, (2, 3, 227, 227), strict=True
    ):
        dimension.dim_value = side
    pool5 = next(node for node in graph.node if node.output[0] == "r14")
    next(a for a in pool5.attribute if a.name == "pads").ints[:] = [0, 0, 0, 0]
    graph.output[0].type.tensor_type.ClearField("shape")
    model.ir_version = 4
    return model


def test_caffes_graph_imports_and_predicts_as_onnxruntime_does(tmp_path):
    """In Caffe's own convention there: B, G, R less the mean of each colour."""
    path = tmp_path / "bvlcalexnet.onnx"
    onnx.save(caffes_graph(0, dict(size=3, alpha=0.3, beta=0.5, bias=1.5)), path)
    found = read(path)
    assert found.config.model.lrn.across_towers and len(found.class_names) == 1000
    assert found.config.data.resize == "stretch" and found.config.data.shrink == "bilinear"
    images = np.random.default_rng(1).integers(0, 256, (2, 227, 227, 3), np.uint8)
    found.config.data.image_size = 227
    blue_first = (images.astype(np.float32) - np.float32(caffe.MEAN))[..., ::-1]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (output.name for output in session.get_outputs())
    data = np.ascontiguousarray(blue_first.transpose(0, 3, 1, 2))
    expected = session.run([name], {"data_0": data})[0].reshape(2, 1000)
    assert np.ptp(expected[0] - expected[1]) > 1e-4
    np.testing.assert_allclose(ours(found, images), expected, atol=1e-5)


def torch_forward(arrays, image_3x224x224):
    """torchvision's AlexNet in NumPy, from its source: an independent reading of its layout."""

    def conv(x, weight, bias, stride, pad):
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        k = weight.shape[-1]
        views = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::stride, ::stride]
        return np.einsum("cyxij,ocij->oyx", views, weight, optimize=True) + bias[:, None, None]

    def pool(x):
        return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))

    x = image_3x224x224
    for number, stride, pad, pools in (
        (0, 4, 2, 1),
        (3, 1, 2, 1),
        (6, 1, 1, 0),
        (8, 1, 1, 0),
        (10, 1, 1, 1),
    ):
        weight, bias = arrays[f"features.{number}.weight"], arrays[f"features.{number}.bias"]
        x = np.maximum(conv(x, weight, bias, stride, pad), 0)
        x = pool(x) if pools else x
    x = x.reshape(-1)
    for number in (1, 4, 6):
        x = arrays[f"classifier.{number}.weight"] @ x + arrays[f"classifier.{number}.bias"]
        x = np.maximum(x, 0) if number != 6 else x
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def test_torchvisions_alexnet_imports(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"features.0": (64, 3, 11, 11), "features.3": (192, 64, 5, 5),
              "features.6": (384, 192, 3, 3), "features.8": (256, 384, 3, 3),
              "features.10": (256, 256, 3, 3), "classifier.1": (4096, 9216),
              "classifier.4": (4096, 4096), "classifier.6": (1000, 4096)}  # fmt: skip
    arrays = {}
    for name, shape in shapes.items():
        deviation = np.sqrt(2 / np.prod(shape[1:]))
        arrays[f"{name}.weight"] = rng.normal(0, deviation, shape).astype(np.float32)
        arrays[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    save_file(arrays, tmp_path / "alexnet.safetensors")
    found = read(tmp_path / "alexnet.safetensors")
    assert found.class_names == imagenet_classes()
    assert found.config.data.resize == "short_side" and found.config.data.shrink == "triangle"
    found.config.data.image_size = 224
    image = rng.integers(0, 256, (1, 224, 224, 3), np.uint8)
    seen = (image[0] / 255 - torchvision.MEAN) / torchvision.STD
    expected = torch_forward(arrays, seen.transpose(2, 0, 1))
    np.testing.assert_allclose(ours(found, image)[0], expected, atol=1e-5)


def test_a_folder_trains_predicts_exports_runs_and_comes_back(tmp_path, capsys, monkeypatch):
    """The whole way round by the command line: the same probabilities to 1e-5 at every stage."""
    from alexnet_jax.cli import main as command_line

    monkeypatch.setattr(command_line, "_start", lambda config: None)
    config = short_config()
    config.data.source = f"folder:{png_folder(tmp_path / 'images', 64, test=10)}"
    config.placement, config.optimizer.learning_rate, config.num_epochs = "vmap", 0.03, 4.0
    train_and_evaluate(config, tmp_path / "run")
    images = str(tmp_path / "images" / "test")

    def predicted(*source):
        capsys.readouterr()
        assert main(["predict", *source, "--format=json", images]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return {row["image"]: {b["class"]: b["probability"] for b in row["best"]} for row in rows}

    expected = predicted(f"--workdir={tmp_path / 'run'}")
    assert len(expected) == 10 and all(len(best) == 5 for best in expected.values())
    onnx_file, again = tmp_path / "net.onnx", tmp_path / "again.safetensors"
    assert main(["export", f"--workdir={tmp_path / 'run'}", f"--out={onnx_file}"]) == 0
    assert main(["import", f"--weights={onnx_file}", f"--out={again}"]) == 0
    for file in (onnx_file, again):
        for image, best in predicted(f"--weights={file}").items():
            assert best == pytest.approx(expected[image], abs=1e-5)
    source = Folder("", "", (), tuple(map(Path, expected)), np.zeros(10, np.int32))
    squares, _ = source.squares(config.data)(np.arange(10))
    runtime = theirs(tmp_path / "net.onnx", squares)
    for probabilities, best in zip(runtime, expected.values(), strict=True):
        assert sorted(best.values()) == pytest.approx(sorted(probabilities)[-5:], abs=1e-5)


def relu_alone():
    pixels, out = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    node = helper.make_node("Relu", ["x"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", [pixels], [out])).SerializeToString()


@pytest.mark.parametrize(
    "name,content,says",
    [
        ("net.pth", b"x", "use one of .safetensors, .onnx"),
        ("net.safetensors", b"", "not a network"),
        ("net.safetensors", b"\xff" * 64, "not a network"),
        ("net.onnx", b"\x08\xff\xff", "not an? "),
        ("net.onnx", b"", "holds no graph"),
        ("net.onnx", relu_alone(), "not Caffe's AlexNet: x is "),
    ],
)
def test_what_is_no_network_is_named(tmp_path, name, content, says, capsys):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{tmp_path / name}.*{says}"):
        read(tmp_path / name)
    assert main(["predict", f"--weights={tmp_path / name}", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_weights_that_do_not_fit_are_named(tmp_path):
    config = changed()
    _, found = network(config)
    for name, value, says in (
        ("fc7.weight", None, "fc7.weight is missing"),
        (
            "conv2.bias",
            np.zeros(3, np.float32),
            r"conv2.bias is \(3,\), and the network's is \(32,\)",
        ),
    ):
        arrays = {k: v for k, v in found.arrays.items() if k != name}
        arrays |= {} if value is None else {name: value}
        broken = Column(config, arrays, found.mean, found.class_names)
        write(broken, tmp_path / "net.safetensors")
        with pytest.raises(UsageError, match=says):
            read(tmp_path / "net.safetensors")
    save_file({"x": np.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(UsageError, match="neither written by `export` nor torchvision"):
        read(tmp_path / "net.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "onnx", "pth"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, suffix):
    _, found = network(changed())
    with pytest.raises(UsageError, match=str(tmp_path / "none")):
        write(found, tmp_path / "none" / f"net.{suffix}")


def test_a_local_layer_cannot_be_exported():
    from alexnet_jax.config.networks import convnet

    config = default()
    with config.unlocked():
        config.model = convnet("13pct")
    config.data.crop_size = 24
    with pytest.raises(UsageError, match="local3: a local layer"):
        network(config)


def test_the_classes_of_imagenet_are_in_the_order_of_their_numbers():
    names = imagenet_classes()
    numbers = [name.partition(" ")[0] for name in names]
    assert len(set(numbers)) == 1000 and numbers == sorted(numbers)
    assert names[0] == "n01440764 tench" and names[999] == "n15075141 toilet tissue"
    assert shown_name("n01440764") == "n01440764 tench"
    assert shown_name("cat") == "cat"
    assert presets.get("caffe").model.num_classes == 1000
