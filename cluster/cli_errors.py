"""Ways in which a command of `shoal` ends early.

CommandError        the reason, in plain words, is the message; exit code 1
StopRequested       Ctrl-C or SIGTERM while starting: clean up in order
ImmediateStop       a second signal: clean up at once; passes through `except Exception`
"""


class CommandError(Exception):
    """Shown to the user as it is, without a traceback."""


class StopRequested(Exception):
    """The user wants an end before the start was complete."""


class ImmediateStop(BaseException):
    """The user does not want to wait for an orderly end."""
