"""How a run ends before its end: asked to by a signal, with nothing lost."""

import os
import signal
import sys
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils


class Stop:
    """SIGTERM and Ctrl-C ask a run to finish its step and save; a second one ends it at once.

    A thread hears of a signal the moment it comes: Python itself would wait until the main thread
    is back from TensorFlow or XLA, which in a step that hangs is never.

    Of several processes one is asked, and all stop after the same step: JAX's preemption service
    catches SIGTERM, however often it comes, and Ctrl-C is passed on as one.
    """

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.signal: int | None = None
        self._before: dict[int, object] = {}
        self._pipe: tuple[int, int] | None = None

    def after(self, step: int) -> bool:
        """Whether to stop now. Every process must call this after every step."""
        if jax.process_count() == 1:
            return self.signal is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = self.signal or signal.SIGTERM
            return True
        return False

    def _listen(self, descriptor: int) -> None:
        while number := os.read(descriptor, 1)[0]:
            if number not in self._before:
                continue  # another's handler
            if self.signal is not None:
                os._exit(128 + number)
            self.signal = number
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
            text = b"\nstopping after this step; once more to stop at once\n"
            os.write(sys.stderr.fileno(), text)
        os.close(descriptor)

    def __enter__(self) -> Self:
        """Listens, in the main thread alone, where Python handles signals."""
        if threading.current_thread() is threading.main_thread():
            reads, writes = self._pipe = os.pipe()
            os.set_blocking(writes, False)
            signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
            listens = (signal.SIGINT, signal.SIGTERM)
            for number in listens if jax.process_count() == 1 else listens[:1]:
                # The handler does nothing, but without one Python would not write to the pipe.
                self._before[number] = signal.signal(number, lambda *_: None)
            threading.Thread(target=self._listen, args=(reads,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Leaves signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.write(self._pipe[1], b"\0")  # ends the thread
            os.close(self._pipe[1])
