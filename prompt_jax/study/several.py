"""The figure of several metrics of the same runs, side by side."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prompt_jax.errors import UserError
from prompt_jax.study import canvas, statistics
from prompt_jax.study import records as ledger
from prompt_jax.study.figures import Bars
from prompt_jax.study.part import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics(Bars):
    """Groups of bars, a metric each, e.g. a task and the domains that a prompt is moved to.

    Attributes:
        values: metric columns, one group each.
        bars: columns; one bar per value in each group.
        x: not to be set: the groups' names.
        y: not to be set.
    """

    values: tuple[str, ...]
    x: str = "metric"
    y: str = ""

    def __post_init__(self):
        super().__post_init__()
        if not self.values or self.sweep or (self.x, self.y) != ("metric", ""):
            raise UserError(f"{self.who}give values, e.g. ('metrics.test.f1',), and no x, y, sweep")

    def columns(self) -> tuple[str, ...]:
        return (*self.bars, *self.values)

    def by(self) -> tuple[str, ...]:
        return self.bars

    def measured(self) -> tuple[str, ...]:
        return self.values

    def heading(self) -> str:
        return ", ".join(map(self.label, self.values))

    def label(self, column: str) -> str:
        unnamed = column in ("", self.x) and column not in self.labels
        return "" if unnamed else super().label(column)

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        found = []
        for column in self.values:
            rows = []
            for key, members in statistics.group(records, self.bars).items():
                self.check_mean(members, self.bars)
                head = {"metric": column, **dict(zip(self.bars, key, strict=True))}
                summary = statistics.summarise_records(members, column)
                rows.append({**head, **dataclasses.asdict(summary)})
            found += self.in_order(rows, self.bars, records)
        return found

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        return super().paint([{**row, "metric": self.label(row["metric"])} for row in rows], look)
