"""Model cards: what a run says about itself, and what nobody knows."""

import json

import numpy as np
import pytest

from alexnet_jax.analysis import card
from alexnet_jax.cli.main import main
from alexnet_jax.config import table
from alexnet_jax.weights.files import write
from tests.weights.test_weights import changed, network

NAMES = [f"kind {i}" for i in range(10)]
RESULT = {
    "steps": 123,
    "test": {"loss": 1.0, "top1_error": 0.125, "top5_error": 0.0312, "num_examples": 640},
    "validation": {"loss": 1.0, "top1_error": 0.5, "top5_error": 0.25, "num_examples": 64},
}


@pytest.fixture
def workdir(tmp_path):
    """A run that has ended, as its files say."""
    folder = tmp_path / "mine"
    folder.mkdir()
    write_config(folder)
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "classes.json").write_text(json.dumps(NAMES))
    (folder / "env.json").write_text(json.dumps({"packages": {"jax": "9.8.7"}}))
    return folder


def write_config(folder, **changes):
    given = {
        "data__source": "folder:/home/somebody/pets", "data__test_split": "test",
        "data__random_flip": False, "batch_size": 48, "seed": 7,
    }  # fmt: skip
    (folder / "config.json").write_text(changed(**given | changes).to_json())


def test_a_card_says_what_the_files_of_the_run_say(workdir):
    config, text = changed(), card.text(workdir)
    assert text.startswith("# mine\n") and text.count("\n# ") == 0
    counts = table.count(config.model, 32)
    for fact in (
        "2 towers", f"{sum(row.parameters for row in counts):,} parameters",
        "`folder:pets`", "split `train`; 10 % of it were held out", "Crops at random places.",
        "from random weights", "123 steps", "batches of 48, seed 7", "learning rate 0.01",
        "jax 9.8.7", "| test | 640 images | 1 | 12.50 % | 3.12 % |",
        "| validation | 64 images | 1 | 50.00 % | 25.00 % |",
        ", ".join(f'"{name}"' for name in NAMES), "The short side is scaled to 32 pixels (area",
        "the mean 78, 78, 78", "multiplied by 0.015625",
    ):  # fmt: skip
        assert fact in text, fact
    assert "/home/somebody" not in text and "mirrored" not in text


def test_a_card_says_what_else_a_run_did(workdir):
    write_config(
        workdir, init_from="/home/somebody/caffe.onnx", freeze=("conv1",), data__random_flip=True,
        data__validation_split="val", data__resize="stretch", data__colour__rule="paper",
    )  # fmt: skip
    text = card.text(workdir)
    for fact in (
        "weights of `caffe.onnx`, layers that stayed as they were: conv1", "mirrored at random",
        "the split `val` steered the run", "Both sides are scaled", "colour noise (rule `paper`)",
    ):  # fmt: skip
        assert fact in text, fact


def test_what_is_not_known_is_called_unknown(workdir, tmp_path):
    for name in ("result.json", "env.json"):
        (workdir / name).unlink()
    text = card.text(workdir)
    assert "Unknown: the run has not ended." in text and "An unknown number of steps" in text
    assert "Versions: unknown" in text and " % |" not in text
    _, found = network(changed(), np.full((32, 32, 3), 5, np.float32))
    write(found, tmp_path / "net.onnx")
    text = card.text(tmp_path / "net.onnx")
    assert "Unknown: a file of weights does not say how they were trained." in text
    assert "Unknown: a file of weights does not hold them." in text and "learning rate" not in text
    assert "the mean image of the training images" in text and '"class 9"' in text


def test_of_many_classes_the_first_are_listed(workdir):
    with_many = changed(model__num_classes=100, data__source="folder:PATH", data__test_split="test")
    (workdir / "config.json").write_text(with_many.to_json())
    (workdir / "classes.json").write_text(json.dumps([f"kind {i}" for i in range(100)]))
    text = card.text(workdir)
    assert '"kind 19", and 80 more.' in text and '"kind 20"' not in text


def test_the_command_writes_a_card(workdir, tmp_path, capsys):
    out = tmp_path / "README.md"
    assert main(["export", f"--workdir={workdir}", f"--out={out}"]) == 0
    assert out.read_text() == card.text(workdir)
    assert capsys.readouterr().out == f"wrote {out}\n"
    for arguments, says in (
        ([f"--workdir={workdir}", f"--out={tmp_path / 'none' / 'a.md'}"], "cannot write"),
        ([f"--workdir={workdir}", "--step=4", f"--out={out}"], "--step=4: a model card"),
        ([f"--workdir={tmp_path}", f"--out={out}"], "name a folder that `train` wrote"),
        ([f"--out={out}"], "give one of --workdir"),
    ):
        assert main(["export", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert says in err
