"""Signals that ask a run to end early without losing anything."""

import contextlib
import os
import signal
import sys
import threading
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Stop:
    """On SIGTERM or Ctrl-C a run saves and ends within one batch; a second signal kills it.

    A thread receives a signal as soon as it is sent. Python's own handlers would wait until the
    main thread returns from TensorFlow or XLA, which never happens if a step hangs.

    It is enough to signal one of several processes: JAX's preemption service tells all of them to
    stop after the same batch. The service handles SIGTERM, and Ctrl-C is passed on as SIGTERM.

    Only the main thread of a program can handle signals: in another thread nothing is listened to.
    Whatever else handles signals, such as the event loop of asyncio, gets all others meanwhile, and
    these two again afterwards.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self.signal: int | None = None
        self._times_asked = 0
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1  # where Python wrote the numbers of signals before

    def asked(self) -> bool:
        """Returns whether to stop now.

        Every process must call it equally often: after every step, and after every batch of an
        evaluation.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        self._times_asked += 1
        if multihost_utils.reached_preemption_sync_point(self._times_asked):
            self.signal = self.signal or signal.SIGTERM
            return True
        return False

    def _listen(self, descriptor: int) -> None:
        while number := os.read(descriptor, 1)[0]:
            if number not in self._before:
                if self._wakeup >= 0:  # Another handler takes care of it.
                    with contextlib.suppress(OSError):
                        os.write(self._wakeup, bytes([number]))
                continue
            if self.signal is not None:
                os._exit(128 + number)
            self.signal = number
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
            text = b"\nstopping after this batch; once more to stop at once\n"
            with contextlib.suppress(
                OSError, ValueError, AttributeError
            ):  # A notebook has no such file.
                os.write(sys.stderr.fileno(), text)
        os.close(descriptor)

    def __enter__(self) -> Self:
        """Starts to listen."""
        if threading.current_thread() is threading.main_thread():
            reads, writes = self._pipe = os.pipe()
            os.set_blocking(writes, False)
            self._wakeup = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
            listens = (signal.SIGINT, signal.SIGTERM)
            for number in listens if jax.process_count() == 1 else listens[:1]:
                # It does nothing, but without a handler Python does not write to the pipe.
                self._before[number] = signal.signal(number, lambda *_: None)
            threading.Thread(target=self._listen, args=(reads,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Restores the previous handlers."""
        for number, handler in self._before.items():
            # None stands for a handler that was not installed by Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
            os.write(self._pipe[1], b"\0")  # This ends the thread.
            os.close(self._pipe[1])
