"""What a train step reads and writes."""

from typing import Any

import flax.struct
import jax
import numpy as np
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
    """A fresh state around stacked parameters, the same under any placement.

    Args:
      params: arrays; or `jax.ShapeDtypeStruct`, for a state that is only restored into or compiled.
      tx: the update rule.
      seed: of dropout.
    """
    stack = jax.tree.leaves(params)[0].shape[0]
    # Under vmap the plain numbers of Optax's state too get one copy a tower. All of it starts at
    # zero, and zeros need no program.
    opt_state = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(jax.vmap(tx.init), params)
    )
    return TrainState(
        step=np.zeros([stack], np.int32),
        params=params,
        opt_state=opt_state,
        rate_scale=np.ones([stack], np.float32),
        seed=np.full([stack], seed, np.uint32),
    )
