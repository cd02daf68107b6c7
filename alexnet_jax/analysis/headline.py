"""The result of a run in one sentence."""

from collections.abc import Iterator, Sequence
from typing import Any

from alexnet_jax.analysis import pages
from alexnet_jax.training.events import Evaluation, Event, to_json


def sentence(result: dict, events: Sequence[Event]) -> str:
    """The result in a sentence: of the test, or of the last evaluation of another split."""
    split, fields = next(evaluated(result, events), ("", {}))
    if not fields:
        return "Not evaluated yet"
    kind = {"train": "training"}.get(split, split)
    error = percent(100 * fields["top1_error"])
    tested = pages.count(fields["num_examples"], f"{kind} image")
    right = f"{100 - float(error):.1f} % right on {tested}"
    views = [
        f"{percent(100 * fields[name])} % over {word} views"
        for number, word in ((9, "nine"), (10, "ten"))
        if (name := f"top1_error_{number}_views") in fields
    ]
    text = f"{right}; {', '.join([f'{error} % top-1 error', *views])}"
    return text if result else f"{text}; the run has not ended"


def percent(value: float) -> str:
    """A number with one decimal, and one below 1 with two."""
    return f"{value:.2f}" if 0 < value < 1 else f"{value:.1f}"


def evaluated(result: dict, events: Sequence[Event]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each split with the fields of its last evaluation."""
    for split in ("test", "validation", "train"):
        logged = (to_json(x) for x in events if isinstance(x, Evaluation) and x.split == split)
        if fields := result.get(split) or next(iter(list(logged)[::-1]), None):
            yield split, fields
