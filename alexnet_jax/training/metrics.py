"""Metrics of evaluation by name.

A metric is a function from the scores of each class, `[B, classes]`, and the labels, int32 `[B]`,
to one value per example, `[B]`; what is reported is the mean over all images of a split. Scores are
logits, or the logarithm of probabilities that were averaged over several views:

    def certainty(scores_BxC: jax.Array, label_B: jax.Array) -> jax.Array:
        probability_BxC = jax.nn.softmax(scores_BxC)
        return jnp.take_along_axis(probability_BxC, label_B[:, None], axis=1)[:, 0]

    METRICS["certainty"] = certainty
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.errors import UsageError
from alexnet_jax.registry import METRICS


def loss(scores_BxC: jax.Array, label_B: jax.Array) -> jax.Array:
    """Cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(scores_BxC, label_B)


def top1_error(scores_BxC: jax.Array, label_B: jax.Array) -> jax.Array:
    """Whether another class has at least the score of the label; see `top_errors`."""
    return top_errors(scores_BxC, label_B)[0]


def top5_error(scores_BxC: jax.Array, label_B: jax.Array) -> jax.Array:
    """Whether five other classes have at least the score of the label; see `top_errors`."""
    return top_errors(scores_BxC, label_B)[1]


def top_errors(scores_BxC: jax.Array, label_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns whether the label is not the best, and not among the five best: float `[B]` each.

    A class with the same score counts as better than the label, so that a network whose scores are
    all equal is wrong.
    """
    own = jnp.take_along_axis(scores_BxC, label_B[:, None], axis=1)
    ahead = jnp.sum(scores_BxC >= own, axis=1) - 1
    # NaN compares false with everything and would rank first.
    ahead = jnp.where(jnp.isnan(own[:, 0]), scores_BxC.shape[1], ahead)
    return (ahead >= 1).astype(jnp.float32), (ahead >= 5).astype(jnp.float32)


def confidence(scores_BxC: jax.Array, label_B: jax.Array) -> jax.Array:
    """The probability of the class with the highest score, whatever the label."""
    del label_B
    return jax.nn.softmax(scores_BxC).max(axis=1)


def brier(scores_BxC: jax.Array, label_B: jax.Array) -> jax.Array:
    """Brier's score, the squared distance of all probabilities from 1 for the label and 0 else.

    Brier 1950, Verification of forecasts expressed in terms of probability, eq. 2.
    """
    target_BxC = jax.nn.one_hot(label_B, scores_BxC.shape[1])
    return jnp.sum((jax.nn.softmax(scores_BxC) - target_BxC) ** 2, axis=1)


def of_examples(
    names: Iterable[str], scores_BxC: jax.Array, label_B: jax.Array
) -> dict[str, jax.Array]:
    """Returns the values of some metrics for each example, `[B]`, float32 or wider.

    Raises:
      UsageError: a metric returns something else than one value per example.
    """
    found: dict[str, jax.Array] = {}
    for name in names:
        value_B = jnp.asarray(METRICS[name](scores_BxC, label_B))
        if value_B.shape != label_B.shape:
            raise UsageError(
                f"config.evaluate.metrics holds {name!r}, which returns {list(value_B.shape)} for "
                f"{len(label_B)} examples: return one value per example"
            )
        found[name] = value_B.astype(jnp.promote_types(value_B.dtype, jnp.float32))
    return found


METRICS["loss"] = loss
METRICS["top1_error"] = top1_error
METRICS["top5_error"] = top5_error
METRICS["confidence"] = confidence
METRICS["brier"] = brier
