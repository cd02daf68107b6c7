"""The drawing of the towers: what stands in it, and that nothing lies over anything else."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from alexnet_jax.analysis import diagram
from alexnet_jax.cli.main import main
from alexnet_jax.config import presets, table

SVG = "{http://www.w3.org/2000/svg}"


def variants():
    for name in (*presets.PRESETS, *presets.ROWS):
        yield name, presets.get(name)
    for towers in (1, 4):
        config = presets.get("source")
        config.model.towers = towers
        yield f"source, {towers} towers", config
    config = presets.get("paper")
    config.model.layers.conv3.exchange = "none"
    yield "paper without an exchange at conv3", config


@pytest.mark.parametrize("config", [pytest.param(x, id=name) for name, x in variants()])
def test_the_drawing_says_what_the_table_of_layers_says(config):
    root = ElementTree.fromstring(diagram.draw(config))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    sides = ("x", "y", "width", "height")
    boxes = [[float(box.attrib[side]) for side in sides] for box in root.iter(f"{SVG}rect")]
    rows, towers = table.count(config.model, config.data.crop_size), config.model.towers
    assert len(boxes) == 2 + towers * (len(rows) - 1)
    crossing = sum("cross" in path.get("class") for path in root.iter(f"{SVG}path"))
    expected = 0
    for row in rows:
        name, exchanges = row.layer.name, row.exchanged > 0
        assert texts.count(name) == (1 if row.layer.last else towers)
        if exchanges:
            assert any(text.startswith(f"{row.exchanged:,} values from") for text in texts)
            expected += towers if row.layer.last else towers * (towers - 1)
        if not row.layer.last:
            sides = (*row.out_shape[:-1], row.out_shape[-1] // towers)
            assert " × ".join(f"{side:,}" for side in sides) in texts
    assert crossing == expected
    # Boxes of one row lie side by side, and rows below each other.
    for i, (x, y, width, _) in enumerate(boxes):
        for other in boxes[:i]:
            apart = x >= other[0] + other[2] or other[0] >= x + width or y >= other[1] + other[3]
            assert apart, (i, other)
    left, top, width, height = map(float, root.get("viewBox").split())
    assert all(x >= left and y >= top and x + w <= left + width and y + h <= top + height
               for x, y, w, h in boxes)  # fmt: skip
    count = sum(row.parameters for row in rows)
    assert f"{count:,} parameters" in root.find(f"{SVG}title").text


def test_the_committed_drawing_is_that_of_the_paper():
    path = Path(__file__).parents[2] / "docs" / "towers.svg"
    assert path.read_text() == diagram.draw(presets.get("paper"))


def test_the_verb_writes_the_file_or_says_why_not(tmp_path, capsys):
    path = tmp_path / "towers.svg"
    assert main(["inspect", "--config=imagenet:paper", f"--diagram={path}"]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert path.read_text() == diagram.draw(presets.get("paper"))
    assert main(["inspect", "--config=imagenet:paper", f"--diagram={tmp_path}/no/t.svg"]) == 2
    assert re.fullmatch(r"error: cannot write .*t\.svg: No such file.*\n", capsys.readouterr().err)
