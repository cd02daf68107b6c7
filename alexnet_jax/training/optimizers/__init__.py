"""Update rules: the values of `optimizer.rule`.

A rule is a function `(config, steps_per_epoch, num_steps)` that returns an Optax transformation.
`groups` has what rules share: rates and decay by group of parameters, and frozen layers.
"""

import optax
from ml_collections import ConfigDict

from alexnet_jax.registry import OPTIMIZERS


def build(
    config: ConfigDict, steps_per_epoch: int, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the update rule of a run.

    It is applied to each tower by itself. `update` accepts `rate_scale`, a factor on every rate
    (the drops of the plateau schedule), and a rule that has no such argument does not see it.

    Args:
      config: the run.
      steps_per_epoch: to convert epochs into steps.
      num_steps: of the whole run.

    Raises:
      UsageError: the rule needs something that the configuration does not say.
    """
    rule = OPTIMIZERS[config.optimizer.rule]
    return optax.with_extra_args_support(rule(config, steps_per_epoch, num_steps))
