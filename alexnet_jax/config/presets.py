"""The conventions of AlexNet's sources, and the other networks of 2012, as changes of the default.

`article`, `paper`, `source` and `caffe` are four readings of the same network; the numbered rows
are runs that the released source logged (`layers-NNN.cfg` and `layer-params-NNN.cfg`). Errors
quoted are the originals', top-1 / top-5 on the 2012 validation set with ten views unless said.
None is claimed as reproduced here.

Every run took 5 to 6 days on two GTX 580 in 2012 (section 5 of the paper: 90 epochs). The command
for a pair of GPUs is

    python -m alexnet_jax train --config=imagenet:NAME --workdir=runs/NAME
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.errors import UsageError

DENSE = ("fc6", "fc7")


def get(name: str) -> ConfigDict:
    """The full configuration of a preset or row.

    Raises:
      UsageError: if there is none of that name; lists those there are.
    """
    if name not in PRESETS | ROWS:
        raise UsageError(f"preset {name!r}: use one of {', '.join(PRESETS | ROWS)}")
    config = default()
    with config.unlocked():
        (PRESETS | ROWS)[name](config)
    return config


def _start_rising(config: ConfigDict, value: float = 1.0) -> None:
    """Biases that start ReLUs on their rising side (section 5)."""
    for name in ("conv2", "conv4", "conv5", *DENSE):
        config.model.layers[name].bias = value


def _steer_by_validation_set(config: ConfigDict) -> None:
    """As the authors did: ImageNet's validation set steers the run, and is reported on as well.

    The labels of the test set of 2012 are not public.
    """
    config.data.update(validation_split="validation", test_split="validation")


def article(config: ConfigDict) -> None:
    """The article: conv, ReLU, pool, LRN; 224 crops padded to 227; PCA noise.

    Where it is silent (initial biases, what becomes of dropout in test) the paper speaks.
    """
    _start_rising(config)
    _steer_by_validation_set(config)
    config.model.dropout.rescaled_in_training = False
    config.data.colour.rule = "paper"
    config.evaluate.final_views = 10


def paper(config: ConfigDict) -> None:
    """The paper to the letter: LRN before the pools, weights of 0.01, plateau schedule.

    Dropout halves the outputs in test. 40.7 / 18.2 % top-1 / top-5 error in the paper, in about 90
    epochs.
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
    _start_rising(config)
    _steer_by_validation_set(config)
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
    _start_rising(config, 0.1)
    _steer_by_validation_set(config)
    layers = config.model.layers
    layers.conv1.padding = (0, 0)
    for name in ("conv1", "conv2"):
        layers[name].then = ("activation", "lrn", "max_pool")
    for name in DENSE:
        layers[name].init_std = 0.005
    config.model.lrn.update(k=1.0, alpha_divided_by_size=True, across_towers=True)
    config.data.update(crop_size=227, resize="stretch", shrink="bilinear", mean="image")
    config.batch_size = 256
    config.optimizer.update(
        bias_rate_multiplier=2.0, drop_epochs=(20.0, 40.0, 60.0, 80.0)
    )  # every 100,000 steps of 256


def row_145(config: ConfigDict) -> None:
    """The paper's network: 40.664 / 18.210. The same as `source`."""
    source(config)


def row_145_half(config: ConfigDict) -> None:
    """One column with half the kernels of conv1-4: 39.168 / 18.229 against 37.473 / 16.999.

    Both on the 2010 test set. conv5 and the dense layers keep their size.
    """
    source(config)
    config.model.towers = 1
    halves = dict(conv1=48, conv2=128, conv3=192, conv4=192)
    for name, features in halves.items():
        config.model.layers[name].features = features


def row_147(config: ConfigDict) -> None:
    """Pooling 2 x 2 with stride 2, paddings that keep 6 x 6: 41.058 / 18.510."""
    source(config)
    config.model.pool.window = 2
    config.model.layers.conv2.padding = (1, 1)
    config.model.layers.conv5.padding = (0, 0)


def row_148(config: ConfigDict) -> None:
    """No normalization at all: 42.034 / 19.362."""
    source(config)
    _without_norms(config, "conv1", "conv2")


def row_150(config: ConfigDict) -> None:
    """No exchange between the towers below the classifier, wider instead: 41.828 / 19.330."""
    source(config)
    layers = config.model.layers
    for name in ("conv3", *DENSE):
        layers[name].exchange = "none"
    layers.conv2.features = 320
    layers.fc6.features = 8192


def row_127(config: ConfigDict) -> None:
    """No exchange at conv3: stopped as "significantly worse" (the original changed #120)."""
    source(config)
    config.model.layers.conv3.exchange = "none"


def row_132(config: ConfigDict) -> None:
    """Exchange at conv4 in place of conv3: stopped as "worse" (the original changed #120)."""
    source(config)
    config.model.layers.conv3.exchange = "none"
    config.model.layers.conv4.exchange = "inputs"


def row_170(config: ConfigDict) -> None:
    """Four fixed rates, dexp[250, 4]; biases dexp[10, 2]: 40.528 / 18.048, about 95 epochs."""
    source(config)
    config.num_epochs = 95.0
    config.data.colour.until_epoch = 0.0
    config.optimizer.update(schedule="exponential_steps", biases_follow_schedule=True)
    config.optimizer.update(conv1_drop_epochs=(), conv1_freeze_epoch=0.0)


def row_170_256_double(config: ConfigDict) -> None:
    """170 with batch 256 and doubled rates: "matches #170 exactly"; centre crop 42.27 / 19.66."""
    row_170(config)
    config.batch_size = 256
    config.num_epochs = 84.0
    config.optimizer.learning_rate = 0.02


def row_166(config: ConfigDict) -> None:
    """170 with both norms of conv2 before its ReLU, dexp[1000, 4]: 41.096 / 18.674."""
    row_170(config)
    config.optimizer.exponential_factor = 1000.0
    config.model.layers.conv2.then = ("lrn", "within_map_norm", "activation", "max_pool")


def row_167(config: ConfigDict) -> None:
    """170 with no norm after conv2, dexp[1000, 4]: 40.488 / 18.118."""
    row_170(config)
    config.optimizer.exponential_factor = 1000.0
    _without_norms(config, "conv2")


def row_177(config: ConfigDict) -> None:
    """170 with dropout on conv4 as well: 40.690 / 18.304."""
    row_170(config)
    config.model.layers.conv4.then = ("activation", "dropout")


def _without_norms(config: ConfigDict, *names: str) -> None:
    for name in names:
        row = config.model.layers[name]
        row.then = tuple(op for op in row.then if op not in ("lrn", "within_map_norm"))


Change = Callable[[ConfigDict], None]
PRESETS: dict[str, Change] = {
    "article": article,
    "paper": paper,
    "source": source,
    "caffe": caffe,
}
ROWS: dict[str, Change] = {
    "145": row_145,
    "145-half": row_145_half,
    "147": row_147,
    "148": row_148,
    "150": row_150,
    "127": row_127,
    "132": row_132,
    "166": row_166,
    "167": row_167,
    "170": row_170,
    "170-256-double": row_170_256_double,
    "177": row_177,
}
