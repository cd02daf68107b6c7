"""The full two-tower network on ImageNet, in the conventions of four sources.

    python -m alexnet_jax train --config=experiments/imagenet.py:PRESET --workdir=runs/a

PRESET is one of

    article   the article this project implements: conv, ReLU, pool, LRN (default)
    paper     Krizhevsky, Sutskever and Hinton 2012, to the letter
    source    layers-145.cfg of the released source, the run behind the paper's 40.7 / 18.2
    caffe     BVLC's bvlc_alexnet

or one of the other logged runs of 2012: 145-half, 147, 148, 150, 127, 132, 166, 167, 170,
170-256-double, 177 (`alexnet_jax/presets.py` says what each changes and the error it had). A run is
90 epochs: 5 to 6 days on the two GTX 580 of 2012, not timed on a pair of today's GPUs. `inspect`
prints a preset's conventions beside the paper's and the source's.
"""

from ml_collections import ConfigDict

from alexnet_jax import presets


def get_config(preset: str = "article") -> ConfigDict:
    """The configuration of a preset or of a logged run of 2012."""
    return presets.get(preset)
