"""Dropout masks that depend on the example and not on the device."""

import jax


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
