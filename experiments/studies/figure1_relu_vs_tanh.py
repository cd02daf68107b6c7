"""The paper's Figure 1: epochs to a training error of 25 % on CIFAR-10, with ReLU and with tanh.

    python -m alexnet_jax study --config=studies/figure1_relu_vs_tanh:rates \
        --workdir=runs/figure1-rates
    python -m alexnet_jax study --config=studies/figure1_relu_vs_tanh \
        --workdir=runs/figure1

The four-layer network is cuda-convnet's `19pct` (three convolutions, one dense layer) without any
regularization: no crops, no flips, no weight decay. The paper does not say which network it was.
First the learning rate is tuned for each activation function (`rates`): one seed, a grid with
factors of about 3, compared by the training error after eight epochs. Three epochs are too few,
since rates lead then that do not lead later. The best rates are then run with other seeds. A run
ends when the error on the whole training set, measured after each epoch, has fallen to 25 %.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax.analysis.study import study
from alexnet_jax.errors import UsageError

CONVNETS = runpy.run_path(str(Path(__file__).parents[1] / "cifar10_2012.py"))
RATES = {"relu": (0.0003, 0.001, 0.003, 0.01), "tanh": (0.003, 0.01, 0.03)}
TUNING_EPOCHS = 8.0
BEST = {"relu": 0.003, "tanh": 0.01}  # see results/figure1/rates
TARGET = 0.25


def base() -> ConfigDict:
    """The network without regularization, trained until it reaches the target error."""
    config = CONVNETS["get_config"]("19pct")
    config.data.crop_size = 24  # The central part of the image.
    config.model.layers.fc10.init_std = 0.1
    for name in config.model.layer_order:
        config.model.layers[name].weight_decay = 0.0
    config.num_epochs = 120.0
    config.stop_at_error = TARGET
    config.log_every_steps = 39
    config.checkpoint_every_steps = 390
    config.keep_checkpoints = 1
    config.warn_stuck_after_steps = 0
    config.optimizer.schedule = "constant"
    config.evaluate.update(splits=("train",), every_epochs=1.0, final_views=1, batch_size=500)
    return config


def get_config(which: str = "best") -> ConfigDict:
    """The comparison (`best`), or the search for its learning rates (`rates`)."""
    if which == "best":
        variants = {name: changes(name, rate) for name, rate in BEST.items()}
        seeds, config = (0, 1, 2), base()
    elif which == "rates":
        variants = {
            f"{name}-{rate:g}": changes(name, rate)
            for name, rates in RATES.items()
            for rate in rates
        }
        seeds, config = (9,), base()
        config.num_epochs, config.stop_at_error = TUNING_EPOCHS, 0.0
    else:
        raise UsageError(f"{which!r}: use best or rates")
    # The first variant is what the others are compared with: its changes go into the base.
    first = next(iter(variants))
    config.update_from_flattened_dict(variants[first])
    if which == "rates":
        title = f"Rates for Figure 1: training error on CIFAR-10 after {TUNING_EPOCHS:.0f} epochs"
        return study(config, variants | {first: {}}, seeds, title=title, measures=("train_error",))
    return study(
        config,
        variants | {first: {}},
        seeds,
        title=f"Figure 1: epochs to {TARGET:.0%} training error on CIFAR-10",
        measures=("epochs_to_error",),
        target=TARGET,
        paper={"tanh": 6.0},
    )


def changes(activation: str, rate: float) -> dict[str, object]:
    """The fields that a variant changes."""
    return {"model.activation": activation, "optimizer.learning_rate": rate}
