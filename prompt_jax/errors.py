"""The two ways a command ends badly, and the helper that names the nearest valid choice."""

import difflib
from collections.abc import Iterable


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
