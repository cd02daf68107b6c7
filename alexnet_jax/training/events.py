"""What happens in a run, as typed events: the lines of `metrics.jsonl`.

Parts emit events, and everything that reads a run (terminal, TensorBoard, tables, pages, `verify`)
gets these types. Errors are fractions between 0 and 1.
"""

import builtins
import dataclasses
import types
from typing import Any, ClassVar, get_args, get_origin


@dataclasses.dataclass(frozen=True)
class TrainingMean:
    """The mean of the finite training steps since the previous `TrainingMean`.

    Attributes:
      step: the last of these steps, counted from 1.
      epoch: passes over the training images so far.
      loss: cross-entropy in nats, computed before the update of each step.
      top1_error: share of images whose class does not have the highest score.
      top5_error: share of images whose class is not among the five highest scores.
      images_per_second: speed over all devices.
      data_wait_fraction: share of the time that was spent waiting for batches.
      learning_rate: learning rate of the weights at the last step; None if the optimizer has rates
        of its own.
      unreadable: number of training images replaced so far; None if `data.max_unreadable` is 0.
    """

    kind: ClassVar[str] = "training"
    step: int
    epoch: float
    loss: float
    top1_error: float
    top5_error: float
    images_per_second: float
    data_wait_fraction: float
    learning_rate: float | None = None
    unreadable: int | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The mean over all images of a split, with fixed weights.

    Attributes:
      step: number of training steps before it.
      epoch: passes over the training images so far.
      split: `train`, `validation` or `test`.
      loss: cross-entropy in nats of the centre crops.
      top1_error: top-1 error of the centre crops.
      top5_error: top-5 error of the centre crops.
      num_examples: number of images counted.
      dead_units: for each layer, the share of units that no image made positive.
      views: views per image; if there are several, the next two are given.
      top1_error_views: top-1 error of the probabilities averaged over the views.
      top5_error_views: top-5 error of the same.
      metrics: means of the metrics in `config.evaluate.metrics`, of the centre crops by their name
        and of all views by `NAME_views`.
    """

    kind: ClassVar[str] = "evaluation"
    step: int
    epoch: float
    split: str
    loss: float
    top1_error: float
    top5_error: float
    num_examples: int
    dead_units: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    views: int = 1
    top1_error_views: float | None = None
    top5_error_views: float | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict[str, float])


@dataclasses.dataclass(frozen=True)
class Warned:
    """A warning.

    Attributes:
      step: number of training steps before it.
      warning: one line for the user.
    """

    kind: ClassVar[str] = "warning"
    step: int
    warning: str


@dataclasses.dataclass(frozen=True)
class NotFinite:
    """A step that was not applied because its loss or gradients held a NaN or an infinity.

    Attributes:
      step: the step, counted from 1.
      loss: the loss; as text, such as `nan`, if it is not finite.
      not_finite: what was not finite: gradients by name, such as `conv1/kernel`, and `loss`.
      examples: indices of the images of its batch.
    """

    kind: ClassVar[str] = "not_finite"
    step: int
    loss: float | str
    not_finite: list[str]
    examples: list[int]


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes:
      step: number of training steps before it.
      parameters_sha256: checksum of all parameters (`checkpoint.parameters_sha256`).
    """

    kind: ClassVar[str] = "checkpoint"
    step: int
    parameters_sha256: str


Event = TrainingMean | Evaluation | Warned | NotFinite | Saved
_TYPES: dict[str, type[Event]] = {
    cls.kind: cls for cls in (TrainingMean, Evaluation, Warned, NotFinite, Saved)
}


def to_json(event: Event) -> dict[str, Any]:
    """Returns an event as a line of the log, without the fields that are None.

    The errors over N views are called `top1_error_N_views` and `top5_error_N_views` in the log, and
    `metrics` is there only if there are any.
    """
    fields = {name: x for name, x in dataclasses.asdict(event).items() if x is not None}
    if isinstance(event, Evaluation):
        views = fields.pop("views")
        for name in ("top1_error", "top5_error") if views > 1 else ():
            fields[f"{name}_{views}_views"] = fields.pop(f"{name}_views")
        if not event.metrics:
            del fields["metrics"]
    return {"event": event.kind, **fields}


def from_json(line: dict[str, Any]) -> Event:
    """Returns the event of a line of the log, also of one that version 0.1 wrote.

    Raises:
      ValueError, TypeError, KeyError: it is not the line of an event.
    """
    fields = dict(line)
    kind = fields.pop("event", None)
    if kind is None:
        # Version 0.1 had no kinds: they follow from `split` and from the other fields.
        if "num_examples" in fields:
            kind = Evaluation.kind
        else:
            split = fields.pop("split")
            kind = TrainingMean.kind if split == "train" else split
    if kind == Evaluation.kind:
        for views in (9, 10):
            for name in ("top1_error", "top5_error"):
                if (error := fields.pop(f"{name}_{views}_views", None)) is not None:
                    fields |= {"views": views, f"{name}_views": error}
    event = _TYPES[kind](**fields)
    for field in dataclasses.fields(event):
        if not _fits(getattr(event, field.name), field.type):
            raise TypeError(f"{field.name} is {getattr(event, field.name)!r}")
    return event


def _fits(value: Any, declared: Any) -> bool:
    """Whether a value that JSON held is of the type of a field."""
    of: tuple[Any, ...] = get_args(declared)
    match get_origin(declared) or declared:
        case types.UnionType:
            return any(_fits(value, one) for one in of)
        case builtins.dict:
            return isinstance(value, dict) and _all_fit(value.values(), of[1])
        case builtins.list:
            return isinstance(value, list) and _all_fit(value, of[0])
        case builtins.float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case one:
            return isinstance(value, one) and not (one is int and isinstance(value, bool))


def _all_fit(values: Any, declared: Any) -> bool:
    return all(_fits(value, declared) for value in values)
