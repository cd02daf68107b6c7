"""One declaration per field: everything else follows from it."""

import json
import re
import runpy
from pathlib import Path

import pytest

from alexnet_jax.analysis.inspect import field_table
from alexnet_jax.cli.main import main
from alexnet_jax.config import default, fields, from_json, leaves, validate
from alexnet_jax.config.fields import Field, declared, suggestion
from alexnet_jax.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_a_field_is_added_in_one_place(monkeypatch, capsys):
    old = json.loads(default().to_json())
    monkeypatch.setitem(
        fields.FIELDS, "data.sharpen",
        Field(0.5, "How much images are sharpened.", low=0, high=2, since="0.3.0", before=0.25),
    )  # fmt: skip
    config = default()
    assert config.data.sharpen == 0.5
    validate(config)
    config.data.sharpen = 3.0
    with pytest.raises(UsageError, match=r"^config\.data\.sharpen = 3\.0: must be at most 2$"):
        validate(config)
    assert suggestion("sharpen") == "; did you mean data.sharpen?"
    assert main(["fields", "--group=data.sharpen"]) == 0
    assert "How much images are sharpened." in capsys.readouterr().out
    page = runpy.run_path(str(ROOT / "docs" / "hooks.py"))["on_page_markdown"]("{{ fields }}")
    assert "| `data.sharpen` | `0.5` | How much" in page
    assert "| number, at least 0, at most 2; since 0.3.0; fixed" in page
    # A workdir of before the field did what `before` says.
    assert from_json(json.dumps(old), "config.json").data.sharpen == 0.25


@pytest.mark.parametrize("path", declared())
def test_each_declaration_is_whole(path):
    field = declared()[path]
    field.check(path, field.default)
    assert re.fullmatch(r"[A-Za-z].*\.", field.help) and "  " not in field.help
    assert re.fullmatch(r"\d+\.\d+\.\d+", field.since)
    for bound, step in ((field.low, -1), (field.above, 0), (field.high, 1), (field.below, 0)):
        if bound is not None and not isinstance(field.default, tuple):
            with pytest.raises(UsageError, match=rf"config\.{re.escape(path)} = "):
                field.check(path, type(field.default)(bound + step))
    if field.choices:
        with pytest.raises(UsageError, match=r"use one of|did you mean|give a"):
            field.check(path, type(field.default)("12345"))


def test_the_page_lists_every_field():
    rows = field_table(markdown=True).splitlines()
    for path, value in leaves(default()):
        name = re.sub(r"^model\.layers\.\w+\.", "model.layers.NAME.", path)
        assert any(row.startswith(f"| `{name}` |") for row in rows), path
        if path in declared() and path != "model.layer_order":
            assert any(f"| `{name}` | `{value!r}` |" in row for row in rows), path


@pytest.mark.parametrize(
    "typed,meant",
    [
        ("learning_rate", "optimizer.learning_rate"),
        ("lrn.alpha", "model.lrn.alpha"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("batchsize", "batch_size"),
        ("batch", "batch_size"),
        ("quux", None),
    ],
)
def test_a_mistyped_field_is_looked_for_in_every_group(typed, meant):
    assert suggestion(typed) == (f"; did you mean {meant}?" if meant else "")


def test_what_a_run_of_version_0_1_did_is_what_its_file_says_now():
    old = json.loads(default().to_json())
    for path in ("validation_split", "validation_fraction", "test_fraction"):
        del old["data"][path]
    old["evaluate"]["splits"] = ["train", "test"]
    old["data"]["test_split"] = "test[:50%]"
    found = from_json(json.dumps(old), "config.json")
    # Its test split steered it, and it trained on every training image.
    assert found.data.validation_split == "test[:50%]" == found.data.test_split
    assert found.evaluate.splits == ("train", "validation")
    assert found.data.validation_fraction == 0 and found.data.test_fraction == 0.2
