"""What is said of which image file: their order, their views, and the five best."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.cli.main import main
from alexnet_jax.data import image_files
from alexnet_jax.data.sources import open_source
from alexnet_jax.errors import UsageError
from alexnet_jax.training import origin as trained
from alexnet_jax.training.predictions import Writer
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


def test_an_image_that_cannot_be_read_is_named(exported, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    found, _ = exported
    with pytest.raises(UsageError, match=r"text\.png"):
        found.predict([tmp_path / "text.png"])


def kinds(root, photographs):
    """Images and what is none of them, by name; a folder with more of both."""
    for number, path in enumerate(photographs[:3]):
        (root / f"{number}.png").write_bytes(path.read_bytes())
    (root / "below" / "deeper").mkdir(parents=True)
    (root / "below" / "deeper" / "4.png").write_bytes(photographs[4].read_bytes())
    (root / "linked").symlink_to(root / "below", target_is_directory=True)
    (root / "below" / "notes.txt").write_text("text")
    (root / "none").mkdir()
    (root / "empty.png").touch()
    (root / "large.png").write_bytes((root / "1.png").read_bytes())
    Image.new("1", (500, 500)).save(root / "large.png")
    (root / "text.jpg").write_text("text")
    (root / "gone.png").symlink_to("nowhere")
    (root / "readme.md").write_text("text")


BAD = {
    "empty.png": "the file is empty",
    "large.png": "250000 pixels, more than .*; --max_pixels=N allows more",
    "text.jpg": "not a JPEG",
    "gone.png": "cannot read .*: No such file",
}
GOOD = ["0.png", "1.png", "2.png", "below/deeper/4.png", "linked/deeper/4.png"]


@pytest.mark.parametrize(
    ("typed", "answered", "named"),
    [
        (["0.png", "empty.png", "1.png"], GOOD[:2], {"empty.png": BAD["empty.png"]}),
        (["0.png", "none.png", "1.png"], GOOD[:2], {"none.png": "no such file, folder or"}),
        (["none", "0.png"], GOOD[:1], {"none": "holds no images"}),
        (["readme.md", "2.png"], GOOD[2:3], {"readme.md": "not a JPEG"}),
        ([*BAD, "0.png"], GOOD[:1], BAD),
        ([*BAD], [], BAD),
        (["*"], GOOD, BAD),
        (["."], GOOD, BAD),
        (["**"], GOOD, BAD),
        (["**/*.png"], GOOD, {name: BAD[name] for name in BAD if name.endswith("png")}),
        (["[0-9].png"], GOOD[:3], {}),
        (["--max_pixels=250000", "large.png", "0.png"], ["large.png", "0.png"], {}),
    ],
)
def test_one_bad_file_costs_one_line_and_an_exit_code(
    exported, photographs, tmp_path, capsys, monkeypatch, typed, answered, named
):
    found, path = exported
    kinds(tmp_path, photographs)
    monkeypatch.chdir(tmp_path)
    found.config.data.max_pixels = 100_000
    found.config.evaluate.batch_size = 2  # One program is compiled for all numbers of files.
    monkeypatch.setattr(trained, "load", lambda *args, **kwargs: found)
    code = main(["predict", f"--weights={path}", "--format=json", *typed])
    written = capsys.readouterr()
    rows = [json.loads(line) for line in written.out.splitlines()]
    assert sorted(row["image"] for row in rows) == sorted(answered)
    for row in rows:
        if not row["image"].startswith("large"):
            (expected,) = found.predict([photographs[int(row["image"][-5])]]).probabilities.max(1)
            assert row["best"][0]["probability"] == pytest.approx(expected, abs=1e-6)
    lines = written.err.splitlines()
    assert code == (2 if named else 0) and len(lines) == len(named)
    for name, reason in named.items():
        (line,) = [line for line in lines if re.match(rf"error: .*{re.escape(name)}", line)]
        assert re.search(reason, line) and "replace" not in line and "--config" not in line


def test_the_images_below_a_folder_are_those_of_a_run(tmp_path, photographs):
    """Of linked class folders as of others, and without hidden ones."""
    for split in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            place = tmp_path / "D" / split / name
            if split == "test":
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(tmp_path / "D" / "train" / name)
                continue
            place.mkdir(parents=True)
            for file in photographs[number::2]:
                (place / file.name).symlink_to(file)
            (place / f"._{photographs[0].name}").write_text("half of a file")
            (place / "around").symlink_to(place, target_is_directory=True)
    of_run = [open_source(f"folder:{tmp_path / 'D'}", split) for split in ("train", "test")]
    expected = sorted(file for source in of_run for file in source.files)
    found = image_files.image_paths([str(tmp_path / "D")])
    assert sorted(map(str, found)) == expected and len(expected) == 22


def test_a_run_that_replaces_unreadable_images_names_them_in_predictions(exported, tmp_path):
    found, _ = exported
    found = dataclasses.replace(found, config=found.config.copy_and_resolve_references())
    found.config.data.max_unreadable = 5
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UsageError, match=r"text\.png"):
        found.predict([tmp_path / "text.png"])


@pytest.mark.parametrize("form", ["text", "table", "json", "csv"])
def test_names_of_files_that_are_not_text_are_printed(form):
    path = Path(os.fsdecode(b"caf\xe9.png"))
    row = Writer(form, [path], ()).row(path, np.array([0.25, 0.75])).encode()
    if form == "json":
        assert os.fsencode(json.loads(row)["image"]) == b"caf\xe9.png"
    else:
        assert row.startswith(b"caf\\xe9.png")
