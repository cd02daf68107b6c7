"""Networks as tables of layers: the article's AlexNet, and cuda-convnet's for CIFAR-10.

Sizes and the exchange of AlexNet are those of the article and of section 3.5 of the paper; they
agree. The order of the operations and the initial values are the article's and the paper's where
those say something; `presets` changes them.

The CIFAR-10 networks are `layers-80sec.cfg`, `layers-19pct.cfg`, `layers-18pct.cfg`,
`layers-conv-local-13pct.cfg` and `layers-conv-local-11pct.cfg` of cuda-convnet, named by the test
error that they reach. Deviations of the weights and decays differ by layer; AlexNet's 0.01
everywhere does not reproduce them.
"""

from ml_collections import ConfigDict

from alexnet_jax.config import fields
from alexnet_jax.config.table import layer_row


def alexnet() -> ConfigDict:
    """`config.model` of the full network: 224 x 224 crops padded to 227, two towers.

    60,965,224 parameters and 724,406,816 multiply-adds per image.
    """
    model = fields.defaults().model
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


CONV_MAX = ("max_pool", "activation")
CONV_AVG = ("activation", "avg_pool")


def convnet(name: str) -> ConfigDict:
    """`config.model` of a network in `NETWORKS`, for 24 x 24 crops.

    `config.model.activation` is `relu`; set `tanh` for the paper's Figure 1.
    """
    model = fields.defaults().model
    model.num_classes = 10
    model.towers = 1
    model.lrn.update(k=1.0, alpha_divided_by_size=True)
    rows = NETWORKS[name](model)
    model.layer_order = tuple(rows)
    model.layers = ConfigDict(rows)
    return model


def _conv(features: int, std: float, decay: float, then: tuple[str, ...]) -> ConfigDict:
    return layer_row(
        "conv", features, 5, padding=(2, 2), init_std=std, weight_decay=decay, then=then
    )


def _classifier(model: ConfigDict, std: float, decay: float) -> ConfigDict:
    classes = model.get_oneway_ref("num_classes")
    return layer_row(
        "dense", classes, exchange="partial_sums", init_std=std, weight_decay=decay, then=()
    )


def _80sec(model: ConfigDict) -> dict[str, ConfigDict]:
    """Three convolutions and two dense layers: 26 % in 80 seconds on a GTX 580."""
    hidden = layer_row("dense", 64, init_std=0.1, weight_decay=0.03, then=("activation",))
    rows = _19pct(model)
    del rows["fc10"]
    return {**rows, "fc64": hidden, "fc10": _classifier(model, 0.1, 0.03)}


def _19pct(model: ConfigDict) -> dict[str, ConfigDict]:
    """The same without the hidden dense layer, its classifier small and held down hard."""
    return {
        "conv1": _conv(32, 1e-4, 0.004, CONV_MAX),
        "conv2": _conv(32, 0.01, 0.004, CONV_AVG),
        "conv3": _conv(64, 0.01, 0.004, CONV_AVG),
        "fc10": _classifier(model, 0.01, 3.0),
    }


def _18pct(model: ConfigDict) -> dict[str, ConfigDict]:
    """19pct with a within-map norm after the first two pools."""
    model.within_map_norm.update(size=3, k=1.0, alpha=5e-5)
    rows = _19pct(model)
    for name in ("conv1", "conv2"):
        rows[name].then = (*rows[name].then, "within_map_norm")
    rows["fc10"].weight_decay = 1.0
    return rows


def _13pct(model: ConfigDict) -> dict[str, ConfigDict]:
    """Two convolutions, two locally connected layers, no norm."""

    def local() -> ConfigDict:
        return layer_row("local", 32, 3, padding=(1, 1), init_std=0.04, weight_decay=0.004)

    return {
        "conv1": _conv(64, 1e-4, 0.0, ("activation", "max_pool")),
        "conv2": _conv(64, 0.01, 0.0, ("activation", "max_pool")),
        "local3": local(),
        "local4": local(),
        "fc10": _classifier(model, 0.01, 0.004),
    }


def _11pct(model: ConfigDict) -> dict[str, ConfigDict]:
    """13pct with cross-map LRN over nine maps, and a wider first local layer."""
    model.lrn.update(size=9, alpha=1e-3)
    rows = _13pct(model)
    rows["conv1"].then = ("activation", "max_pool", "lrn")
    rows["conv2"].then = ("activation", "lrn", "max_pool")
    rows["local3"].features = 64
    rows["fc10"].weight_decay = 0.01
    return rows


NETWORKS = {
    "80sec": _80sec,
    "19pct": _19pct,
    "18pct": _18pct,
    "13pct": _13pct,
    "11pct": _11pct,
}
