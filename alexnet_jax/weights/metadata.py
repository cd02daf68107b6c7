"""What a file says about its weights: the configuration, the class names and the colour order."""

import json

import numpy as np

from alexnet_jax import jsonfiles
from alexnet_jax.config import from_json
from alexnet_jax.data.classes import shown_names
from alexnet_jax.errors import UsageError
from alexnet_jax.weights.column import Column, checked

KEY, CLASSES = "alexnet_jax", "classes"
"""Names of the texts in the metadata of a file: for this project, and for every other program."""


def to_texts(column: Column) -> dict[str, str]:
    """The metadata of a file by name.

    `CLASSES` is a JSON list of what `predict` calls the classes, in the order of the outputs.
    """
    names = shown_names(column.class_names, column.config.model.num_classes)
    return {KEY: to_text(column), CLASSES: json.dumps(names)}


def to_text(column: Column) -> str:
    """Everything about a column but its numbers, as JSON."""
    config = json.loads(column.config.to_json())
    about = {"config": config, "class_names": list(column.class_names), "colours": "RGB"}
    return json.dumps(about)


def from_text(text: str, arrays: dict[str, np.ndarray], mean: np.ndarray) -> Column:
    """The column that `to_text` described, with its numbers.

    Raises:
      UsageError: it does not describe a network, or the arrays are not that network's.
    """
    try:
        about = jsonfiles.loads(text)
        config = from_json(json.dumps(about["config"]), "its configuration")
        names, colours = about["class_names"], about["colours"]
    except (ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(f"its metadata {KEY} is not what `export` writes ({reason})") from error
    if colours != "RGB":
        raise UsageError(f"its metadata {KEY} has colours {colours!r}: RGB is read")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"its metadata {KEY} has class_names that are not a list of names")
    return checked(Column(config, arrays, mean, tuple(names)))
