"""The numbers of the presets and rows, as their sources state them.

Each is given as what it changes of another: the article's as what cuda-convnet and Caffe call it in
their files, the rows of 2012 by `layers-NNN.cfg` and `layer-params-NNN.cfg`.
"""

import pytest

from alexnet_jax.config import default, leaves, presets

# Section 5 of the paper, and the sizes of its figure 2.
PAPER = {
    "batch_size": 128,
    "num_epochs": 90.0,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0005,
    "optimizer.learning_rate": 0.01,
    "optimizer.drop_factor": 0.1,
    "optimizer.plateau_drops": 3,
    "model.dropout.rate": 0.5,
    "model.lrn.k": 2.0,
    "model.lrn.size": 5,
    "model.lrn.alpha": 1e-4,
    "model.lrn.beta": 0.75,
    "model.pool.window": 3,
    "model.pool.stride": 2,
    "model.towers": 2,
    "model.num_classes": 1000,
    "data.image_size": 256,
    "data.crop_size": 224,
    "data.random_flip": True,
    "model.layer_order": ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"),
}
LAYERS = {  # features, kernel, stride, exchange, initial bias in the paper
    "conv1": (96, 11, 4, "none", 0.0),
    "conv2": (256, 5, 1, "none", 1.0),
    "conv3": (384, 3, 1, "inputs", 0.0),
    "conv4": (384, 3, 1, "none", 1.0),
    "conv5": (256, 3, 1, "none", 1.0),
    "fc6": (4096, 0, 1, "inputs", 1.0),
    "fc7": (4096, 0, 1, "inputs", 1.0),
    "fc8": (1000, 0, 1, "partial_sums", 0.0),
}
RISING = ("conv2", "conv4", "conv5", "fc6", "fc7")


def layer(field, **values):
    return {f"model.layers.{name}.{field}": value for name, value in values.items()}


def biases(value):
    return layer("bias", **dict.fromkeys(RISING, value))


LRN_FIRST = ("activation", "lrn", "max_pool")
ARTICLE = biases(1.0) | {
    "model.dropout.rescaled_in_training": False,
    "data.colour.rule": "paper",
    "data.validation_split": "validation",
    "evaluate.final_views": 10,
}
EXPONENTIAL = {
    "num_epochs": 95.0,
    "data.colour.until_epoch": 0.0,
    "optimizer.schedule": "exponential_steps",
    "optimizer.biases_follow_schedule": True,
    "optimizer.conv1_drop_epochs": (),
    "optimizer.conv1_freeze_epoch": 0.0,
}
# By name: the preset that it starts from ("": the defaults), and every field that it changes.
CHANGES = {
    "article": ("", ARTICLE),
    "paper": (
        "article",
        layer("then", conv1=LRN_FIRST, conv2=LRN_FIRST)
        | {"data.mean": "image", "optimizer.schedule": "plateau"},
    ),
    "source": (
        "",
        biases(1.0)
        | layer(
            "then",
            conv1=("lrn", "max_pool", "activation"),
            conv2=("activation", "lrn", "within_map_norm", "max_pool"),
            conv5=("max_pool", "activation"),
        )
        | layer("init_std", conv3=0.03, conv4=0.03, conv5=0.03)
        | {
            "model.lrn.alpha_divided_by_size": True,
            "model.dropout.rescaled_in_training": False,
            "data.mean": "image",
            "data.colour.rule": "source",
            "data.colour.until_epoch": 67.0,
            "data.validation_split": "validation",
            "num_epochs": 91.0,
            "optimizer.bias_rate_multiplier": 2.0,
            "optimizer.biases_follow_schedule": False,
            "optimizer.drop_epochs": (25.0, 51.0, 79.0),
            "optimizer.conv1_drop_epochs": (25.0, 51.0, 67.0),
            "optimizer.conv1_freeze_epoch": 72.0,
            "evaluate.final_views": 10,
        },
    ),
    "caffe": (
        "",
        biases(0.1)
        | layer("then", conv1=LRN_FIRST, conv2=LRN_FIRST)
        | layer("init_std", fc6=0.005, fc7=0.005)
        | layer("padding", conv1=(0, 0))
        | {
            "data.validation_split": "validation",
            "model.lrn.k": 1.0,
            "model.lrn.alpha_divided_by_size": True,
            "model.lrn.across_towers": True,
            "data.crop_size": 227,
            "data.resize": "stretch",
            "data.shrink": "bilinear",
            "data.mean": "image",
            "batch_size": 256,
            "optimizer.bias_rate_multiplier": 2.0,
            "optimizer.drop_epochs": (20.0, 40.0, 60.0, 80.0),
        },
    ),
    "145": ("source", {}),
    "145-half": (
        "source",
        layer("features", conv1=48, conv2=128, conv3=192, conv4=192) | {"model.towers": 1},
    ),
    "147": ("source", layer("padding", conv2=(1, 1), conv5=(0, 0)) | {"model.pool.window": 2}),
    "148": (
        "source",
        layer("then", conv1=("max_pool", "activation"), conv2=("activation", "max_pool")),
    ),
    "150": (
        "source",
        layer("exchange", conv3="none", fc6="none", fc7="none")
        | layer("features", conv2=320, fc6=8192),
    ),
    "127": ("source", layer("exchange", conv3="none")),
    "132": ("source", layer("exchange", conv3="none", conv4="inputs")),
    "170": ("source", EXPONENTIAL),
    "170-256-double": (
        "170",
        {"batch_size": 256, "num_epochs": 84.0, "optimizer.learning_rate": 0.02},
    ),
    "166": (
        "170",
        layer("then", conv2=("lrn", "within_map_norm", "activation", "max_pool"))
        | {"optimizer.exponential_factor": 1000.0},
    ),
    "167": (
        "170",
        layer("then", conv2=("activation", "max_pool")) | {"optimizer.exponential_factor": 1000.0},
    ),
    "177": ("170", layer("then", conv4=("activation", "dropout"))),
}


def test_the_defaults_are_the_papers_numbers():
    found = dict(leaves(default()))
    assert {path: found[path] for path in PAPER} == PAPER
    rows = presets.get("paper").model.layers
    fields = ("features", "kernel", "stride", "exchange", "bias")
    assert {name: tuple(row[f] for f in fields) for name, row in rows.items()} == LAYERS
    assert (
        found["optimizer.exponential_factor"] == 250 and found["optimizer.exponential_steps"] == 4
    )
    assert found["optimizer.bias_exponential_factor"] == 10
    assert found["optimizer.bias_exponential_steps"] == 2


@pytest.mark.parametrize("name", [*presets.PRESETS, *presets.ROWS])
def test_a_preset_changes_what_its_source_says_and_nothing_else(name):
    origin, changes = CHANGES[name]
    before = dict(leaves(presets.get(origin) if origin else default()))
    now = dict(leaves(presets.get(name)))
    assert now.keys() == before.keys()
    assert {path: now[path] for path in now if now[path] != before[path]} == changes
