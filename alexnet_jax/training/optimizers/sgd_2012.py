"""The update rule of 2012, momentum with the learning rate inside the velocity.

The rule (section 5 of the paper, `src/weights.cu` of the source) is `v = 0.9 v - rate * (gradient +
decay * w)`, `w = w + v`. `optax.sgd` multiplies by the rate after the momentum instead, which
differs at every drop of the rate.

For large batches it can be extended by a trust ratio (LARS, You, Gitman and Ginsburg 2017,
arXiv:1708.03888).
"""

import optax
from ml_collections import ConfigDict

from alexnet_jax.registry import OPTIMIZERS
from alexnet_jax.training.optimizers.groups import Group, by_group, scale_by_rate


def sgd_2012(
    config: ConfigDict, steps_per_epoch: int, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Momentum with decay and rate inside the velocity.

    With `optimizer.trust_coefficient` the weights' steps are those of LARS; the kernel of each
    tower counts as a layer of its own, so that no norms are exchanged.

    Args:
      config: the run.
      steps_per_epoch: to convert epochs into steps.
      num_steps: of the whole run.
    """
    optimizer = config.optimizer

    def rule(group: Group) -> optax.GradientTransformation:
        parts = [optax.add_decayed_weights(group.decay)]
        if group.kernel and (trust := optimizer.trust_coefficient):
            parts.append(optax.scale_by_trust_ratio(trust_coefficient=trust))
        return optax.chain(*parts, scale_by_rate(group.rate), optax.trace(optimizer.momentum))

    return by_group(config, steps_per_epoch, num_steps, rule)


OPTIMIZERS["sgd_2012"] = sgd_2012
