"""What a train step reads and writes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """What a step reads and writes; on the host every leaf has a leading axis of towers."""

    step: jax.Array
    params: dict
    opt_state: Any
    rate_scale: jax.Array  # the plateau schedule's drops so far, as a factor
    seed: jax.Array  # of dropout; a value and no constant, so that seeds share a program


def init_state(params: dict, tx: optax.GradientTransformation, seed: int = 0) -> TrainState:
    """A fresh state around stacked parameters, the same under any placement."""
    stack = jax.tree.leaves(params)[0].shape[0]
    # Under vmap the plain numbers of Optax's state too get one copy a tower.
    opt_state = jax.jit(jax.vmap(tx.init))(params)
    return TrainState(
        step=jnp.zeros([stack], jnp.int32),
        params=params,
        opt_state=opt_state,
        rate_scale=jnp.ones([stack], jnp.float32),
        seed=jnp.full([stack], seed, jnp.uint32),
    )
