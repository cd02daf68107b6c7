"""The name of an optimizer that was given in Python, which a configuration cannot describe."""

from typing import NoReturn

from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError
from alexnet_jax.registry import OPTIMIZERS


def given(config: ConfigDict, steps_per_epoch: int, num_steps: int) -> NoReturn:
    """Refuses to build it.

    Raises:
      UsageError: always.
    """
    del config, steps_per_epoch, num_steps
    raise UsageError(
        "config.optimizer.rule = 'given': the optimizer of this run was given in Python; give it "
        "again, as train_and_evaluate(config, workdir, optimizer=...)"
    )


OPTIMIZERS["given"] = given
