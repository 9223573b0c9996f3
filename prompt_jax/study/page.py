"""The report of a study: figures, tables, and one page that shows them offline."""

import html
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from prompt_jax.ckpt.prompt_file import write_bytes
from prompt_jax.errors import UserError
from prompt_jax.study import records as ledger
from prompt_jax.study.part import Drawn, Part, identity
from prompt_jax.study.query import csv_bytes, shown
from prompt_jax.study.template import PAGE, SCRIPT, STYLE

_log = logging.getLogger(__name__)
_OURS = ("table", "report")  # files that are no part's
_TEXT_ROWS = 60  # rows of a figure that a page of text shows
_SHOWN_ROWS = 400  # of a figure's numbers on the page; its CSV has all of them


def write_report(
    study_name: str,
    description: str,
    parts: Sequence[Part],
    records: Sequence[ledger.Record],
    out: str,
    *,
    strict: bool = True,
) -> list[str]:
    """Draws every part and writes the report.

    Args:
        study_name: its title.
        description: a paragraph below it.
        parts: the figures and tables, in their order.
        records: of all runs, of any status, in any order.
        out: the folder, local or gs://.
        strict: a part that cannot be drawn is an error, after everything else is written; if
            not, a warning. The page shows the complaint in its place either way.

    Returns:
        The paths: NAME.png, NAME.svg, NAME.csv of each part; table.csv, table.md, report.md,
        report.html.

    Raises:
        UserError: two parts of one name; with `strict`, a part that cannot be drawn.
    """
    check_names(parts)
    names = [part.name for part in parts]
    records = sorted(records, key=identity)  # the same report for every order
    drawn: list[Drawn] = []
    complaints: dict[str, str] = {}
    for part in parts:
        try:
            drawn.append(part.draw(records))
        except UserError as error:
            complaints[part.name] = str(error)
    head, rows = table_of_runs(records)
    by_name = {figure.name: figure for figure in drawn}
    shown_parts = [(name, by_name.get(name) or complaints[name]) for name in names]
    files: dict[str, bytes] = {}
    for figure in drawn:
        files[f"{figure.name}.png"] = figure.png
        files[f"{figure.name}.svg"] = figure.svg.encode()
        files[f"{figure.name}.csv"] = csv_bytes(*flat(figure.rows))
    facts = facts_of(records)
    files["table.csv"] = csv_bytes(head, rows)
    files["table.md"] = (markdown(head, rows) + "\n").encode()
    files["report.md"] = _report_md(study_name, description, facts, shown_parts, records).encode()
    files["report.html"] = _report_html(
        study_name, description, facts, shown_parts, head, rows
    ).encode()
    folder = epath.Path(out)
    for name, data in files.items():
        write_bytes(folder / name, data)
    for complaint in complaints.values():
        _log.warning("%s", complaint)
    if complaints and strict:
        raise UserError("\n".join([*complaints.values(), f"the rest is in {folder}/report.html"]))
    return [str(folder / name) for name in files]


def check_names(parts: Sequence[Part]) -> None:
    """Refuses parts that would write each other's files.

    Raises:
        UserError: with the name.
    """
    names = [part.name for part in parts]
    for name in names:
        if name in _OURS or names.count(name) > 1:
            raise UserError(f"figure {name}: another file of the report is called so; rename it")


# --- tables ---


def table_of_runs(records: Sequence[ledger.Record]) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) of all runs, ordered by their points."""
    head = ledger.shown_columns(records)
    rows = [[ledger.value(record, column) for column in head] for record in records]
    points = [i for i, column in enumerate(head) if i and column != "status"] + [0]
    return head, sorted(rows, key=lambda row: tuple(ledger.order(row[i]) for i in points))


def flat(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) of a figure's numbers; columns that some rows lack are empty there."""
    head = list(dict.fromkeys(column for row in rows for column in row))
    return head, [[row.get(column) for column in head] for row in rows]


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers stand to the right."""
    right = [_numeric([row[i] for row in rows]) for i in range(len(head))]
    lines = [head, ["---:" if number else "---" for number in right]]
    lines += [[shown(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts_of(records: Sequence[ledger.Record]) -> str:
    """How many runs, how they ended, what they cost: one line."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record["status"]] = counts.get(record["status"], 0) + 1
    ends = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    seconds = sum(ledger.value(record, "seconds.total") or 0 for record in records)
    versions = {str(ledger.value(record, "code_version") or "") for record in records} - {""}
    text = f"{len(records)} runs ({ends}), {seconds / 3600:,.1f} hours"
    return text + (f"; code {', '.join(sorted(versions))}" if versions else "")


def _numeric(cells: Sequence[Any]) -> bool:
    there = [cell for cell in cells if cell is not None]
    return bool(there) and all(
        isinstance(cell, int | float) and not isinstance(cell, bool) for cell in there
    )


# --- Markdown ---


def _report_md(name, description, facts, parts, records) -> str:
    lines = [f"# {name}", "", description.strip(), "", f"{facts}. All runs: [table.md](table.md)."]
    for part, figure in parts:
        if isinstance(figure, str):
            lines += ["", f"## {part}", "", f"Not drawn: {figure}"]
            continue
        lines += ["", f"## {figure.title}", ""]
        if figure.cells:
            lines += [markdown(figure.cells[0], figure.cells[1:])]
        else:
            lines += [f"![{figure.title}]({part}.png)", "", _numbers(part, figure)]
    failed = [record for record in records if record["status"] != "ok"]
    if failed:
        head = ["run", "status", "reason"]
        rows = [[r.get("id") or r.get("run"), r["status"], r.get("reason")] for r in failed]
        lines += ["", "## Runs that did not end", "", markdown(head, rows)]
    return "\n".join(lines) + "\n"


def _numbers(part: str, figure: Drawn) -> str:
    """A figure's numbers, or where they are if they are many."""
    if len(figure.rows) > _TEXT_ROWS:
        return f"{len(figure.rows)} numbers: [{part}.csv]({part}.csv)"
    return markdown(*flat(figure.rows))


# --- HTML ---


def _report_html(name, description, facts, parts, head, rows) -> str:
    links = [
        f'<a href="#figure-{part}">{_text(_title(part, figure))}</a>' for part, figure in parts
    ]
    return PAGE.format(
        title=_text(name),
        about=_text(description.strip()),
        facts=_text(facts),
        links="".join([*links, '<a href="#all-runs">All runs</a>']),
        sections="\n".join(_section(part, figure) for part, figure in parts),
        runs=_table(head, rows, "runs"),
        style=STYLE,
        script=SCRIPT,
    )


def _title(part: str, figure: Drawn | str) -> str:
    return part if isinstance(figure, str) else figure.title


def _section(part: str, figure: Drawn | str) -> str:
    wide = "" if isinstance(figure, Drawn) and not figure.cells else ' class="whole"'
    opened = f'<section id="figure-{part}"{wide}><h2>{_text(_title(part, figure))}</h2>'
    if isinstance(figure, str):
        return f'{opened}<p class="missing">Not drawn: {_text(figure)}</p></section>'
    if figure.cells:
        body = f'<div class="wide">{_table(figure.cells[0], figure.cells[1:])}</div>'
    else:
        body = f"<figure>{inline(figure.svg, part)}</figure>"
    head, rows = flat(figure.rows)
    more = f", the first {_SHOWN_ROWS}" if len(rows) > _SHOWN_ROWS else ""
    numbers = f'<div class="wide">{_table(head, rows[:_SHOWN_ROWS])}</div>'
    body += f"<details><summary>{len(rows)} rows of numbers{more}</summary>{numbers}</details>"
    return f"{opened}{body}</section>"


def inline(svg: str, name: str) -> str:
    """An SVG for the inside of a page: no file head, and ids that are its own."""
    head = r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>"
    body = re.sub(head, "", svg, flags=re.DOTALL).strip()
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], name: str = "") -> str:
    right = [_numeric([row[i] for row in rows]) for i in range(len(head))]
    status = head.index("status") if name and "status" in head else None
    lines = [f'<table id="{name}">' if name else "<table>", "<thead><tr>"]
    for column, number in zip(head, right, strict=True):
        of = ' class="n"' if number else ""
        of += f' data-c="{_text(column)}"' if name else ""
        lines.append(f"<th{of}>{_text(column)}</th>")
    lines.append("</tr></thead><tbody>")
    for row in rows:
        kind = "" if status is None or row[status] == "ok" else f' class="{_text(row[status])}"'
        cells = (_cell(*of) for of in zip(head, row, right, strict=True))
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _cell(column: str, value: Any, number: bool) -> str:
    text, whole = shown(value), ledger.as_text(value)
    kind = "n" if number else "reason" if column == "reason" else ""
    of = f' class="{kind}"' if kind else ""
    # What is rounded for the eye sorts by all its digits.
    of += f' data-v="{_text(whole)}"' if number and whole != text else ""
    return f"<td{of}>{_text(text)}</td>"


def _text(value: Any) -> str:
    return html.escape(str(value))
