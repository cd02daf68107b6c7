"""The parts of a run, in the order in which they act."""

from ml_collections import ConfigDict

from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.log import Log
from alexnet_jax.training.parts.evaluation import Evaluate, Plateau, StopAtError
from alexnet_jax.training.parts.metrics import StepMetrics
from alexnet_jax.training.parts.pictures import Pictures
from alexnet_jax.training.parts.profile import Profile
from alexnet_jax.training.parts.save import Folder, Save
from alexnet_jax.training.parts.terminal import Terminal
from alexnet_jax.training.parts.viewers import open_viewers
from alexnet_jax.training.parts.warn import Warnings
from alexnet_jax.training.parts.watchdog import Watchdog
from alexnet_jax.training.run import Part, Series
from alexnet_jax.training.workdir import Writer


def parts(
    config: ConfigDict,
    profile: tuple[int, int] | None,
    writer: Writer,
    checkpoints: Checkpoints,
    series: Series | None = None,
) -> list[Part]:
    """Returns all parts of a run: each sees steps and events before the parts that follow it.

    Args:
      config: the configuration of the run.
      profile: the first and the last step to trace.
      writer: holds the lock of the workdir.
      checkpoints: the checkpoints of the run.
      series: the runs of which it is one, if there are several.
    """
    shown = open_viewers(config)
    return [
        Watchdog(config.warn_slow_step_after_seconds),
        Profile(profile),
        Log(),  # Before other listeners: an event that they emit in response comes after its cause.
        Terminal(series),
        *shown,
        Warnings(config),
        StepMetrics(config),
        Folder(writer),
        Save(checkpoints),
        Evaluate(config),
        Plateau(config),
        StopAtError(config),
        Pictures(config, shown),
    ]
