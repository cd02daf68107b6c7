"""The JAX profiler over some steps."""

import jax

from alexnet_jax.training.run import Due, Part, Run


class Profile(Part):
    """Writes a trace of some steps to `WORKDIR/profile`, for TensorBoard, XProf or Perfetto."""

    def __init__(self, steps: tuple[int, int] | None):
        """Traces steps `steps[0]` to `steps[1]`, both included, or nothing."""
        self._first, self._last = steps or (1, 0)
        self._running = False

    def before_step(self, run: Run) -> None:
        """Starts the trace before the first of these steps."""
        if self._first <= run.step + 1 <= self._last and not self._running:
            jax.profiler.start_trace(str(run.workdir / "profile"))
            self._running = True

    def after_step(self, run: Run, due: Due) -> None:
        """Ends the trace after the last one, when its results have been computed."""
        del due
        if self._running and run.step >= self._last:
            jax.block_until_ready(run.state)
            self.close()

    def close(self) -> None:
        """Ends a trace under way."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
