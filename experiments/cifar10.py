"""The two-tower network on CIFAR-10.

    python -m alexnet_jax train --config=experiments/cifar10.py --workdir=runs/cifar10

Twelve epochs; see results/cifar10 for a run with its log. TFDS keeps the data set in
`~/tensorflow_datasets`, or where `TFDS_DATA_DIR` says.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.models.alexnet import cifar_stem


def get_config() -> ConfigDict:
    """The article's network a quarter as wide, for 32 x 32 images."""
    config = default()
    config.batch_size = 128
    config.num_epochs = 12.0
    config.checkpoint_every_steps = 390

    cifar_stem(config.model)
    config.model.num_classes = 10
    config.model.width = 0.25
    # Gaussian weights of He's size, sqrt(2 / inputs), in place of the 0.01 of layers four times as
    # wide: at 0.01 the signal fades and the network sits at ln(10) for epochs.
    he = dict(conv1=0.16, conv2=0.06, conv3=0.06, conv4=0.07, conv5=0.07, fc6=0.044, fc7=0.044)
    for name, std in he.items():
        config.model.layers[name].init_std = std

    config.data.update(
        source="tfds:cifar10",
        test_split="test",
        image_size=32,
        crop_size=32,
        pad=4,
        channel_mean=(125.3, 123.0, 113.9),
        scale=1 / 64,  # about unit deviation
    )
    config.optimizer.update(learning_rate=0.01, drop_epochs=(9.0, 11.0))
    return config
