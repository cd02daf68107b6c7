"""Configuration: each field declared once, rules between fields, networks and presets."""

from ml_collections import ConfigDict

from alexnet_jax.config.fields import defaults, leaves
from alexnet_jax.config.files import completed, from_json, tuples
from alexnet_jax.config.networks import alexnet
from alexnet_jax.config.rules import validate

__all__ = ["completed", "default", "from_json", "leaves", "tuples", "validate"]


def default() -> ConfigDict:
    """A fresh, locked configuration: the article's network and the 2012 training rule."""
    config = defaults()
    config.model = alexnet()
    return config.lock()
