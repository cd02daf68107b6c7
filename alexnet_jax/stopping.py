"""How a run ends before its end: asked to by a signal, with nothing lost."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class Stop:
    """SIGTERM and Ctrl-C ask a run to finish its step and save; a second one ends it at once.

    Of several processes one is asked, and all stop after the same step: JAX's preemption service
    catches SIGTERM, however often it comes, and Ctrl-C is passed on as one.
    """

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def after(self, step: int) -> bool:
        """Whether to stop now. Every process must call this after every step."""
        if jax.process_count() == 1:
            return self.signal is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = self.signal or signal.SIGTERM
            return True
        return False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        # Not print, which a signal may find in the middle of printing.
        os.write(sys.stderr.fileno(), b"\nstopping after this step; once more to stop at once\n")

    def __enter__(self) -> Self:
        """Listens, in the main thread alone, where Python handles signals."""
        if threading.current_thread() is threading.main_thread():
            listens = (signal.SIGINT, signal.SIGTERM)
            for number in listens if jax.process_count() == 1 else listens[:1]:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        """Leaves signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
