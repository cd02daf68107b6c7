"""Graphs that resize images themselves, run by onnxruntime, beside the pipeline and `predict`."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image
from sklearn.datasets import load_sample_images

from alexnet_jax.cli.main import main
from alexnet_jax.config import default
from alexnet_jax.data import decode
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.training import origin as trained
from alexnet_jax.weights import files
from alexnet_jax.weights.onnx_graph import to_graph
from tests.support import needs_data
from tests.weights.test_weights import changed, network, theirs

PHOTOS = load_sample_images().images
"""Two photographs of 427 x 640 pixels."""


def cuts(count, sides, seed=0):
    """Pieces of the photographs; `sides` draws the height and the width of each."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        photo, (height, width) = PHOTOS[number % 2], sides(rng)
        top = rng.integers(0, photo.shape[0] - height + 1)
        left = rng.integers(0, photo.shape[1] - width + 1)
        found.append(photo[top : top + height, left : left + width])
    return found


@pytest.fixture(scope="module")
def narrow():
    """A narrow network of the default layers, whose answers differ from image to image."""
    config = default()
    config.model.width, config.model.num_classes = 1 / 16, 20
    config.data.scale = 1 / 64
    return network(config)[1]


def session(model):
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def crops(model, images):
    """What the part of a graph that resizes makes of images, uint8 `[crop, crop, 3]` each."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, None))
    runs = session(model)
    found = [runs.run(["image"], {"pixels": image[None]})[0][0] for image in images]
    return [image.transpose(1, 2, 0) for image in found]


@pytest.mark.parametrize("resize", ["short_side", "stretch"])
@pytest.mark.parametrize("shrink", ["area", "bilinear", "triangle"])
def test_the_graph_resizes_as_the_pipeline_does(resize, shrink):
    """TensorFlow adds up in another order: where a sum is near a half, it may round otherwise."""
    config = changed(data__resize=resize, data__shrink=shrink, data__image_size=43)
    _, found = network(config)
    sizes = [(43, 43), (43, 61), (90, 43), (150, 200), (301, 70), (44, 43), (20, 30), (30, 99)]
    images = [cuts(1, lambda rng, size=size: size, seed)[0] for seed, size in enumerate(sizes)]
    square = decode.resizer(config.data)
    for image, got in zip(images, crops(to_graph(found, True), images), strict=True):
        expected = square(image)[5:37, 5:37].astype(float)
        difference = np.abs(got - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.003, image.shape
    np.testing.assert_array_equal(
        crops(to_graph(found, True), images[:1])[0], images[0][5:37, 5:37]
    )


def test_enlarged_far_from_the_corner_pixels_are_the_same():
    """The place of a pixel is rounded as TensorFlow rounds it: otherwise 128 values differ."""
    config = changed(data__image_size=256, data__crop_size=224)
    _, found = network(config)
    images = [PHOTOS[0][:190, :width] for width in (250, 350, 400, 427)]
    square = decode.resizer(config.data)
    wrong = [
        (got != square(image)[16:240, 16:240]).sum()
        for image, got in zip(images, crops(to_graph(found, True), images), strict=True)
    ]
    assert sum(wrong) < 10


def answers(names, probabilities):
    return [[names[i] for i in np.argsort(-row, kind="stable")[:5]] for row in probabilities]


def compared(column, folder, paths, pixels):
    """`predict` of files, beside both graphs in onnxruntime."""
    net = trained.of_column(column)
    expected = net.predict([str(path) for path in paths])
    net.save(folder / "plain.onnx")
    net.save(folder / "pixels.onnx", pixels=True)
    square, edge = decode.resizer(net.config.data), (256 - 224) // 2
    squares = np.stack([square(image) for image in pixels])
    plain = theirs(folder / "plain.onnx", squares[:, edge : edge + 224, edge : edge + 224])
    runs = session(onnx.load(folder / "pixels.onnx"))
    raw = np.concatenate([runs.run(None, {"pixels": image[None]})[0] for image in pixels])
    names = json.loads(runs.get_modelmeta().custom_metadata_map["classes"])
    assert len(paths) == 24 and np.ptp(expected.probabilities, axis=0).max() > 0.1
    np.testing.assert_allclose(plain, expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(raw, expected.probabilities, atol=1e-4)
    wanted = [[name for name, _ in best] for best in expected]
    assert answers(names, plain) == wanted and answers(names, raw) == wanted


def saved(folder, images):
    paths = [folder / f"{number:02}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_24_photographs_have_the_same_answers(narrow, tmp_path):
    """The files are lossless, and their short side is that of the run: nothing is resized."""
    pixels = cuts(24, lambda rng: (256, int(rng.integers(256, 400))))
    compared(narrow, tmp_path, saved(tmp_path, pixels), pixels)


def test_24_photographs_of_any_size_have_the_same_answers(narrow, tmp_path):
    """Half of them are enlarged, with the very numbers that TensorFlow computes with."""
    pixels = cuts(24, lambda rng: tuple(rng.integers(180, 428, 2)))
    compared(narrow, tmp_path, saved(tmp_path, pixels), pixels)


@needs_data
def test_24_photographs_in_jpeg_have_the_same_answers(narrow, tmp_path):
    source = open_source("tfds:imagenet2012", "validation")
    encoded, _ = source.read(np.arange(24))
    paths = [tmp_path / f"{number:02}.jpg" for number in range(24)]
    for path, content in zip(paths, encoded, strict=True):
        path.write_bytes(content)
    pixels = [decode.decode(content).numpy() for content in encoded]
    compared(narrow, tmp_path, paths, pixels)


def test_an_alpha_is_dropped_and_a_batch_has_one_size(narrow):
    pixels = np.stack(cuts(3, lambda rng: (270, 300)))
    runs = session(to_graph(narrow, True))
    (expected,) = runs.run(None, {"pixels": pixels})
    alpha = np.random.default_rng(0).integers(0, 256, (*pixels.shape[:3], 1), np.uint8)
    (transparent,) = runs.run(None, {"pixels": np.concatenate([pixels, alpha], 3)})
    np.testing.assert_array_equal(transparent, expected)
    for image, row in zip(pixels, expected, strict=True):
        np.testing.assert_allclose(runs.run(None, {"pixels": image[None]})[0][0], row, atol=1e-6)


def test_a_graph_says_what_it_takes_and_what_the_classes_are_called(narrow):
    for pixels, name, kind in (
        (False, "image", "tensor(float)"),
        (True, "pixels", "tensor(uint8)"),
    ):
        model = to_graph(narrow, pixels)
        (given,) = session(model).get_inputs()
        assert (given.name, given.type) == (name, kind)
        assert "R, G, B" in model.graph.input[0].doc_string
        assert "classes" in model.graph.output[0].doc_string
        texts = {prop.key: prop.value for prop in model.metadata_props}
        assert json.loads(texts["classes"]) == list(narrow.class_names)


def test_the_metadata_names_classes_as_predict_does():
    import dataclasses

    config = changed()
    _, found = network(config)
    for names, expected in (
        ((), [str(i) for i in range(10)]),
        (("n01440764", *"abcdefghi"), ["n01440764 tench", *"abcdefghi"]),
    ):
        model = to_graph(dataclasses.replace(found, class_names=names))
        texts = {prop.key: prop.value for prop in model.metadata_props}
        assert json.loads(texts["classes"]) == expected


def test_a_graph_that_resizes_is_read_and_checked(narrow, tmp_path, capsys):
    path = tmp_path / "net.onnx"
    files.write(narrow, path, pixels=True)
    again = files.read(path)
    assert again.config.to_dict() == narrow.config.to_dict()
    for name, array in narrow.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    model = onnx.load(path)
    for change, says in (
        (lambda nodes: nodes[1].attribute[0].__setattr__("i", 0), "ReduceMin"),
        (lambda nodes: nodes[2].input.__setitem__(1, nodes[2].input[0]), "connected otherwise"),
    ):
        other = onnx.ModelProto.FromString(model.SerializeToString())
        change(other.graph.node)
        onnx.save(other, path)
        with pytest.raises(UsageError, match=says):
            files.read(path)
        assert main(["predict", f"--weights={path}", str(tmp_path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_pixels_are_of_onnx_alone(narrow, tmp_path):
    for suffix in ("safetensors", "py"):
        with pytest.raises(UsageError, match=r"only an \.onnx file takes pixels"):
            files.write(narrow, tmp_path / f"net.{suffix}", pixels=True)
