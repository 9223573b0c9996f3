"""The figure of retrieval: how good are the sources that similarity picks?"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from prompt_jax.errors import UserError
from prompt_jax.study import canvas, statistics
from prompt_jax.study import records as ledger
from prompt_jax.study.part import Part, Row

# What is drawn, in this order.
KINDS = ("retrieved", "random", "best of all", "no transfer")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A run that started from one source.

    Attributes:
        similarity: of source and target.
        choose: what the best of several is chosen by.
        value: what is reported.
    """

    similarity: float
    choose: float
    value: float


def best_of_nearest(candidates: Sequence[Candidate], k: int) -> Candidate:
    """The best, by `choose`, of the k most similar; of equals the more similar.

    The k most similar are among the k + 1 most similar: `choose` never falls with k.

    Source: Vu et al. 2022 (SPoT), section 4.2, best of top-k.
    """
    nearest = sorted(candidates, key=lambda each: -each.similarity)[:k]
    return max(nearest, key=lambda each: each.choose)


def best_of_random(candidates: Sequence[Candidate], k: int) -> tuple[float, float]:
    """What the best of k sources drawn without repeats is expected to be.

    `E = sum_i C(n - i, k - 1) / C(n, k) x_i`, candidates from the best, i = 1, to the worst.

    Returns:
        (expected `choose`, expected `value`).
    """
    # Equals in the order of similarity, as above: both agree where k is all of them.
    order = sorted(candidates, key=lambda each: (-each.choose, -each.similarity))
    n, k = len(order), min(k, len(order))
    share = [math.comb(n - i, k - 1) / math.comb(n, k) for i in range(1, n + 1)]
    pairs = list(zip(share, order, strict=True))
    return sum(p * each.choose for p, each in pairs), sum(p * each.value for p, each in pairs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Part):
    """The best of the k sources most similar to a target, over k: mean over targets.

    Beside it: the best of k random sources, the best of all, and no transfer. One number per
    setting of `seed_axes`; mean and standard deviation are over these.

    Attributes:
        y: the column that is reported, normally a test metric.
        choose: the column that the best source is chosen by, normally a validation metric.
        similarity: the column of the similarity of source and target.
        source: the column of the sources.
        target: the column of the targets.
        none: the source of runs without transfer.

    Source: Vu et al. 2022 (SPoT), section 4.2 and table 3.
    """

    y: str
    choose: str
    similarity: str
    source: str = "point.source"
    target: str = "point.target"
    none: str = "none"

    def columns(self) -> tuple[str, ...]:
        return (self.y, self.choose, self.similarity, self.source, self.target)

    def heading(self) -> str:
        return f"{self.label(self.y)} of the best of k sources"

    def rows(self, records: Sequence[ledger.Record]) -> list[Row]:
        seeds = tuple(map(statistics.axis_column, self.seed_axes))
        by_seed = [
            self._by_target(members) for members in statistics.group(records, seeds).values()
        ]
        most = max(len(found) for targets in by_seed for found, _ in targets.values())
        rows = [
            self._row(kind, k, [self._mean(kind, k, targets) for targets in by_seed])
            for kind in KINDS[:2]
            for k in range(1, most + 1)
        ]
        for kind in KINDS[2:]:
            rows.append(self._row(kind, None, [self._mean(kind, most, t) for t in by_seed]))
        failed = sum(statistics.number(record, self.y) is None for record in records)
        return [{**row, "failed": failed} for row in rows]

    def _by_target(
        self, records: Sequence[ledger.Record]
    ) -> dict[Any, tuple[list[Candidate], tuple[float, float] | None]]:
        """Target -> (candidates, (choose, value) without transfer).

        Raises:
            UserError: two runs of one source, or a target without any.
        """
        found = {}
        for key, members in statistics.group(records, (self.target,)).items():
            candidates, baseline, sources = [], None, []
            for record in members:
                numbers = [statistics.number(record, c) for c in (self.choose, self.y)]
                source = ledger.value(record, self.source)
                if source in sources:
                    axes = ", ".join(self.seed_axes)
                    raise UserError(
                        f"{self.who}{canvas.join(key)} has two runs from {source!r} at equal {axes}"
                    )
                sources.append(source)
                similarity = statistics.number(record, self.similarity)
                if None in numbers:
                    continue
                if source == self.none:
                    baseline = tuple(numbers)
                elif similarity is not None:
                    candidates.append(Candidate(similarity, *numbers))
            if not candidates:
                raise UserError(f"{self.who}{canvas.join(key)}: no run from a source has a metric")
            found[key[0]] = candidates, baseline
        return found

    @staticmethod
    def _mean(kind: str, k: int, targets: dict) -> tuple[float, float] | None:
        """(choose, value), each a mean over targets; None where a target lacks them."""
        pairs = []
        for candidates, baseline in targets.values():
            if kind == "random":
                pairs.append(best_of_random(candidates, k))
            elif kind == "no transfer":
                pairs.append(baseline)
            else:
                best = best_of_nearest(candidates, k if kind == "retrieved" else len(candidates))
                pairs.append((best.choose, best.value))
        if None in pairs:
            return None
        return sum(c for c, _ in pairs) / len(pairs), sum(v for _, v in pairs) / len(pairs)

    def _row(self, kind: str, k: int | None, pairs: list[tuple[float, float] | None]) -> Row:
        there = [pair for pair in pairs if pair is not None]
        of = statistics.summarise([value for _, value in there], interval=False)
        choose = statistics.summarise([each for each, _ in there], interval=False).mean
        numbers = {"n": of.n, "mean": of.mean, "sd": of.sd, "choose_mean": choose}
        return {"kind": kind, "k": k, "metric": self.y, **numbers}

    def paint(self, rows: list[Row], look: canvas.Look) -> Any:
        figure, axes = canvas.new()
        for number, kind in enumerate(KINDS):
            colour, marker = canvas.PALETTE[number], canvas.MARKERS[number]
            line = [row for row in rows if row["kind"] == kind and row["mean"] is not None]
            if line and line[0]["k"] is None:
                axes.axhline(line[0]["mean"], color=colour, linestyle="--", label=kind)
            elif line:
                k, mean = [row["k"] for row in line], [row["mean"] for row in line]
                axes.plot(k, mean, color=colour, marker=marker, label=kind)
                low = [row["mean"] - (row["sd"] or 0.0) for row in line]
                high = [row["mean"] + (row["sd"] or 0.0) for row in line]
                axes.fill_between(k, low, high, color=colour, alpha=0.18, linewidth=0)
        canvas.Scale([row["k"] for row in rows if row["k"] is not None]).put(axes)
        seeds = max(row["n"] for row in rows)
        note = f"mean over targets ± sd over {seeds} seeds" if seeds > 1 else "mean over targets"
        note += f"; best by {self.label(self.choose)}, nearest by {self.label(self.similarity)}"
        failed = rows[0]["failed"]
        note += f"; {failed} failed, left out" if failed else ""
        title = self.title or self.heading()
        canvas.finish(figure, axes, title, "k", self.label(self.y), note)
        return figure
