"""Metrics of single examples against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.errors import UsageError
from alexnet_jax.registry import METRICS
from alexnet_jax.training import metrics


def test_top_errors_equal_a_sort():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 12)), rng.integers(0, 12, 50)
    top1, top5 = metrics.top_errors(scores, labels)
    ranking = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(top1, ranking[:, 0] != labels)
    np.testing.assert_array_equal(
        top5, [y not in r[:5] for y, r in zip(labels, ranking, strict=True)]
    )


def test_a_network_that_says_nothing_is_wrong():
    for scores in (np.zeros((4, 10)), np.full((4, 10), np.nan)):
        for errors in metrics.top_errors(scores, np.arange(4)):
            np.testing.assert_array_equal(errors, 1)


def test_scores_of_probabilities_equal_their_formulas():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(0, 3, (50, 12)), rng.integers(0, 12, 50)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    found = metrics.of_examples(("loss", "brier", "confidence", "top5_error"), scores, labels)
    own = p[np.arange(50), labels]
    expected = {
        "loss": -np.log(own),
        "brier": (p**2).sum(1) - own**2 + (1 - own) ** 2,
        "confidence": p.max(1),
        "top5_error": [y not in r[-5:] for y, r in zip(labels, np.argsort(p), strict=True)],
    }
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)


def test_a_metric_may_count_and_must_not_sum(monkeypatch):
    scores, labels = np.eye(4), np.array([0, 1, 1, 1])
    monkeypatch.setitem(METRICS._entries, "right", lambda s, y: jnp.argmax(s, 1) == y)
    (found,) = metrics.of_examples(["right"], scores, labels).values()
    assert found.dtype == np.float32 and found.tolist() == [1, 1, 0, 0]
    monkeypatch.setitem(METRICS._entries, "total", lambda s, y: jnp.sum(s))
    with pytest.raises(UsageError, match=r"metrics holds 'total', .* \[\] for 4 examples: return"):
        metrics.of_examples(["total"], scores, labels)
