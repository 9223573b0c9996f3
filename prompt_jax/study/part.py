"""What the figures of a study have in common: which records, which means, in which order."""

import abc
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from prompt_jax.errors import UserError, nearest
from prompt_jax.study import canvas, statistics
from prompt_jax.study import records as ledger

Row = dict[str, Any]
# Models stand in the order of their sizes, unless a filter lists them.
_BY_SIZE = ("point.model", "backbone.path")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A finished figure.

    Attributes:
        name: of its files.
        title: above it.
        png: the picture.
        svg: the same as text.
        rows: exactly the numbers drawn, flat.
        cells: of a table, head first: the text of every cell.
    """

    name: str
    title: str
    png: bytes
    svg: str
    rows: list[Row]
    cells: list[list[str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(abc.ABC):
    """One figure of a report: records -> rows -> a drawing of these rows alone.

    Attributes:
        name: of its files: letters, digits, `_` and `-`.
        title: above it; default: what it shows.
        where: column -> the value, or values, that a record must have; values also give the order.
        seed_axes: axes of a point over which is averaged. Any other that varies is refused.
        labels: column -> its name in the figure.
        average: axes of a point over which a seed's numbers are averaged first, e.g. the task: the
            spread is then that of the means.
        relative_to: column -> value: numbers are shown less the mean of the runs that have these
            values and else are of the same group, e.g. {'point.source': 'none'} for gains. Spread
            is that of the runs; the baseline counts as known.
    """

    name: str
    title: str = ""
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed_axes: tuple[str, ...] = ("RANDOM_SEED",)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    relative_to: dict[str, Any] = dataclasses.field(default_factory=dict)
    average: tuple[str, ...] = ()

    def __post_init__(self):
        if not re.fullmatch(r"[\w-]+", self.name):
            raise UserError(f"a figure's name names files: letters, digits, _ and -: {self.name!r}")
        groups = self.groups() if self.measured() else ()
        for column in self.relative_to:
            if column not in groups:
                hint = f"one of {canvas.join(groups)}" if groups else "a column of its groups"
                raise UserError(f"{self.who}relative_to {column!r} should be {hint}")

    @property
    def who(self) -> str:
        """Before every complaint."""
        return f"figure {self.name}: "

    @abc.abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that must be there, filters aside."""

    @abc.abstractmethod
    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        """The numbers of the selected records."""

    @abc.abstractmethod
    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        """A matplotlib figure of the rows."""

    def lined(self) -> tuple[str, ...]:
        """The columns whose values get a colour each."""
        return ()

    def measured(self) -> tuple[str, ...]:
        """The columns of numbers that `relative_to` makes differences of."""
        return ()

    def groups(self) -> tuple[str, ...]:
        """The columns of which one number each is shown."""
        return ()

    def heading(self) -> str:
        """The title where none is given."""
        return self.name

    def cells(self, rows: list[Row]) -> list[list[str]]:
        """The text of a table; a figure has none."""
        return []

    def draw(self, records: Sequence[ledger.Record]) -> Drawn:
        """The figure of some records.

        Args:
            records: of a whole study, in any order and of any status.

        Raises:
            UserError: an unknown column, a filter that leaves nothing, a mean that mixes axes.
        """
        ledger.check_columns(records, [*self.columns(), *self.where], self.who)
        kept = self.differences(self.select(records))
        rows, look = self.rows(kept), self._look(records, kept)
        with canvas.style(self.name):
            png, svg = canvas.save(self.paint(rows, look))
        return Drawn(self.name, self.title or self.heading(), png, svg, rows, self.cells(rows))

    def select(self, records: Sequence[ledger.Record]) -> list[ledger.Record]:
        """The records that `where` leaves, in an order that does not depend on the given one.

        Raises:
            UserError: it leaves nothing; names the figure and the filter.
        """
        kept = list(records)
        for column, wanted in self.where.items():
            allowed = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
            before, kept = kept, [r for r in kept if ledger.value(r, column) in allowed]
            if not kept:
                there = [ledger.as_text(ledger.value(record, column)) for record in before]
                hint = nearest(canvas.join(allowed), there)
                raise UserError(f"{self.who}where {column} = {wanted!r} leaves no record; {hint}")
        if not kept:
            raise UserError(f"{self.who}there are no records")
        if self.average:
            numbers = [*self.measured(), *filter(None, [getattr(self, "choose", "")])]
            kept = statistics.average_over(kept, self.average, numbers)
        return sorted(kept, key=identity)

    def differences(self, records: list[ledger.Record]) -> list[ledger.Record]:
        """Records with `measured` less its mean over the runs of `relative_to`, which go.

        Of a group that lacks them, as that of a study that has not ended, nothing is known.

        Raises:
            UserError: no run has these values, or all have; those of a group differ in more than
                their seeds.
        """
        if not self.relative_to:
            return records
        shared = [column for column in self.groups() if column not in self.relative_to]
        found = []
        for members in statistics.group(records, shared).values():
            base = [r for r in members if self._is_baseline(r)]
            self.check_mean(base, [*shared, *self.relative_to])
            less = {c: statistics.summarise_records(base, c, False).mean for c in self.measured()}
            for record in (r for r in members if not self._is_baseline(r)):
                numbers = {column: statistics.number(record, column) for column in less}
                # A whole column as a key of its own stands before the groups that it leads through.
                found.append({**record, **{c: _minus(x, less[c]) for c, x in numbers.items()}})
        if len(found) in (0, len(records)):
            every = "every run has" if not found else "no run has"
            raise UserError(f"{self.who}relative_to: {every} {self.relative_to}")
        return sorted(found, key=identity)

    def _is_baseline(self, record: ledger.Record) -> bool:
        return all(ledger.value(record, c) == wanted for c, wanted in self.relative_to.items())

    def label(self, column: str) -> str:
        """A column's name in the figure."""
        name = canvas.label(column)
        if self.relative_to and column in self.measured():
            name += f" − {canvas.join(list(self.relative_to.values()))}"
        return self.labels.get(column) or name

    def in_order(
        self, rows: list[Row], by: Sequence[str], records: Sequence[ledger.Record]
    ) -> list[Row]:
        """Rows by columns: as `where` lists their values, models by size, numbers, then words."""
        ranks = {column: self._rank(column, records) for column in by}
        return sorted(rows, key=lambda row: tuple(ranks[column](row[column]) for column in by))

    def _rank(self, column: str, records: Sequence[ledger.Record]) -> Callable[[Any], Any]:
        listed = self.where.get(column)
        if isinstance(listed, (tuple, list)):
            return lambda value: listed.index(value) if value in listed else len(listed)
        if column not in _BY_SIZE:
            return ledger.order
        sizes: dict[Any, float] = {}
        for record in records:
            size = ledger.value(record, "backbone.parameters")
            if isinstance(size, int | float):
                sizes.setdefault(ledger.value(record, column), size)
        return lambda value: (ledger.order(sizes.get(value)), ledger.order(value))

    def _look(self, records: Sequence[ledger.Record], kept: Sequence[ledger.Record]) -> canvas.Look:
        lined = self.lined()
        names = [canvas.join(key) for key in statistics.group(records, lined)]
        keys = [dict(zip(lined, key, strict=True)) for key in statistics.group(kept, lined)]
        return canvas.Look(names, map(self.line_of, self.in_order(keys, lined, kept)))

    def line_of(self, row: Row) -> str:
        """The name of the line, or bar, or colour, that a row belongs to."""
        return canvas.join([row[column] for column in self.lined()])

    def by_line(self, rows: list[Row], look: canvas.Look) -> dict[str, list[Row]]:
        """The rows of each line that has any."""
        found: dict[str, list[Row]] = {name: [] for name in look.lines}
        for row in rows:
            found[self.line_of(row)].append(row)
        return {name: members for name, members in found.items() if members}

    def check_mean(self, records: Sequence[ledger.Record], by: Sequence[str]) -> None:
        """Refuses a mean over runs that differ in more than `by` and their seeds."""
        accounted = [*by, *map(statistics.axis_column, self.seed_axes)]
        hint = "; filter it with `where`, draw it, or name it in `seed_axes`"
        statistics.check_seeds(records, accounted, self.who, hint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swept(Part):
    """A figure of means of one metric, of the best setting of a sweep where there is one.

    Attributes:
        y: the column that is shown, normally a test metric.
        sweep: axes of a point that are swept: per mean, the best setting is chosen.
        choose: the column it is chosen by, normally a validation metric.
        mode: whether more or less of `choose` is better.
    """

    y: str
    sweep: tuple[str, ...] = ()
    choose: str = ""
    mode: Literal["max", "min"] = "max"

    def __post_init__(self):
        super().__post_init__()
        if self.sweep and not self.choose:
            raise UserError(
                f"{self.who}sweep = {self.sweep} needs choose, the column to choose by, "
                "e.g. 'metrics.validation.accuracy'"
            )

    @property
    def settings(self) -> tuple[str, ...]:
        """The columns of the sweep."""
        return tuple(map(statistics.axis_column, self.sweep))

    def columns(self) -> tuple[str, ...]:
        chosen_by = (self.choose,) if self.choose else ()
        return (*self.by(), self.y, *self.settings, *chosen_by)

    @abc.abstractmethod
    def by(self) -> tuple[str, ...]:
        """The columns of the groups: one mean each."""

    def groups(self) -> tuple[str, ...]:
        return self.by()

    def measured(self) -> tuple[str, ...]:
        return (self.y,)

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        rows = self.summaries(records, self.by(), self.y)
        return self.in_order(rows, self.by(), records)

    def summaries(
        self, records: Sequence[ledger.Record], by: Sequence[str], y: str, means: Sequence[str] = ()
    ) -> list[Row]:
        """A row per group and setting.

        Args:
            records: the selected ones.
            by: columns of the groups.
            y: the column to summarise.
            means: columns whose means stand beside it.

        Returns:
            Rows with `by`, the settings, `metric`, `n`, `mean`, `sd`, `low`, `high`, `failed`; of
            a sweep also `choose_mean` and `chosen`.
        """
        rows = []
        choose = self.choose or y
        for best in statistics.best_of_sweep(records, by, self.settings, choose, y, self.mode):
            for trial in best.trials:
                self.check_mean(trial.records, [*by, *self.settings])
                row = dict(zip(self.settings, trial.setting, strict=True))
                row |= dict(zip(by, best.key, strict=True))
                for column in means:
                    row[column] = statistics.summarise_records(trial.records, column, False).mean
                row |= {"metric": y, **dataclasses.asdict(trial.report)}
                if self.sweep:
                    row |= {"choose_mean": trial.choose.mean, "chosen": trial is best.chosen}
                rows.append(row)
        return rows

    def note(self, rows: list[Row], spread: str = "sd") -> str:
        """The small print: of how many runs the means are, and what is left out."""
        counts = sorted({row["n"] for row in drawn(rows)})
        runs = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{(counts or [0])[0]}"
        text = f"mean of {runs} run{'s' * (runs != '1')}"
        if counts and counts[-1] > 1:
            text = f"mean ± {spread} of {runs} runs"
        if self.sweep:
            swept = ", ".join(map(self.label, self.settings))
            text += f", best {swept} by {self.label(self.choose)}"
        failed = sum(row["failed"] for row in rows)
        return text + (f"; {failed} failed, left out" if failed else "")


def _minus(value: float | None, baseline: float | None) -> float | None:
    return None if value is None or baseline is None else value - baseline


def drawn(rows: list[Row]) -> list[Row]:
    """The rows of chosen settings that have a mean."""
    return [row for row in rows if row.get("chosen", True) and row["mean"] is not None]


def faint(rows: list[Row]) -> list[Row]:
    """The rows of settings that were tried and not chosen."""
    return [row for row in rows if not row.get("chosen", True) and row["mean"] is not None]


def identity(record: ledger.Record) -> tuple:
    """A key that orders runs by their points, whatever files they were read from."""
    point = sorted((record.get("point") or {}).items())
    return (
        tuple((axis, ledger.order(value)) for axis, value in point),
        *(ledger.as_text(record.get(key)) for key in ("id", "run", "seed", "written")),
    )
