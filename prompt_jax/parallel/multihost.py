"""Several processes as one run: who they are, how they begin together, agree and end together.

jax finds TPU pods, SLURM and Kubernetes by itself and connects the devices; here is decided whether
to ask it, and a `lifeline` says by index what it leaves unsaid.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import glob
import hashlib
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from prompt_jax import errors
from prompt_jax.errors import RunFailed, UserError
from prompt_jax.parallel.lifeline import Hub, Lifeline

log = logging.getLogger("prompt_jax")


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Which processes make one run. By default what the environment says: often, one alone.

    Attributes:
        coordinator: HOST:PORT of process 0 (--coordinator, JAX_COORDINATOR_ADDRESS); None: as
            SLURM or a TPU pod says.
        num_processes: how many there are (--num_processes, JAX_NUM_PROCESSES); 1: this one alone,
            wherever it runs.
        process_id: which one this is, from 0 (--process_id, JAX_PROCESS_ID).
        join_timeout: seconds in which all must have come.
        silence: seconds after which a process that says nothing counts as lost; one that dies is
            noticed at once.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    join_timeout: float = 300.0
    silence: float = 100.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among the others.

    Attributes:
        coordinator: HOST:PORT of process 0.
        count: processes.
        index: of this one.
        local_devices: the devices of this machine that are its own; None: all.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Hosts:
    """The processes of a run, seen from one of them; alone, everything is agreed at once."""

    def __init__(self, line: Lifeline | None = None):
        self._line = line

    def agree(self, step: int, signum: int | None) -> int | None:
        """The signal for which all processes stop after `step`; see `Lifeline.agree`."""
        return self._line.agree(step, signum) if self._line else signum

    def on_end(self, words) -> None:
        """What to say when another process's end is this one's: a function without arguments."""
        if self._line:
            self._line.last_words = words


# --- where this process stands ---------------------------------------------------------------


def find_place(distributed: Distributed, environment: Mapping[str, str]) -> Place | None:
    """Where this process stands; None: it is alone.

    Raises:
        UserError: a part of the answer is missing or makes no sense.
    """

    def number(given: int | None, name: str) -> int | None:
        text = environment.get(name, "")
        return int(text) if given is None and text.isdigit() else given

    coordinator = distributed.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    count = number(distributed.num_processes, "JAX_NUM_PROCESSES")
    index = number(distributed.process_id, "JAX_PROCESS_ID")
    if count == 1:
        return None
    if coordinator is None and count is None and index is None:
        return _cluster_place(distributed, environment)
    missing = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
    absent = [flag for flag, value in missing.items() if value is None]
    if absent:
        raise UserError(
            f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing: a process of "
            "several needs --coordinator=HOST:PORT --num_processes=N --process_id=I"
        )
    if count < 1 or not 0 <= index < count:
        raise UserError(f"--process_id={index} is not among 0..{count - 1} (--num_processes)")
    if not coordinator.rpartition(":")[2].isdigit() or not coordinator.rpartition(":")[0]:
        raise UserError(f"--coordinator={coordinator}: write HOST:PORT of process 0")
    return Place(coordinator, count, index)


def _cluster_place(distributed: Distributed, environment: Mapping[str, str]) -> Place | None:
    """The place that SLURM or a TPU pod gives, by jax's own detection."""
    slurm = int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    slices = int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    on_tpu = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    if not (slurm or "," in hosts or slices or on_tpu):
        return None
    from jax._src.clusters import ClusterEnv  # jax offers no public name for it

    try:
        coordinator, count, index, local = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(distributed.join_timeout)
        )
    except Exception as error:  # whatever a metadata server or a broken variable makes of it
        raise UserError(
            f"this looks like one process of several, but where it stands could not be found "
            f"({type(error).__name__}: {error}); give --coordinator=HOST:PORT --num_processes=N "
            "--process_id=I, or --num_processes=1 to run alone"
        ) from error
    if coordinator is None or count in (None, 1):
        return None
    if slurm:
        local = _slurm_devices(environment)
    return Place(coordinator, count, index, tuple(local) if local else None)


def _slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """One GPU a task where a node runs several tasks that all see its GPUs, else all it sees."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_NTASKS_PER_NODE"))
    alone = tasks is None or tasks.split("(")[0].split(",")[0] == "1"
    visible = environment.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    if alone or len(visible) == 1 or "SLURM_LOCALID" not in environment:
        return None
    return [int(environment["SLURM_LOCALID"])]


# --- together --------------------------------------------------------------------------------


@contextlib.contextmanager
def joined(distributed: Distributed, facts: Mapping[str, Any]) -> Iterator[Hosts]:
    """Waits for all processes of a run, connects their devices, and ends them together.

    Before any device is opened. What fails on one process ends all, with its index.

    Args:
        distributed: which processes.
        facts: what must be the same on all: the flat configuration, versions.

    Raises:
        RunFailed: a process did not come, or has died.
        UserError: one is not like process 0.
    """
    place = find_place(distributed, os.environ)
    if place is None:
        yield Hosts()
        return
    line = _connect(place, distributed, facts)
    try:
        yield Hosts(line)
    except BaseException as error:
        if isinstance(error, errors.Interrupted) and line.agreed:
            line.leave()
            raise
        code = errors.exit_code(error)
        text = " ".join((str(error) or type(error).__name__).splitlines()[:1])
        first = line.fail(code or 3, text)  # a bug has no code of its own
        # jax would wait at its exit for processes that will not come.
        atexit.register(_exit_now, first[0] if first else code or 1)
        if first and first[0] != code:
            raise errors.from_code(*first) from error
        raise
    line.leave()


def _connect(place: Place, distributed: Distributed, facts: Mapping[str, Any]) -> Lifeline:
    """The lifeline, then jax's own network."""
    if place.index:
        errors.speaker = f"process {place.index}: "
        log.setLevel(logging.WARNING)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(f"process {place.index}: %(message)s"))
    else:
        Hub(place.address, place.count, distributed.join_timeout, distributed.silence)
    line = Lifeline(
        place.address,
        place.index,
        place.count,
        json.loads(json.dumps(dict(facts))),
        distributed.join_timeout,
        distributed.silence,
    )
    _hold_aborts()
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        # The lifeline's own verdict, which has an index, comes first.
        initialization_timeout=int(distributed.join_timeout) + 60,
        heartbeat_timeout_seconds=int(2 * distributed.silence) + 60,
    )
    # jax takes SIGTERM for a preemption service of its own, which knows no Ctrl-C.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return line


def _hold_aborts() -> None:
    """Gives the lifeline the time to say who died, before jax aborts this process for it.

    Where its coordinator has gone, jax's C++ side calls abort() at once, with a stack trace.
    """

    def hold(signum):
        del signum
        time.sleep(5)

    global _HELD  # C keeps only the address
    _HELD = ctypes.CFUNCTYPE(None, ctypes.c_int)(hold)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _HELD)


_HELD = None


def _exit_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# --- checks of all processes -----------------------------------------------------------------


def same_on_all(facts: Mapping[str, str]) -> None:
    """Refuses processes that opened different things.

    Args:
        facts: name -> text; every process calls with the same names.

    Raises:
        RunFailed: with the name and the odd process's index.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(text.encode()).digest()[:16] for text in facts.values()]
    mine = np.frombuffer(b"".join(digests), np.uint8).reshape(len(facts), 16)
    there = np.asarray(multihost_utils.process_allgather(mine))  # [processes, names, 16]
    odd = np.argwhere((there != there[:1]).any(-1))
    if len(odd):
        names, process = list(facts), int(odd[0][0])
        wrong = ", ".join(names[at] for at in sorted({int(a) for p, a in odd if p == process}))
        raise RunFailed(f"process {process} has another {wrong} than process 0")


def check_shared(folder: str) -> None:
    """Refuses a MODEL_DIR that processes do not share.

    Process 0 writes a token there, and every other must read it.

    Raises:
        UserError: with the indices of those that cannot.
    """
    if jax.process_count() == 1:
        return
    path, token = epath.Path(folder) / ".shared", ""
    if jax.process_index() == 0:
        token = secrets.token_hex(16)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(token)
    mine = np.frombuffer(token.encode().ljust(32, b"\0"), np.uint8)
    token = bytes(np.asarray(multihost_utils.broadcast_one_to_all(mine))).decode()
    sees = np.asarray([_reads(path, token)])
    everyone = np.asarray(multihost_utils.process_allgather(sees)).reshape(-1)
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)
    if not everyone.all():
        blind = ", ".join(str(i) for i in np.flatnonzero(~everyone))
        raise UserError(
            f"MODEL_DIR {folder} is not shared: process {blind} cannot read what process 0 wrote "
            "there; name a folder that all of them see (a network file system, gs://)"
        )


def _reads(path: epath.Path, token: str) -> bool:
    """Whether the token is there; a network file system may need a moment to show it."""
    for _ in range(20):
        try:
            if path.read_text() == token:
                return True
        except OSError:
            pass
        time.sleep(0.1)
    return False
