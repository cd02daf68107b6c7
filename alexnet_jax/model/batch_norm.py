"""Batch normalization (Ioffe and Szegedy 2015), each tower with its own channels."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.config.fields import Field
from alexnet_jax.model.operation import Graph, GraphSite, Operation, Site
from alexnet_jax.model.precision import widened
from alexnet_jax.registry import OPERATIONS


@dataclasses.dataclass(frozen=True)
class BatchNorm(Operation):
    """`scale * (x - mean) / sqrt(variance + epsilon) + offset`, for every channel.

    Algorithms 1 and 2 of the paper. In training, mean and variance are those of the whole batch
    over all examples and pixels; at test time, those that were collected in training. The
    variance collected is the biased one, as in Flax and Keras; PyTorch collects the unbiased one.
    """

    group = "batch_norm"
    fields: ClassVar[Mapping[str, Field]] = {
        "momentum": Field(
            0.9, "Share of the running mean and variance that stays in each step.",
            low=0, below=1, since="0.2.0",
        ),
        "epsilon": Field(1e-5, "Added to the variance.", above=0, since="0.2.0"),
    }  # fmt: skip

    momentum: float
    epsilon: float

    def parameters(self) -> dict[str, float]:
        """Scale and offset: at first they change nothing."""
        return {"scale": 1.0, "offset": 0.0}

    def statistics(self) -> dict[str, float]:
        """Running mean and variance."""
        return {"mean": 0.0, "variance": 1.0}

    def __call__(self, x: jax.Array, at: Site) -> jax.Array:
        """Normalizes `[B, H, W, C]` or `[B, C]` in at least float32."""
        wide = x.astype(widened(x.dtype))
        if at.training:
            mean, variance = self._moments(wide, at)
            for name, value in (("mean", mean), ("variance", variance)):
                kept = at.statistics[name]
                new = self.momentum * kept + (1 - self.momentum) * lax.stop_gradient(value)
                at.statistics[name] = new.astype(kept.dtype)
        else:
            mean, variance = at.statistics["mean"], at.statistics["variance"]
        scale = at.parameters["scale"] * lax.rsqrt(variance + self.epsilon)
        return (wide - mean) * scale + at.parameters["offset"]

    @staticmethod
    def _moments(x: jax.Array, at: Site) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance of the whole batch, `[C]` each.

        In two passes: the mean of squares minus the squared mean would lose the variance of
        channels whose mean is large.
        """
        axes = tuple(range(x.ndim - 1))
        count = at.sum_over_data(math.prod(x.shape[:-1]))
        mean = at.sum_over_data(x.sum(axes)) / count
        return mean, at.sum_over_data(jnp.square(x - mean).sum(axes)) / count

    def onnx(self, graph: Graph, x: str, at: GraphSite) -> str:
        """One node, with the running mean and variance."""
        arrays = (at.parameters["scale"], at.parameters["offset"])
        arrays += (at.statistics["mean"], at.statistics["variance"])
        return graph.add("BatchNormalization", x, *arrays, epsilon=self.epsilon)

    def torch(self, x: str, at: GraphSite) -> str:
        """PyTorch's, whose momentum is the share that changes, and which collects the unbiased."""
        named = [at.statistics["mean"], at.statistics["variance"]]
        named += [at.parameters["scale"], at.parameters["offset"]]
        rest = f"self.training, {1 - self.momentum:.12g}, {self.epsilon}"
        return f"F.batch_norm({x}, {', '.join(named)}, {rest})"


OPERATIONS["batch_norm"] = BatchNorm
