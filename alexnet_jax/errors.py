"""The one error that is not a bug."""


class UsageError(Exception):
    """An error that the person running can mend.

    The message is one line that names the field or path at fault and says how to mend it; the
    command line prints it without a traceback and exits with code 2.
    """
