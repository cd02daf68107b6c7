"""What the command sets up before it imports what takes time: signals, streams, folders."""

import contextlib
import io
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from alexnet_jax.errors import UsageError


def prepare() -> None:
    """Ends the process at Ctrl-C and SIGTERM, and replaces standard streams that are closed.

    A run that trains listens to these signals itself meanwhile (`training.stop`). What other verbs
    write appears whole or not at all, so that they may end at any moment.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in the background of a script
            signal.signal(number, lambda number, _: os._exit(128 + number))
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened would get what is written to the stream.
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout, buffered=True)
    sys.stderr = _text(_Errors(2, "w", closefd=False), sys.stderr, buffered=False)
    try:
        Path.home()
    except RuntimeError:  # Without a home folder Matplotlib would not even be imported.
        os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp(prefix="alexnet_jax-"))


_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts the command anew with huge pages for large blocks of memory, where Linux grants them.

    XLA takes its scratch memory anew for each step, hundreds of megabytes, and the kernel maps and
    clears it page by page: with pages of 4 kB that is a quarter of the time of a step of the full
    network on CPU (benchmarks/NOTES.md). glibc reads the setting when a process starts, and no
    later. The user's own GLIBC_TUNABLES win.
    """
    with contextlib.suppress(OSError):  # not Linux, or no program to start: it goes on as it is
        on_request = "[madvise]" in _HUGE_PAGES.read_text()
        if on_request and "GLIBC_TUNABLES" not in os.environ:
            os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _text(raw: io.FileIO, before: Any, buffered: bool) -> io.TextIOWrapper:
    """A stream like the one before, which prints any name of a file."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=not buffered or raw.isatty(),
    )


class _Output(io.FileIO):
    """Standard output: what cannot be written is an error of one line."""

    def write(self, content: Any) -> int:
        """See `io.FileIO`.

        Raises:
          BrokenPipeError: the reader has closed it.
          UsageError: it is closed, or its disk is full.
        """
        try:
            return super().write(content) or 0
        except OSError as error:
            # Python writes the rest as it exits, and would complain once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if isinstance(error, BrokenPipeError):
                raise
            raise UsageError(f"cannot write to standard output: {error.strerror}") from error


class _Errors(io.FileIO):
    """Standard error: what cannot be written is lost, and nothing else with it."""

    def write(self, content: Any) -> int:
        """See `io.FileIO`."""
        try:
            return super().write(content) or 0
        except OSError:
            return len(content)
