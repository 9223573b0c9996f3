"""Records of runs: read from files and folders; columns, conditions and orders over them.

A column is a dotted path into a record. Keys may hold dots and slashes themselves, so each level
takes the longest key that leads on: `config.Adafactor.learning_rate` is the key
"Adafactor.learning_rate" of `config`.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from prompt_jax.errors import UserError, nearest

Record = dict[str, Any]
MISSING = object()  # no such column here; None is a value that a record may hold
# Inside a MODEL_DIR: many files, none of them a record.
_SKIPPED = ("checkpoints", "tensorboard")
# A run's own name and numbers, for a table that was not told its columns.
_FIRST = ("id", "run", "study")
_WITHOUT_POINT = ("method", "mixture", "backbone.path", "seed")
_COST = ("trainable_parameters", "steps", "seconds.train", "reason")


# --- reading ---


def read(paths: Sequence[str]) -> list[Record]:
    """Every record under some files and folders; of one run in several files, the last written.

    Args:
        paths: local or gs://. A file is a record, or a list of them; of a folder count
            `record.json`, else `ledger/*.json`, else `*.json`, else all `record.json` and
            `ledger/*.json` below.

    Returns:
        The records, in the order of their paths.

    Raises:
        UserError: nothing there, or a file that is no record; it names each.
    """
    found, wrong = [], []
    for file in dict.fromkeys(file for path in paths for file in _files(epath.Path(path))):
        try:
            found += _records(file)
        except ValueError as error:
            wrong.append(f"{file}: {error}")
    if wrong:
        raise UserError("\n".join(wrong))
    return _latest(found)


def _files(path: epath.Path) -> list[epath.Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    own, ledger = path / "record.json", path / "ledger"
    files = [own] if own.exists() else []
    files = files or (_json_in(ledger) if ledger.is_dir() else [])
    files = files or _json_in(path) or sorted(_below(path))
    if not files:
        raise UserError(f"{path}: no records: no *.json, no record.json below")
    return files


def _json_in(folder: epath.Path) -> list[epath.Path]:
    return sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))


def _below(folder: epath.Path) -> Iterator[epath.Path]:
    """All record.json and ledger/*.json under a folder."""
    for inner in folder.iterdir():
        if inner.name == "record.json":
            yield inner
        elif inner.name not in _SKIPPED and inner.is_dir():
            if inner.name == "ledger":
                yield from _json_in(inner)
            yield from _below(inner)


def _records(file: epath.Path) -> list[Record]:
    """A file's record, or a list of them, as `prompt-jax ledger --json` writes it.

    Raises:
        ValueError: it holds none.
    """
    try:
        held = json.loads(file.read_text())
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"damaged, no JSON: {error}") from error
    found = held if isinstance(held, list) else [held]
    if not all(isinstance(record, dict) and "status" in record for record in found):
        raise ValueError("no record of a run: it has no 'status'")
    return found


def _latest(records: list[Record]) -> list[Record]:
    kept: dict[Any, Record] = {}
    for i, record in enumerate(records):
        key = (record.get("study"), record["id"]) if record.get("id") else i
        if key not in kept or record.get("written", "") >= kept[key].get("written", ""):
            kept[key] = record
    return list(kept.values())


# --- columns ---


def find(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or `MISSING`."""
    if column in record:
        return record[column]
    parts = column.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        inner = record.get(".".join(parts[:cut]))
        if isinstance(inner, dict):
            found = find(inner, ".".join(parts[cut:]))
            if found is not MISSING:
                return found
    return MISSING


def value(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column; None where the record lacks it."""
    found = find(record, column)
    return None if found is MISSING else found


def columns(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Every column, in the order of the records -> an example: the first value that is not None."""
    found: dict[str, Any] = {}
    for record in records:
        for column, example in _leaves(record, ""):
            if found.get(column) is None:
                found[column] = example
    return found


def _leaves(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in record.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        elif not isinstance(inner, dict):
            yield f"{prefix}{key}", inner


def check_columns(records: Sequence[Record], wanted: Iterable[str], who: str = "") -> None:
    """Refuses a column that no record has, naming the nearest.

    Args:
        records: all that there are.
        wanted: columns; a whole group such as `metrics.test` counts as one.
        who: before the complaint, e.g. "figure scale: ".

    Raises:
        UserError: the first unknown column.
    """
    for column in wanted:
        if all(find(record, column) is MISSING for record in records):
            raise UserError(f"{who}no record has {column!r}; {nearest(column, columns(records))}")


def shown_columns(records: Sequence[Record]) -> list[str]:
    """The columns of a table of runs: name, point, status, metrics, cost; those with a value."""
    there = [column for column, example in columns(records).items() if example is not None]

    def of(*starts: str) -> list[str]:
        return [column for column in there if column.startswith(starts)]

    names = ["id"] if "id" in there else ["run"]
    points = of("point.") or [column for column in _WITHOUT_POINT if column in there]
    several = len({value(record, "study") for record in records}) > 1
    names += ["study"] if several else []
    metrics = sorted(of("metrics."), key=lambda column: ("/" in column, column))  # tasks last
    return [*names, *points, "status", *metrics, *(c for c in _COST if c in there)]


# --- conditions ---


@dataclasses.dataclass(frozen=True)
class Condition:
    """`COLUMN OPERATOR VALUE` over one record.

    Attributes:
        column: what is compared.
        operator: one of = != < <= > >= and ~ (contains).
        text: what it is compared with; a number where the record holds one.
    """

    column: str
    operator: str
    text: str

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Whether the record fulfils it; a missing value only fulfils `!=` and `= ''`.

        Raises:
            UserError: a number is compared in size with what is none.
        """
        found = value(record, self.column)
        if self.operator == "~":
            return self.text in as_text(found)
        if self.operator in ("=", "!="):
            return self._equal(found) == (self.operator == "=")
        if found is None:
            return False
        if isinstance(found, int | float):
            number = _number(self.text)
            if number is None:
                raise UserError(
                    f"--where {self.column}{self.operator}{self.text}: {self.column} is a number, "
                    f"{self.text!r} is none"
                )
            return _ORDERS[self.operator](found, number)
        return _ORDERS[self.operator](as_text(found), self.text)

    def _equal(self, found: Any) -> bool:
        if found is None:
            return self.text.lower() in ("", "none", "null")
        if isinstance(found, bool):
            return self.text.lower() == as_text(found)
        if isinstance(found, int | float):
            return _number(self.text) == found
        return as_text(found) == self.text


_ORDERS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_CONDITION = re.compile(r"\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)


def condition(text: str) -> Condition:
    """`point.method=prompt_tuning` -> the condition.

    Raises:
        UserError: it is none.
    """
    match = _CONDITION.fullmatch(text)
    if not match:
        raise UserError(f"--where {text}: write COLUMN=VALUE, or one of != < <= > >= ~ for =")
    return Condition(match[1], match[2], match[3].strip("'\""))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def as_text(value: Any) -> str:
    """A value as a table file has it: nothing for None, JSON for lists and groups."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


# --- orders ---


def order(value: Any) -> tuple:
    """A key that sorts any values: numbers, then text, then what is missing."""
    if value is None or value != value:
        return (2, 0.0, "")
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, as_text(value))


def sort(records: Sequence[Record], column: str, descending: bool = False) -> list[Record]:
    """The records by a column; those without a value come last either way."""

    def has(record: Record) -> bool:
        return order(value(record, column))[0] < 2

    def key(record: Record) -> tuple:
        return order(value(record, column))

    ordered = sorted(filter(has, records), key=key, reverse=descending)
    return ordered + [record for record in records if not has(record)]
