"""The AlexNet table: five convolutions and three dense layers, as configuration.

Sizes and the exchange are those of the article and of section 3.5 of the paper; they agree. The
order of the operations and the initial values are the article's and the paper's where those speak;
the presets in `experiments/imagenet.py` change them.
"""

from ml_collections import ConfigDict

from alexnet_jax.models.table import layer_row


def alexnet() -> ConfigDict:
    """`config.model` of the full network: 224 x 224 crops padded to 227, two towers.

    60,965,224 parameters and 724,406,816 multiply-adds an image.
    """
    model = ConfigDict()
    model.num_classes = 1000
    model.towers = 2
    model.width = 1.0  # multiplies the features of every layer but the classifier
    model.activation = "relu"  # relu, tanh, sigmoid
    model.pool = ConfigDict(dict(window=3, stride=2))  # stride < window: overlapping
    model.lrn = ConfigDict(
        dict(
            enabled=True,
            size=5,
            k=2.0,
            alpha=1e-4,
            beta=0.75,
            alpha_divided_by_size=False,  # True in cuda-convnet and Caffe
            across_towers=False,  # True: the window crosses from one tower into the next
        )
    )
    model.within_map_norm = ConfigDict(
        dict(size=5, k=1.0, alpha=1e-3, beta=0.75, alpha_divided_by_size=True)
    )
    model.dropout = ConfigDict(
        dict(
            rate=0.5,
            rescaled_in_training=True,  # False: plain masks in training, halved when testing (2012)
        )
    )
    model.compute_dtype = "float32"  # bfloat16 on GPU and TPU; parameters stay float32

    normalized = ("activation", "max_pool", "lrn")
    rows = dict(
        # (0, 3): 224 + 3 zeros = 227, which is where cuda-convnet's ceil rule puts them.
        conv1=layer_row("conv", 96, 11, stride=4, padding=(0, 3), then=normalized),
        conv2=layer_row("conv", 256, 5, padding=(2, 2), then=normalized),
        conv3=layer_row("conv", 384, 3, padding=(1, 1), exchange="inputs"),
        conv4=layer_row("conv", 384, 3, padding=(1, 1)),
        conv5=layer_row("conv", 256, 3, padding=(1, 1), then=("activation", "max_pool")),
        fc6=layer_row("dense", 4096, exchange="inputs", then=("activation", "dropout")),
        fc7=layer_row("dense", 4096, exchange="inputs", then=("activation", "dropout")),
        fc8=layer_row(
            "dense", model.get_oneway_ref("num_classes"), exchange="partial_sums", then=()
        ),
    )
    model.layer_order = tuple(rows)
    model.layers = ConfigDict(rows)
    return model


def cifar_stem(model: ConfigDict) -> None:
    """Changes the table for 32 x 32 images: the same network from conv2 on, over small maps.

    conv1 becomes 5 x 5 with stride 1, so the maps are 32 -> 16 -> 8 -> 4 by the same overlapping
    pools.
    """
    model.layers.conv1.update(kernel=5, stride=1, padding=(2, 2))
