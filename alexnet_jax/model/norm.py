"""Response normalization: over neighbouring channels (LRN), or over a square of one map.

Both share one hand-written VJP, which saves a root of the sum instead of the sum and its powers.
`tests/model` compares values and gradients with the plain form.

Shapes: B images, H x W pixels, C channels of one tower.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.model import lrn_kernel
from alexnet_jax.model.collectives import TOWER
from alexnet_jax.model.memory import stored
from alexnet_jax.model.precision import widened


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
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

    def kernel(x):
        return lrn_kernel.respond(x, constants)

    on_gpu = kernel if lrn_kernel.fits(x, constants) else narrow
    return lax.platform_dependent(x, cuda=on_gpu, default=wide)


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

    return lax.platform_dependent(x_BxHxWxC, cuda=narrow, default=wide)
