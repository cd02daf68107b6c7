"""The two ways to end early that are not bugs."""


class UsageError(Exception):
    """An error that the user can fix.

    The message is one line that names the field or path at fault and says how to fix it; the
    command line prints it without a traceback and exits with code 2.
    """


class Stopped(Exception):
    """The run was asked to stop, and has saved.

    Attributes:
      signal: that asked; a shell shows 128 plus it as the exit code.
    """

    def __init__(self, step: int, signal: int):
        """After `step`."""
        super().__init__(f"stopped after step {step}, which is saved; the same command resumes")
        self.signal = signal
