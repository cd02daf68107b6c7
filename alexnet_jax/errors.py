"""The two ways to end early that are not bugs."""

LOST_ANOTHER = 3
"""Exit code of a process that ends because another one of the same run was lost."""


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

    def __init__(self, step: int, signal: int, checkpoint: int | None = None):
        """Says after which step the run stopped, and from where it resumes.

        Args:
          step: the last step that was done.
          signal: the signal that asked.
          checkpoint: step of the newest checkpoint, if that may be an earlier one: among steps that
            are not finite nothing is saved.
        """
        resumes = "which is saved; the same command resumes"
        if checkpoint not in (None, step):
            resumes = f"and saved after step {checkpoint}; the same command resumes from there"
        super().__init__(f"stopped after step {step}, {resumes}")
        self.signal = signal
