"""The counts that the model of scaling reads are those of the programs of today."""

import json

import jax
import pytest

from benchmarks import scaling

pytestmark = pytest.mark.compile


@pytest.mark.skipif(jax.__version__ != "0.10.1", reason="counts of jax 0.10.1")
def test_a_missing_program_is_counted_again(tmp_path, monkeypatch):
    whole = json.loads(scaling.COUNTS.read_text())
    lost = next(one for one in whole["programs"] if one["target"] == "h100:4")
    rest = [one for one in whole["programs"] if one is not lost]
    monkeypatch.setattr(scaling, "COUNTS", tmp_path / "scaling.json")
    monkeypatch.setattr(scaling, "TARGETS", ("h100:4",))
    scaling.COUNTS.write_text(json.dumps(whole | {"programs": rest}))
    scaling.count()
    again = json.loads(scaling.COUNTS.read_text())
    assert again["programs"][-1] == lost | {"traffic": pytest.approx(lost["traffic"], rel=0.01)}
    assert again["programs"][:-1] == rest
