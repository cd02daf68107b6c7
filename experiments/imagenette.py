"""Ten classes of ImageNet photographs (Imagenette), on which the parts of the network matter.

    python -m alexnet_jax train --config=imagenette:full --workdir=runs/imagenette-full
    python -m alexnet_jax train --config=imagenette:half --workdir=runs/imagenette-half

Both are the `source` preset, with its schedule fitted to 9,445 training photographs.

    full     the whole network, 224 pixel crops, 60 epochs
    paper    the same with the `paper` preset
    half     half its kernels, 112 pixel crops of 128 pixel images, 30 epochs: the base of
             studies/imagenette.py
    quarter  a quarter of its kernels, 224 pixel crops, 30 epochs: 3.6 million parameters, few
             enough for the network that the package brings along

The photographs resized once, so that decoding them does not limit the speed:

    python -m alexnet_jax prepare --config=imagenette:full --out=data/imagenette-256
    python -m alexnet_jax train --config=imagenette:full --workdir=runs/imagenette-full \
      --config.data.source=prepared:data/imagenette-256

`--config.data.validation_fraction=0.1 --config.evaluate.splits="('train','validation')"` holds a
tenth of the training photographs out, to choose settings by. The data set is `imagenette_224`:
Imagenette version 2 of fastai as TFDS records of 224 x 224 JPEGs, both sides scaled. Those files
have been through JPEG twice, so that an error on them is not exactly one on fastai's. With the data
set of TFDS itself: `--config.data.source=tfds:imagenette/320px-v2`.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import presets
from alexnet_jax.errors import UsageError


def get_config(which: str = "half") -> ConfigDict:
    """One of `full`, `paper`, `half` and `quarter`."""
    if which not in ("full", "paper", "half", "quarter"):
        raise UsageError(f"{which!r}: use full, paper, half or quarter")
    config = presets.get("paper" if which == "paper" else "source")
    config.model.num_classes = 10
    config.data.update(
        source="tfds:imagenette_224",
        train_split="train",
        test_split="validation",  # the data set's only other split: read once, after training
        validation_split="",
        validation_fraction=0.0,
    )
    config.num_epochs = 60.0
    # The source's schedule for 91 epochs, with two drops of the rate, the last in time to settle.
    config.optimizer.update(
        schedule="steps", drop_epochs=(40.0, 52.0), conv1_drop_epochs=(), conv1_freeze_epoch=0.0
    )
    config.data.colour.until_epoch = 44.0
    config.evaluate.update(splits=("train",), every_epochs=5.0, final_views=10)
    config.checkpoint_every_steps = 740
    config.keep_checkpoints = 1
    # TensorFloat-32 on a GPU, which changes losses by 2e-5 (benchmarks/results/device-h200.md), far
    # less than another seed does; float32 on a CPU as before.
    config.model.precision = "high"
    if which in ("half", "quarter"):
        _reduce(config, {"half": 0.5, "quarter": 0.25}[which])
    if which == "half":
        config.data.update(image_size=128, crop_size=112)
    return config


def _reduce(config: ConfigDict, width: float) -> None:
    """A part of the kernels of each layer, and half the epochs."""
    config.num_epochs = 30.0
    config.optimizer.drop_epochs = (20.0, 26.0)
    config.data.colour.until_epoch = 22.0
    config.model.width = width
    # Each layer after the first has fewer inputs: deviations that keep the variance of their sum.
    for name in config.model.layer_order[1:]:
        config.model.layers[name].init_std *= width**-0.5
