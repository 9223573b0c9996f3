"""Trains what a study still lacks, fleet by fleet; any number of launchers may do so at once."""

import dataclasses
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from prompt_jax.errors import Interrupted, RunFailed, UserError, from_code
from prompt_jax.study import claims, packing
from prompt_jax.study.finished import FAILED, MISSING, OK, Finished, failed_record
from prompt_jax.study.grid import show
from prompt_jax.study.packing import Fleet
from prompt_jax.study.study import Member, Runs

POLL = 2.0  # seconds between looks at what other launchers do

log = logging.getLogger("prompt_jax")


def train_fleet(members: Sequence[Member], folder: str, how: str) -> list[dict[str, Any]]:
    """Trains runs as one program.

    Args:
        members: the runs.
        folder: of what all of them share: `folder`/checkpoints.
        how: `loop` or `vmap`.

    Returns:
        The record of each, as in its MODEL_DIR/record.json.

    Raises:
        Interrupted: a signal; the state is saved.
    """
    from prompt_jax import train

    return train.run_fleet([member.resolved for member in members], folder, how)


# --- one fleet ---


@dataclasses.dataclass(frozen=True)
class State:
    """What can be done with a fleet now.

    Attributes:
        own: its runs in this study.
        left: those without a record.
        unmet: run -> the needed run that failed.
        waits: needed runs that have not ended.
    """

    own: tuple[str, ...]
    left: tuple[str, ...]
    unmet: dict[str, str]
    waits: tuple[str, ...]


def state_of(fleet: Fleet, plan: Sequence[Fleet], runs: Runs, status: dict[str, str]) -> State:
    """How far a fleet is.

    Args:
        fleet: of `plan`.
        plan: all fleets.
        runs: the study.
        status: as `Finished.status`.
    """
    own = packing.own_members(fleet, plan, runs.members)
    needs = [(name, need) for name in own for need in runs.members[name].needs]
    return State(
        own,
        tuple(name for name in own if name not in status),
        {name: need for name, need in reversed(needs) if status.get(need) == FAILED},
        tuple(dict.fromkeys(need for _, need in needs if need not in status)),
    )


def work(runs: Runs, fleet_id: str, finished: Finished) -> bool:
    """Trains what a fleet lacks and publishes its records.

    Returns:
        Whether it is done; False where another process is at it.

    Raises:
        Interrupted, KeyboardInterrupt: the study is to stop; the fleet is free again.
    """
    claim = claims.take(f"{runs.folder}/claims", fleet_id)
    if claim is None:
        return False
    with claim:
        plan = packing.read_plan(runs.folder)  # another launcher may have planned runs anew
        fleet = next(each for each in plan if each.id == fleet_id)
        state = state_of(fleet, plan, runs, finished.status())
        for name in state.left:
            if name in state.unmet:
                need = runs.members[state.unmet[name]]
                reason = f"needs run {need.id} ({show(need.point.labels)}), which failed"
                _publish(runs, fleet, name, failed_record(runs.members[name], reason), finished)
        names = [name for name in state.own if name not in state.unmet]
        began, folder = time.monotonic(), f"{runs.folder}/fleets/{fleet_id}"
        if any(name in state.left for name in names):
            records = _trained([runs.members[name] for name in names], folder, fleet.map)
            if claim.lost:
                log.warning("fleet %s: another machine has taken it over", fleet_id)
                return False
            seconds = round(time.monotonic() - began, 3)
            for name, record in zip(names, records, strict=True):
                if name in state.left:
                    _publish(runs, fleet, name, record, finished, seconds)
        shutil.rmtree(folder, ignore_errors=True)
        claim.release(for_good=True)
    return True


def _trained(members: list[Member], folder: str, how: str) -> list[dict[str, Any]]:
    """The records of a fleet; of one that breaks, failed ones: the study goes on."""
    try:
        return train_fleet(members, folder, how)
    except Interrupted:
        raise
    except Exception as error:
        told = isinstance(error, UserError | RunFailed)
        log.error("a fleet of %d runs failed: %s", len(members), error, exc_info=not told)
        reason = str(error) if told else f"{type(error).__name__}: {error}"
        return [failed_record(member, reason) for member in members]


def _publish(
    runs: Runs, fleet: Fleet, name: str, record: dict, finished: Finished, seconds: float = 0.0
) -> None:
    """Copies a run's record to the study's ledger, with its place in the study."""
    member = runs.members[name]
    place = {"id": fleet.id, "size": len(fleet.members), "index": fleet.members.index(name)}
    more = {
        "id": name,
        "study": runs.study.name,
        "point": member.point.labels,
        "fleet": {**place, "map": fleet.map, "seconds": seconds},
        "origins": member.resolved.origins,
    }
    finished.add(name, {**record, **more})


# --- all fleets ---


@dataclasses.dataclass(frozen=True)
class Share:
    """Which fleets a launcher takes.

    Attributes:
        part: (i, n): of the fleets by number those that leave i - 1 modulo n.
        workers: launchers of this host, among which memory is divided.
    """

    part: tuple[int, int] = (1, 1)
    workers: int = 1

    def takes(self, number: int) -> bool:
        """Whether a fleet is this launcher's."""
        return number % self.part[1] == self.part[0] - 1


def launch(runs: Runs, share: Share, finished: Finished, retry: bool = False) -> None:
    """Trains every fleet that is free and this launcher's, until nothing is left for it to do.

    Args:
        runs: the study.
        share: of the fleets.
        finished: what has ended.
        retry: what has failed is run again.

    Raises:
        Interrupted, KeyboardInterrupt: the same command goes on.
    """
    again = packing.ensure_plan(runs, finished, lambda: packing.this_machine(share.workers), retry)
    if again:
        log.info("%d failed runs are run again", len(again))
    began, before = time.monotonic(), len(of_study(runs, finished))
    while True:
        plan, moved = packing.read_plan(runs.folder), False
        mine = [fleet for number, fleet in enumerate(plan) if share.takes(number)]
        for fleet in mine:
            state = state_of(fleet, plan, runs, finished.status())
            if state.left and not state.waits and work(runs, fleet.id, finished):
                moved = True
                say(runs, fleet, state.own, finished, before, began)
        if moved:
            continue
        status = finished.status()
        states = {fleet.id: state_of(fleet, plan, runs, status) for fleet in plan}
        left = [fleet for fleet in mine if states[fleet.id].left]
        waiting = [fleet for fleet in left if states[fleet.id].waits]
        if not waiting:
            if left:
                log.info("%d fleets are with other launchers", len(left))
            return
        if not _others_at_it(runs, plan, states, waiting, share):
            log.info("%d fleets need runs of another part; start it, then this again", len(waiting))
            return
        time.sleep(POLL)


def _others_at_it(runs, plan, states, waiting, share: Share) -> bool:
    """Whether what `waiting` needs is being trained, or will be by this launcher."""
    owner = packing.owners(plan)
    numbers = {fleet.id: number for number, fleet in enumerate(plan)}
    queue = [need for fleet in waiting for need in states[fleet.id].waits]
    seen = set()
    while queue:
        fleet = owner[queue.pop()]
        if fleet in seen:
            continue
        seen.add(fleet)
        if share.takes(numbers[fleet]) and not states[fleet].waits:
            return True  # ours, and claimed a moment ago: by now it may be free
        if claims.holder(f"{runs.folder}/claims", fleet) is not None:
            return True
        queue += states[fleet].waits
    return False


def of_study(runs: Runs, finished: Finished) -> dict[str, str]:
    """The status of those of the study's runs that have ended."""
    status = finished.status()
    return {name: status[name] for name in runs.members if name in status}


def say(
    runs: Runs, fleet: Fleet, own: Sequence[str], finished: Finished, before: int, began: float
) -> None:
    """A line on a fleet that is done: what is left of the study, and for how long.

    Args:
        runs: the study.
        fleet: the fleet.
        own: its runs.
        finished: what has ended.
        before: how many runs had ended when the launcher started.
        began: when that was, by the monotonic clock.
    """
    status = of_study(runs, finished)
    left = len(runs.members) - len(status)
    each = (time.monotonic() - began) / max(len(status) - before, 1)
    counts = {kind: sum(status.get(name) == kind for name in own) for kind in (OK, FAILED)}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    log.info(
        "fleet %s, %d runs: %s; %d of %d runs left%s",
        fleet.id,
        len(own),
        told,
        left,
        len(runs.members),
        f", about {_duration(left * each)}" if left else "",
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def finish(runs: Runs, finished: Finished) -> None:
    """Prints what became of all runs.

    Raises:
        RunFailed: some failed.
    """
    records = finished.records()
    status = {
        name: records[name]["status"] if name in records else MISSING for name in runs.members
    }
    counts = {kind: list(status.values()).count(kind) for kind in (OK, FAILED, MISSING)}
    print(f"study {runs.study.name}: {len(status)} runs in {runs.folder}")
    for kind, count in counts.items():
        print(f"  {kind:<8} {count}")
    failed = [name for name in status if status[name] == FAILED]
    for name in failed:
        reason = " ".join((records[name].get("reason") or "").split())
        print(f"  {name} ({show(runs.members[name].point.labels)}): {reason}")
    if failed:
        names = ", ".join(failed[:5]) + (f" and {len(failed) - 5} more" if failed[5:] else "")
        raise RunFailed(
            f"{len(failed)} of {len(status)} runs failed: {names}; the reasons are in "
            f"{runs.folder}/ledger, --retry runs them again"
        )


# --- several processes of this host ---


def visible_devices() -> list[str]:
    """The NVIDIA devices that this process may use; none on a CPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part for part in named.split(",") if part.strip()]
    found = pathlib.Path("/dev").glob("nvidia[0-9]*")
    return sorted((path.name.removeprefix("nvidia") for path in found), key=int)


def shares_of_devices(count: int, devices: Sequence[str]) -> list[dict[str, str]]:
    """The environment that gives each of `count` workers its own devices.

    Raises:
        UserError: fewer devices than workers.
    """
    if not devices:
        return [{} for _ in range(count)]
    if len(devices) < count:
        raise UserError(f"--workers={count}, but there are {len(devices)} devices")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[n::count])} for n in range(count)]


def spawn(command: Sequence[str], count: int) -> None:
    """Runs the same command in `count` processes, and waits for all.

    Args:
        command: arguments behind `prompt-jax`.
        count: of processes.

    Raises:
        UserError, RunFailed: as the first worker that ended so; others have gone on.
        Interrupted: a signal, passed on to the workers.
    """
    environments = shares_of_devices(count, visible_devices())
    start = [sys.executable, "-m", "prompt_jax", *command]
    workers = [subprocess.Popen(start, env={**os.environ, **more}) for more in environments]
    try:
        codes = [worker.wait() for worker in workers]
    except (Interrupted, KeyboardInterrupt):
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait()
        raise
    for number, code in enumerate(codes, 1):
        if code:
            code = 128 - code if code < 0 else code
            raise from_code(code, f"worker {number} of {count} ended with exit code {code}")
