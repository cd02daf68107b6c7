"""The 2012 update rule and its schedules, in Optax.

The rule (section 5 of the paper, `src/weights.cu` of the source) keeps the learning rate inside
the velocity: `v = 0.9 v - rate * (gradient + decay * w)`, `w = w + v`. `optax.sgd` multiplies by
the rate after the momentum instead, which differs at every drop of the rate.

For large batches the rule can be extended by a trust ratio (LARS, You, Gitman and Ginsburg 2017,
arXiv:1708.03888), a warm-up and a rate that grows with the batch.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def schedule(
    config: ConfigDict, steps_per_epoch: int, num_steps: int, *, group: str = "weights"
) -> Callable[[jax.Array | int], jax.Array]:
    """The learning rate of one group of parameters, as a function of the step.

    `plateau` is constant here: its drops depend on the validation error and reach the update as
    `rate_scale`.

    Args:
      config: the run.
      steps_per_epoch: to convert epochs into steps.
      num_steps: of the whole run, which `exponential_steps` divides into equal parts.
      group: `weights`, `biases` or `conv1` (the weights of the first layer, whose rate the source
        lowered earlier than the others').
    """
    optimizer = config.optimizer
    base = _schedule(config, steps_per_epoch, num_steps, group)
    rise = optimizer.warmup_epochs * steps_per_epoch
    if not rise:
        return base
    return lambda step: base(step) * jnp.minimum((step + 1) / rise, 1.0)


def _schedule(config: ConfigDict, steps_per_epoch: int, num_steps: int, group: str) -> Callable:
    optimizer = config.optimizer
    larger = config.batch_size / optimizer.rate_scaling_batch
    rate = optimizer.learning_rate
    rate *= {"none": 1.0, "linear": larger, "sqrt": math.sqrt(larger)}[optimizer.rate_scaling]
    if group == "biases":
        rate *= optimizer.bias_rate_multiplier
        if not optimizer.biases_follow_schedule:
            return optax.constant_schedule(rate)
    if optimizer.schedule == "steps":
        epochs = optimizer.drop_epochs
        if group == "conv1" and optimizer.conv1_drop_epochs:
            epochs = optimizer.conv1_drop_epochs
        drops = {epoch * steps_per_epoch: optimizer.drop_factor for epoch in epochs}
        freeze = optimizer.conv1_freeze_epoch
        if group == "conv1" and freeze:
            drops[freeze * steps_per_epoch] = 0.0
        return optax.piecewise_constant_schedule(rate, drops)
    if optimizer.schedule == "exponential_steps":
        # dexp[tgtFactor, numSteps] of the source: numSteps rates, each lower by the same factor.
        steps, factor = optimizer.exponential_steps, optimizer.exponential_factor
        if group == "biases":
            steps, factor = optimizer.bias_exponential_steps, optimizer.bias_exponential_factor
        drop = factor ** (-1 / (steps - 1)) if steps > 1 else 1.0
        bounds = {math.ceil(num_steps * i / steps): drop for i in range(1, steps)}
        return optax.piecewise_constant_schedule(rate, bounds)
    if optimizer.schedule == "polynomial":
        return optax.polynomial_schedule(rate, 0.0, optimizer.polynomial_power, num_steps)
    return optax.constant_schedule(rate)


def _scale_by_rate(rate: Callable) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the rate of the step and by `rate_scale`, an argument of `update`."""

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, *, rate_scale=1.0, **extra):
        del params, extra
        step_size = -rate(state.count) * rate_scale
        updates = jax.tree.map(lambda u: (step_size * u).astype(u.dtype), updates)
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def sgd_2012(
    config: ConfigDict, steps_per_epoch: int, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Momentum with decay and rate inside the velocity, per group of parameters.

    `update(..., rate_scale=s)` multiplies every rate by `s` (the plateau schedule's drops). With
    `optimizer.trust_coefficient` the weights' steps are those of LARS; the kernel of each tower
    counts as a layer of its own, so that no norms are exchanged. The layers in `config.freeze` get
    zero updates and have no velocity.

    Args:
      config: the run.
      steps_per_epoch: to convert epochs into steps.
      num_steps: of the whole run.
    """
    optimizer, layers = config.optimizer, config.model.layers
    order = config.model.layer_order

    def labels(params: dict) -> dict:
        return {name: {kind: f"{name}/{kind}" for kind in leaf} for name, leaf in params.items()}

    groups = {}
    for i, name in enumerate(order):
        if name in config.freeze:
            groups |= {f"{name}/{kind}": optax.set_to_zero() for kind in ("kernel", "bias")}
            continue
        decay = layers[name].weight_decay
        decay = optimizer.weight_decay if decay is None else decay
        for kind, group, wd in (
            ("kernel", "weights" if i else "conv1", decay),
            ("bias", "biases", decay if optimizer.decay_biases else 0.0),
        ):
            parts = [optax.add_decayed_weights(wd)]
            if kind == "kernel" and (trust := optimizer.trust_coefficient):
                parts.append(optax.scale_by_trust_ratio(trust_coefficient=trust))
            parts.append(_scale_by_rate(schedule(config, steps_per_epoch, num_steps, group=group)))
            groups[f"{name}/{kind}"] = optax.chain(*parts)
    momentum = optax.trace(decay=optimizer.momentum)
    if config.freeze:
        momentum = optax.masked(momentum, {name: name not in config.freeze for name in order})
    return optax.chain(optax.partition(groups, labels), momentum)


@dataclasses.dataclass
class Plateau:
    """Lowers the rate when the validation error stops falling (section 5).

    Attributes:
      best: the lowest error so far.
      stale: number of evaluations since then or since the last drop.
      drops: number of drops so far.
    """

    best: float = math.inf
    stale: int = 0
    drops: int = 0

    def observe(self, error: float, optimizer: ConfigDict) -> float:
        """Takes the error of an evaluation; returns the factor on the rate from now on."""
        if error < self.best:
            self.best, self.stale = error, 0
        else:
            self.stale += 1
        if self.stale >= optimizer.plateau_patience and self.drops < optimizer.plateau_drops:
            self.drops, self.stale = self.drops + 1, 0
        return optimizer.drop_factor**self.drops
