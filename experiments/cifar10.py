"""The two-tower network on CIFAR-10.

    python -m alexnet_jax train --config=cifar10 --workdir=runs/cifar10

Twelve epochs; results/cifar10 has the log of a run. TFDS keeps the data set in
`~/tensorflow_datasets`, or in the folder that `TFDS_DATA_DIR` names.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.config.networks import cifar_stem


def get_config() -> ConfigDict:
    """The network of the article at a quarter of its width, for 32 x 32 images."""
    config = default()
    config.batch_size = 128
    config.num_epochs = 12.0
    config.checkpoint_every_steps = 390

    cifar_stem(config.model)
    config.model.num_classes = 10
    config.model.width = 0.25
    # Gaussian weights with the standard deviation of He et al. (2015), sqrt(2 / inputs), instead of
    # 0.01, which suits layers four times as wide: with 0.01 the signal becomes smaller from layer
    # to layer, and the loss stays at ln(10) for several epochs.
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
        scale=1 / 64,  # gives a standard deviation of about 1
    )
    config.optimizer.update(learning_rate=0.01, drop_epochs=(9.0, 11.0))
    # A fixed schedule needs no validation split: the network is trained on all training images, and
    # the test images are read once, after training.
    config.data.validation_fraction = 0.0
    config.evaluate.splits = ()
    return config
