"""Errors that were reported in 2012, to stand beside those of a run."""

import dataclasses

from ml_collections import ConfigDict

from alexnet_jax.config import leaves
from alexnet_jax.config.networks import convnet
from alexnet_jax.data.classes import imagenet_classes, keys


@dataclasses.dataclass(frozen=True)
class Reported:
    """Errors in percent, of one network.

    Attributes:
      source: who reported them, and of what.
      classes: those of the data set.
      network: the name of the network in `config.networks`; empty if they stand beside any network.
      views: views per test image.
      top1_error: top-1 error.
      top5_error: top-5 error; None where it was not reported.
    """

    source: str
    classes: tuple[str, ...]
    network: str
    views: int
    top1_error: float
    top5_error: float | None = None


_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_PAPER = "the paper, one network, on the validation images of ImageNet"
_CONVNET = "cuda-convnet, this network, on the test images of CIFAR-10"

REPORTED = (
    Reported(_PAPER, imagenet_classes(), "", 10, 40.7, 18.2),
    Reported(_CONVNET, _CIFAR10, "80sec", 1, 26.0),
    Reported(_CONVNET, _CIFAR10, "19pct", 1, 19.0),
    Reported(_CONVNET, _CIFAR10, "18pct", 1, 18.0),
    Reported(_CONVNET, _CIFAR10, "13pct", 9, 13.0),
    Reported(_CONVNET, _CIFAR10, "11pct", 9, 11.0),
)

_NUMERICS = ("compute_dtype", "precision", "winograd")
"""Fields of a model that do not make it another network."""


def beside(config: ConfigDict, class_names: tuple[str, ...]) -> Reported | None:
    """What was reported in 2012 for the data set and, where it matters, the network of a run.

    Args:
      config: the run.
      class_names: its classes, in any order.
    """
    classes = set(keys(class_names))
    for row in REPORTED:
        same = not row.network or _network(config.model) == _network(convnet(row.network))
        if classes == set(keys(row.classes)) and same:
            return row
    return None


def _network(model: ConfigDict) -> dict[str, object]:
    return {name: value for name, value in leaves(model) if name not in _NUMERICS}
