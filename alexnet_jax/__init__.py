"""AlexNet of 2012 as two towers in JAX: the public names.

Each is imported when it is first used, so that `import alexnet_jax` starts neither JAX nor
TensorFlow.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

# Before JAX is imported, which would choose another level, at which XLA prints harmless errors (see
# `parallel.hosts`). What goes wrong raises an exception.
if "jax" not in sys.modules:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if TYPE_CHECKING:
    from alexnet_jax.analysis.inspect import layer_table as layer_table
    from alexnet_jax.config.find import get_config as get_config
    from alexnet_jax.errors import Stopped as Stopped
    from alexnet_jax.errors import UsageError as UsageError
    from alexnet_jax.model.columns import merge_towers as merge_towers
    from alexnet_jax.model.columns import split_towers as split_towers
    from alexnet_jax.model.tower import Tower as Tower
    from alexnet_jax.parallel.hosts import prepare_host as prepare_host
    from alexnet_jax.training.api import Result as Result
    from alexnet_jax.training.api import create as create
    from alexnet_jax.training.api import evaluate_workdir as evaluate_workdir
    from alexnet_jax.training.api import train as train
    from alexnet_jax.training.loop import train_and_evaluate as train_and_evaluate
    from alexnet_jax.training.network import Network as Network
    from alexnet_jax.training.origin import config_of as config_of
    from alexnet_jax.training.origin import load as load

_HOME = {
    "Network": "training.network",
    "Result": "training.api",
    "Stopped": "errors",
    "Tower": "model.tower",
    "UsageError": "errors",
    "config_of": "training.origin",
    "create": "training.api",
    "evaluate_workdir": "training.api",
    "get_config": "config.find",
    "layer_table": "analysis.inspect",
    "load": "training.origin",
    "merge_towers": "model.columns",
    "prepare_host": "parallel.hosts",
    "split_towers": "model.columns",
    "train": "training.api",
    "train_and_evaluate": "training.loop",
}
__all__ = [
    "Network",
    "Result",
    "Stopped",
    "Tower",
    "UsageError",
    "config_of",
    "create",
    "evaluate_workdir",
    "get_config",
    "layer_table",
    "load",
    "merge_towers",
    "prepare_host",
    "split_towers",
    "train",
    "train_and_evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alexnet_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"alexnet_jax.{_HOME[name]}"), name)
