"""Figures: their rows against numbers worked out by hand, and what is in the drawings."""

import dataclasses
import random
import statistics as stdlib
import typing

import pytest
from made_up_runs import RATES, SIZES, record, study

from prompt_jax import config
from prompt_jax.conform import conform
from prompt_jax.errors import UserError
from prompt_jax.study import canvas, part
from prompt_jax.study.figures import (
    Bars,
    Curves,
    Efficiency,
    HeatMap,
    Lines,
    Scatter,
    Sensitivity,
)
from prompt_jax.study.several import Metrics
from prompt_jax.study.table import Table

TEST, VALIDATION = "metrics.test.accuracy", "metrics.validation.accuracy"
SWEEP = {"sweep": ("rate",), "choose": VALIDATION}
TUNED = {"point.method": "model_tuning"}
ONE = {"point.model": "micro_s", "point.rate": 0.3}
KINDS = {
    "lines": Lines(name="lines", x="backbone.parameters", y=TEST, log=True, **SWEEP),
    "names": Lines(name="names", x="point.model", y=TEST, spread="bars", where={"point.rate": 0.3}),
    "bars": Bars(name="bars", x="point.model", y=TEST, **SWEEP),
    "efficiency": Efficiency(name="efficiency", y=TEST, **SWEEP),
    "sensitivity": Sensitivity(name="sensitivity", y=VALIDATION, where={"point.model": "micro_s"}),
    "loss": Curves(name="loss", where=ONE),
    "accuracy": Curves(name="accuracy", y="eval/accuracy", where=ONE),
    "heat": HeatMap(name="heat", down="point.method", across="point.model", y=TEST, **SWEEP),
    "scatter": Scatter(name="scatter", x=VALIDATION, y=TEST, lines=("point.method",)),
    "metrics": Metrics(name="several", values=(TEST, "metrics.test.f1"), where=ONE),
    "table": Table(name="table_of", values=(TEST, "metrics.test.f1"), **SWEEP),
}


def runs(*values, status="ok", **point):
    """One run per value: seed 0, 1, ..."""
    made = []
    for seed, value in enumerate(values):
        metrics = {"validation": {"accuracy": value / 2}, "test": {"accuracy": value}}
        over = {"metrics": metrics, "status": status}
        made.append(record({**point, "RANDOM_SEED": seed}, seed, **over))
    return made


def of(rows, **where):
    """The one row with these values; `_` stands for a dot."""
    found = [
        row
        for row in rows
        if all(row.get(key.replace("__", ".")) == value for key, value in where.items())
    ]
    assert len(found) == 1, found
    return found[0]


# --- numbers ---


def by_hand():
    """Two methods and two sizes: known means and deviations."""
    return [
        *runs(0.5, 0.7, model="micro_xs", method="prompt_tuning", rate=0.3),
        *runs(0.2, 0.3, 0.4, model="micro_xs", method="prompt_tuning", rate=1.0),
        *runs(0.8, 0.9, 1.0, model="micro_m", method="prompt_tuning", rate=0.3),
        *runs(0.9, model="micro_m", method="prompt_tuning", rate=1.0),
        *runs(0.6, 0.6, model="micro_xs", method="model_tuning", rate=0.3),
        *runs(0.1, 0.1, model="micro_m", method="model_tuning", rate=0.3, status="failed"),
    ]


def test_lines():
    figure = Lines(name="scale", x="backbone.parameters", y=TEST, **SWEEP)
    rows = figure.draw(by_hand()).rows
    assert len(rows) == 6
    first = of(rows, backbone__parameters=900_000, point__method="prompt_tuning", point__rate=0.3)
    assert (first["n"], first["failed"], first["metric"], first["chosen"]) == (2, 0, TEST, True)
    assert first["mean"] == pytest.approx(0.6) and first["sd"] == pytest.approx(0.02**0.5)
    assert (first["low"], first["high"]) == pytest.approx((0.5, 0.7))
    assert first["choose_mean"] == pytest.approx(0.3)
    other = of(rows, backbone__parameters=900_000, point__method="prompt_tuning", point__rate=1.0)
    assert (other["n"], other["chosen"]) == (3, False) and other["mean"] == pytest.approx(0.3)
    # 0.9 at both rates: the first; a single run has no deviation.
    large = [row for row in rows if row["backbone.parameters"] == SIZES["micro_m"]]
    assert [row["chosen"] for row in large if row["point.method"] == "prompt_tuning"] == [
        True,
        False,
    ]
    assert of(large, point__rate=1.0)["sd"] is None
    lost = of(large, point__method="model_tuning")
    assert (lost["n"], lost["mean"], lost["failed"], lost["chosen"]) == (0, None, 2, False)
    hidden = dataclasses.replace(figure, show_sweep=False).draw(by_hand()).rows
    assert hidden == [row for row in rows if row["chosen"]]


def test_several_metrics():
    figure = Metrics(name="m", values=(TEST, VALIDATION), where={"point.rate": 0.3})
    with pytest.raises(UserError, match="mean over point.model"):
        figure.draw(by_hand())
    figure = dataclasses.replace(figure, bars=("point.method", "point.model"))
    rows = figure.draw(by_hand()).rows
    assert [row["metric"] for row in rows] == [TEST] * 4 + [VALIDATION] * 4
    small = {"point__model": "micro_xs", "point__method": "prompt_tuning"}
    assert of(rows, metric=TEST, **small)["mean"] == pytest.approx(0.6)
    half = of(rows, metric=VALIDATION, **small)
    assert (half["mean"], half["n"]) == (pytest.approx(0.3), 2)
    with pytest.raises(UserError, match="give values"):
        Metrics(name="m", values=(TEST,), y=TEST)


def test_differences_from_a_baseline():
    ours = {"point.model": "micro_xs", "point.rate": 0.3}
    figure = Bars(name="d", x="point.model", y=TEST, where=ours, relative_to=TUNED)
    drawn = figure.draw(by_hand())
    (row,) = drawn.rows  # 0.5 and 0.7 less 0.6 and 0.6: the baseline itself is gone
    assert row["point.method"] == "prompt_tuning" and row["n"] == 2
    assert (row["mean"], row["sd"]) == (pytest.approx(0.0), pytest.approx(0.02**0.5))
    assert figure.label(TEST) == "test accuracy − model_tuning" and figure.label("n") == "n"
    both = Table(name="t", values=(TEST, VALIDATION), where=ours, relative_to=TUNED)
    (row,) = both.draw(by_hand()).rows
    assert row[f"{VALIDATION} mean"] == pytest.approx(0.3 - 0.3)
    # A baseline that has failed, or is not there yet, leaves nothing to show of its group.
    lost = dataclasses.replace(figure, where={"point.rate": 0.3})
    unended = [r for r in by_hand() if r["status"] == "ok"]
    for given in (by_hand(), unended):
        rows = lost.draw(given).rows
        assert [row["mean"] for row in rows] == [pytest.approx(0.0), None]
    points = Scatter(
        name="s", x=VALIDATION, y=TEST, lines=("point.method",), where=ours, relative_to=TUNED
    )
    assert [row[TEST] for row in points.draw(by_hand()).rows[:-1]] == pytest.approx([-0.1, 0.1])


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (
            Bars(name="f", x="point.rate", y=TEST, where=ONE, relative_to={"point.rate": 0.5}),
            "relative_to: no run has {'point.rate': 0.5}",
        ),
        (
            Bars(name="f", x="point.rate", y=TEST, where=ONE, relative_to={"point.rate": 0.3}),
            "relative_to: every run has {'point.rate': 0.3}",
        ),
        (
            Bars(name="f", x="point.model", y=TEST, relative_to=TUNED),
            "a mean over point.rate = 0.03, 0.1, 0.3, 1.0 mixes",
        ),
    ],
)
def test_a_baseline_must_be_there_and_of_one_kind(figure, text):
    with pytest.raises(UserError) as caught:
        figure.draw(study(2))
    assert str(caught.value).startswith("figure f: ") and text in str(caught.value)


def test_a_baseline_of_several_kinds_is_refused_where_the_rest_is_of_one():
    kept = [r for r in study(2) if r["method"] == "model_tuning" or r["point"]["rate"] == 0.3]
    with pytest.raises(UserError, match="a mean over point.rate = 0.03, 0.1, 0.3, 1.0 mixes"):
        Bars(
            name="f",
            x="point.model",
            y=TEST,
            relative_to=TUNED,
            where={"point.method": ("prompt_tuning", "model_tuning")},
        ).draw(kept)


def test_a_scatter_may_say_r_of_each_line():
    records = [
        record(
            {"target": target, "source": i},
            i,
            metrics={"validation": {"accuracy": float(i)}, "test": {"accuracy": value}},
        )
        for target, values in (("up", (0.1, 0.2, 0.3)), ("down", (0.9, 0.7, 0.5)))
        for i, value in enumerate(values)
    ]
    kinds = {"points": ("point.source", "point.target"), "lines": ("point.target",)}
    figure = Scatter(name="s", x=VALIDATION, y=TEST, each=True, **kinds)
    made = figure.draw(records)
    down, up, everything = made.rows[6:]
    assert (down["point.target"], down["r"], down["n"]) == ("down", pytest.approx(-1), 3)
    assert (up["point.target"], up["r"]) == ("up", pytest.approx(1))
    assert "down (r = -1.00)" in made.svg and "point.target" not in everything
    plain = dataclasses.replace(figure, each=False).draw(records)
    assert plain.rows == [*made.rows[:6], everything] and "(r = -1" not in plain.svg


def test_rows_are_ordered_by_size_by_filter_by_number():
    records = study(2)
    random.Random(1).shuffle(records)
    for where, expected in (
        ({}, ["micro_xs", "micro_s", "micro_m"]),
        ({"point.model": ("micro_s", "micro_xs", "micro_m")}, ["micro_s", "micro_xs", "micro_m"]),
    ):
        rows = Bars(name="b", x="point.model", y=TEST, where=where, **SWEEP).draw(records).rows
        assert list(dict.fromkeys(row["point.model"] for row in rows)) == expected
    where = {"point.method": "prompt_tuning"}
    rows = (
        Bars(name="b", x="point.rate", y=TEST, bars=("point.model",), where=where)
        .draw(records)
        .rows
    )
    assert list(dict.fromkeys(row["point.rate"] for row in rows)) == [*RATES]


def test_bars_and_heat_map_have_the_same_means():
    records = study(3)
    bars = KINDS["bars"].draw(records).rows
    heat = KINDS["heat"].draw(records).rows
    assert len(bars) == len(heat) == 36
    for row in heat:
        where = {c: row[c] for c in ("point.model", "point.method", "point.rate")}
        assert of(bars, **where) == row
    runs = [
        r["metrics"]["test"]["accuracy"]
        for r in records
        if r["point"]["model"] == "micro_m"
        and r["point"]["method"] == "model_tuning"
        and r["point"]["rate"] == 0.3
        and r["status"] == "ok"
    ]
    row = of(bars, point__model="micro_m", point__method="model_tuning", point__rate=0.3)
    assert row["chosen"] and row["n"] == len(runs)
    assert row["mean"] == pytest.approx(stdlib.mean(runs))
    assert row["sd"] == pytest.approx(stdlib.stdev(runs))


def test_efficiency():
    rows = Efficiency(name="e", y=TEST, **SWEEP).draw(by_hand()).rows
    best = {(r["point.method"], r["point.model"]): r for r in rows if r["chosen"]}
    assert best["prompt_tuning", "micro_m"]["trainable_parameters"] == 1280
    assert best["model_tuning", "micro_xs"]["trainable_parameters"] == 900_000
    assert best["model_tuning", "micro_xs"]["sd"] == 0.0
    assert ("model_tuning", "micro_m") not in best


def test_sensitivity():
    where = {"point.model": "micro_m"}
    rows = Sensitivity(name="s", y=TEST, where=where).draw(by_hand()).rows
    means = [row for row in rows if row["kind"] == "mean"]
    assert [(r["point.rate"], r["n"], r["chosen"]) for r in means] == [
        (0.3, 0, False),
        (0.3, 3, True),
        (1.0, 1, False),
    ]
    dots = [row["mean"] for row in rows if row["kind"] == "run" and row["point.rate"] == 0.3]
    assert dots == [0.8, 0.9, 1.0]
    failed = [row for row in rows if row["kind"] == "failed"]
    assert len(failed) == 2 and {row["mean"] for row in failed} == {None}
    with pytest.raises(UserError, match="one axis"):
        Sensitivity(name="s", y=TEST, sweep=("rate", "init"))


def test_curves():
    curves = [[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "eval/f1": 0.5}]]
    curves += [[{"step": 1, "loss": 4.0}], [{"step": 1, "loss": 9.0}]]
    records = [
        record({"method": "prompt_tuning", "RANDOM_SEED": i}, i, curve=curve)
        for i, curve in enumerate(curves)
    ]
    records[2]["status"] = "failed"
    rows = Curves(name="c").draw(records).rows
    assert [(r["step"], r["n"], r["mean"], r["failed"]) for r in rows] == [
        (1, 2, 3, 1),
        (2, 1, 1, 1),
    ]
    assert rows[0]["sd"] == pytest.approx(2**0.5) and rows[1]["sd"] is None
    (only,) = Curves(name="c", y="eval/f1").draw(records).rows
    assert (only["step"], only["mean"]) == (2, 0.5)
    with pytest.raises(UserError, match="figure c: no curve has 'eval/f2'; did you mean 'eval/f1'"):
        Curves(name="c", y="eval/f2").draw(records)
    with pytest.raises(UserError, match="no curve has 'loss'; none of a run that ended well"):
        Curves(name="c").draw(records[2:])


def test_scatter():
    points = [(0.1, 0.3), (0.5, 0.4), (0.2, 0.1), (0.9, 0.9)]
    records = []
    for i, (x, y) in enumerate(points):
        for seed, shift in enumerate((-0.05, 0.05)):
            metrics = {"validation": {"accuracy": x + shift}, "test": {"accuracy": y - shift}}
            point = {"task": f"t{i}", "RANDOM_SEED": seed}
            records.append(record(point, 2 * i + seed, metrics=metrics))
    records.append(record({"task": "t0", "RANDOM_SEED": 2}, 9, metrics={"test": {"accuracy": 1.0}}))
    scatter = Scatter(name="s", x=VALIDATION, y=TEST, points=("point.task",))
    *rows, correlation = scatter.draw(records).rows
    found = [(row[VALIDATION], row[TEST]) for row in rows]
    assert [pytest.approx(pair) for pair in points] == found
    assert [(row["n"], row["failed"]) for row in rows] == [(2, 1), (2, 0), (2, 0), (2, 0)]
    x, y = zip(*points, strict=True)
    assert correlation["r"] == pytest.approx(stdlib.correlation(x, y))
    assert correlation["n"] == 4 and correlation["low"] <= correlation["r"] <= correlation["high"]
    *rows, correlation = dataclasses.replace(scatter, points=()).draw(records).rows
    assert len(rows) == 9 and correlation["n"] == 8
    assert (
        f"r = {correlation['r']:.2f} [" in dataclasses.replace(scatter, points=()).draw(records).svg
    )


def test_table():
    drawn = Table(name="t", values=(TEST,), **SWEEP).draw(by_hand())
    head, *cells = drawn.cells
    cost = ["trainable parameters", "steps", "seconds (train)", "failed"]
    assert head == ["method", "model", "rate", "test accuracy", "95 % interval", *cost]
    assert cells[0][:5] == [
        "model_tuning",
        "micro_xs",
        "0.3",
        "0.600 ± 0.000 (2)",
        "0.600 to 0.600",
    ]
    assert cells[1] == ["model_tuning", "micro_m", "none", "–", "–", "–", "–", "–", "2"]
    assert cells[2][3:6] == ["0.600 ± 0.141 (2)", "0.500 to 0.700", "1,280"]
    assert cells[3][3] == "0.900 ± 0.100 (3)"
    first = drawn.rows[2]
    assert first[f"{TEST} mean"] == pytest.approx(0.6) and first[f"{TEST} n"] == 2
    assert (first["steps"], first["seconds.train"], first["failed"]) == (500, 40.9, 0)
    one = Table(name="t", values=(TEST,), interval=False).draw(
        runs(0.5, model="micro_s", method="prompt_tuning")
    )
    assert one.cells[1][2] == "0.500 (1)"


# --- drawings ---


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_again_gives_the_same_bytes(kind):
    """Whatever the order of the records, and whatever was drawn in between."""
    records = study(3)
    first = KINDS[kind].draw(records)
    random.Random(2).shuffle(records)
    KINDS["names"].draw(records)
    assert KINDS[kind].draw(records) == first
    assert first.png[:8] == b"\x89PNG\r\n\x1a\n"
    assert first.svg.rstrip().endswith("</svg>") and "<dc:date>" not in first.svg


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_text_in_the_drawing(kind):
    titled = dataclasses.replace(KINDS[kind], title="$5 & $x <b>", labels={TEST: "score"}).draw(
        study(2)
    )
    assert ">$5 &amp; $x &lt;b&gt;</text>" in titled.svg and titled.title == "$5 & $x <b>"
    if kind not in ("sensitivity", "loss", "accuracy"):
        assert "score" in titled.svg and "test accuracy" not in titled.svg
    for name in ("prompt_tuning", "model_tuning"):
        assert f">{name}</text>" in titled.svg


def test_the_small_print_counts_what_failed():
    records = study(3)
    failed = sum(found["status"] == "failed" for found in records)
    note = f"mean ± sd of 2 to 3 runs, best rate by validation accuracy; {failed} failed, left out"
    assert failed == 7 and note in KINDS["bars"].draw(records).svg
    assert f"{failed} failed" in KINDS["scatter"].draw(records).svg
    here = sum(r["status"] == "failed" and r["point"]["model"] == "micro_s" for r in records)
    assert here and f"; {here} failed" in KINDS["sensitivity"].draw(records).svg


def test_a_method_has_one_colour_in_every_figure():
    records = study(2)
    alone = {"point.method": ("prompt_tuning",), "point.rate": 0.3}
    colour = canvas.PALETTE[2].lower()  # after model_tuning and prompt_design
    for figure in (
        Lines(name="a", x="point.model", y=TEST, where=alone),
        Bars(name="b", x="point.model", y=TEST, where=alone),
        Curves(name="c", where={**alone, "point.model": "micro_s"}),
    ):
        svg = figure.draw(records).svg
        assert colour in svg, figure.name
        assert not any(other.lower() in svg for other in canvas.PALETTE[:2]), figure.name


def test_more_names_than_colours():
    records = [
        r for i in range(12) for r in runs(0.1 * i, 0.5, method="prompt_tuning", task=f"t{i}")
    ]
    where = {"point.task": ("t9", "t3")}
    figure = Lines(name="a", x="backbone.parameters", lines=("point.task",), y=TEST, where=where)
    svg = figure.draw(records).svg
    assert all(colour.lower() in svg for colour in canvas.PALETTE[:2])
    look = canvas.Look(*2 * [[str(i) for i in range(64)]])
    assert len({tuple(look.of(str(i)).values()) for i in range(64)}) == 64
    assert svg.index("t9") < svg.index("t3")


def test_legend_stands_beside_the_axes():
    rows = KINDS["lines"].rows(study(2))
    with canvas.style("x"):
        figure = KINDS["lines"].paint(
            rows, canvas.Look(*2 * [["model_tuning", "prompt_design", "prompt_tuning"]])
        )
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert legend.get_window_extent().x0 >= figure.axes[0].bbox.x1


def test_names_of_points_do_not_cover_each_other():
    """Three points on top of each other: their names still stand apart."""
    with canvas.style("x"):
        figure, axes = canvas.new()
        points = [(1.0, 0.5), (1.0, 0.505), (1.01, 0.5), (2.0, 0.9)]
        axes.plot(*zip(*points, strict=True), "o")
        canvas.name_points(figure, axes, points, ["micro_xs", "micro_s", "micro_m", "micro_l"])
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize(
    ("values", "kind", "ticks"),
    [
        ([900_000, 4_408_320, 14_700_000], "log", ["900k", "4.41M", "14.7M"]),
        ([1, 2, 3, 100], "linear", None),
        ([1, 5, 20, 100, 150], "log", ["1", "5", "20", "100", "150"]),
        ([0, 1280, 900_000], "symlog", ["0", "1k", "10k", "100k"]),
        ([0, 0], "linear", ["0"]),
        ([-1, 10], "linear", ["-1", "10"]),
        (["micro_s", None], "linear", ["micro_s", "none"]),
    ],
)
def test_axes(values, kind, ticks):
    with canvas.style("x"):
        figure, axes = canvas.new()
        scale = canvas.Scale(values, log=values != [1, 2, 3, 100])
        axes.plot([scale.at(value) for value in values], range(len(values)))
        scale.put(axes)
        figure.draw_without_rendering()
        assert axes.get_xscale() == kind
        shown = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks is None or shown == ticks


@pytest.mark.parametrize(
    ("value", "text"),
    [(4_408_320, "4.41M"), (1280, "1.28k"), (0.3, "0.3"), (100, "100"), (11e9, "11B")],
)
def test_short_numbers(value, text):
    assert canvas.short(value) == text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", sorted({*KINDS} - {"loss", "accuracy"}))
def test_where_nothing_came_out(kind):
    """A selection of failed runs, or of one run, is drawn too: it says what there is."""
    records = study(2)
    lost = [{**r, "status": "failed"} if r["point"]["model"] == "micro_s" else r for r in records]
    figure = dataclasses.replace(KINDS[kind], where={"point.model": "micro_s", "point.rate": 0.3})
    assert all(row.get("mean") is None for row in figure.draw(lost).rows)
    one = [r for r in records if r["status"] == "ok" and r["point"]["model"] == "micro_s"]
    one = [r for r in one if r["point"]["rate"] == 0.3][:1]
    assert figure.draw(one).rows


# --- complaints ---


def test_an_empty_selection_names_figure_and_filter():
    with pytest.raises(UserError) as caught:
        Lines(name="scale", x="point.model", y=TEST, where={"point.model": "micro_x"}).draw(
            study(1)
        )
    text = "figure scale: where point.model = 'micro_x' leaves no record; did you mean 'micro_"
    assert str(caught.value).startswith(text)
    with pytest.raises(UserError, match=r"where point.rate = \(0.5, 7.0\) leaves no record"):
        where = {"point.model": "micro_s", "point.rate": (0.5, 7.0)}
        Curves(name="c", where=where).draw(study(1))


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Lines(name="f", x="point.modle", y=TEST), "no record has 'point.modle'; did you mean"),
        (Lines(name="f", x="point.model", y="metrics.test.acc"), "'metrics.test.accuracy'"),
        (Curves(name="f", where={"point.mode": 1}), "no record has 'point.mode'"),
        (Lines(name="f", x="point.model", y=TEST), "mean over point.rate = 0.03, 0.1, 0.3, 1.0"),
        (Curves(name="f", where={"point.rate": 0.3}), "mean over point.model = micro_m, micro_s"),
        (Table(name="f", values=(TEST,)), "mixes different runs; filter it with `where`"),
        (Lines(name="f", x="point.model", y=TEST, seed_axes=(), **SWEEP), "point.RANDOM_SEED"),
    ],
)
def test_complaints(figure, text):
    with pytest.raises(UserError) as caught:
        figure.draw(study(2))
    assert str(caught.value).startswith("figure f: ") and text in str(caught.value)


def test_parts_that_cannot_be():
    for make, text in (
        (lambda: Curves(name="a/b"), "names files"),
        (lambda: Lines(name="a", x="x", y="y", sweep=("rate",)), "needs choose"),
        (lambda: Table(name="a", values=("y",), sweep=("rate",)), "needs choose"),
        (lambda: Table(name="a", values=()), "values is empty"),
        (lambda: Table(name="a", values=("y",), relative_to={"x": 1}), "should be one of"),
        (lambda: Curves(name="a", relative_to=TUNED), "should be a column of its groups"),
    ):
        with pytest.raises(UserError, match=text):
            make()


# --- gin ---

GIN = """
Page.parts = (@scale/Lines(), @init/Bars(), @Efficiency(), @Sensitivity(), @Curves(), @HeatMap(),
              @Scatter(), @Table())
scale/Lines.name = 'scale'
scale/Lines.title = 'The power of scale'
scale/Lines.x = 'backbone.parameters'
scale/Lines.y = 'metrics.test.accuracy'
scale/Lines.log = True
scale/Lines.sweep = ('rate',)
scale/Lines.choose = 'metrics.validation.accuracy'
scale/Lines.where = {'point.method': ('prompt_tuning', 'model_tuning')}
init/Bars.name = 'init'
init/Bars.x = 'point.model'
init/Bars.bars = ('point.method',)
init/Bars.y = 'metrics.test.accuracy'
init/Bars.where = {'point.rate': 0.3}
Efficiency.name = 'efficiency'
Efficiency.y = 'metrics.test.accuracy'
Efficiency.where = {'point.rate': 0.3}
Sensitivity.name = 'sensitivity'
Sensitivity.y = 'metrics.validation.accuracy'
Sensitivity.where = {'point.model': 'micro_s'}
Curves.name = 'curves'
Curves.y = 'eval/accuracy'
Curves.where = {'point.rate': 0.3, 'point.model': 'micro_s'}
HeatMap.name = 'heat'
HeatMap.down = 'point.rate'
HeatMap.across = 'point.model'
HeatMap.y = 'metrics.test.accuracy'
HeatMap.where = {'point.method': 'prompt_tuning'}
Scatter.name = 'scatter'
Scatter.x = 'metrics.validation.accuracy'
Scatter.y = 'metrics.test.accuracy'
Table.name = 'scores'
Table.values = ('metrics.test.accuracy',)
Table.where = {'point.rate': 0.3}
"""


@dataclasses.dataclass(frozen=True)
class Page:
    parts: tuple[part.Part, ...]


def test_every_kind_can_be_written_in_gin(tmp_path):
    (tmp_path / "figures.gin").write_text(GIN)
    classes = (Lines, Bars, Efficiency, Sensitivity, Curves, HeatMap, Scatter, Table, Page)
    registry = {cls.__name__: f"{cls.__module__}:{cls.__name__}" for cls in classes}
    found = config.resolve([str(tmp_path / "figures.gin")], registry=registry, root="Page").run
    assert [type(figure) for figure in found.parts] == [*classes[:-1]]
    assert found.parts[0].where == {"point.method": ("prompt_tuning", "model_tuning")}
    for figure in found.parts:
        assert figure.draw(study(2)).rows


@pytest.mark.parametrize("cls", [Lines, Bars, Efficiency, Sensitivity, Curves, HeatMap, Scatter])
def test_fields_are_what_gin_can_give(cls):
    """Every default conforms to its own annotation."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            assert conform(field.default, hints[field.name]) == field.default


def test_a_mean_over_tasks_has_the_spread_of_the_means():
    """0.2 and 0.8 average to 0.5, 0.4 and 0.8 to 0.6; the third seed lacks a task."""
    scores = {(0, "a"): 0.2, (0, "b"): 0.8, (1, "a"): 0.4, (1, "b"): 0.8, (2, "a"): 0.9}
    records = [
        {
            "id": f"{seed}{task}",
            "status": "ok",
            "point": {"model": "m", "task": task, "RANDOM_SEED": seed},
            "metrics": {"test": {"accuracy": score}},
        }
        for (seed, task), score in scores.items()
    ]
    part = Lines(
        name="mean", x="point.model", y="metrics.test.accuracy", lines=(), average=("task",)
    )
    (row,) = part.rows(part.select(records))
    assert (row["n"], row["failed"]) == (2, 1)
    assert row["mean"] == pytest.approx(0.55) and row["sd"] == pytest.approx(0.1 / 2**0.5)
    records[0]["status"] = "failed"
    (row,) = part.rows(part.select(records))
    assert (row["n"], row["failed"], row["mean"]) == (1, 2, pytest.approx(0.6))
