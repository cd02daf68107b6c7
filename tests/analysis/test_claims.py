"""The page of claims: made from the logs, and its numbers computed anew."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from alexnet_jax.analysis.comparison import Difference

RESULTS = Path(__file__).parents[2] / "results"
CLAIMS = runpy.run_path(str(RESULTS / "claims.py"))


def test_the_page_is_what_the_logs_say():
    assert (RESULTS / "README.md").read_text() == CLAIMS["page"]()


def errors(variant, field="top1_error", split="test"):
    """The percentages of a variant by seed, read from the files of its runs."""
    found = {}
    for path in (RESULTS / "imagenette" / "parts" / variant).glob("seed-*/result.json"):
        found[path.parent.name] = 100 * json.loads(path.read_text())[split][field]
    return found


@pytest.mark.parametrize(
    "text,one,other",
    [
        ("Without LRN the error", errors("lrn-off"), errors("base")),
        ("Pooling without overlap", errors("pool-2-2"), errors("base")),
        ("One tower with half", errors("one-tower-half"), errors("base")),
        ("ReLU converges much sooner", errors("tanh"), errors("base")),
        (
            "With overlap it is slightly harder",
            errors("pool-2-2", split="train"),
            errors("base", split="train"),
        ),
        ("The mean over ten views", errors("base", "top1_error_10_views"), errors("base")),
    ],
)
def test_differences_and_intervals_are_those_of_scipy(text, one, other):
    pairs = np.array([(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())])
    found = stats.ttest_rel(*pairs.T)
    low, high = found.confidence_interval(0.95)
    wanted = f"{np.subtract(*pairs.T).mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    (line,) = [x for x in (RESULTS / "README.md").read_text().splitlines() if f"| {text}" in x]
    assert wanted in line and f"{len(pairs)} seeds" in line


@pytest.mark.parametrize(
    "mean,p,holm,sign,wanted",
    [
        (1.0, 0.001, 0.01, 1, "agrees"),
        (-1.0, 0.001, 0.01, 1, "disagrees"),
        (-1.0, 0.001, 0.01, -1, "agrees"),
        (5.0, 0.1, 0.2, 1, "cannot tell at this size"),
        (5.0, 0.01, 0.2, 1, "cannot tell at this size; agrees without Holm's correction"),
        (5.0, 0.01, 0.2, -1, "cannot tell at this size; disagrees without Holm's correction"),
        (5.0, None, None, 1, "cannot tell at this size"),
    ],
)
def test_a_verdict_follows_from_the_test_and_the_sign(mean, p, holm, sign, wanted):
    assert CLAIMS["verdict"](Difference(mean, p=p), holm, sign) == wanted
