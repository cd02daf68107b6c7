"""The full two-tower network on ImageNet, in the conventions of four sources.

    python -m alexnet_jax train --config=imagenet:PRESET --workdir=runs/a

PRESET is one of

    article   the article that this project implements: conv, ReLU, pool, LRN (default)
    paper     Krizhevsky, Sutskever and Hinton 2012, followed literally
    source    layers-145.cfg of the released source code, which produced the paper's 40.7 / 18.2 %
    caffe     BVLC's bvlc_alexnet

or another logged run of 2012: 145-half, 147, 148, 150, 127, 132, 166, 167, 170, 170-256-double,
177. `alexnet_jax/config/presets.py` says what each of them changes and which error it had. A run
takes about 90 epochs: 5 to 6 days on the two GTX 580 of 2012, not timed on current GPUs. `inspect`
prints the conventions of a preset beside those of the paper and the source code.

As in 2012, ImageNet's validation set steers the run and is what the final error is measured on.
With `--config.data.validation_split=` (empty), a tenth of the training images steers it instead.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import presets


def get_config(preset: str = "article") -> ConfigDict:
    """The configuration of a preset or of a logged run of 2012."""
    return presets.get(preset)
