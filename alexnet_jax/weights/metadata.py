"""What a file says about its weights: the configuration, the class names and the colour order."""

import json

import numpy as np

from alexnet_jax.config import from_json
from alexnet_jax.weights.column import Column, checked

KEY = "alexnet_jax"
"""Name of the text in the metadata of a file."""


def to_text(column: Column) -> str:
    """Everything about a column but its numbers, as JSON."""
    config = json.loads(column.config.to_json())
    about = {"config": config, "class_names": list(column.class_names), "colours": "RGB"}
    return json.dumps(about)


def from_text(text: str, arrays: dict[str, np.ndarray], mean: np.ndarray) -> Column:
    """The column that `to_text` described, with its numbers.

    Raises:
      UsageError: the configuration is not one, or an array is missing or has another shape.
    """
    about = json.loads(text)
    config = from_json(json.dumps(about["config"]), "its configuration")
    return checked(Column(config, arrays, mean, tuple(about["class_names"])))
