"""Does the full network learn at all? Eight hundred ImageNet photographs, learnt by heart.

    python -m alexnet_jax train --config=experiments/overfit_800.py:source --workdir=runs/source

The two-tower network at full width, with a preset of `experiments/imagenet.py` (source, paper,
article, caffe), on a `tfds:imagenet2012` of which only 800 training photographs are prepared.
Dropout, crops and flips are on, the rate is constant, colour noise is off and the batch is 128
whatever the preset says, so that the presets differ in the network and the update alone. A preset
that cannot bring the training error down here has no chance on the whole set. See
results/overfit-800.
"""

from ml_collections import ConfigDict

from alexnet_jax import presets


def get_config(preset: str = "source") -> ConfigDict:
    """A preset on 800 photographs, 60 epochs."""
    config = presets.get(preset)
    config.batch_size = 128
    config.num_epochs = 60.0
    config.log_every_steps = 1
    config.checkpoint_every_steps = 60
    config.keep_checkpoints = 1
    config.data.mean = "image"
    config.data.shrink = "triangle"  # as the runs of results/overfit-800 read them
    config.data.colour.rule = "none"
    config.optimizer.schedule = "constant"
    # Each photograph is the only one of its class, so the validation part can teach nothing.
    config.evaluate.update(splits=("train",), every_epochs=10.0, final_views=1, batch_size=128)
    return config
