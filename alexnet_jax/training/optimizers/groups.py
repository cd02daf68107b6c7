"""What update rules share: groups of parameters with a rate and a decay each, and frozen layers."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_jax.training.schedules import Rate, schedule


@dataclasses.dataclass(frozen=True)
class Group:
    """The kernel of one layer, or all its other parameters: biases, scales of its operations.

    Attributes:
      layer: name of the layer.
      kernel: whether it is the kernel.
      decay: weight decay.
      rate: the learning rate by step.
    """

    layer: str
    kernel: bool
    decay: float
    rate: Rate


def by_group(
    config: ConfigDict,
    steps_per_epoch: int,
    num_steps: int,
    rule: Callable[[Group], optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that treats every group of parameters by a rule of its own.

    The layers in `config.freeze` get zero updates and have no state.

    Args:
      config: the run.
      steps_per_epoch: to convert epochs into steps.
      num_steps: of the whole run.
      rule: returns the transformation of a group; `scale_by_rate` applies its rate.
    """
    optimizer = config.optimizer

    def labels(params: dict) -> dict:
        return {
            layer: {part: _label(layer, part == "kernel") for part in parts}
            for layer, parts in params.items()
        }

    rules: dict[Hashable, optax.GradientTransformation] = {}
    for number, layer in enumerate(config.model.layer_order):
        decay = config.model.layers[layer].weight_decay
        decay = optimizer.weight_decay if decay is None else decay
        for kernel, name in ((True, "weights" if number else "conv1"), (False, "biases")):
            group = Group(
                layer=layer,
                kernel=kernel,
                decay=decay if kernel or optimizer.decay_biases else 0.0,
                rate=schedule(config, steps_per_epoch, num_steps, group=name),
            )
            frozen = layer in config.freeze
            rules[_label(layer, kernel)] = optax.set_to_zero() if frozen else rule(group)
    return optax.partition(rules, labels)


def _label(layer: str, kernel: bool) -> str:
    return f"{layer}/{'kernel' if kernel else 'biases'}"


class RateState(NamedTuple):
    """The state of `scale_by_rate`.

    Attributes:
      count: number of steps so far, int32.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def scale_by_rate(rate: Rate) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the rate of the step and by `rate_scale`, an argument of `update`."""

    def init(params: Any) -> RateState:
        del params
        return RateState(jnp.zeros([], jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, rate_scale: Any = 1.0, **extra: Any
    ) -> tuple[Any, RateState]:
        del params, extra
        step_size = -rate(state.count) * rate_scale
        updates = jax.tree.map(lambda u: (step_size * u).astype(u.dtype), updates)
        return updates, RateState(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def follows_schedule(opt_state: Any) -> bool:
    """Whether the rates are those of `config.optimizer.schedule`, as the state tells.

    Optimizers that do not use `scale_by_rate` have rates of their own.
    """
    return any(isinstance(x, RateState) for x in jax.tree.leaves(opt_state, is_leaf=_is_clock))


def skip(opt_state: Any) -> Any:
    """Returns the state after a step that was not applied: schedules go on, all else stays."""
    return jax.tree.map(
        lambda x: x._replace(count=x.count + 1) if _is_clock(x) else x, opt_state, is_leaf=_is_clock
    )


def _is_clock(x: Any) -> bool:
    return isinstance(x, (RateState, optax.ScaleByScheduleState))
