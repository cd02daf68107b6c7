"""A small two-tower AlexNet on scikit-learn's handwritten digits: no download, two minutes.

python -m alexnet_jax train --config=quickstart --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.config.networks import cifar_stem


def get_config() -> ConfigDict:
    """The network of the article at an eighth of its width, for 32 x 32 digits."""
    config = default()
    config.batch_size = 64
    config.num_epochs = 20.0
    config.checkpoint_every_steps = 220

    cifar_stem(config.model)
    config.model.num_classes = 10
    config.model.width = 0.125
    # Larger initial weights than 0.01, which suits layers eight times as wide.
    for name in config.model.layer_order:
        config.model.layers[name].init_std = 0.05

    config.data.update(
        source="digits",
        test_split="test",
        image_size=32,
        crop_size=32,
        pad=3,
        random_flip=False,  # a mirrored digit is no longer the same digit
        channel_mean=(78.0, 78.0, 78.0),
        scale=1 / 64,
    )
    config.optimizer.update(learning_rate=0.02, drop_epochs=(13.0, 17.0))
    config.evaluate.every_epochs = 5.0
    return config
