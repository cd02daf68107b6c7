"""Schedules of the learning rate: the values of `optimizer.schedule`, and what all of them share.

A schedule gets the first rate of a group of parameters and returns the rate as a function of the
step, as Optax defines a schedule:

    def cosine(rate: float, span: Span) -> optax.Schedule:
        return optax.cosine_decay_schedule(rate, span.num_steps)

    SCHEDULES["cosine"] = cosine
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_jax.registry import SCHEDULES

Rate = Callable[[jax.Array | int], Any]
"""From the number of updates so far to the learning rate."""


@dataclasses.dataclass(frozen=True)
class Span:
    """What a schedule may depend on besides the first rate.

    Attributes:
      optimizer: `config.optimizer`.
      group: `weights`, `biases` or `conv1` (the weights of the first layer, whose rate the source
        of 2012 lowered earlier than the others').
      steps_per_epoch: training steps per pass over the training images.
      num_steps: steps of the whole run.
    """

    optimizer: ConfigDict
    group: str
    steps_per_epoch: int
    num_steps: int


def schedule(
    config: ConfigDict, steps_per_epoch: int, num_steps: int, *, group: str = "weights"
) -> Rate:
    """The learning rate of one group of parameters, as a function of the step.

    The drops of `plateau` depend on the validation error, and reach the update as `rate_scale`.

    Args:
      config: the run.
      steps_per_epoch: to convert epochs into steps.
      num_steps: of the whole run.
      group: see `Span`.
    """
    optimizer = config.optimizer
    larger = config.batch_size / optimizer.rate_scaling_batch
    rate = optimizer.learning_rate
    rate *= {"none": 1.0, "linear": larger, "sqrt": math.sqrt(larger)}[optimizer.rate_scaling]
    follows = True
    if group == "biases":
        rate *= optimizer.bias_rate_multiplier
        follows = optimizer.biases_follow_schedule
    rule = SCHEDULES[optimizer.schedule] if follows else constant
    base: Rate = rule(rate, Span(optimizer, group, steps_per_epoch, num_steps))
    rise = optimizer.warmup_epochs * steps_per_epoch
    if not rise:
        return base
    return lambda step: base(step) * jnp.minimum((step + 1) / rise, 1.0)


def on_host(rate: Rate) -> Callable[[int], float]:
    """A rate as a number for the log, computed without the devices that train.

    Where JAX has no CPU device, as with `JAX_PLATFORMS=cuda`, they compute it nevertheless.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        cpu = None

    def value(step: int) -> float:
        # A transfer guard would count what JAX's own CPU device is given, which stays on the host.
        with jax.default_device(cpu), jax.transfer_guard("allow"):
            return float(rate(step))

    return value


def constant(rate: float, span: Span) -> Rate:
    """The first rate."""
    del span
    return optax.constant_schedule(rate)


def steps(rate: float, span: Span) -> Rate:
    """Drops by `drop_factor` at certain epochs."""
    optimizer, epochs = span.optimizer, span.optimizer.drop_epochs
    if span.group == "conv1" and optimizer.conv1_drop_epochs:
        epochs = optimizer.conv1_drop_epochs
    drops = {epoch * span.steps_per_epoch: optimizer.drop_factor for epoch in epochs}
    freeze = optimizer.conv1_freeze_epoch
    if span.group == "conv1" and freeze:
        drops[freeze * span.steps_per_epoch] = 0.0
    return optax.piecewise_constant_schedule(rate, drops)


def exponential_steps(rate: float, span: Span) -> Rate:
    """Some rates, each lower by the same factor: `dexp[tgtFactor, numSteps]` of the source."""
    optimizer = span.optimizer
    rates, factor = optimizer.exponential_steps, optimizer.exponential_factor
    if span.group == "biases":
        rates, factor = optimizer.bias_exponential_steps, optimizer.bias_exponential_factor
    drop = factor ** (-1 / (rates - 1)) if rates > 1 else 1.0
    bounds = {math.ceil(span.num_steps * i / rates): drop for i in range(1, rates)}
    return optax.piecewise_constant_schedule(rate, bounds)


def polynomial(rate: float, span: Span) -> Rate:
    """A power of the share of the run that remains."""
    return optax.polynomial_schedule(rate, 0.0, span.optimizer.polynomial_power, span.num_steps)


@dataclasses.dataclass
class Plateau:
    """Lowers the rate when the validation error stops falling (section 5 of the paper).

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


SCHEDULES["constant"] = constant
SCHEDULES["steps"] = steps
SCHEDULES["exponential_steps"] = exponential_steps
SCHEDULES["plateau"] = constant  # and its drops: see `schedule`
SCHEDULES["polynomial"] = polynomial
