"""The full two-tower network on ImageNet, in the conventions of four sources.

    python -m alexnet_jax train --config=experiments/imagenet.py:PRESET --workdir=runs/a

PRESET is one of

    article   the article this project implements: conv, ReLU, pool, LRN (default)
    paper     Krizhevsky, Sutskever and Hinton 2012, to the letter
    source    layers-145.cfg of the released source, the run behind the paper's 40.7 / 18.2
    caffe     BVLC's bvlc_alexnet

or one of the other logged runs of 2012 (see `ROWS`), such as `148`. `inspect` prints each preset's
conventions beside the paper's and the source's. Errors quoted are the originals', on the 2012
validation set with ten views unless said; none is claimed as reproduced here.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.errors import UsageError

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
DENSE = ("fc6", "fc7")


def get_config(preset: str = "article") -> ConfigDict:
    """The configuration of a preset or of a logged run of 2012."""
    networks = PRESETS | ROWS
    if preset not in networks:
        raise UsageError(f"preset {preset!r}: use one of {', '.join(networks)}")
    config = default()
    networks[preset](config)
    return config


def _ones(config: ConfigDict, value: float = 1.0) -> None:
    """Biases that start ReLUs on their rising side (section 5)."""
    for name in ("conv2", "conv4", "conv5", *DENSE):
        config.model.layers[name].bias = value


def article(config: ConfigDict) -> None:
    """The article: the defaults. 224 crops padded to 227, LRN after the pools, PCA noise."""
    config.data.colour.rule = "paper"
    _ones(config)
    config.evaluate.final_views = 10


def paper(config: ConfigDict) -> None:
    """The paper to the letter: LRN before the pools, weights of 0.01, plateau schedule.

    40.7 / 18.2 % top-1 / top-5 error in the paper, in about 90 epochs.
    """
    article(config)
    for name in ("conv1", "conv2"):
        config.model.layers[name].then = ("activation", "lrn", "max_pool")
    config.data.mean = "image"
    config.optimizer.schedule = "plateau"


def source(config: ConfigDict) -> None:
    """layers-145.cfg: what produced the paper's numbers (40.664 / 18.210 % in its log).

    LRN before the pool and before the ReLU in layer 1, a within-map norm after LRN2, alpha / 5,
    weights of 0.03 in conv3-5, biases at twice the rate, dropout not rescaled in training, PCA
    noise by the standard deviations, and the schedule as it was turned by hand.
    """
    _ones(config)
    layers = config.model.layers
    layers.conv1.then = ("lrn", "max_pool", "activation")
    layers.conv2.then = ("activation", "lrn", "within_map_norm", "max_pool")
    layers.conv5.then = ("max_pool", "activation")
    for name in ("conv3", "conv4", "conv5"):
        layers[name].init_std = 0.03
    config.model.lrn.alpha_divided_by_size = True
    config.model.dropout.rescaled_in_training = False
    config.data.mean = "image"
    config.data.colour.update(rule="source", until_epoch=67.0)
    config.num_epochs = 91.0
    config.optimizer.update(
        schedule="steps",
        bias_rate_multiplier=2.0,
        biases_follow_schedule=False,  # epsB stays 0.02 to the end of 145
        drop_epochs=(25.0, 51.0, 79.0),
        conv1_drop_epochs=(25.0, 51.0, 67.0),
        conv1_freeze_epoch=72.0,
    )
    config.evaluate.final_views = 10


def caffe(config: ConfigDict) -> None:
    """BVLC's bvlc_alexnet: 227 crops, k 1, alpha / 5 across the seam, biases 0.1, batch 256.

    42.9 / 19.8 % centre crop (57.1 / 80.2 % accuracy, models/bvlc_alexnet/readme.md).
    """
    _ones(config, 0.1)
    layers = config.model.layers
    layers.conv1.padding = (0, 0)
    for name in ("conv1", "conv2"):
        layers[name].then = ("activation", "lrn", "max_pool")
    for name in DENSE:
        layers[name].init_std = 0.005
    config.model.lrn.update(k=1.0, alpha_divided_by_size=True, across_towers=True)
    config.data.update(crop_size=227, resize="stretch", mean="image")
    config.batch_size = 256
    config.optimizer.update(
        bias_rate_multiplier=2.0, drop_epochs=(20.0, 40.0, 60.0, 80.0)
    )  # every 100,000 steps of 256


Change = Callable[[ConfigDict], None]
PRESETS: dict[str, Change] = {
    "article": article,
    "paper": paper,
    "source": source,
    "caffe": caffe,
}
ROWS: dict[str, Change] = {}
