"""What is said of which image file: their order, their views, and the five best."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.errors import UsageError
from alexnet_jax.training import origin as trained
from alexnet_jax.training.predictions import as_json, as_text
from alexnet_jax.weights.files import write
from tests.weights.test_weights import changed, network, theirs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Eleven pictures of noise, which are squares of the right size already."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    paths = [root / f"{number}.png" for number in range(11)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network that cuts 32 pixels out of 40, and the same as ONNX."""
    _, found = network(changed(data__image_size=40))
    path = tmp_path_factory.mktemp("network") / "net.onnx"
    write(found, path)
    return trained.of_column(found), path


def cut(image, views):
    """Section 4.1's five crops and their mirrors; cuda-convnet's grid of nine; or the centre."""
    places = {
        1: [(4, 4)],
        9: [(top, left) for top in (0, 4, 8) for left in (0, 4, 8)],
        10: [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)],
    }
    crops = np.stack([image[top : top + 32, left : left + 32] for top, left in places[views]])
    return np.concatenate([crops, crops[:, :, ::-1]]) if views == 10 else crops


@pytest.mark.parametrize(
    ("placement", "views"), [("vmap", 1), ("vmap", 9), ("vmap", 10), ("mesh", 1)]
)
def test_each_image_gets_the_mean_of_its_views_by_onnxruntime(
    photographs, exported, placement, views
):
    found, path = exported
    found = dataclasses.replace(found, placement=placement)
    found.config.evaluate.batch_size = 4 * views  # twelve images are three batches
    asked = [photographs[i] for i in (7, 2, 9, 0, 10, 2, 1, 8, 3, 6, 5, 4)][: 11 + (views > 1)]
    answers = list(found.predictions(asked, views))
    assert [name for name, _ in answers] == asked
    expected = np.stack(
        [theirs(path, cut(np.asarray(Image.open(p)), views)).mean(0) for p in asked]
    )
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose([p for _, p in answers], expected, atol=1e-5)


def test_answers_are_written_for_programs_and_for_people():
    found = [(7, "cat", 0.875), (2, "dog", 0.0625)]
    row = json.loads(as_json(Path("a/b.png"), found))
    assert row == {
        "image": "a/b.png",
        "best": [{"class": "cat", "probability": 0.875}, {"class": "dog", "probability": 0.0625}],
    }
    assert as_text(Path("a/b.png"), found) == "a/b.png\n   87.5 %  cat\n    6.2 %  dog"


def test_an_image_that_cannot_be_read_is_named(exported, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    found, _ = exported
    with pytest.raises(UsageError, match=r"text\.png"):
        found.predict([tmp_path / "text.png"])
