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
    text = "".join(output.get("text", "") for output in outputs)
    devices, error = re.search(r"pmap, (\d) devices; test error ([\d.]+)", text).groups()
    assert devices == "2" and float(error) < 0.5  # of ten digits; a guess is 0.9
    pictures = [o["data"]["image/svg+xml"] for o in outputs if "image/svg+xml" in o.get("data", {})]
    assert len(pictures) == 3 and all("<image" in p or "<path" in p for p in pictures)
