"""A side of `bench_peft.py` as a process: it reads a question a line and answers each with a line.

Imports nothing but the standard library: both sides start with it, before their libraries.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable


def answer() -> Callable[[dict], None]:
    """Keeps stdout for the answers; what libraries print goes to stderr from now on."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda reply: replies.write(json.dumps(reply) + "\n")


def serve(side: object, reply: Callable[[dict], None], full: Callable[[Exception], bool]) -> None:
    """Answers `{"do": METHOD, ...}` by the side's method until stdin ends.

    Args:
        side: whose methods are asked.
        reply: writes an answer.
        full: whether an exception means that a device's memory is full, which is an answer.
    """
    reply({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            reply(getattr(side, question.pop("do"))(**question))
        except Exception as error:
            if not full(error):
                raise
            reply({"full": str(error).splitlines()[0][:200]})


def rss_mb(field: str = "VmRSS") -> float:
    """Memory that this process holds (`VmRSS`) or has held at most (`VmHWM`), in MB."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = (each for each in status if each.startswith(field + ":"))
    return int(line.split()[1]) / 1024
