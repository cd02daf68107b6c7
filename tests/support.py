"""What several tests share."""

import os

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import parallel
from alexnet_jax.config import default
from alexnet_jax.config.networks import cifar_stem
from alexnet_jax.config.table import layer_row
from alexnet_jax.data import inputs
from alexnet_jax.model import dropout
from alexnet_jax.model.tower import build_tower, draw_parameters
from alexnet_jax.training import optimizers
from alexnet_jax.training.state import init_state
from alexnet_jax.training.step import make_train_step

needs_data = pytest.mark.skipif(
    not os.path.isdir(os.environ.get("TFDS_DATA_DIR", "")),
    reason="TFDS_DATA_DIR names no folder with real photographs",
)


def placement_of(name: str, data: int = 1, towers: int = 2) -> parallel.Placement:
    """A placement over some of the eight devices."""
    devices = {"vmap": 1, "pmap": towers, "mesh": data * towers}[name]
    shape = (1, 1) if name == "vmap" else (devices // towers, towers)
    grid = np.array(jax.devices()[:devices]).reshape(shape)
    return parallel.Placement(name, jax.sharding.Mesh(grid, (parallel.DATA, "tower")))


PLACEMENTS = {
    "vmap": ("vmap", 1),
    "pmap": ("pmap", 1),
    "mesh 1 x 2": ("mesh", 1),
    "mesh 2 x 2": ("mesh", 2),
    "mesh 4 x 2": ("mesh", 4),
}


def tiny_config():
    """The digits network at a width that compiles and runs in seconds."""
    config = default()
    config.unlock()
    cifar_stem(config.model)
    config.model.num_classes = 10
    config.model.width = 1 / 16
    for name in config.model.layer_order:
        config.model.layers[name].init_std = 0.05
    config.data.update(
        source="digits", test_split="test", image_size=32, crop_size=32, pad=2, scale=1 / 64,
        channel_mean=(78.0, 78.0, 78.0),
    )  # fmt: skip
    config.batch_size = 32
    config.optimizer.schedule = "constant"
    config.num_epochs = 1.0
    return config.lock()


def png_folder(root, train, test=8, seed=0):
    """`root/SPLIT/CLASS/*.png`: noise of 36 x 40 pixels under the ten digits' names."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            place = root / split / str(number % 10)
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (36, 40, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return root


class Step:
    """The training step of a configuration as a run builds it, from host to host."""

    def __init__(self, config, placement, steps_per_epoch=10, num_steps=100, mean_image=None):
        self.net, self.placement = build_tower(config.model), placement
        self.tx = optimizers.build(config, steps_per_epoch, num_steps)
        rule = inputs.build(config.data, mean_image)
        self.compiled = make_train_step(config, self.net, rule, self.tx, placement, steps_per_epoch)

    def start(self, params, step=0, seed=0, batch_stats=None):
        """A state of these variables at a step."""
        state = init_state(params, self.tx, seed, batch_stats)
        return state.replace(step=state.step + np.int32(step))

    def __call__(self, state, batch):
        """The state after one step, and its metrics."""
        placed = self.placement.put_towers(state), self.placement.put_batch(batch)
        return jax.tree.map(np.array, parallel.to_host(self.compiled(*placed)))


def random_params(net, crop_size, seed=0):
    """Float64 parameters whose signal neither grows nor dies from layer to layer.

    Every bias differs from the next, but the last layer's is the same in every tower.
    """
    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.float64, draw_parameters(net, 0, crop_size))
    for leaves in params.values():
        kernel, bias = leaves["kernel"], leaves["bias"]
        kernel *= np.sqrt(2 / np.prod(kernel.shape[1:-1])) / kernel.std()
        bias[:] = rng.normal(0, 0.2, bias.shape)
    params[net.layers[-1].name]["bias"][1:] = params[net.layers[-1].name]["bias"][0]
    return params


def three_layers():
    """Two towers of a convolution and two dense layers on the digits: compiled in a second."""
    config = tiny_config()
    config.unlock()
    classes = config.model.get_oneway_ref("num_classes")
    rows = {
        "conv1": layer_row("conv", 8, 5, stride=3, then=("activation", "max_pool")),
        "fc2": layer_row("dense", 24, exchange="inputs", then=("activation", "dropout")),
        "fc3": layer_row("dense", classes, exchange="partial_sums", then=()),
    }
    for row in rows.values():
        row.init_std = 0.1
    config.model.width, config.model.layer_order = 1.0, tuple(rows)
    config.model.layers = ConfigDict(rows)
    return config.lock()


# One step with these moves the parameters by minus their gradient, in float64.
PLAIN_UPDATE = {
    "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0, "optimizer.learning_rate": 1.0,
    "optimizer.schedule": "constant", "optimizer.bias_rate_multiplier": 1.0,
    "model.compute_dtype": "float64",
}  # fmt: skip


def noise_batch(crop_size, examples, seed=0):
    """Ten classes; the colour shifts are quarters, so that float32 holds shifted pixels exactly."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (examples, crop_size, crop_size, 3), np.uint8),
        "label": rng.integers(0, 10, examples).astype(np.int32),
        "index": rng.permutation(1000)[:examples].astype(np.int32),
        "colour": np.float32(rng.integers(-40, 40, (examples, 3)) / 4),
    }


def dropout_masks(net, batch, seed, step):
    """The masks of each layer with dropout at a step, one per tower."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)
    return {
        layer.name: [
            np.asarray(
                dropout.dropout_mask(
                    jax.random.fold_in(key, i), batch["index"], t, (layer.features,), 0.5
                )
            )
            for t in (0, 1)
        ]
        for i, layer in enumerate(net.layers)
        if "dropout" in layer.then
    }
