"""The kinds of figures that a study's gin file may list.

Each draws from its rows alone, and its rows are written beside it. Error bars and bands are one
sample standard deviation over seeds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from prompt_jax.errors import UserError, nearest
from prompt_jax.study import canvas, statistics
from prompt_jax.study import records as ledger
from prompt_jax.study.part import Part, Row, Swept, drawn, faint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines(Swept):
    """A line per method over a column, e.g. the size of the backbone.

    Attributes:
        x: the column along the axis.
        lines: columns; one line per value.
        log: the axis is logarithmic.
        spread: how the standard deviation is drawn.
        show_sweep: draws settings that were not chosen as faint points.

    Source: Lester et al. 2021, figure 1.
    """

    x: str
    lines: tuple[str, ...] = ("point.method",)
    log: bool = False
    spread: Literal["band", "bars", "none"] = "band"
    show_sweep: bool = True

    def by(self) -> tuple[str, ...]:
        return (self.x, *self.lines)

    def lined(self) -> tuple[str, ...]:
        return self.lines

    def heading(self) -> str:
        return f"{self.label(self.y)} over {self.label(self.x)}"

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        rows = super().rows(records)
        return rows if self.show_sweep else [row for row in rows if row.get("chosen", True)]

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        figure, axes = canvas.new()
        scale = canvas.Scale([row[self.x] for row in rows], self.log)
        lines = self.by_line(rows, look)
        for name, members in lines.items():
            how, best = look.of(name), drawn(members)
            at = [scale.at(row[self.x]) for row in best]
            mean = [row["mean"] for row in best]
            sd = [row["sd"] or 0.0 for row in best]
            axes.plot(at, mean, label=name, **how)
            if self.spread == "bars" or (self.spread == "band" and len(at) == 1):
                axes.errorbar(at, mean, sd, color=how["color"], linestyle="none")
            elif self.spread == "band":
                low, high = _band(mean, sd)
                axes.fill_between(at, low, high, color=how["color"], alpha=0.18, linewidth=0)
            for row in faint(members):
                axes.plot(scale.at(row[self.x]), row["mean"], alpha=0.3, markersize=3.5, **how)
        scale.put(axes)
        note = self.note(rows) + ("; faint: other settings" if faint(rows) else "")
        title = self.title or self.heading()
        canvas.finish(figure, axes, title, self.label(self.x), self.label(self.y), note)
        return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars(Swept):
    """Groups of bars, e.g. initialisations at each size.

    Attributes:
        x: the column of the groups.
        bars: columns; one bar per value in each group.
    """

    x: str
    bars: tuple[str, ...] = ("point.method",)

    def by(self) -> tuple[str, ...]:
        return (self.x, *self.bars)

    def lined(self) -> tuple[str, ...]:
        return self.bars

    def heading(self) -> str:
        return f"{self.label(self.y)} by {self.label(self.x)}"

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        places = list(dict.fromkeys(row[self.x] for row in rows))
        lines = self.by_line(rows, look)
        figure, axes = canvas.new(max(6.4, 1.6 + 0.22 * len(places) * (len(lines) + 1)))
        width = 0.8 / len(lines)
        for i, (name, members) in enumerate(lines.items()):
            best = drawn(members)
            at = [places.index(row[self.x]) - 0.4 + width * (i + 0.5) for row in best]
            sd = [row["sd"] or 0.0 for row in best]
            colour = look.of(name)["color"]
            means = [row["mean"] for row in best]
            axes.bar(at, means, 0.92 * width, label=name, color=colour)
            bars = [j for j, row in enumerate(best) if row["sd"] is not None]
            axes.errorbar(
                [at[j] for j in bars],
                [means[j] for j in bars],
                [sd[j] for j in bars],
                linestyle="none",
                color="#333333",
                linewidth=1,
                capsize=2.5,
            )
        canvas.Scale([canvas.word(place) for place in places]).put(axes)
        title = self.title or self.heading()
        canvas.finish(figure, axes, title, self.label(self.x), self.label(self.y), self.note(rows))
        return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency(Swept):
    """Score against trained parameters: a point per method and model.

    Attributes:
        x: the column along the logarithmic axis.
        points: columns; one point per value. The first gives the colour, the others the name.
        log: the axis is logarithmic.
    """

    x: str = "trainable_parameters"
    points: tuple[str, ...] = ("point.method", "point.model")
    log: bool = True

    def columns(self) -> tuple[str, ...]:
        return (*super().columns(), self.x)

    def by(self) -> tuple[str, ...]:
        return self.points

    def lined(self) -> tuple[str, ...]:
        return self.points[:1]

    def heading(self) -> str:
        return f"{self.label(self.y)} against {self.label(self.x)}"

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        rows = self.summaries(records, self.points, self.y, means=(self.x,))
        return self.in_order(rows, self.points, records)

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        figure, axes = canvas.new(6.8, 4.2)
        best = [row for row in drawn(rows) if row[self.x] is not None]
        for name, members in self.by_line(best, look).items():
            at, mean = [row[self.x] for row in members], [row["mean"] for row in members]
            sd = [row["sd"] or 0.0 for row in members]
            how = {**look.of(name), "linestyle": "none", "label": name}
            axes.errorbar(at, mean, sd, elinewidth=1, markersize=7, **how)
        # No tick per value: the points are many, their names tell which they are.
        scale = canvas.Scale([row[self.x] for row in best], self.log)
        scale.few = 0
        scale.put(axes)
        axes.margins(0.12, 0.15)
        title = self.title or self.heading()
        canvas.finish(figure, axes, title, self.label(self.x), self.label(self.y), self.note(rows))
        names = [canvas.join([row[c] for c in self.points[1:]]) for row in best]
        if self.points[1:]:
            at = [(row[self.x], row["mean"]) for row in best]
            canvas.name_points(figure, axes, at, names)
        return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity(Swept):
    """How much a swept value matters: every run a dot, a line of means, the chosen one marked.

    Attributes:
        sweep: the one axis along the figure, e.g. the learning rate.
        choose: default: `y`.
        lines: columns; one line per value.
        log: the axis is logarithmic.
    """

    sweep: tuple[str, ...] = ("rate",)
    lines: tuple[str, ...] = ("point.method",)
    log: bool = True

    def __post_init__(self):
        object.__setattr__(self, "choose", self.choose or self.y)  # frozen
        super().__post_init__()
        if len(self.sweep) != 1:
            raise UserError(f"{self.who}sweep = {self.sweep} should be one axis, e.g. ('rate',)")

    def by(self) -> tuple[str, ...]:
        return self.lines

    def lined(self) -> tuple[str, ...]:
        return self.lines

    def heading(self) -> str:
        return f"{self.label(self.y)} over {self.label(self.settings[0])}"

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        (x,) = self.settings
        rows, runs = [], statistics.group(records, (*self.lines, x))
        for row in super().rows(records):
            rows.append({"kind": "mean", **row})
            for record in runs[tuple(row[column] for column in (*self.lines, x))]:
                y = statistics.number(record, self.y)
                head = {column: row[column] for column in (x, *self.lines)}
                run = {"kind": "run" if y is not None else "failed", **head, "metric": self.y}
                rows.append({**run, "mean": y, "run": record.get("id") or record.get("run")})
        return rows

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        (x,) = self.settings
        figure, axes = canvas.new()
        means = [row for row in rows if row["kind"] == "mean"]
        scale = canvas.Scale(sorted({row[x] for row in rows}, key=ledger.order), self.log)
        lost = []
        for name, members in self.by_line(rows, look).items():
            how = look.of(name)
            line = [row for row in members if row["kind"] == "mean" and row["mean"] is not None]
            line.sort(key=lambda row: ledger.order(row[x]))
            axes.plot([scale.at(r[x]) for r in line], [r["mean"] for r in line], label=name, **how)
            dots = [row for row in members if row["kind"] == "run"]
            axes.plot(
                [scale.at(row[x]) for row in dots],
                [row["mean"] for row in dots],
                **{**how, "linestyle": "none", "alpha": 0.35, "markersize": 4, "zorder": 1.5},
            )
            lost += [scale.at(row[x]) for row in members if row["kind"] == "failed"]
            best = [row for row in line if row["chosen"]]
            ring = {"markersize": 13, "marker": "o", "fillstyle": "none", "linestyle": "none"}
            at = [scale.at(row[x]) for row in best]
            axes.plot(at, [row["mean"] for row in best], color=how["color"], **ring)
        if lost:  # at the foot of the figure: they have no height
            foot = axes.get_xaxis_transform()
            axes.plot(
                lost, [0.02] * len(lost), "x", color=canvas.GREY, transform=foot, label="failed"
            )
        scale.put(axes)
        failed = sum(row["failed"] for row in means)
        note = f"dots: runs; line: their mean; ring: chosen by {self.label(self.choose)}"
        note += f"; {failed} failed" if failed else ""
        title = self.title or self.heading()
        canvas.finish(figure, axes, title, self.label(x), self.label(self.y), note)
        return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeatMap(Swept):
    """Means over two axes, e.g. source by target task.

    Attributes:
        down: the column of the rows.
        across: the column of the columns.
    """

    down: str
    across: str

    def by(self) -> tuple[str, ...]:
        return (self.down, self.across)

    def lined(self) -> tuple[str, ...]:
        return (self.across,)

    def heading(self) -> str:
        return f"{self.label(self.y)}: {self.label(self.down)} by {self.label(self.across)}"

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        import numpy as np

        down = list(dict.fromkeys(row[self.down] for row in rows))
        across = sorted(
            {row[self.across] for row in rows}, key=lambda v: look.lines.index(canvas.word(v))
        )
        matrix = np.full((len(down), len(across)), np.nan)
        for row in drawn(rows):
            matrix[down.index(row[self.down]), across.index(row[self.across])] = row["mean"]
        figure, axes = canvas.new(2.8 + 0.62 * len(across), 1.7 + 0.42 * len(down))
        image = axes.imshow(matrix, cmap="cividis", aspect="auto")
        figure.colorbar(image, ax=axes, label=self.label(self.y))
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(len(across)), map(canvas.word, across), rotation=35, ha="right")
        axes.set_yticks(range(len(down)), map(canvas.word, down))
        for (i, j), mean in np.ndenumerate(matrix):
            empty = bool(np.isnan(mean))
            colour = canvas.GREY if empty else "white" if image.norm(mean) < 0.55 else "black"
            text = "–" if empty else f"{mean:.2f}"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
        title = self.title or self.heading()
        note = self.note(rows).replace(" ± sd", "")
        canvas.finish(figure, axes, title, self.label(self.across), self.label(self.down), note)
        return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves(Part):
    """Learning curves: mean and standard deviation over runs at each step.

    Attributes:
        y: what of a curve's rows: `loss`, `token_accuracy`, `eval/accuracy`, ...
        x: what they go along.
        lines: columns; one line per value.
    """

    y: str = "loss"
    x: str = "step"
    lines: tuple[str, ...] = ("point.method",)

    def columns(self) -> tuple[str, ...]:
        return (*self.lines, "curve")

    def lined(self) -> tuple[str, ...]:
        return self.lines

    def heading(self) -> str:
        return f"{self.label(self.y)} by {self.label(self.x)}"

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        rows = []
        for key, members in statistics.group(records, self.lines).items():
            self.check_mean(members, self.lines)
            values: dict[Any, list[float]] = {}
            good = [record for record in members if record["status"] == "ok"]
            for entry in (entry for record in good for entry in record.get("curve") or []):
                if isinstance(entry.get(self.y), int | float):
                    values.setdefault(entry[self.x], []).append(entry[self.y])
            head = dict(zip(self.lines, key, strict=True))
            for step, found in sorted(values.items()):
                of = statistics.summarise(found, len(members) - len(good), interval=False)
                counted = {"n": of.n, "mean": of.mean, "sd": of.sd, "failed": of.failed}
                rows.append({**head, self.x: step, "metric": self.y, **counted})
        if not rows:
            there = {name for r in records for entry in r.get("curve") or [] for name in entry}
            why = "none of a run that ended well" if self.y in there else nearest(self.y, there)
            raise UserError(f"{self.who}no curve has {self.y!r}; {why}")
        return self.in_order(rows, self.lines, records)

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        figure, axes = canvas.new()
        for name, members in self.by_line(rows, look).items():
            colour = look.of(name)["color"]
            steps = [row[self.x] for row in members]
            mean = [row["mean"] for row in members]
            axes.plot(steps, mean, color=colour, label=name)
            low, high = _band(mean, [row["sd"] or 0.0 for row in members])
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        counts = sorted({row["n"] for row in rows})
        runs = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        lines = self.by_line(rows, look).values()
        failed = sum(members[0]["failed"] for members in lines)
        note = f"mean ± sd of {runs} runs" + (f"; {failed} failed, left out" if failed else "")
        title = self.title or self.heading()
        canvas.finish(figure, axes, title, self.label(self.x), self.label(self.y), note)
        return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scatter(Part):
    """One column against another, with Pearson's r and its bootstrap interval.

    Attributes:
        x: a column of numbers.
        y: another.
        points: columns; one point per value, the mean of its runs. None: every run is a point.
        lines: columns; one colour per value.
        each: r of every line too, beside its name.
    """

    x: str
    y: str
    points: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    each: bool = False

    def columns(self) -> tuple[str, ...]:
        return (self.x, self.y, *self.points, *self.lines)

    def groups(self) -> tuple[str, ...]:
        return (*self.points, *self.lines)

    def measured(self) -> tuple[str, ...]:
        return (self.y,)

    def lined(self) -> tuple[str, ...]:
        return self.lines

    def heading(self) -> str:
        return f"{self.label(self.y)} against {self.label(self.x)}"

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        by = tuple(dict.fromkeys((*self.points, *self.lines)))
        groups = statistics.group(records, by)
        if not self.points:
            groups = {i: [record] for i, record in enumerate(records)}
        rows = []
        for members in groups.values():
            self.check_mean(members, by)
            # Both numbers are of the same runs.
            x, y = ([statistics.number(r, column) for r in members] for column in (self.x, self.y))
            both = [i for i in range(len(members)) if x[i] is not None and y[i] is not None]
            head = {column: ledger.value(members[0], column) for column in by}
            head = head if self.points else {"run": _name(members[0]), **head}
            means = [
                statistics.summarise([z[i] for i in both], interval=False).mean for z in (x, y)
            ]
            numbers = {self.x: means[0], self.y: means[1], "n": len(both)}
            rows.append({"kind": "point", **head, **numbers, "failed": len(members) - len(both)})
        rows = self.in_order(rows, by, records)
        found = []
        for row in rows if self.each else ():
            head = {column: row[column] for column in self.lines}
            if not any(head.items() <= there.items() for there in found):
                own = [other for other in rows if head.items() <= other.items()]
                found.append({**self._correlation(own), **head})
        return [*rows, *found, self._correlation(rows)]

    def _correlation(self, points: list[Row]) -> Row:
        pairs = [(row[self.x], row[self.y]) for row in points if row["n"]]
        x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        low, high = statistics.correlation_interval(x, y) or (None, None)
        r = {"r": statistics.correlation(x, y), "low": low, "high": high, "n": len(pairs)}
        return {"kind": "correlation", **r}

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        figure, axes = canvas.new(6.0, 4.2)
        points, of = [row for row in rows if row["kind"] == "point"], rows[-1]
        own = {self.line_of(row): row["r"] for row in rows[len(points) : -1]}
        for name, members in self.by_line([row for row in points if row["n"]], look).items():
            how = look.of(name) if self.lines else {"color": canvas.PALETTE[0], "marker": "o"}
            r = "" if own.get(name) is None else f" (r = {own[name]:.2f})"
            named = {"label": f"{name}{r}"} if self.lines else {}
            x, y = ([row[column] for row in members] for column in (self.x, self.y))
            axes.plot(x, y, linestyle="none", alpha=0.75, **how, **named)
        canvas.Scale([row[self.x] for row in points if row["n"]]).put(axes)
        r = "r undefined" if of["r"] is None else f"r = {of['r']:.2f}"
        if of["low"] is not None:
            r += f" [{of['low']:.2f}, {of['high']:.2f}]"
        failed = sum(row["failed"] for row in points)
        note = "Pearson's r, 95 % bootstrap interval" + (f"; {failed} failed" if failed else "")
        title = f"{self.title or self.heading()}\n{r}, n = {of['n']}"
        canvas.finish(figure, axes, title, self.label(self.x), self.label(self.y), note)
        return figure


def _band(mean: list[float], sd: list[float]) -> tuple[list[float], list[float]]:
    pairs = list(zip(mean, sd, strict=True))
    return [m - s for m, s in pairs], [m + s for m, s in pairs]


def _name(record: ledger.Record) -> Any:
    return record.get("id") or record.get("run")
