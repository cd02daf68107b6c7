"""Dense layers: matrix products of a whole layer, or of the part that one tower holds.

Shapes: B images, I inputs, O outputs.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.model.derivatives import by_platform, custom_vjp
from alexnet_jax.model.precision import widened


def dense(x_BxI: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
    """The matrix product `x @ kernel`, `[B, O]`, in the type of its arguments.

    Args:
      x_BxI: inputs.
      kernel: `[I, O]`.
      precision: of float32 products; see `config.model.precision`.
    """
    plain = functools.partial(_plain, precision=precision)
    apart = functools.partial(_apart, precision=precision)
    return by_platform(x_BxI, kernel, cuda=apart, cpu=apart, default=plain)


def _plain(x, kernel, precision):
    return jnp.matmul(x, kernel, precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _apart(x, kernel, precision):
    """`_plain`, under `vmap` one product per tower even if all have the same inputs.

    Of a single product with all kernels, and of that with their gradients, XLA makes one of
    matrices that it first copies into another order, on GPU and CPU. For one image that copy takes
    most of the time.
    """

    @jax.custom_batching.custom_vmap
    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _plain(x, kernel, precision)

    @product.def_vmap
    def rule(axis_size: int, in_batched: Sequence[bool], *args: jax.Array):
        each = [
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, batched in zip(args, in_batched, strict=True)
        ]
        return jax.vmap(functools.partial(_plain, precision=precision))(*each), True

    return product(x, kernel)


def _apart_fwd(x, kernel, precision):
    return _apart(x, kernel, precision), (x, kernel)


def _apart_bwd(precision, saved, g):
    x, kernel = saved
    return _apart(g, kernel.T, precision), _apart(x.T, g, precision)


_apart.defvjp(_apart_fwd, _apart_bwd)


@functools.partial(custom_vjp, nondiff_argnums=(2,))
def partial_products(
    x_BxI: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike
) -> jax.Array:
    """`x @ kernel` over the inputs of one tower, `[B, O]`, float32 or wider.

    The sum over all inputs is complete only when the towers have added their parts, so each part
    keeps the precision of the accumulator. The gradient is computed in the type of the arguments,
    as that of `dense` is.

    Args:
      x_BxI: this tower's inputs.
      kernel: `[I, O]`, the rows of these inputs.
      precision: of float32 products; see `config.model.precision`.
    """
    return jnp.matmul(
        x_BxI, kernel, precision=precision, preferred_element_type=widened(x_BxI.dtype)
    )


def _partial_products_fwd(x, kernel, precision):
    return partial_products(x, kernel, precision), (x, kernel)


def _partial_products_bwd(precision, saved, g):
    # JAX would multiply the wide gradient by the narrow arguments, which is a wide product.
    x, kernel = saved
    g = g.astype(x.dtype)
    (dx,) = jax.linear_transpose(lambda x: _plain(x, kernel, precision), x)(g)
    (dkernel,) = jax.linear_transpose(lambda kernel: _plain(x, kernel, precision), kernel)(g)
    return dx, dkernel


partial_products.defvjp(_partial_products_fwd, _partial_products_bwd)
