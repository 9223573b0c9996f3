"""`prompt-jax ledger`: selects records and shows or writes their columns as a table."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from prompt_jax.ckpt.prompt_file import write_bytes
from prompt_jax.errors import UserError, nearest
from prompt_jax.study import records as ledger

_WIDEST = 60  # characters of an example in `--list`


def ledger_command(args) -> None:
    """Reads `args.paths`, selects and orders; lists columns, writes files, or prints a table.

    Args:
        args: `paths`, `where` (conditions), `columns` ("a,b" or None), `sort` ("COLUMN" or
            "-COLUMN"), `list`, and the files `csv`, `parquet`, `json` (None: not written).

    Raises:
        UserError: a damaged file, an unknown column, or no record left.
    """
    everything = ledger.read(args.paths)
    records = select(everything, args.where, args.sort)
    if args.list:
        _print_table(["column", "example"], _examples(records))
        return
    wanted = [column for column in (args.columns or "").split(",") if column]
    ledger.check_columns(everything, wanted)
    written = write(records, wanted, args.csv, args.parquet, args.json)
    if not written:
        head = wanted or ledger.shown_columns(records)
        _print_table(head, [[shown(ledger.value(r, c)) for c in head] for r in records])
    print(f"{len(records)} of {len(everything)} records")
    for path in written:
        print(f"wrote {path}")


def select(
    records: list[ledger.Record], where: Sequence[str] = (), sort: str | None = None
) -> list[ledger.Record]:
    """The records that fulfil every condition, in order.

    Args:
        records: all of them.
        where: conditions, e.g. "point.method=prompt_tuning", "best.value>=0.8".
        sort: a column; "-COLUMN" from the largest.

    Raises:
        UserError: an unknown column; a text that is no condition; nothing left.
    """
    conditions = [ledger.condition(text) for text in where]
    ledger.check_columns(records, [condition.column for condition in conditions])
    kept = [r for r in records if all(condition.holds(r) for condition in conditions)]
    if not kept:
        raise UserError(f"none of {len(records)} records: {_why_none(records, conditions)}")
    if not sort:
        return kept
    ledger.check_columns(records, [sort.removeprefix("-")])
    return ledger.sort(kept, sort.removeprefix("-"), sort.startswith("-"))


def _why_none(records: list[ledger.Record], conditions: Sequence[ledger.Condition]) -> str:
    """The first condition that leaves none of what the ones before it left."""
    for condition in conditions:
        values = {ledger.as_text(ledger.value(record, condition.column)) for record in records}
        records = [record for record in records if condition.holds(record)]
        if not records:
            text = f"--where {condition.column}{condition.operator}{condition.text} holds for none"
            return f"{text}; {nearest(condition.text, values)}"
    return "there is none"


def write(
    records: list[ledger.Record],
    wanted: list[str],
    csv_file: str | None = None,
    parquet_file: str | None = None,
    json_file: str | None = None,
) -> list[str]:
    """Writes tables, each file whole or not at all; its columns are `wanted`, or all there are.

    Args:
        records: one row each.
        wanted: columns; none: every column, and in JSON the records as they are.
        csv_file: where to, local or gs://; None or "": not written.
        parquet_file: likewise.
        json_file: likewise.

    Returns:
        The paths written.
    """
    head = wanted or list(ledger.columns(records))
    written = []
    for path, make in ((csv_file, csv_bytes), (parquet_file, parquet_bytes)):
        if path:
            write_bytes(epath.Path(path), make(head, _rows(records, head)))
            written.append(path)
    if json_file:
        rows = [dict(zip(wanted, row, strict=True)) for row in _rows(records, wanted)]
        text = json.dumps(rows if wanted else records, indent=1)
        write_bytes(epath.Path(json_file), f"{text}\n".encode())
        written.append(json_file)
    return written


def _rows(records: list[ledger.Record], head: list[str]) -> list[list[Any]]:
    return [[ledger.value(record, column) for column in head] for record in records]


def csv_bytes(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A CSV file; None is empty, floats have all their digits."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(head)
    lines.writerows([ledger.as_text(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def parquet_bytes(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A Parquet file of numbers, booleans and text; None is null, mixed columns are text."""
    import pyarrow
    from pyarrow import parquet

    cells = [[row[i] for row in rows] for i in range(len(head))]
    table = pyarrow.table(dict(zip(head, map(_typed, cells), strict=True)))
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def _typed(cells: list[Any]) -> Any:
    """An Arrow array; text where the cells are not all of one plain type."""
    import pyarrow

    kinds = {type(cell) for cell in cells} - {type(None)}
    plain = kinds <= {int, float} or kinds in ({bool}, {str})
    if plain:
        try:
            return pyarrow.array(cells)
        except (pyarrow.ArrowInvalid, OverflowError):  # an integer beyond 64 bits
            pass
    return pyarrow.array(
        [None if c is None else ledger.as_text(c) for c in cells], pyarrow.string()
    )


def shown(value: Any) -> str:
    """A value for the eye: four digits of a fraction."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
    return f"{value:.0f}" if isinstance(value, float) and abs(value) < 1e15 else _flat(value)


def _flat(value: Any) -> str:
    return " ".join(ledger.as_text(value).split())


def _examples(records: list[ledger.Record]) -> list[list[str]]:
    found = ledger.columns(records)
    texts = {column: _flat(example) for column, example in found.items()}
    cut = {c: t if len(t) <= _WIDEST else f"{t[: _WIDEST - 3]}..." for c, t in texts.items()}
    return [list(pair) for pair in cut.items()]


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    """A grid on a terminal, plain aligned columns elsewhere."""
    if sys.stdout.isatty():
        _print_grid(head, rows)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _print_grid(head: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE, highlight=False)
    for title in head:
        grid.add_column(Text(title), overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))  # as it is: "[b]" is no markup
    Console().print(grid)
