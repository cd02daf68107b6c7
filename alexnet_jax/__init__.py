"""AlexNet of 2012 as two towers in JAX: the public names.

Each is imported when it is first used, so that `import alexnet_jax` starts neither JAX nor
TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_jax.analysis.inspect import layer_table as layer_table
    from alexnet_jax.errors import Stopped as Stopped
    from alexnet_jax.errors import UsageError as UsageError
    from alexnet_jax.model.columns import merge_towers as merge_towers
    from alexnet_jax.model.columns import split_towers as split_towers
    from alexnet_jax.model.tower import Tower as Tower
    from alexnet_jax.parallel.hosts import prepare_host as prepare_host
    from alexnet_jax.training.loop import train_and_evaluate as train_and_evaluate
    from alexnet_jax.training.network import Network as Network
    from alexnet_jax.training.network import config_of as config_of
    from alexnet_jax.training.network import evaluate_workdir as evaluate_workdir
    from alexnet_jax.training.network import load as load

_HOME = {
    "Network": "training.network",
    "Stopped": "errors",
    "Tower": "model.tower",
    "UsageError": "errors",
    "config_of": "training.network",
    "evaluate_workdir": "training.network",
    "layer_table": "analysis.inspect",
    "load": "training.network",
    "merge_towers": "model.columns",
    "prepare_host": "parallel.hosts",
    "split_towers": "model.columns",
    "train_and_evaluate": "training.loop",
}
__all__ = [
    "Network",
    "Stopped",
    "Tower",
    "UsageError",
    "config_of",
    "evaluate_workdir",
    "layer_table",
    "load",
    "merge_towers",
    "prepare_host",
    "split_towers",
    "train_and_evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alexnet_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"alexnet_jax.{_HOME[name]}"), name)
