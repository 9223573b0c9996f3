"""The line that holds the processes of a run together, beside the network of the devices.

Process 0 keeps a hub; every process, 0 included, holds one TCP connection to it from before any
device is opened until it leaves. So a process that is missing, dead, silent or unlike the others
has an index within a stated time, and a signal to one stops all after the same step. Messages are
lines of JSON. The hub first listens where jax's coordinator will, then makes room for it.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prompt_jax.errors import RunFailed, UserError, from_code

_LONGEST = 1 << 20  # bytes of a message
_RETRY = 0.2  # seconds between two tries to reach the hub
_GRACE = 1.0  # seconds in which news of another process's end overtake an error of our own
_SHOWN = 5


class _Link:
    """One connection: JSON lines in and out, and when the other side was last heard."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        self._socket, self._lock = connection, threading.Lock()
        self.heard = time.monotonic()

    def send(self, **message: Any) -> None:
        """Sends a message; a side that has gone is noticed by the reader."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def messages(self) -> Iterator[dict]:
        """Messages until the other side closes or writes what is none."""
        left = b""
        try:
            while data := self._socket.recv(1 << 16):
                self.heard = time.monotonic()
                *lines, left = (left + data).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if not isinstance(message, dict):
                        return
                    yield message
                if len(left) > _LONGEST:
                    return
        except (OSError, ValueError):
            return

    def close(self) -> None:
        """Ends the connection."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


def _thread(target: Callable, *args: Any) -> None:
    threading.Thread(target=target, args=args, name="lifeline", daemon=True).start()


class Hub:
    """Process 0's half: who is there, who is not, and what all must know."""

    def __init__(self, address: tuple[str, int], count: int, join_timeout: float, silence: float):
        """Listens, and gathers the processes in the background.

        Args:
            address: host and port that the others connect to.
            count: processes of the run.
            join_timeout: seconds in which all must have come.
            silence: seconds after which a process that says nothing counts as lost.

        Raises:
            UserError: the port is taken.
        """
        host, port = address
        local = host in ("localhost", "127.0.0.1")
        try:
            self._listener = socket.create_server((host if local else "", port), backlog=count + 8)
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port} of {host} ({error.strerror}); "
                "give another one: --coordinator=HOST:PORT"
            ) from error
        self._count, self._silence, self._join_timeout = count, silence, join_timeout
        self._deadline = time.monotonic() + join_timeout
        self._lock = threading.Lock()
        self._links: dict[int, _Link] = {}
        self._facts: dict[int, dict] = {}
        self._begun: dict[int, int] = {}
        self._left: set[int] = set()
        self._signal, self._ended = 0, False
        _thread(self._gather)

    def _gather(self) -> None:
        """Accepts connections until all processes have come, or time is over."""
        self._listener.settimeout(_RETRY)
        while len(self._links) < self._count and not self._ended:
            if time.monotonic() > self._deadline:
                break
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            _thread(self._serve, _Link(connection))
        self._listener.close()  # jax's coordinator will listen here
        missing = sorted(set(range(self._count)) - set(self._links))
        if self._ended:
            return
        if missing:
            self._end(
                3,
                f"{_processes(missing)} of {self._count} did not come within "
                f"{self._join_timeout:.0f} s",
            )
        elif odd := self._unlike():
            self._end(2, odd)
        else:
            self._tell(go=True)
            _thread(self._watch)

    def _serve(self, link: _Link) -> None:
        """Reads one connection to its end; the first message says whose it is."""
        index = None
        for message in link.messages():
            if index is None:
                index = self._admit(link, message)
                if index is None:
                    break
            elif "stop" in message:
                self._freeze(message["stop"])
            elif "begun" in message:
                self._report(index, message["begun"])
            elif "failed" in message:
                code, text = message["failed"]
                self._end(code, f"process {index}: {text}")
            elif "bye" in message:
                self._left.add(index)
        if index is None:
            link.close()
        elif index not in self._left:
            self._end(3, f"process {index} ended without a word (killed?)")

    def _admit(self, link: _Link, message: dict) -> int | None:
        """The index of a new process; None for what is no process of this run."""
        if not isinstance(message.get("hello"), int):
            return None
        index, count = message["hello"], message.get("count")
        with self._lock:
            if count != self._count:
                odd = f"process {index} says that there are {count} processes, process 0 says "
                odd += f"{self._count}"
            elif index in self._links or not 0 <= index < self._count:
                odd = f"two processes claim to be process {index}"
            else:
                self._facts[index], self._links[index] = message.get("facts", {}), link
                return index
        link.send(end=[2, odd])
        self._end(2, odd)
        return None

    def _unlike(self) -> str:
        """What the first process that is unlike process 0 has otherwise."""
        ours = self._facts[0]
        for index, theirs in sorted(self._facts.items()):
            odd = [
                f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} on process 0"
                for key in sorted({*ours, *theirs})
                if theirs.get(key) != ours.get(key)
            ]
            if odd:
                more = f"; and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
                return f"process {index} runs something else: {'; '.join(odd[:_SHOWN])}{more}"
        return ""

    def _watch(self) -> None:
        """Beats, and misses the beats of others."""
        while not self._ended:
            self._tell(beat=True)
            time.sleep(min(self._silence / 5, 10.0))
            for index, link in self._links.items():
                silent = time.monotonic() - link.heard
                if silent > self._silence and index not in self._left:
                    self._end(3, f"process {index} has been silent for {silent:.0f} s")

    def _freeze(self, signum: int) -> None:
        with self._lock:
            first, self._signal = not self._signal, self._signal or signum
        if first:
            self._tell(freeze=True)

    def _report(self, index: int, begun: int) -> None:
        with self._lock:
            self._begun[index] = begun
            ready = len(self._begun) == self._count
        if ready:
            self._tell(verdict=[max(self._begun.values()), self._signal])

    def _tell(self, **message: Any) -> None:
        for index in sorted(self._links, reverse=True):  # process 0 last: it may end for it
            self._links[index].send(**message)

    def _end(self, code: int, text: str) -> None:
        with self._lock:
            first, self._ended = not self._ended, True
        if first:
            self._tell(end=[code, text])


class Lifeline:
    """A process's half: its connection to the hub."""

    def __init__(
        self,
        address: tuple[str, int],
        index: int,
        count: int,
        facts: dict[str, Any],
        join_timeout: float,
        silence: float,
    ):
        """Connects, and waits until all processes are there.

        Args:
            address: host and port of process 0.
            index: of this process.
            count: processes of the run.
            facts: what must be the same on all, JSON-able.
            join_timeout: seconds in which all must have come.
            silence: seconds after which the hub, if it says nothing, counts as lost.

        Raises:
            RunFailed: a process did not come.
            UserError: one has other facts, or a claim that contradicts another's.
        """
        self.index, self.count = index, count
        self.last_words: Callable[[], str] = lambda: ""
        self._silence = silence
        self._condition = threading.Condition()
        self._begun, self._asked, self._frozen = 0, False, False
        self._verdict: tuple[int, int] | None = None
        self._going, self._over = False, False
        self._end: tuple[int, str] | None = None
        deadline = time.monotonic() + join_timeout
        self._link = self._connect(address, deadline, join_timeout)
        self._link.send(hello=index, count=count, facts=facts)
        _thread(self._read)
        with self._condition:
            # The hub answers in time; a moment more, for its answer to arrive.
            self._condition.wait_for(lambda: self._going or self._end, join_timeout + 10)
        if self._end:
            if index == 0:
                time.sleep(_GRACE)  # the hub is here, and the others are still being told
            raise from_code(*self._end)
        if not self._going:
            raise RunFailed(f"process 0 did not answer within {join_timeout:.0f} s")
        _thread(self._watch)

    def _connect(self, address: tuple[str, int], deadline: float, seconds: float) -> _Link:
        while True:
            try:
                return _Link(socket.create_connection(address, timeout=5))
            except OSError as error:
                if time.monotonic() > deadline:
                    host, port = address
                    raise RunFailed(
                        f"process {self.index}: process 0 did not answer at {host}:{port} within "
                        f"{seconds:.0f} s ({error.strerror or error})"
                    ) from error
                time.sleep(_RETRY)

    def _read(self) -> None:
        for message in self._link.messages():
            with self._condition:
                if "freeze" in message:
                    self._frozen = True
                    self._link.send(begun=self._begun)
                elif "verdict" in message:
                    step, signum = message["verdict"]
                    self._verdict = (step, signum)
                elif "go" in message:
                    self._going = True
                elif "end" in message:
                    self._end = (message["end"][0], message["end"][1])
                self._condition.notify_all()
            if self._end:
                break
        with self._condition:
            if not self._end:
                self._end = (3, "process 0 ended without a word (killed?)")
            self._condition.notify_all()
        if self._going and not self._over:
            self._leave_at_once()

    def _watch(self) -> None:
        while not self._over:
            self._link.send(beat=True)
            time.sleep(min(self._silence / 5, 10.0))
            silent = time.monotonic() - self._link.heard
            if silent > 1.5 * self._silence and not self._over:  # the hub's own verdict is first
                self._end = (3, f"process 0 has been silent for {silent:.0f} s")
                self._leave_at_once()

    def _leave_at_once(self) -> None:
        """Ends this process, whose main thread may wait for a dead one for ever."""
        code, text = self._end
        words = f"{text}; process {self.index} ends. {self.last_words()}".rstrip()
        print(" ".join(words.splitlines()), file=sys.stderr, flush=True)
        if self.index == 0:
            time.sleep(_GRACE)  # the others have their own words to say; their hub is here
        os._exit(code)

    def agree(self, step: int, signum: int | None) -> int | None:
        """Whether all processes stop after `step`; called between two steps.

        Nothing is exchanged before one has been signalled. Then each tells, once, which step it
        has begun, and may begin no other until the hub has told the last of them.

        Args:
            step: the step just done.
            signum: the signal that this process has received.

        Returns:
            The signal for which all stop now; None: go on.
        """
        with self._condition:
            if signum and not self._asked:
                self._asked = True
                self._link.send(stop=int(signum))
            self._condition.wait_for(lambda: self._verdict or not self._frozen)
            if self._verdict and self._verdict[0] == step:
                return self._verdict[1]
            self._begun = step + 1
            return None

    @property
    def agreed(self) -> bool:
        """Whether all processes stop because one of them was signalled."""
        return self._verdict is not None

    def leave(self) -> None:
        """Says that this process has done its part."""
        self._over = True
        self._link.send(bye=True)

    def fail(self, code: int, text: str) -> tuple[int, str] | None:
        """Ends the others, unless one of them has failed first and so made this one fail.

        Args:
            code: what this process is about to exit with.
            text: why.

        Returns:
            Code and text of the process that failed first; None: this one.
        """
        self._over, first = True, None
        with self._condition:
            if self._condition.wait_for(lambda: self._end, _GRACE):
                first = self._end
            else:
                self._link.send(failed=[code, f"{text} {self.last_words()}".rstrip()])
                self._condition.wait_for(lambda: self._end, 3 * _GRACE)
        if self.index == 0:
            time.sleep(_GRACE)  # the hub is here, and the others are still being told
        return first


def _processes(indices: list[int]) -> str:
    """ "process 3", "processes 1, 2"."""
    shown = ", ".join(map(str, indices[:20])) + (", ..." if len(indices) > 20 else "")
    return f"process {shown}" if len(indices) == 1 else f"processes {shown}"
