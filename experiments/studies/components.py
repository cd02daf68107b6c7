"""The effect of each component of the network, changed one at a time, on CIFAR-10.

    python -m alexnet_jax study --config=studies/components --workdir=runs/components

The two-tower network at an eighth of its width is trained on 10,000 of the training images, so that
a run takes a minute on two CPU cores. `--config.base.data.train_split=train` trains on all of them,
for which `num_epochs` should be larger. Every variant has the learning rate of the base: it is not
tuned for tanh and the sigmoid.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax.analysis.study import study

CIFAR10 = runpy.run_path(str(Path(__file__).parents[1] / "cifar10.py"))


def base() -> ConfigDict:
    """The network of the article on CIFAR-10, small, with the paper's colour noise."""
    config = CIFAR10["get_config"]()
    config.num_epochs = 10.0
    config.model.width = 0.125
    for name in config.model.layer_order[1:]:
        config.model.layers[name].init_std *= 2**0.5  # these layers have half as many inputs
    config.data.train_split = "train[:20%]"
    config.data.colour.rule = "source"
    config.optimizer.drop_epochs = (7.0, 9.0)
    config.log_every_steps = 39
    config.checkpoint_every_steps = 390
    config.keep_checkpoints = 1
    return config


def get_config() -> ConfigDict:
    """The study, with the paper's differences in top-1 error, which were measured on ImageNet."""
    before = ("activation", "lrn", "max_pool")
    alone = ("conv3", "fc6", "fc7")
    # As in layers-145-half.cfg, which keeps the last convolution and the dense layers.
    halved = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192}
    return study(
        base(),
        {
            "base": {},
            "lrn-off": {"model.lrn.enabled": False},
            "lrn-before-pool": {f"model.layers.{name}.then": before for name in ("conv1", "conv2")},
            "pool-2-2": {"model.pool.window": 2},
            "dropout-off": {"model.dropout.rate": 0.0},
            "crop-and-flip-off": {"data.random_crop": False, "data.random_flip": False},
            "colour-noise-off": {"data.colour.rule": "none"},
            "tanh": {"model.activation": "tanh"},
            "sigmoid": {"model.activation": "sigmoid"},
            "one-tower": {"model.towers": 1}
            | {f"model.layers.{name}.features": count for name, count in halved.items()},
            "no-exchange": {f"model.layers.{name}.exchange": "none" for name in alone},
        },
        seeds=(0, 1, 2),
        title="Components of the two-tower network on CIFAR-10, 10,000 training images",
        # Sections 3.3, 3.4, 4.1 and 3.2 of the paper.
        paper={"lrn-off": 1.4, "pool-2-2": 0.4, "colour-noise-off": 1.0, "one-tower": 1.7},
    )
