"""How exactly sums are computed in a network of narrow numbers."""

import jax.numpy as jnp


def widened(dtype: jnp.dtype) -> jnp.dtype:
    """`dtype`, or float32 where that is wider: the type of sums over many terms."""
    return jnp.promote_types(dtype, jnp.float32)
