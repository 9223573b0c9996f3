"""The ways a command ends badly, and the helper that names the nearest valid choice."""

import difflib
import errno
from collections.abc import Iterable

# Before every complaint: "process 3: " on one of several processes.
speaker = ""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class UserError(Exception):
    """The user's input is wrong: one line on stderr, exit code 2, before any expensive work."""


class RunFailed(Exception):
    """The run itself failed: exit code 3; the message names the last good checkpoint."""


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """A phrase that names the valid choices closest to `name`.

    Args:
        name: what the user wrote.
        choices: every valid name.
        count: how many to show at most.

    Returns:
        "did you mean 'a', 'b'?" or, when nothing is close, "valid: 'a', 'b', ...".
    """
    choices = sorted(set(choices))
    close = difflib.get_close_matches(name, choices, n=count, cutoff=0.5)
    if close:
        return "did you mean " + ", ".join(repr(c) for c in close) + "?"
    shown = ", ".join(repr(c) for c in choices[:12])
    return f"valid: {shown}{', ...' if len(choices) > 12 else ''}"


class Interrupted(Exception):
    """A signal ended the run after its state was saved: exit code 128 + `signum`."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def exit_code(error: BaseException) -> int | None:
    """What a command that ends with an error exits with; None: a bug, whose traceback is shown."""
    if isinstance(error, Interrupted):
        return 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        return 141  # the reader (`| head`) has gone
    if isinstance(error, RunFailed | MemoryError) or getattr(error, "errno", None) in _FULL:
        return 3
    # A bucket that cannot be read comes in the words of the library that reads it.
    ours = isinstance(error, UserError | OSError)
    return 2 if ours or type(error).__module__.startswith("tensorflow") else None


def from_code(code: int, text: str) -> Exception:
    """An error that exits with `code`: another process's, told here."""
    if code > 128:
        return Interrupted(code - 128, text)
    return (UserError if code == 2 else RunFailed)(text)
