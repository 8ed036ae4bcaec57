"""The two errors with which a run is refused, or ends early, for a reason on which the user can act."""

import errno


class UsageError(Exception):
    """Bad usage, configuration or data. The text is one or two lines that name the key, the value, the rule and the
    remedy.

    The command prints the text alone and exits with status 2; nothing has been started or written.
    """


class RunError(Exception):
    """A run that had started failed; the text says what happened. Exit status 1."""


def why(e: OSError) -> str:
    """Returns the reason of `e`, as a part of a sentence."""
    if e.errno == errno.EFBIG:
        return "it would be larger than this shell's file-size limit, which ulimit -f shows"
    return str(e.strerror or e)
