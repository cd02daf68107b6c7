"""Odd folders, images, files of weights and environments: `python -m tests.odd` in full."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.odd import folders, images, weights

ROOT = Path(__file__).parents[2]


def test_there_are_as_many_as_is_said():
    made = list(images.images())
    assert len(folders.FOLDERS) >= 30 and len(weights.WEIGHTS) >= 40 and len(made) >= 200
    readable = sum(images.truth(content) is not None for _, _, content in made)
    assert 100 < readable < len(made) - 50


@pytest.mark.parametrize("kind", ["folders", "images", "weights", "environments"])
def test_every_verb_answers_rightly_or_with_one_line(kind, tmp_path):
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "tests.odd", kind, f"--out={page}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-5000:] + done.stderr[-2000:]
