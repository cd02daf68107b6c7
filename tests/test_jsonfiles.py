"""JSON files as people and accidents leave them: read rightly, or one line with the file's name."""

import json

import numpy as np
import pytest

from alexnet_jax import jsonfiles
from alexnet_jax.analysis import report
from alexnet_jax.cli.main import main
from alexnet_jax.config import default
from alexnet_jax.errors import UsageError
from alexnet_jax.training import events, log

DEEP = 10**5
ODD = {
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep but read": b"[" * 400 + b"]" * 400,
    "never closed": b"[" * DEEP,
    "400 digits": b'{"seed": ' + b"9" * 400 + b"}",
    "5000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "65 bits": b'{"seed": 18446744073709551616}',
    "infinite": b'{"seed": 1e999}',
    "NaN": b'{"seed": NaN}',
    "Infinity": b'{"seed": -Infinity}',
    "twice": b'{"seed": 1, "seed": 2}',
    "empty": b"",
    "spaces": b" \n",
    "cut": b'{"seed": 1',
    "more": b'{"seed": 1} {}',
    "single quotes": b"{'seed': 1}",
    "comment": b'{"seed": 1} // one',
    "a list": b"[1, 2]",
    "a number": b"3",
    "a text": b'"text"',
    "null": b"null",
    "binary": bytes(range(256)),
    "UTF-16": '{"seed": 1}'.encode("utf-16"),
    "zeros": b"\0" * 100,
}  # fmt: skip


@pytest.fixture
def whole(tmp_path):
    """A workdir with the configuration of a run, which has not saved yet."""
    (tmp_path / "config.json").write_text(default().to_json())
    return tmp_path


@pytest.mark.parametrize("name", ODD)
def test_a_config_json_that_cannot_be_read_is_one_line(whole, capsys, name):
    (whole / "config.json").write_bytes(ODD[name])
    assert main(["evaluate", f"--workdir={whole}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 400
    assert "config.json" in err


@pytest.mark.parametrize(
    "name,says",
    [
        ("deep lists", "more than 64 levels deep"), ("deep but read", "more than 64 levels deep"),
        ("deep objects", "more than 64 levels deep"), ("twice", "'seed' is there more than once"),
        ("400 digits", "does not fit into 64 bits"), ("65 bits", "does not fit into 64 bits"),
        ("infinite", "1e999 is not finite"), ("NaN", "NaN is not a number"), ("cut", "Expecting"),
    ],
)  # fmt: skip
def test_what_no_program_reads_alike_is_refused_with_the_reason(name, says):
    with pytest.raises(ValueError, match=says):
        jsonfiles.loads(ODD[name].decode())


@pytest.mark.parametrize("name", ODD)
def test_other_files_are_read_or_passed_over(tmp_path, name):
    """A line of the log that is none is one that a crash cut short; `env.json` may be missing."""
    (tmp_path / log.LOG).write_bytes(
        b'{"event": "checkpoint", "step": 1, "parameters_sha256": "a"}\n' + ODD[name] + b"\n"
    )
    try:
        assert log.read(tmp_path) == [events.Saved(1, "a")]
    except UsageError as error:  # not text at all
        assert log.LOG in str(error)
    for file in ("env.json", "study.json"):
        (tmp_path / file).write_bytes(ODD[name])
    assert isinstance(report._json(tmp_path / "env.json"), dict)
    with pytest.raises(UsageError, match=r"study\.json"):
        report.study_page(tmp_path)


def test_what_is_json_is_read_as_everybody_reads_it(tmp_path):
    rng = np.random.default_rng(0)

    def value(depth):
        kind = rng.integers(0, 7 if depth else 5)
        if kind < 5:
            return [None, True, int(rng.integers(-(2**63), 2**63 - 1)), float(rng.normal()), "ü\n"][
                kind
            ]
        items = [value(depth - 1) for _ in range(rng.integers(0, 4))]
        return items if kind == 5 else {str(i): item for i, item in enumerate(items)}

    for _ in range(200):
        content = value(6)
        text = json.dumps(content)
        assert jsonfiles.loads(text) == content
        (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text.encode())  # as Windows writes it
        assert jsonfiles.read(tmp_path / "a.json") == content
    assert jsonfiles.loads("[-9223372036854775808, 9223372036854775807]")
    assert np.isnan(jsonfiles.loads("[NaN]", finite=False)[0])


@pytest.mark.parametrize(
    "line",
    [
        {"event": "checkpoint", "step": "1", "parameters_sha256": "a"},
        {"event": "checkpoint", "step": 1, "parameters_sha256": 3},
        {"event": "checkpoint", "step": True, "parameters_sha256": "a"},
        {"event": "not_finite", "step": 1, "loss": [], "not_finite": [], "examples": []},
        {"event": "not_finite", "step": 1, "loss": 1, "not_finite": [1], "examples": []},
        {"event": ["checkpoint"], "step": 1}, {"event": "warning", "step": 1, "warning": None},
        {"event": "nothing"}, {"step": 1},
    ],
)  # fmt: skip
def test_a_line_of_the_log_with_other_types_is_no_event(line):
    assert log._event(json.dumps(line)) is None


def test_lines_that_were_written_are_events():
    for event in (
        events.Saved(1, "a"), events.NotFinite(2, "nan", ["loss"], [1, 2]),
        events.NotFinite(2, 3, [], []), events.Warned(3, "text"),
        events.TrainingMean(1, 0.5, 2.0, 0.9, 0.5, 100.0, 0.1, None, None),
    ):  # fmt: skip
        assert log._event(json.dumps(events.to_json(event))) == event
