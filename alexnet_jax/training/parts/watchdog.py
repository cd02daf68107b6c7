"""Shows where every thread is if a step takes far too long."""

import faulthandler
import sys
import threading
import time
from pathlib import Path

from alexnet_jax.training.run import Due, Part, Run


class Watchdog(Part):
    """Writes the stacks of all threads to `stacks.txt`, once per step that is too slow."""

    def __init__(self, seconds: float):
        """Prepares to watch for steps that take more than `seconds`; with 0 it does nothing."""
        self._seconds = seconds
        self._watched: tuple[str, float] | None = None
        self._ended = threading.Event()

    def watch(self, what: str) -> None:
        """Starts the clock for `what`."""
        self._watched = what, time.monotonic()

    def start(self, run: Run) -> None:
        """Starts to watch."""
        self._path = run.workdir / "stacks.txt"
        self.watch("the first batch")
        if self._seconds:
            threading.Thread(target=self._look, args=(self._path,), daemon=True).start()

    def before_step(self, run: Run) -> None:
        """Starts the clock for a step, including the wait for the batch of the next one."""
        self.watch(f"step {run.step + 1}")

    def after_step(self, run: Run, due: Due) -> None:
        """Stops the clock if more than a step follows, such as an evaluation."""
        if due.evaluate or due.leave or run.step == run.num_steps:
            self._watched = None

    def _look(self, path: Path) -> None:
        said = None
        while not self._ended.wait(min(self._seconds / 4, 5)):
            now = self._watched
            if now is None or now is said or time.monotonic() - now[1] < self._seconds:
                continue
            said = now
            with path.open("a") as file:
                file.write(f"\n{time.ctime()}: {now[0]}\n")
                file.flush()
                faulthandler.dump_traceback(file)
            print(
                f"warning: {now[0]} has taken more than {self._seconds:g} s "
                f"(config.warn_slow_step_after_seconds); {path} says where every thread is",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Stops watching."""
        self._ended.set()
