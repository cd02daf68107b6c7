"""Both ways to leave out an update that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.training import skip

PARAMS = {"a": np.float32([1, 2, 3]), "b": np.float32([[4], [5]])}
TX = optax.chain(optax.trace(decay=0.5), optax.scale_by_schedule(lambda step: -1.0 - step))


def state():
    """After two steps with gradients of 1: velocities of 1.5 and a counter of 2."""
    ones, after = jax.tree.map(np.ones_like, PARAMS), TX.init(PARAMS)
    for _ in range(2):
        _, after = TX.update(ones, after)
    return after


def run(way, ok, gradient):
    def update(params, opt_state):
        return TX.update(jax.tree.map(lambda x: jnp.full_like(x, gradient), params), opt_state)

    fn = jax.jit(lambda ok, params, opt_state: way(update, ok, params, opt_state))
    return fn(np.bool_(ok), PARAMS, state())


def on_this_platform(update, ok, params, opt_state):
    return skip.apply_if(ok, update, params, opt_state)


WAYS = [skip.by_branch, skip.by_selection, on_this_platform]


@pytest.mark.parametrize("way", WAYS)
def test_an_update_is_applied(way):
    params, (trace, schedule) = run(way, True, 0.25)
    for name, before in PARAMS.items():
        # The velocity is 1.5 / 2 + 0.25 = 1, and the rate of step 2 is 3.
        np.testing.assert_array_equal(params[name], before - 3)
        np.testing.assert_array_equal(trace.trace[name], np.ones_like(before))
    assert schedule.count == 3


@pytest.mark.parametrize("gradient", [np.nan, np.inf, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_left_out_only_the_counter_advances(way, gradient):
    params, (trace, schedule) = run(way, False, gradient)
    for name, before in PARAMS.items():
        np.testing.assert_array_equal(params[name], before)
        np.testing.assert_array_equal(trace.trace[name], np.full_like(before, 1.5))
    assert schedule.count == 3
