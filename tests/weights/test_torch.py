"""Exported PyTorch modules in PyTorch, which `make test-torch` installs beside the project."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import decode
from alexnet_jax.training import origin as trained
from alexnet_jax.weights.files import write
from tests.weights.test_pixels import PHOTOS, answers, cuts, narrow, saved
from tests.weights.test_torch_module import NETWORKS, column_of
from tests.weights.test_weights import ours

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "benchmarks" / ".venv" / "bin" / "python"

__all__ = ["narrow"]  # a fixture

pytestmark = pytest.mark.torch


def torch_side(folder):
    command = [PYTHON, Path(__file__).with_name("torch_side.py"), folder]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """For each network: its column, its images, and what PyTorch made of them, in one process."""
    folder = tmp_path_factory.mktemp("exported")
    rng, columns = np.random.default_rng(1), {}
    for number, name in enumerate(NETWORKS):
        found = columns[name] = column_of(name)
        crop = found.config.data.crop_size
        images = rng.integers(0, 256, (4, crop, crop, 3), np.uint8)
        write(found, folder / f"net{number}.py")
        photo = PHOTOS[number % 2][:, : 300 + 40 * number]
        np.savez(folder / f"net{number}.npz", images=images, photo0=photo)
    torch_side(folder)
    return {
        name: (
            columns[name],
            np.load(folder / f"net{number}.npz"),
            np.load(folder / f"net{number}.out.npz"),
        )
        for number, name in enumerate(NETWORKS)
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_probabilities_are_the_same(name, done):
    found, given, out = done[name]
    net = trained.of_column(found)
    expected = np.asarray(net(given["images"]))
    assert np.ptp(expected, axis=0).max() > (1e-5 if "sigmoid" in name else 0.1)
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out["float"], out["logits"])
    powers = np.exp(out["logits"] - out["logits"].max(1, keepdims=True))
    probabilities = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, ours(found, given["images"]), atol=1e-5)
    assert tuple(out["classes"]) == found.class_names


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_is_resized_as_by_the_pipeline(name, done):
    found, given, out = done[name]
    data = found.config.data
    edge = (data.image_size - data.crop_size) // 2
    inside = slice(edge, edge + data.crop_size)
    expected = decode.resizer(data)(given["photo0"])[inside, inside].astype(float)
    difference = np.abs(out["crop of photo0"].transpose(1, 2, 0) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains(name, done):
    """Dropout draws anew, running statistics move, and every parameter has a gradient."""
    found, _, out = done[name]
    model = found.config.model
    then = [op for layer in model.layer_order for op in model.layers[layer].then]
    drops = "dropout" in then and model.dropout.rate > 0
    assert np.array_equal(*out["training"]) != (drops or "batch_norm" in then)
    moved = {str(name).rpartition(".")[2] for name in out["moved"]}
    assert moved == ({"mean", "variance"} if "batch_norm" in then else set())
    assert not out["without_gradient"].size


def test_24_photographs_have_the_same_answers(narrow, tmp_path):
    """As `test_pixels.py` says of the graphs: files that are not resized."""
    pixels = cuts(24, lambda rng: (256, int(rng.integers(256, 400))))
    net = trained.of_column(narrow)
    expected = net.predict([str(path) for path in saved(tmp_path, pixels)])
    write(narrow, tmp_path / "net.py")
    photos = {f"photo{number}": image for number, image in enumerate(pixels)}
    np.savez(tmp_path / "net.npz", images=np.zeros((1, 224, 224, 3), np.uint8), **photos)
    torch_side(tmp_path)
    out = np.load(tmp_path / "net.out.npz")
    found = np.stack([out[f"probabilities of photo{number}"] for number in range(24)])
    np.testing.assert_allclose(found, expected.probabilities, atol=1e-4)
    wanted = [[name for name, _ in best] for best in expected]
    assert answers([str(name) for name in out["classes"]], found) == wanted


def test_the_example_of_the_page_runs_as_it_stands(tmp_path):
    net = trained.of_column(column_of("article"))
    net.save(tmp_path / "mine.py")
    Image.fromarray(PHOTOS[0][:32, :40]).save(tmp_path / "photo.png")  # Nothing is rounded.
    page = (ROOT / "docs" / "pytorch.md").read_text()
    (code, _) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)  # Then the way back.
    code = code.replace("photo.jpg", "photo.png")
    ran = subprocess.run(
        [PYTHON, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    printed = [line.rpartition(" ") for line in ran.stdout.splitlines()]
    expected = net.predict(tmp_path / "photo.png")[0]
    assert [name for name, _, _ in printed] == [name for name, _ in expected]
    assert [float(p) for _, _, p in printed] == pytest.approx([p for _, p in expected], abs=1e-5)
