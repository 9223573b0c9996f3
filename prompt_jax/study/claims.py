"""Who works on what: claim files in a folder that all launchers share, on one host or on many.

The claim on NAME is its file of the highest number, NAME.0.json, NAME.1.json, ...: a number is
taken by creating its file, which succeeds for one process alone, and never given back while the
name is in use. (One file that is renamed away when its process is dead would not do: who has seen
the dead process may rename away the claim of who was quicker.) A claim is free when its file says
`released`; when its process, on this machine, is gone; or when it has not been touched for LIMIT
seconds.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
from typing import Any

from prompt_jax.errors import UserError

LIMIT = 120.0  # seconds without a sign of life after which another machine's claim is free
BEAT = 20.0  # seconds between signs of life

log = logging.getLogger("prompt_jax")


class Claim(contextlib.AbstractContextManager):
    """A claim that this process holds; leaving the `with` releases it."""

    def __init__(self, folder: pathlib.Path, name: str, number: int):
        self._folder, self._name, self._number = folder, name, number
        self._file = _file(folder, name, number)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another process has taken this one for dead, and its place."""
        return _highest(self._folder, self._name) != self._number

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(OSError):  # taken over: the file is gone, `lost` says so
                os.utime(self._file)

    def release(self, for_good: bool = False) -> None:
        """Lets go.

        Args:
            for_good: nobody will want it again: whoever still takes it finds the work done.
        """
        self._stop.set()
        self._thread.join()
        if self.lost:
            return
        if for_good:
            self._file.unlink(missing_ok=True)
            return
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps({"released": True}))
        part.replace(self._file)

    def __exit__(self, *_) -> None:
        if not self._stop.is_set():
            self.release()


def take(folder: str | os.PathLike, name: str) -> Claim | None:
    """The claim on `name`, if it is free.

    Args:
        folder: of the claims.
        name: what is claimed.

    Returns:
        The claim; None where another process holds it.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error}") from error
    while True:
        last = _highest(folder, name)
        if last >= 0 and not _is_free(_file(folder, name, last)):
            return None
        number = last + 1
        if not _create(_file(folder, name, number)):
            continue  # another was quicker
        if _highest(folder, name) != number:
            # What looked free was a number of long ago: others have gone on from there.
            _file(folder, name, number).unlink(missing_ok=True)
            continue
        for older in range(number):
            _file(folder, name, older).unlink(missing_ok=True)
        return Claim(folder, name, number)


def wait(folder: str | os.PathLike, name: str, poll: float = 0.1) -> Claim:
    """The claim on `name`, once whoever holds it has let go."""
    while (claim := take(folder, name)) is None:
        time.sleep(poll)
    return claim


def holder(folder: str | os.PathLike, name: str) -> dict[str, Any] | None:
    """Who holds a claim: {"machine", "pid", "started", "time"}; None where it is free."""
    folder = pathlib.Path(folder)
    last = _highest(folder, name)
    file = _file(folder, name, last)
    return None if last < 0 or _is_free(file) else _read(file) or {}


# --- files ---


def _file(folder: pathlib.Path, name: str, number: int) -> pathlib.Path:
    return folder / f"{name}.{number}.json"


def _highest(folder: pathlib.Path, name: str) -> int:
    """The highest number of the claims on `name`; -1 where there is none."""
    parts = [entry.split(".") for entry in os.listdir(folder)] if folder.exists() else []
    numbers = [part[1] for part in parts if len(part) == 3 and (part[0], part[2]) == (name, "json")]
    return max((int(number) for number in numbers if number.isdigit()), default=-1)


def _create(file: pathlib.Path) -> bool:
    """Whether this process has created the file."""
    about = {"machine": machine(), "pid": os.getpid(), "started": started(os.getpid())}
    try:
        number = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(number, "w") as opened:
        opened.write(json.dumps({**about, "time": time.time()}))
    return True


def _read(file: pathlib.Path) -> dict[str, Any] | None:
    """What a claim says; None where it is gone, or not yet written."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _is_free(file: pathlib.Path) -> bool:
    about = _read(file) or {}
    if about.get("released"):
        return True
    if about.get("machine") == machine():
        return started(about["pid"]) != about["started"]
    try:
        return _now(file.parent) - file.stat().st_mtime > LIMIT
    except FileNotFoundError:
        return False  # somebody has gone on from it: look again


def _now(folder: pathlib.Path) -> float:
    """The time by the clock that stamps the files of `folder`."""
    file = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
    file.touch()
    try:
        return file.stat().st_mtime
    finally:
        file.unlink(missing_ok=True)


# --- processes ---


def machine() -> str:
    """This host, since it was started, as far as its process numbers mean the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux alone has them
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a process of this machine was started, in its own words; None where it is gone."""
    try:
        # "pid (name) state ...": the name may hold anything.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if pathlib.Path("/proc/self/stat").exists():
            return None
    except OSError:  # it ended while it was read
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
