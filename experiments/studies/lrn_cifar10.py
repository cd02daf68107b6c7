"""Local response normalization on CIFAR-10: the 13 % network without it, the 11 % network with it.

    python -m alexnet_jax study --config=studies/lrn_cifar10 --workdir=runs/lrn

Section 3.3 of the paper reports 13 % test error without normalization and 11 % with it. The
networks are cuda-convnet's `13pct` and `11pct`, which differ in more than LRN, as they did in 2012:
in the width of the third layer and in the weight decay of the last one. `lrn-off` is 11pct with
only LRN switched off. A run takes 520 epochs; `--config.base.num_epochs=20.0` gives a first
impression.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax.analysis.study import study

CONVNETS = runpy.run_path(str(Path(__file__).parents[1] / "cifar10_2012.py"))


def get_config() -> ConfigDict:
    """The three networks, with three seeds each."""
    base = CONVNETS["get_config"]("11pct")
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
