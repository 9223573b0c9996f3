"""The figure that is a table: mean ± standard deviation (n), intervals, and what it cost."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from prompt_jax.errors import UserError
from prompt_jax.study import canvas, statistics
from prompt_jax.study import records as ledger
from prompt_jax.study.part import Part, Row

_LONGEST = 40  # rows of the picture; the files have all of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Part):
    """Metrics and cost per group of runs.

    Attributes:
        by: columns of the groups, one row each.
        values: metric columns: mean ± standard deviation (n) and the 95 % interval of the mean.
        cost: columns whose means are shown.
        sweep: axes of a point that are swept: per row, the best setting is chosen and shown.
        choose: the column it is chosen by; default: the first of `values`.
        mode: whether more or less of `choose` is better.
        interval: shows the intervals.
    """

    values: tuple[str, ...]
    by: tuple[str, ...] = ("point.method", "point.model")
    cost: tuple[str, ...] = ("trainable_parameters", "steps", "seconds.train")
    sweep: tuple[str, ...] = ()
    choose: str = ""
    mode: Literal["max", "min"] = "max"
    interval: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.values:
            raise UserError(f"{self.who}values is empty; e.g. ('metrics.test.accuracy',)")
        if self.sweep and not self.choose:
            raise UserError(f"{self.who}sweep = {self.sweep} needs choose, the column to choose by")

    @property
    def settings(self) -> tuple[str, ...]:
        """The columns of the sweep."""
        return tuple(map(statistics.axis_column, self.sweep))

    def columns(self) -> tuple[str, ...]:
        return (*self.by, *self.values, *self.settings, *((self.choose,) if self.choose else ()))

    def groups(self) -> tuple[str, ...]:
        return self.by

    def measured(self) -> tuple[str, ...]:
        return self.values

    def heading(self) -> str:
        return ", ".join(map(self.label, self.values))

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        rows = []
        choose = self.choose or self.values[0]
        for best in statistics.best_of_sweep(
            records, self.by, self.settings, choose, self.values[0], self.mode
        ):
            runs = [record for trial in best.trials for record in trial.records]
            for trial in best.trials:
                self.check_mean(trial.records, [*self.by, *self.settings])
            row = dict(zip(self.by, best.key, strict=True))
            chosen = best.chosen.records if best.chosen else ()
            setting = best.chosen.setting if best.chosen else [None] * len(self.settings)
            row |= dict(zip(self.settings, setting, strict=True))
            for metric in self.values:
                of = dataclasses.asdict(statistics.summarise_records(chosen, metric))
                row |= {f"{metric} {kind}": of[kind] for kind in ("n", "mean", "sd", "low", "high")}
            for column in self.cost:
                row[column] = statistics.summarise_records(chosen, column, interval=False).mean
            row["failed"] = sum(record["status"] != "ok" for record in runs)
            rows.append(row)
        return self.in_order(rows, self.by, records)

    def cells(self, rows: list[Row]) -> list[list[str]]:
        """Head and rows as text; columns that say nothing are left out."""
        cost = [c for c in self.cost if any(row[c] is not None for row in rows)]
        failed = any(row["failed"] for row in rows)
        head = [self.label(column) for column in (*self.by, *self.settings)]
        for metric in self.values:
            head += [self.label(metric), *(["95 % interval"] if self.interval else [])]
        head += [*map(self.label, cost), *(["failed"] if failed else [])]
        body = []
        for row in rows:
            cells = [canvas.word(row[column]) for column in (*self.by, *self.settings)]
            for metric in self.values:
                mean, sd, n, low, high = (
                    row[f"{metric} {kind}"] for kind in ("mean", "sd", "n", "low", "high")
                )
                text = "–" if mean is None else f"{_digits(mean)} ({n})"
                text = text if sd is None else f"{_digits(mean)} ± {_digits(sd)} ({n})"
                between = "–" if low is None else f"{_digits(low)} to {_digits(high)}"
                cells += [text, *([between] if self.interval else [])]
            cells += ["–" if row[c] is None else _amount(row[c]) for c in cost]
            body.append([*cells, *([str(row["failed"])] if failed else [])])
        return [head, *body]

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        from matplotlib.figure import Figure

        head, *body = self.cells(rows)
        more = len(body) - _LONGEST
        body = body[:_LONGEST]
        widths = [0.22 + 0.078 * max(map(len, column)) for column in zip(head, *body, strict=True)]
        wide, line = sum(widths) + 0.3, 0.25
        high = line * (len(body) + 3.2)
        figure = Figure(figsize=(wide, high))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, wide), ylim=(high, 0))
        axes.set_axis_off()
        axes.text(0.15, line, self.title or self.heading(), fontsize=10.5, va="center")
        words = len(self.by)
        for i, cells in enumerate([head, *body]):
            at = 0.15
            for j, (cell, width) in enumerate(zip(cells, widths, strict=True)):
                left = j < words
                x, align = (at, "left") if left else (at + width - 0.12, "right")
                weight = "bold" if i == 0 else "normal"
                y = line * (i + 2)
                axes.text(x, y, cell, ha=align, va="center", fontsize=8.5, weight=weight)
                at += width
        for y, width in ((1.5, 1.2), (2.5, 0.7), (len(body) + 2.5, 1.2)):
            axes.plot([0.1, wide - 0.1], [line * y] * 2, color="#444444", linewidth=width)
        note = "mean ± standard deviation (runs)" + ("; 95 % bootstrap" * self.interval)
        note += f"; {more} more rows in the files" if more > 0 else ""
        y = line * (len(body) + 2.9)
        axes.text(0.15, y, note, fontsize=7, color=canvas.GREY, va="center")
        return figure


def _digits(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"
