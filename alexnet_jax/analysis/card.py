"""A model card: what a network is, how it was trained and measured, how it is used, its limits.

Everything in it is read from the workdir or the file of weights. What they do not say is called
unknown.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import jsonfiles, templates
from alexnet_jax.analysis import report
from alexnet_jax.config import table
from alexnet_jax.data.classes import shown_names
from alexnet_jax.errors import UsageError
from alexnet_jax.training.origin import classes_of, config_of, mean_of
from alexnet_jax.training.workdir import result_of
from alexnet_jax.weights.named import located

_LISTED = 20
"""Classes that are all written out; of more, the first ones are."""


def text(origin: Path) -> str:
    """The card of a trained network, in Markdown.

    Args:
      origin: a workdir, a file of weights, or the name of a network.

    Raises:
      UsageError: it is none of them.
    """
    origin = located(origin)
    config, run = config_of(origin), origin.is_dir()
    names, _ = classes_of(origin)
    result = (result_of(origin) or {}) if run else {}
    counts = table.count(config.model, config.data.crop_size)
    towers = config.model.towers
    stretched = config.data.resize == "stretch"
    return templates.render(
        "alexnet_jax.analysis",
        "card.md.jinja",
        title=origin.resolve().stem,
        towers="one tower" if towers == 1 else f"{towers} towers",
        parameters=f"{sum(row.parameters for row in counts):,}",
        macs=f"{sum(row.macs for row in counts):,}",
        run=run,
        config=config,
        data=config.data,
        optimizer=config.optimizer,
        errors=_errors(result),
        why_unknown="the run has not ended" if run else "a file of weights does not hold them",
        classes=config.model.num_classes,
        class_list=_listed(shown_names(names, config.model.num_classes)),
        resizing="Both sides are scaled" if stretched else "The short side is scaled",
        mean=_mean(mean_of(origin)),
        **(_training(config, origin, result) if run else {}),
    )


def _errors(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """(split, images, views, top-1 error, top-5 error), the errors in percent."""
    return [
        (*split.split(", "), views, top1, top5)
        for split, views, top1, top5 in report.results(result, [])
    ]


def _training(config: ConfigDict, workdir: Path, result: dict[str, Any]) -> dict[str, Any]:
    """How a run trained, in words."""
    data = config.data
    kind, colon, rest = data.source.partition(":")
    if data.validation_split:
        steered = f"; the split `{data.validation_split}` steered the run"
    elif data.validation_fraction:
        steered = f"; {100 * data.validation_fraction:g} % of it were held out and steered the run"
    else:
        steered = ""
    drawn = [
        (data.random_crop, "crops at random places"),
        (data.random_flip, "mirrored at random"),
        (data.colour.rule != "none", f"colour noise (rule `{data.colour.rule}`)"),
    ]
    done = f"{result['steps']} steps" if result else "An unknown number of steps: it has not ended"
    frozen = f", layers that stayed as they were: {', '.join(config.freeze)}"
    return {
        # Of a folder the name alone: where it lies is nobody else's business.
        "source": f"{kind}{colon}{rest if kind == 'tfds' else Path(rest).name}",
        "steered": steered,
        "augmentation": [words for is_on, words in drawn if is_on] or ["no augmentation"],
        "start": (
            f"Started from the weights of `{Path(config.init_from).name}`"
            + (frozen if config.freeze else "")
            if config.init_from
            else "Started from random weights"
        ),
        "length": f"{done} of at most {config.num_epochs:g} epochs",
        "versions": _versions(workdir),
    }


def _versions(workdir: Path) -> str:
    try:
        packages = jsonfiles.read(workdir / "env.json").get("packages", {})
    except (OSError, UsageError):
        return "unknown"
    return ", ".join(f"{name} {version}" for name, version in packages.items()) or "unknown"


def _mean(mean: np.ndarray) -> str:
    if mean.ndim == 3:
        return "the mean image of the training images"
    return "the mean " + ", ".join(f"{value:.6g}" for value in mean.tolist())


def _listed(names: list[str]) -> str:
    listed = ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{listed}, and {more} more." if more > 0 else f"{listed}."
