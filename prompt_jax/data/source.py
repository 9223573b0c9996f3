"""Where the rows of a data set lie: files under PROMPT_JAX_DATA, else TensorFlow Datasets.

Rows are plain dicts of text, numbers and lists. Nothing here imports TensorFlow until TFDS is read.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_jax.errors import UserError, nearest

SPLITS = ("train", "validation", "test")
ENDINGS = (".tsv", ".jsonl")
FOLDER = "PROMPT_JAX_DATA"
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set by name, read from wherever it is.

    Attributes:
        name: the folder under PROMPT_JAX_DATA, or any folder where it holds a `/`.
        tfds: name (and config) in TensorFlow Datasets; None: files alone.
        splits: its splits.
        file: a split's file name without its ending.
        tfds_splits: split -> the name that TFDS has for it, where that differs.
        tidy: a TFDS row -> a row with the columns of the files, or several.
    """

    name: str
    tfds: str | None = None
    splits: tuple[str, ...] = SPLITS
    file: str = "{split}"
    tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tidy: Callable[[dict], dict | list[dict]] | None = None

    def folder(self) -> str | None:
        """Where its files would be; None where PROMPT_JAX_DATA is not set."""
        if "/" in self.name:
            return self.name
        root = os.environ.get(FOLDER, "")
        return os.path.join(root, self.name) if root else None

    def files(self, split: str) -> list[str]:
        """The local file of a split, if it is there."""
        folder = self.folder()
        names = [self.file.format(split=split) + ending for ending in ENDINGS]
        paths = [os.path.join(folder, name) for name in names] if folder else []
        return [path for path in paths if os.path.isfile(path)][:1]

    def rows(self, split: str) -> Iterator[dict]:
        """The rows of a split, in order, each with its number in `idx`.

        Raises:
            UserError: neither files nor TFDS; both ways to get them are told.
        """
        files = self.files(split)
        rows = read_rows(files[0]) if files else self._from_tfds(split)
        for number, row in enumerate(rows):
            yield {**row, "idx": number}

    def here(self, split: str) -> bool:
        """Whether the rows of a split can be read without the network."""
        cached = self.tfds and os.path.isdir(os.path.join(_tfds_folder(), self.tfds))
        return bool(self.files(split) or cached)

    def state(self) -> str:
        """Where its rows would come from here and now: "local", "cached" or "needs network"."""
        there = [split for split in self.splits if self.files(split)]
        if there:
            missing = len(there) < len(self.splits)
            return f"local: {self.folder()}" + (f" ({', '.join(there)})" if missing else "")
        if any(map(self.here, self.splits)):
            return f"cached: TFDS {self.tfds}"
        return f"needs network: TFDS {self.tfds}" if self.tfds else f"missing: {self._wanted()}"

    def _wanted(self, split: str = "SPLIT") -> str:
        name = os.path.join(self.name, self.file.format(split=split))
        place = name if "/" in self.name else os.path.join(f"${FOLDER}", name)
        return f"{place}{{{','.join(ENDINGS)}}}"

    def _from_tfds(self, split: str) -> Iterator[dict]:
        missing = f"{self.name} {split!r} is not here: put it into {self._wanted(split)}"
        if not self.tfds:
            raise UserError(missing)
        try:
            # TFDS is imported by whoever keeps TensorFlow off the accelerators.
            from prompt_jax.data.preprocess import tfds

            dataset = tfds.load(self.tfds, split=self.tfds_splits.get(split, split))
            rows = iter(tfds.as_numpy(dataset))
        except Exception as error:  # TFDS raises whatever its downloader met
            said = (str(error).strip() or "no message").splitlines()[0][:100]
            raise UserError(
                f"{missing}, or let TFDS download {self.tfds} ({type(error).__name__}: {said})"
            ) from error
        for row in rows:
            tidied = self.tidy(plain(row)) if self.tidy else plain(row)
            yield from [tidied] if isinstance(tidied, dict) else tidied


def as_source(given: Any) -> Any:
    """A source from what a user gives.

    Args:
        given: a `Source`; a folder of TSV or JSONL files; a mapping split -> file; a callable
            split -> rows.

    Returns:
        An object with `splits`, `files(split)`, `rows(split)`, `here(split)` and `state()`.

    Raises:
        UserError: a folder without a split's file.
    """
    if isinstance(given, Mapping):
        return Files({split: os.fspath(path) for split, path in given.items()})
    if isinstance(given, str | os.PathLike):
        folder = os.path.abspath(os.path.expanduser(os.fspath(given)))
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        found = [os.path.splitext(name) for name in names]
        files = {stem: os.path.join(folder, stem + end) for stem, end in found if end in ENDINGS}
        if not files:
            raise UserError(f"{folder}: holds no SPLIT.tsv or SPLIT.jsonl, e.g. train.tsv")
        return Files(files)
    if callable(given):
        return Rows(given)
    return given


@dataclasses.dataclass(frozen=True)
class Files:
    """Rows of given files.

    Attributes:
        paths: split -> TSV or JSONL file.
    """

    paths: Mapping[str, str]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, the usual ones first."""
        usual = [split for split in SPLITS if split in self.paths]
        return (*usual, *(split for split in self.paths if split not in SPLITS))

    def files(self, split: str) -> list[str]:
        """The file of a split.

        Raises:
            UserError: no such split.
        """
        if split not in self.paths:
            raise UserError(f"no split {split!r}: {nearest(split, self.paths)}")
        return [self.paths[split]]

    def rows(self, split: str) -> Iterator[dict]:
        """The rows of a split, numbered in `idx`."""
        for number, row in enumerate(read_rows(self.files(split)[0])):
            yield {**row, "idx": number}

    def here(self, split: str) -> bool:
        """Always: the files are local."""
        return split in self.paths

    def state(self) -> str:
        """Where the files are."""
        return f"local: {', '.join(self.paths[split] for split in self.splits)}"


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that a function makes.

    Attributes:
        read: split -> rows.
        splits: names that it takes.
        reads: split -> local files that it opens, so that the cache follows their content.
    """

    read: Callable[[str], Iterable[Row]]
    splits: tuple[str, ...] = SPLITS
    reads: Callable[[str], Sequence[str]] | None = None

    def files(self, split: str) -> list[str]:
        """The files that the function opens."""
        return list(self.reads(split)) if self.reads else []

    def rows(self, split: str) -> Iterator[dict]:
        """The function's rows, numbered in `idx`."""
        for number, row in enumerate(self.read(split)):
            yield {**row, "idx": number}

    def here(self, split: str) -> bool:
        """Always."""
        return split in self.splits

    def state(self) -> str:
        """Nothing is asked of the network."""
        return "generated, offline"


def read_rows(path: str) -> Iterator[dict]:
    """Rows of a TSV file (header line, no quoting) or a JSONL file.

    Raises:
        UserError: no such file, another ending, a row that is none.
    """
    read = {".tsv": _read_tsv, ".jsonl": _read_jsonl}.get(os.path.splitext(path)[1])
    if read is None:
        raise UserError(f"{path}: rows are read from {' and '.join(ENDINGS)} files")
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            yield from read(path, file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from error


def _read_tsv(path: str, file) -> Iterator[dict]:
    header = file.readline().rstrip("\r\n").removeprefix("\ufeff").split("\t")
    for number, line in enumerate(file, 2):
        fields = line.rstrip("\r\n").split("\t")
        if fields == [""]:
            continue
        if len(fields) != len(header):
            raise UserError(f"{path}:{number}: {len(fields)} columns, the header has {len(header)}")
        yield dict(zip(header, fields, strict=True))


def _read_jsonl(path: str, file) -> Iterator[dict]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: is no JSON object")
        yield row


def plain(value: Any) -> Any:
    """A value of TensorFlow or NumPy as JSON has it: bytes as text, arrays as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    for convert in ("to_list", "tolist"):  # ragged tensors; arrays and NumPy's scalars
        if hasattr(value, convert):
            return plain(getattr(value, convert)())
    return value


def column(row: Row, name: str, place: str) -> Any:
    """A row's column.

    Raises:
        UserError: no such column; the nearest ones are named.
    """
    if name not in row:
        raise UserError(f"{place}: the rows have no column {name!r}: {nearest(name, row)}")
    if row[name] is None:
        raise UserError(f"{place}: column {name!r} of row {row.get('idx')} is null")
    return row[name]


def _tfds_folder() -> str:
    return os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Rows of one meaning as one row, outside training: their texts become `references`.

    Attributes:
        source: whose rows they are.
        key: the column that says the meaning.
        text: the column of the texts.
    """

    source: Source
    key: str
    text: str

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return self.source.splits

    def files(self, split: str) -> list[str]:
        """The local file of a split, if it is there."""
        return self.source.files(split)

    def rows(self, split: str) -> Iterator[dict]:
        """Every row of `train`, the first row of each meaning elsewhere."""
        if split == "train":
            yield from self.source.rows(split)
            return
        groups: dict[Any, dict] = {}
        for row in self.source.rows(split):
            first = groups.setdefault(row[self.key], {**row, "references": []})
            first["references"].append(row[self.text])
        yield from groups.values()

    def here(self, split: str) -> bool:
        """See `Source.here`."""
        return self.source.here(split)

    def state(self) -> str:
        """See `Source.state`."""
        return self.source.state()
