"""Keeps the start-up lines of native libraries, which say nothing about a run, off the terminal."""

import contextlib
import os
import re
import sys
import tempfile

# Lines that TensorFlow's C++ writes while it is imported; no environment variable stops them.
_NOISE = re.compile(
    r"WARNING: All log messages before absl::InitializeLog"
    r"|To enable the following instructions|[IW]\d{4} \d\d:\d\d:|E\d{4} \d\d:\d\d:.*[Cc]uda|\s*$"
)


@contextlib.contextmanager
def quiet_start():
    """While inside, file descriptor 2 is collected; what is not known noise is shown at the end.

    For imports: `with quiet_start(): import tensorflow`.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as collected:
        os.dup2(collected.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            collected.seek(0)
            for line in collected.read().decode(errors="replace").splitlines():
                if not _NOISE.match(line):
                    os.write(2, f"{line}\n".encode())
