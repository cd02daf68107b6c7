"""The notebook, run from its first cell to its last."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_it_trains_the_small_network_and_shows_its_kernels(monkeypatch):
    # As for a reader: two devices, made by the notebook itself.
    monkeypatch.delenv("XLA_FLAGS")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}})
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
    assert "image/png" in shown[-1]
