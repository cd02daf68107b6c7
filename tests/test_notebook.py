"""The notebook, run from its first cell to its last."""

import builtins
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from PIL import Image
from sklearn.datasets import load_sample_image

import alexnet_jax

ROOT = Path(__file__).parents[1]
KEEP = """
import numpy
numpy.savez("shown.npz", *(axis.images[0].get_array() for axis in figure.axes))
"""


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)


def test_it_runs_anywhere_and_shows_what_the_networks_have(notebook, monkeypatch, tmp_path):
    # As for a reader: two devices, made by the notebook itself, and the package installed.
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (last,) = [n for n, cell in enumerate(notebook.cells) if "load_sample_image" in cell.source
               and cell.cell_type == "code"]  # fmt: skip
    notebook.cells.insert(last + 1, nbformat.v4.new_code_cell(KEEP))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if "data" in output]
    # Progress is all that is written besides what the cells show.
    errors = "".join(o["text"] for o in outputs if o.get("name") == "stderr").splitlines()
    assert errors.pop(0).startswith("pmap, 2 cpu devices; digits: ")
    assert errors and all(line.startswith("step ") for line in errors)
    (result,) = (data["text/plain"] for data in shown if "Result" in data["text/plain"])
    error = re.search(r"test error ([\d.]+)", result)[1]
    assert float(error) < 0.5  # of ten digits; a guess is 0.9
    pictures = [data["image/svg+xml"] for data in shown if "image/svg+xml" in data]
    assert len(pictures) == 3 and all("<image" in p or "<path" in p for p in pictures)
    assert len([data for data in shown if "image/png" in data]) == 2

    network = alexnet_jax.load("imagenette")
    pixels = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((384, 256)))
    with np.load(tmp_path / "shown.npz") as arrays:
        maps = list(arrays.values())
    assert shown[-1]["text/plain"] == repr(network.predict(pixels[None]))
    assert len(maps) == 24
    for row, layer in enumerate(("conv1", "conv2", "conv5")):
        features = network.features(pixels[None], layer)[0]
        for tower, channels in enumerate(np.split(features, 2, axis=-1)):
            strongest = sorted(np.moveaxis(channels, -1, 0), key=np.max)[:-5:-1]
            first = 8 * row + 4 * tower
            for drawn, expected in zip(maps[first : first + 4], strongest, strict=True):
                np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("installed", [True, False])
def test_its_first_cell_installs_the_package_only_where_there_is_none(
    notebook, monkeypatch, installed
):
    commands, real = [], builtins.__import__

    class Shell:
        def run_line_magic(self, *command):
            commands.append(command)

    def importing(name, *rest):
        if name == "alexnet_jax" and not (installed or commands):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    (first, *_) = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    monkeypatch.setattr(builtins, "__import__", importing)
    names = {"get_ipython": Shell}
    exec(TransformerManager().transform_cell(first), names)
    assert names["alexnet_jax"] is alexnet_jax
    assert commands == ([] if installed else [("pip", "install --quiet ..")])
