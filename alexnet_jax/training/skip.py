"""An update that is left out where a gradient is not finite, as each platform does it best."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from alexnet_jax.model.derivatives import by_platform
from alexnet_jax.training.optimizers import groups

Update = Callable[[dict, Any], tuple[Any, Any]]
"""From parameters and the optimizer's state to their updates and its next state."""


def apply_if(ok: jax.Array, update: Update, params: dict, opt_state: Any) -> tuple[dict, Any]:
    """Parameters and optimizer's state after an update, or without it where `ok` is false.

    Left out, schedules go on and all else stays (`optimizers.groups.skip`).

    Args:
      ok: a scalar, bool.
      update: computes the updates.
      params: what is updated.
      opt_state: of the optimizer.
    """
    return by_platform(
        ok,
        params,
        opt_state,
        cpu=functools.partial(by_branch, update),
        default=functools.partial(by_selection, update),
    )


def by_branch(update: Update, ok: jax.Array, params: dict, opt_state: Any) -> tuple[dict, Any]:
    """`apply_if` as one of two branches, of which a CPU computes one only."""

    def apply(params: dict, opt_state: Any) -> tuple[dict, Any]:
        # The new velocity is stored before the weights change: otherwise XLA computes it again for
        # them, from copies of everything that it has overwritten by then.
        updates, opt_state = lax.optimization_barrier(update(params, opt_state))
        new: Any = optax.apply_updates(params, updates)
        return new, opt_state

    return lax.cond(ok, apply, _skipped, params, opt_state)


def by_selection(update: Update, ok: jax.Array, params: dict, opt_state: Any) -> tuple[dict, Any]:
    """`apply_if` as the choice between two values, each of which is computed.

    To take a branch, the host of a GPU would wait for the gradients of every step; and what a
    branch returns has memory of its own, from which it is copied.
    """
    updates, next_state = update(params, opt_state)
    applied = optax.apply_updates(params, updates), next_state
    left_out = _skipped(params, opt_state)
    return jax.tree.map(lambda new, old: jnp.where(ok, new, old), applied, left_out)


def _skipped(params: dict, opt_state: Any) -> tuple[dict, Any]:
    return params, groups.skip(opt_state)
