"""Whole-set evaluation: every example once, centre crop and ten views in one pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.data import pipeline
from alexnet_jax.data.sources import Source, open_sources
from alexnet_jax.diagnose import dead_units
from alexnet_jax.inputs import Inputs
from alexnet_jax.models.tower import Tower
from alexnet_jax.trained import load


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
) -> Callable[[dict, dict], tuple[dict, dict]]:
    """Compiles `(params, batch) -> (sums, fired)` over the examples that the mask counts.

    Sums: `count`, `loss`, `top1_error`, `top5_error` of the centre crop and, with more views,
    `top1_error_N_views`, `top5_error_N_views` of the mean of their softmax probabilities (section
    4.1). Fired: for each layer with an activation, whether a unit was positive for any example,
    int32 `[towers, units]`.
    """

    def step(params: dict, batch: dict) -> tuple[dict, dict]:
        mask, label_B = batch["mask"], batch["label"]
        images_VxBxHxWx3 = inputs.views(batch["image"], views)
        flat = images_VxBxHxWx3.reshape(-1, *images_VxBxHxWx3.shape[2:])
        logits, state = tower.apply({"params": params}, flat, mutable=["intermediates"])
        logits_VxBxC = logits.reshape(views, len(label_B), -1)
        centre_BxC = logits_VxBxC[centre_view(views)]

        def total(values_B: jax.Array) -> jax.Array:
            return jnp.sum(values_B * mask)

        top1, top5 = top_errors(centre_BxC, label_B)
        loss = optax.softmax_cross_entropy_with_integer_labels(centre_BxC, label_B)
        sums = {
            "count": jnp.sum(mask),
            "loss": total(loss),
            "top1_error": total(top1),
            "top5_error": total(top5),
        }
        if views > 1:
            top1, top5 = top_errors(jax.nn.softmax(logits_VxBxC).mean(0), label_B)
            sums |= {f"top1_error_{views}_views": total(top1)}
            sums |= {f"top5_error_{views}_views": total(top5)}
        fired = {}
        for layer in tower.layers:
            if "activation" in layer.then:
                (x,) = state["intermediates"][f"{layer.name}_out"]
                counts = jnp.tile(mask > 0, views).reshape(-1, *[1] * (x.ndim - 1))
                axes = tuple(range(x.ndim - 1))
                fired[layer.name] = jnp.any((x > 0) & counts, axes).astype(jnp.int32)
        return placement.sum_over_data(sums), placement.sum_over_data(fired)

    return placement.spread(step, ("tower", "batch"), ("same", "tower"))


def make_predict_step(
    tower: Tower, inputs: Inputs, placement: parallel.Placement, views: int
) -> Callable[[dict, dict], tuple[jax.Array, jax.Array]]:
    """Compiles `(params, batch) -> (probabilities, features)`.

    Probabilities `[B, classes]` are the mean over the views of their softmax (section 4.1);
    features `[towers, B, units]` are what the last layer sees of the centre crop.
    """
    last_hidden = tower.layers[-2].name

    def step(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        images_VxBxHxWx3 = inputs.views(batch["image"], views)
        flat = images_VxBxHxWx3.reshape(-1, *images_VxBxHxWx3.shape[2:])
        logits, state = tower.apply({"params": params}, flat, mutable=["intermediates"])
        probabilities = jax.nn.softmax(logits).reshape(views, len(batch["image"]), -1).mean(0)
        (features,) = state["intermediates"][f"{last_hidden}_out"]
        features = features.reshape(views, len(batch["image"]), -1)[centre_view(views)]
        return placement.join_over_data(probabilities), placement.join_over_data(features)

    return placement.spread(step, ("tower", "batch"), ("same", "tower"))


def centre_view(views: int) -> int:
    """Which of the views is the centre crop."""
    return 0 if views == 1 else 4


def batch_size(config: ConfigDict, views: int, placement: parallel.Placement) -> int:
    """Images a step, so that views count as images and every device group gets a whole share."""
    share = placement.data_parallel
    return max(config.evaluate.batch_size // views // share, 1) * share


def evaluate(
    eval_step: Callable, params: dict, source: Source, config: ConfigDict,
    placement: parallel.Placement, views: int, unreadable: pipeline.Unreadable | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Means over a whole split: loss and errors as fractions, `num_examples`, `dead_units`.

    `dead_units` holds, for each layer, the share of units that no example made positive;
    `num_examples` counts no `unreadable` ones (see `data.pipeline`). Every process must call this;
    each reads its own part, and all get the same result.
    """
    unreadable = {} if unreadable is None else unreadable
    totals: dict[str, float] = {}
    ever_fired: dict[str, np.ndarray] = {}
    pending = None

    def add(results: tuple[dict, dict]) -> None:
        sums, fired = parallel.to_host(results)
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + float(value)
        for name, units in fired.items():
            ever_fired[name] = ever_fired.get(name, False) | (units > 0)

    batches = pipeline.eval_batches(
        source,
        config.data,
        batch_size=batch_size(config, views, placement),
        part=placement.batch_part,
        unreadable=unreadable,
    )
    for batch in batches:
        results = eval_step(params, placement.put_batch(batch))
        if pending is not None:
            add(pending)  # fetched after the next step is on its way
        pending = results
    add(pending)
    count = int(np.rint(totals.pop("count")))
    # Of several processes each knows its own unreadable ones only.
    readable = source.num_examples - len(unreadable)
    if not 0 < count <= readable or (count < readable and placement.batch_part[1] == 1):
        raise RuntimeError(f"counted {count} of {readable} readable examples of {source.name}")
    means: dict[str, Any] = {name: value / count for name, value in totals.items()}
    return means | {"num_examples": count, "dead_units": dead_units(ever_fired)}


def evaluate_workdir(
    config: ConfigDict, workdir: Path, views: int, split: str, step: int = 0
) -> dict[str, Any]:
    """Tests a checkpoint of `workdir` on the whole `split` (`train` or `test`).

    Args:
      config: of the workdir.
      workdir: a run's.
      views: 1, 9 or 10.
      split: of the data.
      step: of the checkpoint; 0: the newest.

    Raises:
      UsageError: there is none, or the data set is missing.
    """
    placement = parallel.place(config)
    source = open_sources(config)[split]
    network = load(config, workdir, step)
    eval_step = make_eval_step(network.tower, network.inputs, placement, views)
    params = placement.put_towers(network.params)
    fields = evaluate(eval_step, params, source, config, placement, views)
    return {"step": network.step, "split": split, **fields}
