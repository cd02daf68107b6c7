"""Response normalization: over neighbouring channels (LRN), or over a square of one map.

Both share one hand-written VJP, which saves a root of the sum instead of the sum and its powers.
`tests/model` compares values and gradients with the plain form.

Shapes: B images, H x W pixels, C channels of one tower.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.config.fields import Field
from alexnet_jax.model import lrn_kernel, lrn_mosaic
from alexnet_jax.model.collectives import TOWER
from alexnet_jax.model.derivatives import by_platform, custom_vjp
from alexnet_jax.model.memory import stored
from alexnet_jax.model.operation import Graph, GraphSite, Operation, Shape, Site, of_maps
from alexnet_jax.model.precision import widened
from alexnet_jax.registry import OPERATIONS


def _window_sum(x: jax.Array, axes: tuple[int, ...], before: int, after: int) -> jax.Array:
    """Sums over windows of `before + 1 + after` along each axis, clipped at the borders."""
    for axis in axes:
        size, padding = x.shape[axis], [(0, 0)] * x.ndim
        padding[axis] = (before, after)
        x = jnp.pad(x, padding)
        parts = [lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(before + after + 1)]
        x = functools.reduce(operator.add, parts)
    return x


def _saved(s: jax.Array, beta: float) -> jax.Array:
    """What is saved of s: for beta = 3/4 the fourth root of 1/s, whose products give the powers."""
    return jnp.sqrt(lax.rsqrt(s)) if beta == 0.75 else s


def _powers(kept: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """`s ** -beta` and `s ** -(beta + 1)`, from what `_saved` returned for s."""
    if beta == 0.75:
        square = kept * kept
        return square * kept, square * square * square * kept
    power = kept**-beta
    return power, power / kept


@functools.partial(custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _respond(x, axes, size, k, alpha, beta):
    return _respond_fwd(x, axes, size, k, alpha, beta)[0]


def _respond_fwd(x, axes, size, k, alpha, beta):
    # Centred as in section 3.3: i - n/2 .. i + n/2; an even window reaches one further forward, as
    # Caffe's does.
    before = (size - 1) // 2
    x = stored(x)
    s = k + alpha * _window_sum(x * x, axes, before, size - 1 - before)
    kept = stored(_saved(s, beta))
    return x * _powers(kept, beta)[0], (x, kept)


def _respond_bwd(axes, size, k, alpha, beta, saved, g):
    # y_i = x_i s_i^-b, so dx_i = g_i s_i^-b - 2ab x_i sum_{j: i in window(j)} g_j x_j s_j^-(b+1).
    # Marked as stored again, or XLA would keep the powers of the forward pass in memory until here.
    x, kept = saved[0], stored(saved[1])
    before = (size - 1) // 2
    power, next_power = _powers(kept, beta)
    inner = _window_sum(stored(g * x * next_power), axes, size - 1 - before, before)
    return (g * power - (2 * alpha * beta) * x * inner,)


_respond.defvjp(_respond_fwd, _respond_bwd)


def _widely(x, axes, size, k, alpha, beta):
    """`_respond` in at least float32: squares and their sums are too coarse in narrow types."""
    wide = x.astype(widened(x.dtype))
    y: jax.Array = _respond(wide, axes, size, k, alpha, beta)
    return y.astype(x.dtype)


@functools.partial(custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _narrowly(x, axes, size, k, alpha, beta):
    """The values of `_widely`, for devices whose memory is slower than their arithmetic.

    Everything between two passes is stored in the type of x: x, the sum (without k, which would
    cost it significant bits) and the terms of the gradient's sum.
    """
    return _narrowly_fwd(x, axes, size, k, alpha, beta)[0]


def _narrowly_fwd(x, axes, size, k, alpha, beta):
    before = (size - 1) // 2
    wide = x.astype(widened(x.dtype))
    total: Any = stored(_window_sum(wide * wide, axes, before, size - 1 - before).astype(x.dtype))
    power, _ = _powers(_saved(k + alpha * total.astype(wide.dtype), beta), beta)
    return (wide * power).astype(x.dtype), (x, total)


def _narrowly_bwd(axes, size, k, alpha, beta, saved, g):
    dtype: Any = widened(g.dtype)
    x, total, g = saved[0].astype(dtype), saved[1].astype(dtype), g.astype(dtype)
    before = (size - 1) // 2
    power, next_power = _powers(_saved(k + alpha * total, beta), beta)
    terms = stored((g * x * next_power).astype(saved[0].dtype)).astype(x.dtype)
    inner = _window_sum(terms, axes, size - 1 - before, before)
    return ((g * power - (2 * alpha * beta) * x * inner).astype(saved[0].dtype),)


_narrowly.defvjp(_narrowly_fwd, _narrowly_bwd)


def _over_channels(x, size, k, alpha, beta):
    """LRN within one array, as each platform does it best."""
    constants = lrn_kernel.Constants(size, k, alpha, beta)

    def wide(x):
        return _widely(x, (3,), size, k, alpha, beta)

    def narrow(x):
        return _narrowly(x, (3,), size, k, alpha, beta)

    def on_gpu(x):
        # In float32 the kernel needs three products per sum, which with more channels take longer
        # than the passes through memory that they save; see benchmarks/results/device-h200.md.
        pays = x.dtype.itemsize < 4 or x.shape[-1] <= 64
        if pays and lrn_kernel.fits(x, constants):
            return lrn_kernel.respond(x, constants)
        return narrow(x)

    def on_tpu(x):
        return lrn_mosaic.respond(x, constants) if lrn_mosaic.fits(x, constants) else narrow(x)

    return by_platform(x, cuda=on_gpu, tpu=on_tpu, default=wide)


def local_response_norm(
    x_BxHxWxC: jax.Array,
    *,
    size: int,
    k: float,
    alpha: float,
    beta: float,
    across_towers: bool = False,
) -> jax.Array:
    """Normalization over `size` neighbouring channels: `x / (k + alpha * sum x^2) ** beta`.

    Section 3.3 of the paper. The result has the type of `x_BxHxWxC`; squares and their sums are at
    least float32, whatever that is.

    Args:
      x_BxHxWxC: feature maps.
      size: channels in a window (n).
      k: constant added to the sum.
      alpha: multiplies the plain sum of squares; divide it by `size` beforehand for the convention
        of cuda-convnet and Caffe.
      beta: exponent.
      across_towers: whether windows reach into the neighbouring towers, of which each tower then
        receives the `size // 2` channels at the edge. Otherwise windows are clipped at the first
        and last channel of this tower.

    Returns:
      The shape of `x_BxHxWxC`.
    """
    if not across_towers:
        return _over_channels(x_BxHxWxC, size, k, alpha, beta)
    channels, halo = x_BxHxWxC.shape[-1], size // 2
    left, right = _neighbours(x_BxHxWxC[..., :halo], x_BxHxWxC[..., channels - halo :])
    whole = jnp.concatenate([left, x_BxHxWxC, right], -1)
    y: jax.Array = _over_channels(whole, size, k, alpha, beta)
    return y[..., halo : halo + channels]


def _neighbours(first: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last channels of the previous tower and the first of the next; zeros at the ends.

    The two towers at a seam swap what the other needs: first at all seams after towers 0, 2, ...,
    then at those after 1, 3, ... Two towers have one seam and need one exchange.
    """
    towers, me = lax.axis_size(TOWER), lax.axis_index(TOWER)
    before = after = jnp.zeros_like(first)
    for start in range(min(2, towers - 1)):
        partner = np.arange(towers)
        for i in range(start, towers - 1, 2):
            partner[[i, i + 1]] = i + 1, i
        ahead, behind = jnp.asarray(partner)[me] > me, jnp.asarray(partner)[me] < me
        swaps = [(i, int(j)) for i, j in enumerate(partner)]
        got = lax.ppermute(jnp.where(ahead, last, first), TOWER, swaps)
        before, after = jnp.where(behind, got, before), jnp.where(ahead, got, after)
    return before, after


def within_map_norm(
    x_BxHxWxC: jax.Array, *, size: int, k: float, alpha: float, beta: float
) -> jax.Array:
    """Normalization over a `size` x `size` square of one feature map (cuda-convnet's `rnorm`).

    The type is as in `local_response_norm`.

    Args:
      x_BxHxWxC: feature maps.
      size: side of a window in pixels.
      k: constant added to the sum.
      alpha: multiplies the plain sum of squares.
      beta: exponent.

    Returns:
      The shape of `x_BxHxWxC`.
    """

    def wide(x):
        return _widely(x, (1, 2), size, k, alpha, beta)

    def narrow(x):
        return _narrowly(x, (1, 2), size, k, alpha, beta)

    return by_platform(x_BxHxWxC, cuda=narrow, tpu=narrow, default=wide)


@dataclasses.dataclass(frozen=True)
class LocalResponseNorm(Operation):
    """`local_response_norm`, or nothing where it is disabled."""

    group = "lrn"
    fields: ClassVar[Mapping[str, Field]] = {
        "enabled": Field(True, "Whether local response normalization (LRN) is applied."),
        "size": Field(5, "Neighbouring channels in an LRN window (n).", low=1, high=10**4),
        "k": Field(2.0, "Constant k of LRN.", low=0),
        "alpha": Field(1e-4, "Constant alpha of LRN.", low=0),
        "beta": Field(0.75, "Exponent beta of LRN."),
        "alpha_divided_by_size": Field(
            False, "Whether alpha is divided by n, as in cuda-convnet and Caffe."
        ),
        "across_towers": Field(
            False, "Whether an LRN window reaches from one tower into the next, as in Caffe."
        ),
    }

    enabled: bool
    size: int
    k: float
    alpha: float
    beta: float
    alpha_divided_by_size: bool
    across_towers: bool

    def shape(self, shape: Shape) -> Shape:
        """The same, of maps."""
        return of_maps(shape)

    def received(self, shape: Shape, towers: int) -> int:
        """The channels at the edges of the neighbouring towers, where windows reach into them."""
        if not (self.enabled and self.across_towers) or towers == 1:
            return 0
        sides = 1 if towers == 2 else 2
        return sides * (self.size // 2) * math.prod(shape[:2])

    def __call__(self, x: jax.Array, at: Site) -> jax.Array:
        """Normalizes over neighbouring channels."""
        del at
        if not self.enabled:
            return x
        return local_response_norm(
            x,
            size=self.size,
            k=self.k,
            alpha=self.alpha / self.size if self.alpha_divided_by_size else self.alpha,
            beta=self.beta,
            across_towers=self.across_towers,
        )

    def onnx(self, graph: Graph, x: str, at: GraphSite) -> str:
        """One node, or one for each tower where windows stay inside; ONNX divides alpha by n."""
        if not self.enabled:
            return x
        constants = {
            "size": self.size, "alpha": self._alpha_of_mean(), "beta": self.beta, "bias": self.k
        }  # fmt: skip
        if (count := self._parts(at)) == 1:
            return graph.add("LRN", x, **constants)
        parts = graph.add("Split", x, outputs=count, axis=1)
        return graph.add("Concat", *(graph.add("LRN", part, **constants) for part in parts), axis=1)

    def torch(self, x: str, at: GraphSite) -> str:
        """PyTorch divides alpha by n too; its even windows reach further back, not forward."""
        if not self.enabled:
            return x
        turn = ".flip(1)" if self.size % 2 == 0 else ""

        def of(part: str) -> str:
            alpha = f"{self._alpha_of_mean():.12g}"
            constants = f"{self.size}, alpha={alpha}, beta={self.beta}, k={self.k}"
            return f"F.local_response_norm({part}{turn}, {constants}){turn}"

        if (count := self._parts(at)) == 1:
            return of(x)
        return f"torch.cat([{of('tower')} for tower in {x}.chunk({count}, 1)], 1)"

    def _alpha_of_mean(self) -> float:
        """What multiplies the mean of the squares in a window, in place of their sum."""
        return self.alpha if self.alpha_divided_by_size else self.alpha * self.size

    def _parts(self, at: GraphSite) -> int:
        """Equal parts of the channels that windows stay inside."""
        return 1 if self.across_towers else at.towers


@dataclasses.dataclass(frozen=True)
class WithinMapNorm(Operation):
    """`within_map_norm`."""

    group = "within_map_norm"
    fields: ClassVar[Mapping[str, Field]] = {
        "size": Field(
            5, "Side of the within-map normalization window in pixels.", low=1, high=10**4
        ),
        "k": Field(1.0, "Constant k of within-map normalization.", low=0),
        "alpha": Field(1e-3, "Constant alpha of it.", low=0),
        "beta": Field(0.75, "Exponent beta of it."),
        "alpha_divided_by_size": Field(
            True, "Whether alpha is divided by the number of pixels in the window."
        ),
    }

    size: int
    k: float
    alpha: float
    beta: float
    alpha_divided_by_size: bool

    def shape(self, shape: Shape) -> Shape:
        """The same, of maps."""
        return of_maps(shape)

    def reach(self) -> tuple[int, int, int]:
        """See `Operation.reach`."""
        return self.size, 1, self.size // 2

    def __call__(self, x: jax.Array, at: Site) -> jax.Array:
        """Normalizes over a square of each map."""
        del at
        return within_map_norm(
            x,
            size=self.size,
            k=self.k,
            alpha=self.alpha / self.size**2 if self.alpha_divided_by_size else self.alpha,
            beta=self.beta,
        )

    def onnx(self, graph: Graph, x: str, at: GraphSite) -> str:
        """Several nodes, since ONNX has none for it; the window is clipped at the border."""
        del at
        alpha, before, after = self._of_means()
        means = graph.add(
            "AveragePool", graph.add("Mul", x, x), kernel_shape=[self.size] * 2, strides=[1, 1],
            pads=[before, before, after, after], count_include_pad=1,
        )  # fmt: skip
        scaled = graph.add("Mul", means, graph.constant(np.float32(alpha)))
        base = graph.add("Add", scaled, graph.constant(np.float32(self.k)))
        root = graph.add("Pow", base, graph.constant(np.float32(self.beta)))
        return graph.add("Div", x, root)

    def torch(self, x: str, at: GraphSite) -> str:
        """A mean over windows with zeros around the map."""
        del at
        alpha, before, after = self._of_means()
        padded = f"F.pad({x} * {x}, ({before}, {after}, {before}, {after}))"
        means = f"F.avg_pool2d({padded}, {self.size}, 1)"
        return f"{x} / ({self.k} + {alpha:.12g} * {means}) ** {self.beta}"

    def _of_means(self) -> tuple[float, int, int]:
        """What multiplies the mean of a window, and its pixels before and after its own."""
        alpha = self.alpha if self.alpha_divided_by_size else self.alpha * self.size**2
        return alpha, (self.size - 1) // 2, self.size // 2


OPERATIONS["lrn"] = LocalResponseNorm
OPERATIONS["within_map_norm"] = WithinMapNorm
