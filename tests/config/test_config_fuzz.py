"""Malformed configurations: one line that names the field, exit code 2, never a traceback."""

import copy
import json

import numpy as np
import pytest

from alexnet_jax.cli.main import main
from alexnet_jax.config import default, leaves

CONFIG = "--config=experiments/imagenet.py"
FIELDS = dict(leaves(default()))
WORDS = {  # fields that take one of a few words, and some that no list could name
    "placement", "data.source", "data.train_split", "data.test_split",
    "data.validation_split", "distributed.coordinator", "model.activation", "model.compute_dtype",
    "model.precision", "data.resize", "data.shrink", "data.mean", "data.colour.rule",
    "optimizer.schedule", "optimizer.rate_scaling",
}  # fmt: skip
# The data set says what there is.
FREE = {"data.source", "data.train_split", "data.test_split", "data.validation_split"}
# What no field of such a type could mean.
MALFORMED = {
    int: ("many", "1.5", "", "nan", "(1,)", "99999999999999999999999"),
    float: ("fast", "nan", "inf", "-inf", "", "1e999", "(1.0,)", "-1e-3"),
    bool: ("maybe", "2", "", "nan", "-1"),
    tuple: ("(1,", "nonsense(", "((),)", "('a', nan)"),
    str: ("nonsense",),
    type(None): ("much", "nan", "inf", "(1,)"),
}


def flags():
    for path, value in FIELDS.items():
        name = path.rpartition(".")[2]
        if isinstance(value, str) and (path in FREE or not ("layers" in path or path in WORDS)):
            continue
        for bad in MALFORMED[type(value)]:
            if not (bad == "-1e-3" and name in ("bias", "beta")):
                yield f"--config.{path}={bad}", path


CASES = list(flags())


def refused(arguments, capsys):
    """The one line that a mistake leaves."""
    assert main(arguments) == 2, arguments
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, (arguments, err)
    assert "Traceback" not in err and len(err) < 600, (arguments, err)
    return err


def test_there_are_enough():
    assert len(CASES) + len(FIELDS) + 100 >= 300


@pytest.mark.parametrize("group", sorted({path.split(".")[0] for path in FIELDS}))
def test_a_value_of_no_meaning_names_its_field(group, capsys):
    failures = []
    for flag, path in CASES:
        if path.split(".")[0] == group:
            try:
                line = refused(["inspect", CONFIG, flag], capsys)
                # A coordinator alone is the fault of `enabled`.
                name = group if group == "distributed" else path.split(".")[-1]
                assert name in line, (flag, line)
            except BaseException as error:
                capsys.readouterr()
                failures.append(str(error).partition("\n")[0][:300] or repr(error))
    assert not failures, "\n".join(failures)


def test_a_mistyped_field_is_named(capsys):
    """One letter too few, in each field."""
    rng = np.random.default_rng(0)
    for path in FIELDS:
        stem, _, name = path.rpartition(".")
        cut = int(rng.integers(len(name)))
        typo = f"{stem}.{name[:cut] + name[cut + 1 :]}".lstrip(".")
        if typo in FIELDS or typo.endswith((".", "coordinato")) or not typo:
            continue
        line = refused(["inspect", CONFIG, f"--config.{typo}=1"], capsys)
        assert typo in line


def test_a_damaged_config_file_is_named(tmp_path, capsys):
    """A field removed, of another type, or the text cut: what `evaluate` reads of a workdir."""
    rng = np.random.default_rng(0)
    whole = json.loads(default().to_json())
    for case in range(100):
        content = copy.deepcopy(whole)
        path = list(FIELDS)[int(rng.integers(len(FIELDS)))].split(".")
        group = content
        for name in path[:-1]:
            group = group[name]
        if case % 3 == 0:
            del group[path[-1]]
        else:
            group[path[-1]] = {"a": "dictionary"} if case % 3 == 1 else [["nested"], None]
        text = json.dumps(content)
        if case % 10 == 0:
            text = text[: int(rng.integers(len(text)))]
        (tmp_path / "config.json").write_text(text)
        line = refused(["evaluate", f"--workdir={tmp_path}"], capsys)
        assert str(tmp_path / "config.json") in line
