"""The CIFAR-10 networks of cuda-convnet (80sec, 19pct, 18pct, 13pct, 11pct).

    python -m alexnet_jax train --config=cifar10_2012:18pct --workdir=runs/18pct

As their authors describe them (example-layers/ and the readme of cuda-convnet):

    80sec, 19pct, 18pct   whole images without crops or flips, and one view at test time: 26 %, 19 %
                          and 18 % error
    13pct, 11pct          24 x 24 crops and flips, and nine views per image at test time

All subtract the mean image. The learning rate was lowered by hand; the fixed schedules here follow
the comments in those files: 80sec lowers it after 8 epochs, 18pct after 120 and again after 130,
and 11pct after 500 and 510 (350 of them on 40,000 images, which is not repeated here). 19pct has
four layers, like the network of the paper's Figure 1; see `studies/figure1_relu_vs_tanh.py`.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.config.networks import NETWORKS, convnet
from alexnet_jax.errors import UsageError

EPOCHS = {
    "80sec": (10.0, (8.0,)),
    "19pct": (140.0, (120.0, 130.0)),
    "18pct": (140.0, (120.0, 130.0)),
    "13pct": (520.0, (500.0, 510.0)),
    "11pct": (520.0, (500.0, 510.0)),
}

WHOLE = ("80sec", "19pct", "18pct")
"""Trained "without any image translations/transformations/preprocessing", says the readme."""


def get_config(network: str = "80sec") -> ConfigDict:
    """The network and its training, with the original learning rates and weight decay."""
    if network not in NETWORKS:
        raise UsageError(f"network {network!r}: use one of {', '.join(NETWORKS)}")
    config = default()
    with config.unlocked():
        config.model = convnet(network)
    config.num_epochs, config.optimizer.drop_epochs = EPOCHS[network]
    config.optimizer.update(learning_rate=0.001, bias_rate_multiplier=2.0, weight_decay=0.0)
    config.data.update(
        source="tfds:cifar10", test_split="test", image_size=32, crop_size=24, mean="image"
    )
    if network in WHOLE:
        config.data.update(crop_size=32, random_crop=False, random_flip=False)
    # A fixed schedule needs no validation split: the network is trained on all training images, and
    # the test images are read once, after training.
    config.data.validation_fraction = 0.0
    config.evaluate.splits = ()
    config.evaluate.final_views = 1 if network in WHOLE else 9
    return config
