"""What each part of the network is worth, on ten classes of ImageNet photographs.

    python -m alexnet_jax prepare --config=imagenette:half --out=data/imagenette-128
    python -m alexnet_jax study --config=studies/imagenette:rates --workdir=runs/imagenette-rates
    python -m alexnet_jax study --config=studies/imagenette --workdir=runs/imagenette

The base is `imagenette:half`. Each variant changes one part. First (`rates`) the learning rate of
every variant whose best rate may differ is chosen over one grid, by the error on a tenth of the
training photographs that is held out; then all variants are trained on all training photographs at
those rates, and each run is tested once. LRN, overlapping pooling and dropout have five seeds, the
others three.

The photographs are resized once (`prepare`), so that decoding them does not limit the speed.
`--config.base.data.source=tfds:imagenette_224` decodes them anew in each epoch.
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.analysis.study import study
from alexnet_jax.errors import UsageError

IMAGENETTE = runpy.run_path(str(Path(__file__).parents[1] / "imagenette.py"))
GRID = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04)
RATE = "optimizer.learning_rate"
BEST = {
    "base": 0.005,
    "lrn-off": 0.005,
    "pool-2-2": 0.01,
    "dropout-off": 0.0025,
    "batch-norm": 0.01,
    "tanh": 0.04,
    "sigmoid": 0.0025,
}
"""The best rate of each variant in `GRID`, by results/imagenette/rates/table.md, but for two: no
rate trains the network with sigmoid, and without LRN 0.00125 is better than 0.005 by two of 944
photographs only."""
MEASURES = ("test_error", "test_error_10_views", "train_error", "most_colour", "least_colour")

# As in layers-145-half.cfg, which keeps the last convolution and the dense layers.
HALVED = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192}


def then(conv1: tuple[str, ...], conv2: tuple[str, ...]) -> dict[str, Any]:
    """The operations after the first two layers."""
    return {"model.layers.conv1.then": conv1, "model.layers.conv2.then": conv2}


VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "lrn-off": {"model.lrn.enabled": False},
    "pool-2-2": {"model.pool.window": 2},
    "dropout-off": {"model.dropout.rate": 0.0},
    "dropout-fc6-only": {"model.layers.fc7.then": ("activation",)},
    "lrn-after-pool": then(
        ("max_pool", "lrn", "activation"), ("activation", "max_pool", "lrn", "within_map_norm")
    ),
    "lrn-alpha-paper": {"model.lrn.alpha_divided_by_size": False},
    "batch-norm": then(
        ("batch_norm", "max_pool", "activation"),
        ("activation", "batch_norm", "within_map_norm", "max_pool"),
    ),
    "crop-and-flip-off": {"data.random_crop": False, "data.random_flip": False},
    "colour-noise-off": {"data.colour.rule": "none"},
    "colour-noise-paper": {"data.colour.rule": "paper"},
    "tanh": {"model.activation": "tanh"},
    "sigmoid": {"model.activation": "sigmoid"},
    "no-exchange": {f"model.layers.{name}.exchange": "none" for name in ("conv3", "fc6", "fc7")},
    "one-tower-half": {"model.towers": 1}
    | {f"model.layers.{name}.features": count for name, count in HALVED.items()},
    "one-tower-full": {"model.towers": 1},
}
TUNED = ("base", "lrn-off", "pool-2-2", "dropout-off", "batch-norm", "tanh", "sigmoid")


def base() -> ConfigDict:
    """The half-width network on prepared photographs."""
    config = IMAGENETTE["get_config"]("half")
    config.data.source = "prepared:data/imagenette-128"
    return config


def get_config(which: str = "best") -> ConfigDict:
    """The comparison (`best`), or the search for its learning rates (`rates`)."""
    config = base()
    if which == "rates":
        config.data.validation_fraction = 0.1
        config.evaluate.splits = ("train", "validation")
        return study(
            config,
            {name: VARIANTS[name] for name in TUNED},
            grid={RATE: GRID},
            seeds=(9,),
            measures=("validation_error",),
            title="Learning rates by variant: error on a tenth of the training photographs",
        )
    if which != "best":
        raise UsageError(f"{which!r}: use best or rates")
    config.optimizer.learning_rate = BEST["base"]
    variants = {
        name: changes | ({RATE: BEST[name]} if name in BEST and name != "base" else {})
        for name, changes in VARIANTS.items()
    }
    return study(
        config,
        variants,
        seeds=(0, 1, 2),
        measures=MEASURES,
        more_seeds=dict.fromkeys(("base", "lrn-off", "pool-2-2", "dropout-off"), (3, 4)),
        title="Parts of the two-tower network on ten classes of ImageNet photographs",
        # Sections 3.3, 3.4, 4.1 and 3.2 of the paper: ImageNet, the full network.
        paper={"lrn-off": 1.4, "pool-2-2": 0.4, "colour-noise-off": 1.0, "one-tower-half": 1.7},
    )
