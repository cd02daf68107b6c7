"""Dense layers: matrix products of a whole layer, or of the part that one tower holds.

Shapes: B images, I inputs, O outputs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.model.derivatives import custom_vjp
from alexnet_jax.model.precision import widened


def dense(x_BxI: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
    """The matrix product `x @ kernel`, `[B, O]`, in the type of its arguments.

    Args:
      x_BxI: inputs.
      kernel: `[I, O]`.
      precision: of float32 products; see `config.model.precision`.
    """
    return jnp.matmul(x_BxI, kernel, precision=precision)


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
    (dx,) = jax.linear_transpose(lambda x: dense(x, kernel, precision), x)(g)
    (dkernel,) = jax.linear_transpose(lambda kernel: dense(x, kernel, precision), kernel)(g)
    return dx, dkernel


partial_products.defvjp(_partial_products_fwd, _partial_products_bwd)
