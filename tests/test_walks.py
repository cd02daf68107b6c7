"""The walks of docs/walks.md, typed as they stand there, each from an empty folder."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

ROOT = Path(__file__).parents[1]
SECTIONS = (ROOT / "docs" / "walks.md").read_text().split("\n## ")[1:]
KINDS = ("circle", "cross", "ring", "square", "triangle")


def walk(reader, folder):
    """Types the blocks of a reader's section in a shell, in their order; returns what each wrote.

    A block of Python is saved under its title.
    """
    (section,) = (text for text in SECTIONS if text.startswith(reader))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),  # as if the package were installed
    }
    environment.pop("XLA_FLAGS", None)  # as for a reader: the program asks for two devices
    written = []
    for info, block in re.findall(r"^```([^\n]*)\n(.*?)^```$", section, re.M | re.S):
        if info:
            name = re.fullmatch(r'python title="(\w+\.py)"', info)[1]
            (folder / name).write_text(block)
            continue
        done = subprocess.run(
            ["bash", "-ec", block], cwd=folder, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stderr[-2000:])
        written.append(done.stdout)
    return written


def test_every_walk_is_taken():
    readers = {section.partition(":")[0] for section in SECTIONS}
    assert readers == {"A student", "A researcher", "An engineer"}


def test_a_student_trains_and_reads_two_pages(tmp_path):
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "photo.jpg")
    trained, _, _ = walk("A student", tmp_path)
    run = tmp_path / "runs" / "quickstart"
    error = json.loads((run / "result.json").read_text())["test"]["top1_error"]
    assert error < 0.04
    assert f"{1 - error:.1%}".replace("%", " %") + " right on 360 test images" in trained
    assert "360" in (run / "report.html").read_text()
    page = (tmp_path / "photo.html").read_text()
    assert all(name in page for name in ("conv1", "conv5", "fc6", "fc8", "church", "LRN"))


def test_a_researcher_compares_three_variants_with_two_seeds(tmp_path):
    (table,) = walk("A researcher", tmp_path)
    folder = tmp_path / "runs" / "digits"
    with open(folder / "table.csv", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"base", "no-lrn", "no-crops"}
    assert "did not train" not in table
    for name, row in rows.items():
        results = [folder / name / f"seed-{seed}" / "result.json" for seed in (0, 1)]
        errors = [100 * json.loads(path.read_text())["test"]["top1_error"] for path in results]
        assert [float(row[f"seed_{seed}"]) for seed in (0, 1)] == pytest.approx(errors, rel=1e-4)
        assert f"| {name} | {np.mean(errors):.2f} | {np.std(errors, ddof=1):.2f} | 2 |" in table
    page = (folder / "report.html").read_text()
    assert all(name in page for name in rows)
    assert "The figure of the study" in page and "Curves of all variants" in page


def shapes(folder):
    """150 photographs, as it were: a shape on a ground, both of any colour, under noise."""
    rng = np.random.default_rng(0)
    for number in range(150):
        kind = KINDS[number % 5]
        width, height = map(int, rng.integers(120, 220, 2))
        ground, colour = (tuple(map(int, rng.integers(*e, 3))) for e in ((0, 120), (140, 256)))
        image = Image.new("RGB", (width, height), ground)
        draw, r = ImageDraw.Draw(image), min(width, height) * rng.uniform(0.25, 0.4)
        x, y = width * rng.uniform(0.4, 0.6), height * rng.uniform(0.4, 0.6)
        box = (x - r, y - r, x + r, y + r)
        if kind == "circle":
            draw.ellipse(box, fill=colour)
        elif kind == "ring":
            draw.ellipse(box, outline=colour, width=int(r / 4))
        elif kind == "square":
            draw.rectangle(box, fill=colour)
        elif kind == "triangle":
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
        else:
            draw.rectangle((x - r, y - r / 4, x + r, y + r / 4), fill=colour)
            draw.rectangle((x - r / 4, y - r, x + r / 4, y + r), fill=colour)
        pixels = np.asarray(image) + rng.normal(0, 15, (height, width, 3))
        place = folder / kind / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels.clip(0, 255))).save(place)


def test_an_engineer_gets_the_same_classes_from_onnxruntime(tmp_path):
    shapes(tmp_path / "photos")
    trained, predicted, _, classified = walk("An engineer", tmp_path)
    right = float(re.search(r"([\d.]+) % right on 30 test images", trained)[1])
    assert right > 60  # a guess is 20
    line = re.compile(r"^(photos/\S+)\s+([\d.]+) ?%\s+(\w+)", re.M)
    ours, theirs = ({p: (c, float(n)) for p, n, c in line.findall(text)}
                    for text in (predicted, classified))  # fmt: skip
    assert len(ours) == 150 and {kind for kind, _ in ours.values()} == set(KINDS)
    assert {path: kind for path, (kind, _) in ours.items()} == {
        path: kind for path, (kind, _) in theirs.items()
    }
    assert all(abs(ours[path][1] - theirs[path][1]) < 0.2 for path in ours)
    correct = sum(kind == Path(path).parent.name for path, (kind, _) in ours.items())
    assert f"right: {correct} of 150 images" in predicted
    assert predicted.count("wrong: ") == 150 - correct
