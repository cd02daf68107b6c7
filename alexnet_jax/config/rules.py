"""Rules that involve several fields, and the checks of a whole configuration."""

import re

from ml_collections import ConfigDict

from alexnet_jax.config import table
from alexnet_jax.config.fields import check_fields
from alexnet_jax.config.guests import import_guests
from alexnet_jax.errors import UsageError

_MOST_PARAMETERS = 10**10


def validate(config: ConfigDict) -> None:
    """Checks every field and every combination, before anything is read or compiled.

    What `config.imports` names is imported first.

    Raises:
      UsageError: one line that names the field and what to do.
    """
    check_run(config)
    import_guests(config)
    check_fields(config)
    _check_distributed(config.distributed)
    _check_data(config.data)
    _check_evaluation(config)
    _check_network(config)


def check_run(config: ConfigDict) -> None:
    """Checks that a configuration is one of a run.

    Raises:
      UsageError: it is a study.
    """
    if "variants" in config and "base" in config:
        raise UsageError(
            "config is a study, which is many runs: give it to the verb `study`; its config.base "
            "is one run"
        )


def _check_data(data: ConfigDict) -> None:
    padded = data.image_size + 2 * data.pad
    if data.crop_size > padded:
        raise UsageError(
            f"config.data.crop_size = {data.crop_size}: larger than data.image_size + 2 data.pad "
            f"= {padded}"
        )
    if data.crop_size > data.image_size:
        raise UsageError(
            f"config.data.crop_size = {data.crop_size}: larger than data.image_size = "
            f"{data.image_size}, which is the size of test images"
        )


def _check_evaluation(config: ConfigDict) -> None:
    splits, data = config.evaluate.splits, config.data
    for split in splits:
        if split not in ("train", "validation"):
            advice = "the test split is evaluated once, after training" if split == "test" else ""
            raise UsageError(
                f"config.evaluate.splits holds {split!r}: use train, validation or both"
                + (f"; {advice}" if advice else "")
            )
    if "validation" in splits and not data.validation_split and not data.validation_fraction:
        raise UsageError(
            "config.evaluate.splits holds 'validation', but there is none: set "
            "config.data.validation_split or config.data.validation_fraction"
        )
    steered = {
        "optimizer.schedule = 'plateau'": config.optimizer.schedule == "plateau",
        f"stop_at_error = {config.stop_at_error}": config.stop_at_error > 0,
    }
    for what, needed in steered.items():
        if needed and not splits:
            raise UsageError(f"config.{what} needs config.evaluate.splits to name a split")


def _check_network(config: ConfigDict) -> None:
    model = config.model
    for name in config.freeze:
        if name not in model.layer_order:
            layers = ", ".join(model.layer_order)
            raise UsageError(f"config.freeze holds {name!r}: the layers are {layers}")
    rows = table.count(model, config.data.crop_size)
    if config.accumulate_steps > 1:
        for row in rows:
            for name, op in zip(row.layer.then, row.layer.operations, strict=True):
                if op.statistics():
                    raise UsageError(
                        f"config.accumulate_steps = {config.accumulate_steps}: {name} after "
                        f"{row.layer.name} needs the statistics of a whole batch; use 1"
                    )
    last = rows[-1].layer.name
    if model.layers[last].features != model.num_classes:
        raise UsageError(
            f"config.model.layers.{last}.features = {model.layers[last].features} is not "
            f"config.model.num_classes = {model.num_classes}: set the latter alone"
        )
    parameters = sum(row.parameters for row in rows)
    if parameters > _MOST_PARAMETERS:
        raise UsageError(
            f"config.model has {parameters:,} parameters, which is more than {_MOST_PARAMETERS:,}: "
            "lower model.width, the features of a layer or data.crop_size"
        )


def _check_distributed(distributed: ConfigDict) -> None:
    """Coordinator, count and number go together: all are given by hand, or none."""
    given = {
        "coordinator": bool(distributed.coordinator),
        "process_count": distributed.process_count > 0,
        "process_id": distributed.process_id >= 0,
    }
    if not any(given.values()):
        return
    if not distributed.enabled:
        raise UsageError("config.distributed.enabled = False, but its other fields say otherwise")
    for field, present in given.items():
        if not present:
            raise UsageError(
                f"config.distributed.{field} = {distributed[field]!r}: coordinator, process_count "
                "and process_id go together"
            )
    if not re.fullmatch(r".+:\d+", distributed.coordinator):
        raise UsageError(
            f"config.distributed.coordinator = {distributed.coordinator!r}: give HOST:PORT"
        )
    if distributed.process_id >= distributed.process_count:
        raise UsageError(
            f"config.distributed.process_id = {distributed.process_id}: they count from 0 to "
            f"process_count - 1 = {distributed.process_count - 1}"
        )
