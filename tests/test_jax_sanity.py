"""The installed JAX computes what it should: a bug of one release that corrupts silently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize("rows", [1_024, 32_769])
def test_a_sum_after_a_matrix_product_is_right(rows: int) -> None:
    """On CPU jax 0.10.2 gets the last of 32,769 rows wrong by 0.8 % (jax issue 39103)."""
    first_column = np.arange(rows, dtype=np.float32)
    vectors_Rx3 = np.zeros((rows, 3), np.float32)
    vectors_Rx3[:, 0] = first_column
    identity = jnp.eye(3)

    squared_norms = jax.jit(jax.vmap(lambda vector: jnp.sum((identity @ vector) ** 2)))(vectors_Rx3)

    np.testing.assert_allclose(squared_norms, first_column.astype(np.float64) ** 2, rtol=1e-6)
