"""Torchvision's AlexNet as a column."""

import numpy as np

from alexnet_jax.config import default
from alexnet_jax.data.classes import imagenet_classes
from alexnet_jax.errors import UsageError
from alexnet_jax.weights.column import Column, checked

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of torchvision's transforms, on pixels in 0..1, R, G, B."""
_LAYERS = {
    "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8",
    "conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6",
}  # fmt: skip


def is_torchvision(arrays: dict[str, np.ndarray]) -> bool:
    """Whether the arrays have torchvision's names."""
    return "features.0.weight" in arrays


def from_torchvision(arrays: dict[str, np.ndarray]) -> Column:
    """One column of 64, 192, 384, 256, 256 kernels without LRN, after One weird trick.

    Args:
      arrays: of a `state_dict`, by name.

    Raises:
      UsageError: an array is missing or has another shape.
    """
    config = default()
    model, data = config.model, config.data
    model.towers, model.lrn.enabled = 1, False
    for name, features in zip(
        ("conv1", "conv2", "conv3", "conv4", "conv5"), (64, 192, 384, 256, 256), strict=True
    ):
        model.layers[name].features = features
    model.layers.conv1.padding = (2, 2)
    own, left = {}, dict(arrays)
    for name, theirs in _LAYERS.items():
        for part in ("weight", "bias"):
            if f"{theirs}.{part}" not in left:
                raise UsageError(f"{theirs}.{part} is missing")
            own[f"{name}.{part}"] = left.pop(f"{theirs}.{part}")
    if left:
        raise UsageError(f"torchvision's AlexNet has no {', '.join(sorted(left)[:3])}")
    model.num_classes = own["fc8.bias"].size
    # (x / 255 - mean) / std, with the deviations, one per colour, in the first weights.
    data.scale, data.shrink = 1 / 255, "triangle"
    data.channel_mean = tuple(255 * m for m in MEAN)
    own["conv1.weight"] = own["conv1.weight"] / np.array(STD, np.float32)[None, :, None, None]
    names = imagenet_classes() if model.num_classes == 1000 else ()
    return checked(Column(config, own, np.array(data.channel_mean, np.float32), names))
