"""Whole-set evaluation: every example once, centre crop and ten views in one pass."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import Source
from alexnet_jax.inputs import Inputs
from alexnet_jax.models.tower import Tower


def top_errors(scores_BxC: jax.Array, label_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether the label is not the best, and not among the five best: float `[B]` each.

    Classes with an equal score count ahead of the label, so a network that says nothing is wrong.
    """
    own = jnp.take_along_axis(scores_BxC, label_B[:, None], axis=1)
    ahead = jnp.sum(scores_BxC >= own, axis=1) - 1
    # NaN compares false with everything and would rank first.
    ahead = jnp.where(jnp.isnan(own[:, 0]), scores_BxC.shape[1], ahead)
    return (ahead >= 1).astype(jnp.float32), (ahead >= 5).astype(jnp.float32)


def make_eval_step(
    tower: Tower, inputs: Inputs, placement: parallel.Placement, views: int
) -> Callable:
    """Compiles `(params, batch) -> sums` over the examples of a batch that the mask counts.

    Sums: `count`, `loss`, `top1_error`, `top5_error` of the centre crop and, with ten views,
    `top1_error_10`, `top5_error_10` of the mean of their softmax probabilities (section 4.1).
    """

    def step(params: dict, batch: dict) -> dict:
        mask = batch["mask"]

        def logits_of(images: jax.Array) -> jax.Array:
            return tower.apply({"params": params}, images)

        sums = {}
        if views == 1:
            logits = logits_of(inputs.centre(batch["image"]))
        else:
            views_VxBxHxWx3 = inputs.ten_views(batch["image"])
            flat = views_VxBxHxWx3.reshape(-1, *views_VxBxHxWx3.shape[2:])
            logits_VxBxC = logits_of(flat).reshape(*views_VxBxHxWx3.shape[:2], -1)
            top1, top5 = top_errors(jax.nn.softmax(logits_VxBxC).mean(0), batch["label"])
            sums["top1_error_10"], sums["top5_error_10"] = (
                jnp.sum(top1 * mask),
                jnp.sum(top5 * mask),
            )
            logits = logits_VxBxC[4]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        top1, top5 = top_errors(logits, batch["label"])
        sums |= {
            "count": jnp.sum(mask),
            "loss": jnp.sum(loss * mask),
            "top1_error": jnp.sum(top1 * mask),
            "top5_error": jnp.sum(top5 * mask),
        }
        return placement.sum_over_data(sums)

    return placement.spread(step, ("tower", "batch"), "same")


def batch_size(config: ConfigDict, views: int, placement: parallel.Placement) -> int:
    """Images a step, so that views count as images and every device group gets a whole share."""
    share = placement.data_parallel
    return max(config.evaluate.batch_size // views // share, 1) * share


def evaluate(
    eval_step: Callable, params: dict, source: Source, config: ConfigDict,
    placement: parallel.Placement, views: int,
) -> dict[str, float]:  # fmt: skip
    """Means over a whole split: loss and errors as fractions, and `num_examples`.

    Every process must call this; each reads its own part.
    """
    totals: dict[str, float] = {}
    pending = None

    def add(sums: dict) -> None:
        for name, value in parallel.to_host(sums).items():
            totals[name] = totals.get(name, 0.0) + float(value)

    batches = pipeline.eval_batches(
        source,
        config.data,
        batch_size=batch_size(config, views, placement),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in batches:
        sums = eval_step(params, placement.put_batch(batch))
        if pending is not None:
            add(pending)  # fetched after the next step is on its way
        pending = sums
    add(pending or {})
    count = int(np.rint(totals.pop("count")))
    if count != source.num_examples:
        raise RuntimeError(f"counted {count} of {source.num_examples} examples of {source.name}")
    return {name: value / count for name, value in totals.items()} | {"num_examples": count}
