"""Does the full network learn at all? A test on 800 ImageNet photographs, which it memorizes.

    python -m alexnet_jax train --config=overfit_800:source --workdir=runs/source

The two-tower network at full width with a preset of `experiments/imagenet.py` (source, paper,
article or caffe), on a `tfds:imagenet2012` that contains only 800 training photographs. For every
preset, dropout, crops and flips are on, the learning rate is constant, colour noise is off and the
batch size is 128, so that the presets differ only in the network and the update rule. A preset that
cannot lower the training error here cannot do so on the whole data set either. See
results/overfit-800.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import presets


def get_config(preset: str = "source") -> ConfigDict:
    """A preset, trained for 60 epochs on 800 photographs."""
    config = presets.get(preset)
    config.batch_size = 128
    config.num_epochs = 60.0
    config.log_every_steps = 1
    config.checkpoint_every_steps = 60
    config.keep_checkpoints = 1
    config.data.mean = "image"
    config.data.shrink = "triangle"  # as in the runs of results/overfit-800
    config.data.colour.rule = "none"
    config.optimizer.schedule = "constant"
    # Each photograph is the only one of its class, so only the training error has a meaning.
    config.data.update(validation_split="", validation_fraction=0.0)
    config.evaluate.update(splits=("train",), every_epochs=10.0, final_views=1, batch_size=128)
    return config
