"""What seeds say: means, spread, intervals; the best of a sweep. NumPy over plain records.

Only runs with status `ok` and a finite value count; how many gave none stands beside each number.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from prompt_jax.errors import UserError
from prompt_jax.study import records as ledger

RESAMPLES = 10_000
LEVEL = 0.95
_BLOCK = 1 << 21  # drawn indices at a time: 16 MB, whatever the number of values


# --- numbers ---


def standard_deviation(values: Sequence[float]) -> float | None:
    """`sqrt(sum (x - mean)^2 / (n - 1))`, of the sample; None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean: 95 %, 10,000 resamples.

    Args:
        values: one per run.
        seed: of the resamples.

    Returns:
        (low, high), or None for fewer than two values.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    if len(values) < 2:
        return None
    x = np.asarray(values, np.float64)
    return _percentiles(np.concatenate([x[drawn].mean(1) for drawn in _draws(len(x), seed)]))


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's `r = cov(x, y) / (sd(x) sd(y))`; None where one of them does not vary."""
    if len(x) < 2:
        return None
    (r,) = _pearson(np.asarray([x], np.float64), np.asarray([y], np.float64))
    return None if np.isnan(r) else float(r)


def correlation_interval(
    x: Sequence[float], y: Sequence[float], seed: int = 0
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of Pearson's r: pairs are drawn together.

    Args:
        x: one value per pair.
        y: the other.
        seed: of the resamples.

    Returns:
        (low, high) over the resamples in which both vary; None for fewer than three pairs, or
        where no resample has a correlation.
    """
    if len(x) < 3:
        return None
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    r = np.concatenate([_pearson(a[drawn], b[drawn]) for drawn in _draws(len(a), seed)])
    r = r[~np.isnan(r)]
    return _percentiles(r) if r.size else None


def _pearson(x: Float[np.ndarray, "R n"], y: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R"]:
    """Row by row; NaN where a row of either does not vary."""
    still = (np.ptp(x, axis=1) == 0) | (np.ptp(y, axis=1) == 0)
    x, y = (each - each.mean(1, keepdims=True) for each in (x, y))
    scale = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    r = (x * y).sum(1) / np.where(scale == 0, 1, scale)
    return np.where(still | (scale == 0), np.nan, np.clip(r, -1, 1))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


@functools.lru_cache(maxsize=2)  # 80 MB each at 1,000 runs
def _draws(n: int, seed: int) -> tuple[Int[np.ndarray, "R n"], ...]:
    """Indices with replacement, 10,000 rows of n in all: the same for every group of n runs."""
    rng, rows = np.random.default_rng(seed), max(1, _BLOCK // n)
    starts = range(0, RESAMPLES, rows)
    counts = [min(rows, RESAMPLES - start) for start in starts]
    return tuple(rng.integers(0, n, (count, n)) for count in counts)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the runs of one group gave.

    Attributes:
        n: how many gave a value.
        mean: of them; None if none did.
        sd: sample standard deviation; None for fewer than two.
        low: of the 95 % bootstrap interval of the mean; None for fewer than two.
        high: likewise.
        failed: how many gave none.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    failed: int = 0


def summarise(values: Sequence[float], failed: int = 0, interval: bool = True) -> Summary:
    """Mean, spread and interval of values.

    Args:
        values: finite, one per run.
        failed: how many runs gave none.
        interval: bootstrap as well.
    """
    mean = float(np.mean(values)) if len(values) else None
    low, high = (bootstrap_interval(values) if interval else None) or (None, None)
    return Summary(len(values), mean, standard_deviation(values), low, high, failed)


# --- records ---


def number(record: Mapping[str, Any], column: str) -> float | None:
    """A run's finite number, if it ended well and has one."""
    value = ledger.value(record, column)
    if record["status"] != "ok" or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def summarise_records(
    records: Sequence[ledger.Record], column: str, interval: bool = True
) -> Summary:
    """`summarise` of one column of runs."""
    values = [x for x in (number(record, column) for record in records) if x is not None]
    return summarise(values, len(records) - len(values), interval)


def axis_column(axis: str) -> str:
    """`rate` -> `point.rate`; a whole column stays."""
    return axis if axis.startswith("point.") else f"point.{axis}"


def group(
    records: Sequence[ledger.Record], columns: Sequence[str]
) -> dict[tuple, list[ledger.Record]]:
    """Records by the values of columns, in the order of the values."""
    found: dict[tuple, list[ledger.Record]] = {}
    for record in records:
        values = (ledger.value(record, column) for column in columns)
        key = tuple(ledger.as_text(v) if isinstance(v, list | dict) else v for v in values)
        found.setdefault(key, []).append(record)
    return dict(sorted(found.items(), key=lambda item: tuple(map(ledger.order, item[0]))))


def average_over(
    records: Sequence[ledger.Record], axes: Sequence[str], columns: Sequence[str]
) -> list[ledger.Record]:
    """One record per point without some axes, its numbers the means over their values.

    A mean over fewer values would be another quantity: a point that lacks one of them, or has a
    run there that did not end well, has failed.

    Args:
        records: the runs.
        axes: of their points, e.g. the task.
        columns: of the numbers.
    """
    groups: dict[str, list[ledger.Record]] = {}
    for record in records:
        point = {a: v for a, v in (record.get("point") or {}).items() if a not in axes}
        groups.setdefault(ledger.as_text(point), []).append({**record, "point": point})
    whole, found = max(map(len, groups.values())), []
    for members in groups.values():
        good = len(members) == whole and all(each["status"] == "ok" for each in members)
        numbers = {column: [number(each, column) for each in members] for column in columns}
        means = {c: None if None in own else sum(own) / len(own) for c, own in numbers.items()}
        found.append({**members[0], "status": "ok" if good else "failed", **means})
    return found


def check_seeds(
    records: Sequence[ledger.Record], accounted: Sequence[str], who: str = "", hint: str = ""
) -> None:
    """Refuses a mean over runs that differ in more than their seeds.

    Args:
        records: the runs of one mean.
        accounted: columns in which they may differ.
        who: before the complaint.
        hint: what to do about it.

    Raises:
        UserError: another axis of the points has several values.
    """
    for axis in {axis: None for record in records for axis in record.get("point") or {}}:
        values = {ledger.as_text((record.get("point") or {}).get(axis)) for record in records}
        if len(values) > 1 and f"point.{axis}" not in accounted:
            few = ", ".join(sorted(values)[:4])
            raise UserError(f"{who}a mean over point.{axis} = {few} mixes different runs{hint}")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting of a sweep.

    Attributes:
        setting: the values of the sweep's columns.
        choose: the metric that settings are compared by.
        report: the metric that is shown.
        records: its runs, the failed ones too.
    """

    setting: tuple
    choose: Summary
    report: Summary
    records: tuple[ledger.Record, ...]


@dataclasses.dataclass(frozen=True)
class Best:
    """A group's sweep, whole, and what was chosen of it.

    Attributes:
        key: the values of the group's columns.
        trials: every setting, in order; a single one, `()`, without a sweep.
        chosen: the best trial; None where no run of the group gave a value.
    """

    key: tuple
    trials: tuple[Trial, ...]
    chosen: Trial | None


def best_of_sweep(
    records: Sequence[ledger.Record],
    by: Sequence[str],
    sweep: Sequence[str],
    choose: str,
    report: str,
    mode: Literal["max", "min"] = "max",
) -> list[Best]:
    """Per group the setting with the best mean of `choose` over its runs; ties to the first.

    Args:
        records: of any status.
        by: columns of the groups.
        sweep: columns of the settings; none: nothing to choose.
        choose: a column, normally of a validation split.
        report: the column to report, normally of a test split.
        mode: whether more or less is better.

    Returns:
        The groups in order.

    Source: Lester et al. 2021, appendix A: rates chosen on validation, scores over three seeds.
    """
    best, sign = [], 1 if mode == "max" else -1
    for key, members in group(records, by).items():
        trials = tuple(
            Trial(
                setting,
                summarise_records(runs, choose, interval=False),
                summarise_records(runs, report),
                tuple(runs),
            )
            for setting, runs in group(members, sweep).items()
        )
        able = [trial for trial in trials if trial.choose.n]
        # max() keeps the first of equals.
        chosen = max(able, key=lambda trial: sign * trial.choose.mean, default=None)
        best.append(Best(key, trials, chosen))
    return best
