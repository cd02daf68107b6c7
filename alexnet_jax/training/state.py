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
      params: `{layer: {"kernel", "bias", ...}}`.
      batch_stats: running statistics of the layers' operations, `{layer: {name: [C]}}`; empty where
        no operation has any.
      opt_state: of the update rule.
      rate_scale: product of the plateau schedule's drops so far, float32.
      seed: of dropout, uint32; a value and not a constant, so that seeds share a program.
    """

    step: jax.Array | np.ndarray
    params: dict
    batch_stats: dict
    opt_state: Any
    rate_scale: jax.Array | np.ndarray
    seed: jax.Array | np.ndarray

    @property
    def variables(self) -> dict[str, dict]:
        """All that the network needs: `params` and, if there are any, `batch_stats`."""
        found = {"params": self.params}
        return found | {"batch_stats": self.batch_stats} if self.batch_stats else found


def init_state(
    params: dict,
    tx: optax.GradientTransformation,
    seed: int = 0,
    batch_stats: dict | None = None,
) -> TrainState:
    """A fresh state with stacked parameters, the same under any placement.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct` for a state that is only compiled for or restored
        into.
      tx: the update rule.
      seed: of dropout.
      batch_stats: the running statistics, stacked too, of the same kind.
    """
    first = jax.tree.leaves(params)[0]
    stack = first.shape[0]
    # Under vmap the counters in Optax's state have one copy per tower too.
    init = jax.vmap(tx.init)
    if isinstance(first, jax.ShapeDtypeStruct):
        opt_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(init, params))
    else:
        opt_state = jax.device_get(jax.jit(init)(params))
    return TrainState(
        step=np.zeros([stack], np.int32),
        params=params,
        batch_stats=batch_stats or {},
        opt_state=opt_state,
        rate_scale=np.ones([stack], np.float32),
        seed=np.full([stack], seed, np.uint32),
    )
