"""The report: its files, its tables, and the page in a real browser."""

import csv
import html
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
from made_up_runs import study

from prompt_jax.errors import UserError
from prompt_jax.study import page
from prompt_jax.study import records as ledger
from prompt_jax.study.figures import (
    Bars,
    Curves,
    Efficiency,
    HeatMap,
    Lines,
    Scatter,
    Sensitivity,
)
from prompt_jax.study.table import Table

TEST, VALIDATION = "metrics.test.accuracy", "metrics.validation.accuracy"
SWEEP = {"sweep": ("rate",), "choose": VALIDATION}
ONE = {"point.task": "micro_sentiment"}
CELL = {**ONE, "point.model": "micro_s", "point.rate": 0.3}
PARTS = [
    Lines(
        name="scale", title="Power of <scale>", x="backbone.parameters", y=TEST, where=ONE,
        log=True, **SWEEP,
    ),
    Bars(name="bars", x="point.model", y=TEST, where=ONE, **SWEEP),
    Efficiency(name="efficiency", y=TEST, where=ONE, **SWEEP),
    Sensitivity(name="sensitivity", y=VALIDATION, where={**ONE, "point.model": "micro_s"}),
    Curves(name="loss", where=CELL),
    Curves(name="eval", y="eval/accuracy", where=CELL),
    HeatMap(
        name="heat", down="point.task", across="point.model", y=TEST,
        where={"point.method": "prompt_tuning"}, **SWEEP,
    ),
    Scatter(name="scatter", x=VALIDATION, y=TEST, where=ONE, lines=("point.method",)),
    Table(name="scores", values=(TEST, "metrics.test.f1"), where=ONE, **SWEEP),
]  # fmt: skip
TASKS = ("micro_sentiment", "micro_topic", "micro_qa")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--enable-logging=stderr",
]


def rows_of(path):
    with path.open() as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    page.write_report("A <made up> study", "Two seeds.", PARTS, study(2), str(out))
    return out


# --- files ---


def test_files(report):
    names = [part.name for part in PARTS]
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")}
    expected |= {"table.csv", "table.md", "report.md", "report.html"}
    assert {path.name for path in report.iterdir()} == expected


def test_numbers_of_a_figure_are_its_rows(report):
    for part in PARTS:
        expected = part.draw(study(2)).rows
        rows = rows_of(report / f"{part.name}.csv")
        assert len(rows) == len(expected)
        for row, numbers in zip(rows, expected, strict=True):
            assert {k: v for k, v in row.items() if v} == {
                k: ledger.as_text(v) for k, v in numbers.items() if ledger.as_text(v)
            }


def test_the_table_has_every_run(report):
    rows, records = rows_of(report / "table.csv"), {r["id"]: r for r in study(2)}
    assert {row["id"] for row in rows} == set(records) and len(rows) == 72
    for row in rows:
        of = records[row["id"]]
        assert row["point.rate"] == str(of["point"]["rate"])
        assert row[TEST] == (str(of["metrics"]["test"]["accuracy"]) if of["metrics"] else "")
        assert (row["status"], row["reason"]) == (of["status"], of["reason"] or "")
        assert row["trainable_parameters"] == str(of["trainable_parameters"])
    assert [row["point.model"] for row in rows] == sorted(row["point.model"] for row in rows)
    lines = (report / "table.md").read_text().splitlines()
    assert len(lines) == 74 and len({line.count("|") for line in lines}) == 1


def test_markdown_has_the_numbers_and_the_failures(report):
    text = (report / "report.md").read_text()
    assert "72 runs (4 failed, 68 ok)" in text and "![Power of <scale>](scale.png)" in text
    cells = PARTS[-1].draw(study(2)).cells
    assert f"| {' | '.join(cells[1])} |" in text
    failed = [r for r in study(2) if r["status"] == "failed"]
    assert all(f"| {r['id']} | failed | no finite loss at step 12 |" in text for r in failed)


def test_a_bar_in_a_cell_is_no_column():
    assert page.markdown(["a"], [["x|y"], [None]]).splitlines()[2:] == ["| x\\|y |", "|  |"]


def test_writing_again_gives_the_same_bytes(report, tmp_path):
    paths = page.write_report(
        "A <made up> study", "Two seeds.", PARTS, study(2)[::-1], str(tmp_path)
    )
    assert sorted(paths) == sorted(str(path) for path in tmp_path.iterdir())
    for path in report.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_part_that_cannot_be_drawn(tmp_path, caplog):
    """The rest is written, the page says why; then it is an error, unless told otherwise."""
    wrong = Lines(name="wrong", x="point.model", y=TEST, where={"point.model": "micro_xl"})
    with pytest.raises(
        UserError, match="figure wrong: where point.model = 'micro_xl' leaves no rec"
    ):
        page.write_report("s", "", [wrong, PARTS[1]], study(1), str(tmp_path))
    assert (tmp_path / "bars.png").exists() and not (tmp_path / "wrong.png").exists()
    assert "Not drawn: figure wrong: where" in (tmp_path / "report.html").read_text()
    paths = page.write_report("s", "", [wrong], study(1), str(tmp_path / "again"), strict=False)
    assert len(paths) == 4 and "leaves no record" in caplog.text


@pytest.mark.parametrize("names", [("table",), ("report",), ("a", "a")])
def test_two_files_of_one_name(tmp_path, names):
    parts = [Curves(name=name) for name in names]
    with pytest.raises(UserError, match="rename it"):
        page.write_report("s", "", parts, study(1), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_thousand_records_are_drawn_in_20_seconds(tmp_path):
    records = study(10, TASKS)
    assert len(records) == 1080
    began = time.monotonic(), time.process_time()
    page.write_report("large", "", PARTS, records, str(tmp_path))
    # On a machine that others use as well, this process's own time counts.
    seconds = min(time.monotonic() - began[0], time.process_time() - began[1])
    print(f"{len(records)} records, {len(PARTS)} figures: {seconds:.1f} s")
    assert seconds <= 20


# --- the page ---


def test_the_page_needs_nothing_else(report):
    text = (report / "report.html").read_text()
    assert "<made up>" not in text and "A &lt;made up&gt; study" in text
    fetched = re.findall(r'(?:src|href|action|poster)\s*=\s*"(?!#|data:image/png)([^"]*)"', text)
    assert fetched == []
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttp|<link|<iframe|<!DOCTYPE svg", text)
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert set(targets) <= set(ids) and len(set(ids)) == len(ids)
    assert len(re.findall(r"<svg", text)) == len(PARTS) - 1


def browse(file, profile, *flags, fragment=""):
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, f"{file.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    # The script's errors are printed with their source.
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def table_in(dom):
    """(header -> aria-sort, rows that are shown) of the page's table of runs."""
    table = re.search(r'<table id="runs">(.*?)</table>', dom, re.DOTALL)[1]
    heads = re.findall(r"<th([^>]*)>(.*?)</th>", table)
    names = [html.unescape(name) for _, name in heads]
    rows = []
    for attributes, cells in re.findall(r"<tr([^>]*)>(.*?)</tr>", table, re.DOTALL)[1:]:
        values = map(html.unescape, re.findall(r"<td[^>]*>(.*?)</td>", cells))
        if "hidden" not in attributes:
            rows.append(dict(zip(names, values, strict=True)))
    sorted_by = [re.search(r'aria-sort="(\w+)"', attributes)[1] for attributes, _ in heads]
    return dict(zip(names, sorted_by, strict=True)), rows


@pytest.fixture
def open_page(report, tmp_path):
    if not BROWSER:
        pytest.skip("no Chromium on PATH")
    return lambda fragment="", file=report / "report.html": browse(
        file, tmp_path / "profile", "--dump-dom", fragment=fragment
    )


def expected_order(column, down=False):
    """Ids by a column; equal ones, and those without a value, as in table.csv."""
    head, rows = page.table_of_runs(study(2))
    records = [dict(zip(head, row, strict=True)) for row in rows]
    there = [r for r in records if r[column] is not None]
    there.sort(key=lambda r: r[column], reverse=down)  # stable both ways
    return [r["id"] for r in [*there, *(r for r in records if r[column] is None)]]


def test_the_page_opens_in_the_order_of_the_table(open_page, report):
    heads, rows = table_in(open_page())
    assert [row["id"] for row in rows] == [row["id"] for row in rows_of(report / "table.csv")]
    assert set(heads.values()) == {"none"}
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(failed) == 4 and {row["reason"] for row in failed} == {"no finite loss at step 12"}


@pytest.mark.parametrize("column", [TEST, "trainable_parameters", "point.method"])
def test_the_address_sorts(open_page, column):
    """1280 before 900000: as numbers; runs without a value stay last."""
    for sign in ("", "-"):
        heads, rows = table_in(open_page(f"#sort={sign}{column}"))
        assert heads[column] == ("descending" if sign else "ascending")
        assert [row["id"] for row in rows] == expected_order(column, bool(sign))


def test_all_digits_count(open_page, tmp_path):
    """Of numbers that look alike, the smaller comes first."""
    records = study(1)[:3]
    for found, accuracy in zip(records, (0.700002, 0.700003, 0.700001), strict=True):
        found["metrics"]["test"]["accuracy"] = accuracy
    page.write_report("s", "", [], records, str(tmp_path / "digits"))
    _, rows = table_in(open_page(f"#sort={TEST}", file=tmp_path / "digits" / "report.html"))
    assert [row["id"] for row in rows] == [records[i]["id"] for i in (2, 0, 1)]
    assert {row[TEST] for row in rows} == {"0.7"}


def test_clicks_and_the_filter(open_page, report, tmp_path):
    clicking = tmp_path / "clicking.html"
    for clicks, down in ((1, False), (2, True)):
        click = f"""document.querySelector('#runs th[data-c="{TEST}"]').click();""" * clicks
        text = (report / "report.html").read_text()
        clicking.write_text(text.replace("</body>", f"<script>{click}</script></body>"))
        _, rows = table_in(open_page(file=clicking))
        assert [row["id"] for row in rows] == expected_order(TEST, down)
    typing = """box.value = 'Micro_XS prompt_t';
        box.dispatchEvent(new Event('input'));"""
    clicking.write_text(text.replace("</body>", f"<script>{typing}</script></body>"))
    dom = open_page(file=clicking)
    _, rows = table_in(dom)
    assert len(rows) == 8 and "8 of 72 runs" in dom
    assert {(r["point.model"], r["point.method"]) for r in rows} == {("micro_xs", "prompt_tuning")}
    _, rows = table_in(open_page("#filter=failed&sort=-id"))
    assert len(rows) == 4 and [r["id"] for r in rows] == sorted(
        (r["id"] for r in rows), reverse=True
    )


def test_a_picture_of_the_page(open_page, report, tmp_path):
    """For the eye: in $PROMPT_JAX_ARTIFACTS where that is set."""
    folder = pathlib.Path(os.environ.get("PROMPT_JAX_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    shot = folder / "report.png"
    flags = [f"--screenshot={shot}", "--window-size=1280,3600"]
    browse(report / "report.html", tmp_path / "profile", *flags, fragment=f"#sort=-{TEST}")
    assert shot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and shot.stat().st_size > 50_000
