"""The CIFAR-10 networks of cuda-convnet (80sec, 19pct, 18pct, 13pct, 11pct).

    python -m alexnet_jax train --config=experiments/cifar10_2012.py:18pct --workdir=runs/18pct

24 x 24 crops of the mean-subtracted image and nine views at test time. The originals stopped by
hand; the fixed schedules here follow their readme: 11pct trains for 520 epochs with drops at 500
and 510, 18pct for 140 with drops at 120 and 130. 19pct is the one of four layers, as the network of
the paper's Figure 1 is said to be: see `studies/figure1_relu_vs_tanh.py`.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.errors import UsageError
from alexnet_jax.models.convnet import NETWORKS, convnet

EPOCHS = {
    "80sec": (30.0, (20.0, 25.0)),
    "19pct": (140.0, (120.0, 130.0)),
    "18pct": (140.0, (120.0, 130.0)),
    "13pct": (520.0, (500.0, 510.0)),
    "11pct": (520.0, (500.0, 510.0)),
}


def get_config(network: str = "80sec") -> ConfigDict:
    """The network and its training; rates and decays are the originals'."""
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
    config.evaluate.final_views = 9
    return config
