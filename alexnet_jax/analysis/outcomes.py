"""What a study measures of a run, from the run's folder alone: errors, epochs, seconds.

An outcome is named by one of `NAMED` or, for any other number in `result.json`, by its place there:
`test.loss`, `train.num_examples`, `test.metrics.certainty`.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from alexnet_jax import jsonfiles
from alexnet_jax.errors import UsageError
from alexnet_jax.training import log
from alexnet_jax.training.events import Evaluation, Event, TrainingMean
from alexnet_jax.training.parts.warn import at_chance

Curve = list[tuple[float, float]]
NOT_STARTED = "not started"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One number of each run.

    Attributes:
      title: what it is, with its unit, as the title of a column.
      value: from the folder of a finished run to the number, or None where there is none.
      absent: why there may be none, in a few words.
      ratio: whether variants are compared by ratios, as times are, and not by differences.
    """

    title: str
    value: Callable[[Path], float | None]
    absent: str
    ratio: bool = False


_SPLITS = {"test": "test", "validation": "validation", "train": "training"}
_ERROR = re.compile(r"(test|validation|train)_error(?:_(9|10)_views)?")
NAMED = (
    *("test_error", "validation_error", "train_error", "test_error_10_views"),
    *("epochs_to_error", "seconds", "most_colour", "least_colour"),
)
"""The outcomes that have a name of their own. Errors exist for every split, also over 9 views."""


def outcome(name: str, target: float = 0.0) -> Outcome:
    """The outcome of a name.

    Args:
      name: one of `NAMED`, or a place in `result.json`.
      target: for `epochs_to_error`, a fraction.

    Raises:
      UsageError: there is none of this name.
    """
    if match := _ERROR.fullmatch(name):
        split, views = match.groups()
        field = f"top1_error_{views}_views" if views else "top1_error"
        title = f"{_SPLITS[split]} error{f' of {views} views' if views else ''}"
        return Outcome(
            f"{title}, %",
            lambda workdir: _scaled(100, _in_result(workdir, split, field)),
            absent=f"without a {title}",
        )
    if name == "epochs_to_error":
        return Outcome(
            f"epochs to {100 * target:g} %",
            lambda workdir: epochs_to_error(training_curve(workdir), target),
            absent=f"did not reach {100 * target:g} %",
            ratio=True,
        )
    if name == "seconds":
        return Outcome("seconds of training", seconds, absent="without a log", ratio=True)
    if name in ("most_colour", "least_colour"):
        pick = max if name == "most_colour" else min
        return Outcome(
            f"share of colour, tower with the {'most' if pick is max else 'least'}, %",
            lambda workdir: _scaled(100, _of_towers(workdir, pick)),
            absent="without shares of colour",
        )
    if re.fullmatch(r"\w+(\.\w+)+", name):
        return Outcome(
            name, lambda workdir: _in_result(workdir, *name.split(".")), absent=f"without {name}"
        )
    close = difflib.get_close_matches(name, NAMED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(NAMED)}"
    raise UsageError(
        f"config.measures: {name!r}: {hint}, or name a place in result.json: test.loss"
    )


def missing(workdir: Path) -> str:
    """Why nothing can be measured of a run, in one line; empty if it was trained to its end.

    A run that ends with the loss of guessing has not been trained: its error says nothing about the
    parts of its network.
    """
    if not (workdir / "result.json").is_file():
        if (failed := _json(workdir / "failed.json")) is not None:
            return f"failed: {failed.get('error', 'failed.json does not say why')}"
        return "not finished" if (workdir / "config.json").is_file() else NOT_STARTED
    config = _json(workdir / "config.json") or {}
    classes = config.get("model", {}).get("num_classes")
    last = [x for x in log.read(workdir, missing=True) if isinstance(x, TrainingMean)][-1:]
    if last and classes and at_chance(last[0].loss, classes):
        return f"did not train: its training loss ends at {last[0].loss:.3f}, which is guessing"
    return ""


def training_curve(workdir: Path) -> Curve:
    """(epoch, error on the whole training set) of every such evaluation in the log."""
    return [
        (event.epoch, event.top1_error)
        for event in log.read(workdir, missing=True)
        if isinstance(event, Evaluation) and event.split == "train"
    ]


def epochs_to_error(curve: Curve, target: float) -> float | None:
    """The epoch at which a curve first falls to `target`, interpolated linearly, or None.

    The log does not say what came before the first point: for a curve that begins at or below the
    target, the result is the epoch of that point.
    """
    before = None
    for epoch, error in curve:
        if error <= target:
            if before is None:
                return epoch
            return before[0] + (epoch - before[0]) * (before[1] - target) / (before[1] - error)
        before = epoch, error
    return None


def seconds(workdir: Path) -> float | None:
    """The seconds that the steps of a run took by its log, without evaluations and saves."""
    return sum(_seconds(workdir).values()) or None


def first_step(workdir: Path) -> float:
    """The seconds of the first step by the log of a run: it waits for the compiler."""
    return _seconds(workdir).get(1, 0.0)


def _seconds(workdir: Path) -> dict[int, float]:
    """The seconds of the steps that each mean in the log is of, by the last of them."""
    config = _json(workdir / "config.json") or {}
    events: list[Event] = log.read(workdir, missing=True)
    found, before = dict[int, float](), 0
    for event in events:
        if isinstance(event, TrainingMean) and event.images_per_second > 0:
            images = (event.step - before) * config.get("batch_size", 0)
            found[event.step] = images / event.images_per_second
            before = event.step
    return found


def _of_towers(workdir: Path, pick: Callable[[list[float]], float]) -> float | None:
    result = _json(workdir / "result.json") or {}
    shares = cast(list[float], result.get("colour_share"))
    return pick(shares) if shares else None


def _in_result(workdir: Path, *path: str) -> float | None:
    found: Any = _json(workdir / "result.json")
    for name in path:
        found = cast(dict[str, Any], found).get(name) if isinstance(found, dict) else None
    return float(found) if isinstance(found, (int, float)) else None


def _scaled(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = jsonfiles.read(path, finite=False)
    except (OSError, UsageError):
        return None
    return cast(dict[str, Any], found) if isinstance(found, dict) else None
