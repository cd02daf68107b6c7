"""AlexNet of 2012 as two towers in JAX: the public names.

Each is imported when it is first used, so that `import alexnet_jax` starts neither JAX nor
TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_jax.errors import Stopped as Stopped
    from alexnet_jax.errors import UsageError as UsageError
    from alexnet_jax.evaluate import evaluate_workdir as evaluate_workdir
    from alexnet_jax.inspect import layer_table as layer_table
    from alexnet_jax.models.tower import Tower as Tower
    from alexnet_jax.models.towers import merge_towers as merge_towers
    from alexnet_jax.models.towers import split_towers as split_towers
    from alexnet_jax.parallel import prepare_host as prepare_host
    from alexnet_jax.train import train_and_evaluate as train_and_evaluate
    from alexnet_jax.trained import Network as Network
    from alexnet_jax.trained import config_of as config_of
    from alexnet_jax.trained import load as load

_HOME = {
    "Network": "trained",
    "Stopped": "errors",
    "Tower": "models.tower",
    "UsageError": "errors",
    "config_of": "trained",
    "evaluate_workdir": "evaluate",
    "layer_table": "inspect",
    "load": "trained",
    "merge_towers": "models.towers",
    "prepare_host": "parallel",
    "split_towers": "models.towers",
    "train_and_evaluate": "train",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alexnet_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"alexnet_jax.{_HOME[name]}"), name)
