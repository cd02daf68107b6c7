"""Evaluation of a whole split: every image once, the centre crop and all views in one pass."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.data import pipeline
from alexnet_jax.data.inputs import Inputs
from alexnet_jax.data.sources import Source
from alexnet_jax.model.tower import Tower
from alexnet_jax.training.metrics import of_examples, top_errors


def apply_with_outputs(
    tower: Tower, variables: dict, inputs: Inputs, crops_BxHxWx3: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns logits `[B, classes]` and each layer's output in this tower, after its operations.

    Args:
      tower: the network.
      variables: of this tower.
      inputs: how crops become its input.
      crops_BxHxWx3: of images, or views of them.
    """
    logits, state = tower.apply(
        variables, crops_BxHxWx3, prepare=inputs.of_crops, mutable=["intermediates"]
    )
    outputs: Any = state["intermediates"]
    return logits, {layer.name: outputs[f"{layer.name}_out"][0] for layer in tower.layers}


def make_eval_step(
    tower: Tower,
    inputs: Inputs,
    placement: parallel.Placement,
    views: int,
    metrics: Sequence[str] = (),
) -> Callable[[dict, dict], tuple[dict, dict]]:
    """Compiles `(variables, batch) -> (sums, fired)` over the examples that the mask counts.

    Sums: `count`, `loss`, `top1_error`, `top5_error` of the centre crop and, with more views,
    `top1_error_views`, `top5_error_views` of the mean of their softmax probabilities (section
    4.1). `metrics` holds the sums of the other metrics by name; with more views also, as
    `NAME_views`, of the logarithm of that mean. Fired: for each layer with an activation, whether a
    unit was positive for any example, int32 `[towers, units]`.

    Args:
      tower: the network.
      inputs: how images become its input.
      placement: where the towers run.
      views: views per image: 1, 9 or 10.
      metrics: names of other metrics (`config.evaluate.metrics`).
    """

    def step(variables: dict, batch: dict) -> tuple[dict, dict]:
        mask, label_B = batch["mask"], batch["label"]
        crops_VxBxHxWx3 = inputs.views(batch["image"], views)
        flat = crops_VxBxHxWx3.reshape(-1, *crops_VxBxHxWx3.shape[2:])
        logits, outputs = apply_with_outputs(tower, variables, inputs, flat)
        logits_VxBxC = logits.reshape(views, len(label_B), -1)
        centre_BxC = logits_VxBxC[centre_view(views)]

        def total(values_B: jax.Array) -> jax.Array:
            return jnp.sum(values_B * mask)

        def totals(names: Sequence[str], scores_BxC: jax.Array) -> dict[str, jax.Array]:
            return jax.tree.map(total, of_examples(names, scores_BxC, label_B))

        sums: dict[str, Any] = {"count": jnp.sum(mask), "metrics": totals(metrics, centre_BxC)}
        sums |= totals(("loss", "top1_error", "top5_error"), centre_BxC)
        if views > 1:
            probability_BxC = jax.nn.softmax(logits_VxBxC).mean(0)
            top1, top5 = top_errors(probability_BxC, label_B)
            sums |= {"top1_error_views": total(top1), "top5_error_views": total(top5)}
            of_views = totals(metrics, jnp.log(probability_BxC))
            sums["metrics"] |= {f"{name}_views": value for name, value in of_views.items()}
        fired = {}
        for layer in tower.layers:
            if "activation" in layer.then:
                x = outputs[layer.name]
                # The largest of each image first: XLA reduces all axes but the last far slower.
                largest = jnp.max(x.reshape(len(x), -1, x.shape[-1]), 1)
                counts = jnp.tile(mask > 0, views)[:, None]
                fired[layer.name] = jnp.any((largest > 0) & counts, 0).astype(jnp.int32)
        return placement.sum_over_data(sums), placement.sum_over_data(fired)

    return placement.spread(step, ("tower", "batch"), ("same", "tower"))


def make_predict_step(
    tower: Tower, inputs: Inputs, placement: parallel.Placement, views: int
) -> Callable[[dict, dict], tuple[jax.Array, jax.Array]]:
    """Compiles `(variables, batch) -> (probabilities, features)`.

    Probabilities `[B, classes]` are the mean over the views of their softmax (section 4.1);
    features `[towers, B, units]` are what the last layer sees of the centre crop.
    """
    last_hidden = tower.layers[-2].name

    def step(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        crops_VxBxHxWx3 = inputs.views(batch["image"], views)
        flat = crops_VxBxHxWx3.reshape(-1, *crops_VxBxHxWx3.shape[2:])
        logits, outputs = apply_with_outputs(tower, variables, inputs, flat)
        probabilities = jax.nn.softmax(logits).reshape(views, len(batch["image"]), -1).mean(0)
        features = outputs[last_hidden].reshape(views, len(batch["image"]), -1)[centre_view(views)]
        return placement.join_over_data(probabilities), placement.join_over_data(features)

    return placement.spread(step, ("tower", "batch"), ("same", "tower"))


def centre_view(views: int) -> int:
    """Returns which of the views is the centre crop."""
    return 0 if views == 1 else 4


def views_unlike_training(config: ConfigDict, views: int) -> str:
    """What an error with these views is due to besides the network; empty if there is nothing.

    A mirrored digit or letter is another one: without flips in training, mirrored views tell how
    the network answers to what it has never seen.
    """
    if views != 10 or config.data.random_flip:
        return ""
    return (
        "five of the ten views are mirrored, and the network was trained without mirrored images "
        "(config.data.random_flip = False)"
    )


def batch_size(config: ConfigDict, views: int, placement: parallel.Placement) -> int:
    """Returns images per step; views count as images, and every device group has an equal share."""
    share = placement.data_parallel
    return max(config.evaluate.batch_size // views // share, 1) * share


@dataclasses.dataclass(frozen=True)
class Means:
    """The means of an evaluation; the fields are those of `events.Evaluation`."""

    loss: float
    top1_error: float
    top5_error: float
    num_examples: int
    dead_units: dict[str, float]
    views: int
    top1_error_views: float | None = None
    top5_error_views: float | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict[str, float])


class Interrupted(Exception):
    """An evaluation was asked to stop before its end."""


def evaluate(
    eval_step: Callable[..., Any],
    variables: dict[str, Any],
    source: Source,
    config: ConfigDict,
    placement: parallel.Placement,
    views: int,
    *,
    unreadable: pipeline.Unreadable | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Means:
    """Returns the means over a whole split.

    Every process must call this; each reads its own part, and all get the same result.

    Args:
      eval_step: what `make_eval_step` returned for the same number of views.
      variables: parameters and running statistics stacked by tower, on the devices.
      source: the images.
      config: the configuration of the run.
      placement: where the towers run.
      views: views per image: 1, 9 or 10.
      unreadable: see `data.pipeline`; unreadable images are not counted.
      interrupted: called after every batch; returns whether to stop.

    Raises:
      Interrupted: `interrupted` returned True.
      UsageError: an image cannot be read.
    """
    unreadable = {} if unreadable is None else unreadable
    totals: dict[str, Any] = {}
    ever_fired: dict[str, np.ndarray] = {}
    pending = None

    def add(results: tuple[dict, dict]) -> None:
        sums, fired = parallel.to_host(results)
        first = jax.tree.map(lambda _: 0.0, sums)
        totals.update(jax.tree.map(lambda a, b: a + float(b), totals or first, sums))
        for name, units in fired.items():
            ever_fired[name] = ever_fired.get(name, False) | (units > 0)

    batches = pipeline.eval_batches(
        source,
        config.data,
        batch_size=batch_size(config, views, placement),
        part=placement.batch_part,
        unreadable=unreadable,
        gives_way=placement.on_cpu,
    )
    for batch in batches:
        results = eval_step(variables, placement.put_batch(batch))
        if pending is not None:
            add(pending)  # fetched after the next step is on its way
        pending = results
        if interrupted():
            raise Interrupted
    if pending is not None:
        add(pending)
    count = int(np.rint(totals.pop("count")))
    # Each of several processes knows only the unreadable images of its own part.
    readable = source.num_examples - len(unreadable)
    if not 0 < count <= readable or (count < readable and placement.batch_part[1] == 1):
        raise RuntimeError(f"counted {count} of {readable} readable examples of {source.name}")
    means = jax.tree.map(lambda total: total / count, totals)
    return Means(**means, num_examples=count, dead_units=dead_units(ever_fired), views=views)


def dead_units(fired: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the share of each layer's units (maps of a convolution) that were never positive.

    Args:
      fired: `{layer: bool [towers, units]}`, whether any image made the unit positive anywhere.
    """
    return {name: float(1 - np.mean(units)) for name, units in fired.items()}
