"""How towers exchange values: collectives over the mapped axis `tower`.

Shapes: B images, C channels or units of one tower.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.model.derivatives import custom_vjp
from alexnet_jax.model.precision import widened

TOWER = "tower"
"""Name of the mapped axis over which the towers exchange values."""


def gather_channels(x: jax.Array) -> jax.Array:
    """All towers' channels side by side: from `[..., C]` per tower to `[..., towers * C]`.

    The gather adds a new first axis. A gather along the last axis would make XLA lay out its
    operands, and everything before and after them, channels first.
    """
    gathered = lax.all_gather(x, TOWER)
    return jnp.concatenate([gathered[i] for i in range(gathered.shape[0])], -1)


@functools.partial(custom_vjp, nondiff_argnums=(1,))
def scatter_sum(y_BxC: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The sum of all towers' `y`, of which each tower gets its own part of the columns.

    Args:
      y_BxC: `[B, towers * C]`, of at least float32; the sum is computed in this type.
      dtype: type of the result and of its gradient, which is exchanged in it.

    Returns:
      `[B, C]`.
    """
    summed = lax.psum_scatter(y_BxC, TOWER, scatter_dimension=1, tiled=True)
    return summed.astype(dtype)


def _scatter_sum_fwd(y, dtype):
    return scatter_sum(y, dtype), None


def _scatter_sum_bwd(dtype, saved, g):
    # The transpose of `psum_scatter`; the cast comes after it, so that fewer bytes are sent.
    del saved
    return (lax.all_gather(g, TOWER, axis=1, tiled=True).astype(widened(dtype)),)


scatter_sum.defvjp(_scatter_sum_fwd, _scatter_sum_bwd)


@custom_vjp
def sum_over_towers(x: jax.Array) -> jax.Array:
    """The sum of all towers' `x`, which every tower then uses in the same way: the logits.

    Its gradient is the sum of the towers' gradients of the result. These are equal, so no exchange
    is needed, whereas the transpose of `psum` is another `psum`.
    """
    return lax.psum(x, TOWER)


def _sum_over_towers_fwd(x):
    return sum_over_towers(x), None


def _sum_over_towers_bwd(saved, g):
    del saved
    return (lax.axis_size(TOWER) * g,)


sum_over_towers.defvjp(_sum_over_towers_fwd, _sum_over_towers_bwd)
