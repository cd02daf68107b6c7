"""The state that a train step reads and writes."""

from typing import Any

import flax.struct
import jax
import numpy as np
import optax


@flax.struct.dataclass
class TrainState:
    """The state of a run; on the host every leaf has a leading axis of towers.

    Attributes:
      step: number of steps taken, int32.
      params: `{layer: {"kernel", "bias"}}`.
      opt_state: of the update rule.
      rate_scale: product of the plateau schedule's drops so far, float32.
      seed: of dropout, uint32; a value and not a constant, so that seeds share a program.
    """

    step: jax.Array | np.ndarray
    params: dict
    opt_state: Any
    rate_scale: jax.Array | np.ndarray
    seed: jax.Array | np.ndarray


def init_state(params: dict, tx: optax.GradientTransformation, seed: int = 0) -> TrainState:
    """A fresh state with stacked parameters, the same under any placement.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct` for a state that is only compiled for or restored
        into.
      tx: the update rule.
      seed: of dropout.
    """
    stack = jax.tree.leaves(params)[0].shape[0]
    # Under vmap the counters in Optax's state have one copy per tower too. Everything in it starts
    # at zero, and zeros need no program.
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
