"""Fine-tuning a trained network (a workdir, a file or a name) on your own images.

    python -m alexnet_jax train --config=finetune:bvlcalexnet.onnx \
        --config.data.source=folder:PATH --workdir=runs/mine

The network and its input conventions (crop, scale, mean) are those of the origin. The last layer is
new, for the classes of PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg, or of PATH/CLASS/*.jpg,
where a fifth of each class is the test split. A tenth of the training images is the validation
split. --config.freeze="('conv1', 'conv2')" keeps the weights of these layers as they are.
"""

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config import default
from alexnet_jax.errors import UsageError
from alexnet_jax.training.origin import config_of, mean_of


def get_config(origin: str = "") -> ConfigDict:
    """The network and the input conventions of `origin`, with a low learning rate."""
    if not origin:
        raise UsageError("name what to start from: --config=finetune:WORKDIR_OR_FILE_OR_NAME")
    theirs = config_of(origin)
    config = default()
    config.init_from = origin
    config.model = theirs.model
    # A reference, so that the last layer has as many units as there are classes.
    last = config.model.layer_order[-1]
    with config.unlocked():
        config.model.layers[last].features = config.model.get_oneway_ref("num_classes")
    for name in ("image_size", "resize", "shrink", "crop_size", "scale"):
        config.data[name] = theirs.data[name]
    # A mean image is replaced by its mean over all pixels, because the images are different ones.
    mean = mean_of(origin).reshape(-1, 3).mean(0)
    config.data.update(mean="channel", channel_mean=tuple(map(float, mean.astype(np.float64))))
    config.data.update(source="folder:images", test_split="test")

    config.batch_size = 32
    config.num_epochs = 20.0
    config.log_every_steps = 5
    config.checkpoint_every_steps = 500
    config.optimizer.update(learning_rate=0.001, drop_epochs=(12.0, 17.0))
    config.evaluate.every_epochs = 5.0
    return config
