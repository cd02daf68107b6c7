"""Dropout, with masks that depend on the example and not on the device."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.config.fields import Field
from alexnet_jax.model.collectives import TOWER
from alexnet_jax.model.operation import Graph, GraphSite, Operation, Site
from alexnet_jax.registry import OPERATIONS


def dropout_mask(
    key: jax.Array, index_B: jax.Array, tower: jax.Array | int, shape: tuple[int, ...], rate: float
) -> jax.Array:
    """Which units are kept: `[B, *shape]` bool.

    The mask of an example depends only on the key, the example's index in the data set and the
    tower, so a run does not depend on how many devices share the batch.

    Args:
      key: one per step and layer.
      index_B: each example's index in its data set.
      tower: number of the tower.
      shape: of one example's activations.
      rate: share of units that are set to zero.
    """

    def one(index: jax.Array) -> jax.Array:
        example_key = jax.random.fold_in(jax.random.fold_in(key, index), tower)
        return jax.random.bernoulli(example_key, 1 - rate, shape)

    return jax.vmap(one)(index_B)


@dataclasses.dataclass(frozen=True)
class Dropout(Operation):
    """Sets units to zero at random in training (section 4.2 of the paper)."""

    group = "dropout"
    fields: ClassVar[Mapping[str, Field]] = {
        "rate": Field(0.5, "Share of units that dropout sets to zero in training.", low=0, below=1),
        "rescaled_in_training": Field(
            True,
            "Whether the kept units are divided by 1 - rate in training; False: outputs are "
            "multiplied by it at test time instead, as in 2012.",
        ),
    }

    rate: float
    rescaled_in_training: bool

    def __call__(self, x: jax.Array, at: Site) -> jax.Array:
        """Sets units to zero in training; at test time multiplies them all, if that is the rule."""
        keep = 1 - self.rate
        if keep == 1:
            return x
        if not at.training:
            return x if self.rescaled_in_training else x * keep
        assert at.key is not None and at.index_B is not None
        mask = dropout_mask(at.key, at.index_B, lax.axis_index(TOWER), x.shape[1:], self.rate)
        return jnp.where(mask, x / keep if self.rescaled_in_training else x, 0)

    def onnx(self, graph: Graph, x: str, at: GraphSite) -> str:
        """What it does at test time."""
        del at
        if self.rescaled_in_training or self.rate == 0:
            return x
        return graph.add("Mul", x, graph.constant(np.float32(1 - self.rate)))

    def torch(self, x: str, at: GraphSite) -> str:
        """PyTorch rescales in training: the other rule multiplies its result by the same again."""
        del at
        if self.rate == 0:
            return x
        rescaled = f"F.dropout({x}, {self.rate}, self.training)"
        return rescaled if self.rescaled_in_training else f"{rescaled} * {1 - self.rate:.12g}"


OPERATIONS["dropout"] = Dropout
