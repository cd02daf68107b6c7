"""Adam (Kingma and Ba 2015, arXiv:1412.6980) and AdamW (Loshchilov and Hutter 2019, 1711.05101).

Their first moment decays by `optimizer.momentum`, the second by 0.999, and epsilon is 1e-8. Rates,
schedules and decay are those of the rule of 2012, by group of parameters.
"""

import optax
from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError
from alexnet_jax.registry import OPTIMIZERS
from alexnet_jax.training.optimizers.groups import Group, by_group, scale_by_rate


def adam(
    config: ConfigDict, steps_per_epoch: int, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Adam, with weight decay as a part of the gradient.

    Args:
      config: the run.
      steps_per_epoch: to convert epochs into steps.
      num_steps: of the whole run.

    Raises:
      UsageError: the configuration asks for a trust ratio.
    """

    def rule(group: Group) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(group.decay)
        return optax.chain(decay, _moments(config), scale_by_rate(group.rate))

    return by_group(config, steps_per_epoch, num_steps, rule)


def adamw(
    config: ConfigDict, steps_per_epoch: int, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """AdamW: the weights decay by `rate * decay` of themselves, whatever the gradient.

    Args:
      config: the run.
      steps_per_epoch: to convert epochs into steps.
      num_steps: of the whole run.

    Raises:
      UsageError: the configuration asks for a trust ratio.
    """

    def rule(group: Group) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(group.decay)
        return optax.chain(_moments(config), decay, scale_by_rate(group.rate))

    return by_group(config, steps_per_epoch, num_steps, rule)


def _moments(config: ConfigDict) -> optax.GradientTransformation:
    if trust := config.optimizer.trust_coefficient:
        raise UsageError(
            f"config.optimizer.trust_coefficient = {trust}: only the rule sgd_2012 has one, and "
            f"config.optimizer.rule is {config.optimizer.rule!r}"
        )
    return optax.scale_by_adam(b1=config.optimizer.momentum, b2=0.999, eps=1e-8)


OPTIMIZERS["adam"] = adam
OPTIMIZERS["adamw"] = adamw
