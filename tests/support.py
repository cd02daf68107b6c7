"""What several tests share."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax import parallel
from alexnet_jax.config import default
from alexnet_jax.models.alexnet import cifar_stem

needs_data = pytest.mark.skipif(
    not Path(os.environ.get("TFDS_DATA_DIR", "/nonexistent")).is_dir(),
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
