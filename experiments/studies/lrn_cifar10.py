"""Local response normalization on CIFAR-10: the 13 % network without, the 11 % network with it.

    python -m alexnet_jax study --config=experiments/studies/lrn_cifar10.py --workdir=runs/lrn

Section 3.3 of the paper: 13 % test error without normalization, 11 % with. The networks are
cuda-convnet's `13pct` and `11pct`, which differ in more than LRN, as they did in 2012: the width of
the third layer and the decay of the last. `lrn-off` is 11pct with LRN alone switched off. 520
epochs a run; `--config.base.num_epochs=20` for a look.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax.study import study

CONVNETS = runpy.run_path(str(Path(__file__).parents[1] / "cifar10_2012.py"))


def get_config() -> ConfigDict:
    """Three networks, three seeds."""
    base = CONVNETS["get_config"]("11pct")
    base.evaluate.every_epochs = 20.0
    like_13 = {
        "model.lrn.enabled": False,
        "model.layers.local3.features": 32,
        "model.layers.fc10.weight_decay": 0.004,
    }
    return study(
        base,
        {"11pct": {}, "lrn-off": {"model.lrn.enabled": False}, "13pct": like_13},
        seeds=(0, 1, 2),
        title="LRN on CIFAR-10: 11pct and 13pct",
        paper={"13pct": 2.0},
    )
