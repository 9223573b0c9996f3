"""Which runs are trained together, kept in OUT/plan.json: a study that is started again goes on.

Bytes of a fleet of R runs on a device:

    frozen weights / `Parallel.model` + activations + R (state + gradients + batch)      loop
    frozen weights / `Parallel.model` + R (activations + state + gradients + batch)      vmap

State is what trains, the optimizer's numbers and counters, from their shapes; activations are
`plan.cost`'s rough estimate. SHARE of the free memory may be planned for.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from prompt_jax.alike import common, fleet_key
from prompt_jax.errors import UserError
from prompt_jax.study import claims
from prompt_jax.study.finished import FAILED

SHARE = 0.8
PLAN = "plan"


@dataclasses.dataclass(frozen=True)
class Fleets:
    """How runs are trained together.

    Attributes:
        size: most runs of a fleet; 0: as many as memory has room for.
        map: `loop` (run after run, within the step), `vmap` (all at once), or `auto`: `loop` on a
            CPU, `vmap` on an accelerator.
        limit: most runs of a fleet whatever the memory.
    """

    size: int = 0
    map: Literal["auto", "loop", "vmap"] = "auto"
    limit: int = 64

    def __post_init__(self):
        if self.size < 0 or self.limit < 1:
            raise UserError(f"size = {self.size}, limit = {self.limit}: at least 0 and 1")


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Runs that are trained as one program.

    Attributes:
        id: twelve hexadecimal digits.
        key: what its runs have in common (`alike.fleet_key`).
        map: `loop` or `vmap`.
        members: ids of its runs.
    """

    id: str
    key: str
    map: str
    members: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where fleets are trained.

    Attributes:
        platform: "cpu", "gpu", "tpu".
        free: bytes that one device, or this host's share of a worker, has free.
        workers: processes that share the work.
    """

    platform: str
    free: int
    workers: int = 1


def this_machine(workers: int = 1, devices: bool = True) -> Machine:
    """What is here.

    Args:
        workers: processes among which the host's memory is divided.
        devices: whether devices may be opened; else the host stands for them.
    """
    if devices:
        import jax

        device = jax.local_devices()[0]
        stats = device.memory_stats() or {}
        if device.platform != "cpu" and "bytes_limit" in stats:
            free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
            return Machine(device.platform, free, workers)
    return Machine("cpu", host_memory() // workers, workers)


def host_memory() -> int:
    """Bytes of memory that this host has free, what the system would give back included."""
    file = pathlib.Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
    if "MemAvailable:" in sizes:
        return sizes["MemAvailable:"] * 1024
    names = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")  # macOS has the second one alone
    pages = next((os.sysconf(name) for name in names if name in os.sysconf_names), 2**20)
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True)
class Bytes:
    """What a fleet holds on a device.

    Attributes:
        frozen: weights, once.
        state: of one run: what trains, and the optimizer's numbers.
        gradients: of one run.
        batch: of one run.
        activations: of one run in a step.
    """

    frozen: int
    state: int
    gradients: int
    batch: int
    activations: int

    def runs(self, how: str, free: int) -> int:
        """How many runs have room in `free` bytes; at least one."""
        each = self.state + self.gradients + self.batch
        once = self.frozen
        if how == "vmap":
            each += self.activations
        else:
            once += self.activations
        return max(1, int(SHARE * free - once) // max(each, 1))


def bytes_of(run: Any) -> Bytes:
    """The bytes of a run, by shapes and formulas.

    Args:
        run: `train.Run`.
    """
    import jax
    import numpy as np

    from prompt_jax.data import layout
    from prompt_jax.plan import choose, cost, lowering

    def size(tree):
        return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    held, rows = lowering.leaves(run), choose.rows(run, 1)
    config, parallel = run.backbone.config, run.parallel
    mesh = cost.Mesh(1, parallel.model, parallel.shard_frozen_over_data, config.remat)
    guess = cost.estimate(config, held.frozen, held.trainable, rows, mesh, run.num_microbatches)
    arrays = layout.assemble([], [], [], (rows.rows, rows.inputs, rows.targets))
    return Bytes(
        size(held.frozen) // parallel.model,
        size(held.state),
        size(held.trainable),
        sum(array.nbytes for array in arrays.values()),
        int(guess.temporaries),
    )


# --- packing ---


def levels(members: dict[str, Any]) -> dict[str, int]:
    """How many runs, one after the other, stand before each run: 0 for one that needs none."""
    found: dict[str, int] = {}
    for name, member in members.items():  # what a run needs stands before it
        found[name] = max((found[need] + 1 for need in member.needs), default=0)
    return found


def pack(
    members: dict[str, Any],
    wanted: Iterable[str],
    fleets: Fleets,
    machine: Machine,
    first: int = 0,
) -> list[Fleet]:
    """Puts runs into fleets: those with one program, and of one level of needs, together.

    Args:
        members: all runs of the study, `study.Member` by id.
        wanted: ids of the runs to pack.
        fleets: how.
        machine: where.
        first: number of the first new fleet in the plan.
    """
    auto = "loop" if machine.platform == "cpu" else "vmap"
    how = auto if fleets.map == "auto" else fleets.map
    level, groups = levels(members), {}
    for name in wanted:
        groups.setdefault((level[name], fleet_key(members[name].run)), []).append(name)
    found, sizes = [], {}
    for (_, key), names in sorted(groups.items(), key=lambda item: item[0][0]):
        run = max((members[name].run for name in names), key=lambda run: run.method.slots)
        size = fleets.size
        if not size:
            parts = (run.backbone.config, run.method, run.data, run.parallel, run.num_microbatches)
            shapes = repr((common(parts), run.method.slots))
            if shapes not in sizes:
                sizes[shapes] = bytes_of(run).runs(how, machine.free)
            # No worker stays idle for the sake of a larger fleet.
            size = min(sizes[shapes], -(-len(names) // machine.workers))
        count = -(-len(names) // min(size, fleets.limit))
        for n in range(count):  # of nearly equal size
            own = tuple(names[n * len(names) // count : (n + 1) * len(names) // count])
            digest = hashlib.sha256(repr((own, first + len(found))).encode()).hexdigest()
            found.append(Fleet(digest[:12], key, how, own))
    return found


# --- the plan on disk ---


def read_plan(out: str) -> list[Fleet]:
    """The fleets in OUT/plan.json; none where there is no plan.

    Raises:
        UserError: the file is damaged.
    """
    file = pathlib.Path(out) / f"{PLAN}.json"
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text())["fleets"]
        return [Fleet(**{**entry, "members": tuple(entry["members"])}) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); remove it: runs that ended stay") from error


def owners(plan: Sequence[Fleet]) -> dict[str, str]:
    """Run -> the fleet that trains it: the last one that names it."""
    return {name: fleet.id for fleet in plan for name in fleet.members}


def own_members(fleet: Fleet, plan: Sequence[Fleet], members: dict[str, Any]) -> tuple[str, ...]:
    """The runs of the study that `fleet` trains."""
    owner = owners(plan)
    return tuple(n for n in fleet.members if n in members and owner[n] == fleet.id)


def ensure_plan(
    runs: Any,
    finished: Any,
    machine: Callable[[], Machine],
    retry: bool = False,
) -> list[str]:
    """Plans a fleet for every run that has none: the first launcher that comes does.

    Fleets that are there stay as they are, whatever the memory of today; new runs are appended.
    What is left of a fleet that has lost runs, to a smaller grid or to `retry`, is planned anew,
    unless somebody is at it: its checkpoints are those of all its runs.

    Args:
        runs: `study.Runs`.
        finished: `finished.Finished`.
        machine: where fleets are trained; asked only if there is something to plan.
        retry: failed runs get fleets of their own, and their records are set aside.

    Returns:
        The runs that are to be run again.
    """
    out = runs.folder
    if not (retry or unplanned(runs, read_plan(out), finished.status())):
        return []
    with claims.wait(f"{out}/claims", PLAN):
        # Perhaps another launcher has been here.
        plan, status = read_plan(out), finished.status()
        again = [n for n in runs.members if retry and status.get(n) == FAILED]
        missing = unplanned(runs, plan, status, again)
        if missing:
            wanted = [name for name in runs.members if name in missing]
            fleets = runs.study.fleets
            plan += pack(runs.members, wanted, fleets, machine(), len(plan))
            entries = {"study": runs.study.name, "fleets": [dataclasses.asdict(f) for f in plan]}
            _write(pathlib.Path(out) / f"{PLAN}.json", json.dumps(entries, indent=1))
        for name in again:
            finished.set_aside(name)
        return again


def unplanned(
    runs: Any, plan: list[Fleet], done: dict[str, str], again: Sequence[str] = ()
) -> set[str]:
    """Runs without a record that no fleet will train.

    Args:
        runs: `study.Runs`.
        plan: the fleets.
        done: runs that have a record.
        again: runs that leave their fleets.
    """
    owner = owners(plan)
    found = {name for name in runs.members if name not in owner and name not in done}
    for fleet in plan:
        own = [name for name in own_members(fleet, plan, runs.members) if name not in again]
        left = {name for name in own if name not in done}
        torn = left and len(own) < len(fleet.members)
        if torn and claims.holder(f"{runs.folder}/claims", fleet.id) is None:
            found |= left
    return found | set(again)


def _write(file: pathlib.Path, text: str) -> None:
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text)
    part.replace(file)
