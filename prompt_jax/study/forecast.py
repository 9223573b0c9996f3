"""What the runs of a study will take: training steps alone, evaluations left out."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from prompt_jax.alike import common, fleet_key

NOMINAL = 4e10  # FLOP/s of a core, where no run of this kind has been measured


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What one run takes.

    Attributes:
        steps: of training.
        examples: in them.
        trainable: numbers that train.
        flops: of its steps, by formula.
        seconds: of its steps.
        measured: whether `seconds` come from runs of this study that ended.
        kept: bytes on disk when it has ended.
        checkpoints: bytes on disk while it trains.
    """

    steps: int
    examples: int
    trainable: int
    flops: float
    seconds: float
    measured: bool
    kept: int
    checkpoints: int


def nominal_rate() -> float:
    """FLOP/s that are assumed where nothing has been measured."""
    return NOMINAL * (os.cpu_count() or 1)


def forecasts(members: dict[str, Any], records: dict[str, dict[str, Any]]) -> dict[str, Forecast]:
    """Id -> what each run takes.

    Args:
        members: `study.Member` by id.
        records: of runs that have ended, by id.
    """
    speed = speeds(members, records)
    sizes: dict[str, tuple] = {}
    found = {}
    for name, member in members.items():
        run = member.run
        parts = common((run.backbone.config, run.method, run.data, run.num_microbatches))
        same = repr((parts, run.method.slots))
        if same not in sizes:
            sizes[same] = _sizes(run)
        numbers, weights, state, flops = sizes[same]
        measured = speed.get(_kind(run))
        each = flops / nominal_rate() if measured is None else measured
        found[name] = Forecast(
            run.train_steps,
            run.train_steps * run.data.batch_size,
            numbers,
            flops * run.train_steps,
            each * run.train_steps,
            measured is not None,
            weights,
            (run.keep_latest + run.keep_best) * state,
        )
    return found


def _kind(run: Any) -> tuple:
    """What a step's time depends on."""
    return fleet_key(run), run.method.slots, run.data.mixture_or_task_name


def speeds(members: dict[str, Any], records: dict[str, dict[str, Any]]) -> dict[tuple, float]:
    """Kind of run -> seconds that a step of one run took, evaluations included."""
    found: dict[tuple, list[float]] = {}
    for name, record in records.items():
        spent = record.get("fleet", {}).get("seconds")
        if name in members and record["status"] == "ok" and record["steps"] and spent:
            each = spent / record["fleet"]["size"] / record["steps"]
            found.setdefault(_kind(members[name].run), []).append(each)
    return {key: sum(each) / len(each) for key, each in found.items()}


def _sizes(run: Any) -> tuple[int, int, int, float]:
    """(numbers that train, bytes kept, bytes of a checkpoint, FLOPs of a step)."""
    import jax
    import numpy as np

    from prompt_jax.plan import choose, cost, lowering

    held, rows = lowering.leaves(run), choose.rows(run, 1)
    config = run.backbone.config
    guess = cost.estimate(
        config,
        held.frozen,
        held.trainable,
        rows,
        cost.Mesh(1, 1, False, config.remat),
        run.num_microbatches,
    )
    numbers = lowering.count(held.trainable)
    moved = any(path.startswith("backbone/") for path in held.trainable)
    # A prompt lies there four times: first, best, last, and with its metadata; a backbone once.
    kept = 4 * (numbers + lowering.count(held.frozen) if moved else 4 * numbers)
    state = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(held.state))
    # A search takes its passes forward alone, each half of a step with a frozen backbone.
    steps = getattr(run.method.trainable.optimizer, "population", 2) / 2
    return numbers, kept, state, guess.flops * steps


# --- words ---


def table(members: dict[str, Any], status: dict[str, str], fleets: dict[str, str]) -> str:
    """A line per run: id, status, fleet, labels."""
    axes = list(dict.fromkeys(a for member in members.values() for a in member.point.labels))
    rows = [("run", "status", "fleet", *axes, "needs")]
    for name, member in members.items():
        labels = [str(member.point.labels.get(axis, "")) for axis in axes]
        needs = " ".join(member.needs)
        rows.append((name, status[name], fleets.get(name, ""), *labels, needs))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def words(found: dict[str, Forecast], left: Iterable[str], largest_fleet: Iterable[str]) -> str:
    """The sums, in a few lines.

    Args:
        found: as `forecasts`.
        left: ids of the runs without a record.
        largest_fleet: ids of the runs that train at once.
    """
    left = [found[name] for name in left]
    lines = []
    for title, part in (("all runs", list(found.values())), ("left", left)):
        steps, examples = sum(f.steps for f in part), sum(f.examples for f in part)
        flops, seconds = sum(f.flops for f in part), sum(f.seconds for f in part)
        lines.append(
            f"{title}: {len(part)} runs, {steps:,} steps, {examples:,} examples, "
            f"{flops:.3g} FLOPs, about {seconds / 60:.3g} min"
        )
    numbers = [f.trainable for f in found.values()]
    lines.append(f"trainable numbers of a run: {min(numbers):,} to {max(numbers):,}")
    nominal = [f for f in left if not f.measured]
    if nominal:
        lines.append(
            f"no run like {len(nominal)} of those left has ended here: their time is FLOPs at a "
            f"nominal {nominal_rate():.2g} FLOP/s; without evaluations and compilation"
        )
    kept = sum(f.kept for f in found.values()) / 2**20
    fleet = sum(found[name].checkpoints for name in largest_fleet) / 2**20
    lines.append(f"disk: {kept:,.3g} MiB kept, {fleet:,.3g} MiB more while a fleet trains")
    return "\n".join(lines)
