"""Data sets as text: a task is a source of rows and how a row is cast. Pure Python, no seqio.

Registering costs nothing; `preprocess.to_seqio` makes the seqio task when it is first used.
"""

import dataclasses
import functools
import importlib
import pkgutil
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prompt_jax.data import metrics as metric
from prompt_jax.data.fingerprint import describe
from prompt_jax.data.source import Row, as_source, column
from prompt_jax.errors import UserError

Template = str | Callable[[Row], str]
Metric = Callable[[Sequence, Sequence], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, before seqio.

    Attributes:
        name: what MIXTURE_OR_TASK_NAME says.
        source: `splits`, `files(split)`, `rows(split)`, `here(split)`, `state()`; see
            `source.as_source`.
        cast: (row, split) -> examples with the text features `inputs` and `targets`; what else
            they hold is kept for the metrics.
        metrics: functions of (targets, predictions).
        answer: (text, example) -> what a predicted text means to the metrics; None: the text.
        target: example -> what the metrics compare with; None: `targets`.
        labels: the texts to choose from, where the task has a choice.
        family: what it is listed under.
        text_only: examples have `targets` alone (pretraining text).
    """

    name: str
    source: Any
    cast: Callable[[Row, str], Iterable[Mapping]]
    metrics: tuple[Metric, ...] = ()
    answer: Callable[[str, Mapping], Any] | None = None
    target: Callable[[Mapping], Any] | None = None
    labels: tuple[str, ...] = ()
    family: str = "yours"
    text_only: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits."""
        return tuple(self.source.splits)

    @property
    def metric_names(self) -> list[str] | None:
        """Names of the numbers that its metrics give; None where one needs examples to tell."""
        try:
            return [name for each in self.metrics for name in each([], [])]
        except Exception:  # a user's own function
            return None

    def examples(self, split: str) -> Iterable[dict]:
        """The cast rows of a split.

        Raises:
            UserError: no rows there, or one that cannot be cast.
        """
        try:
            for row in self.source.rows(split):
                yield from self.cast(row, split)
        except UserError as error:
            raise UserError(f"task {self.name!r} split {split!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several tasks at once.

    Attributes:
        name: what MIXTURE_OR_TASK_NAME says.
        rates: task -> mixing rate; None: its number of examples, at most `cap`.
        cap: the largest rate by size (Raffel et al. 2020, section 3.5.2).
        family: what it is listed under.
    """

    name: str
    rates: Mapping[str, float | None]
    cap: int = 2**19
    family: str = "yours"

    def rate(self, task: str, size: int) -> float:
        """The rate of a task that has so many examples."""
        rate = self.rates[task]
        return float(min(size, self.cap)) if rate is None else float(rate)


REGISTRY: dict[str, Task | Mixture] = {}


def register(entry: Task | Mixture) -> Task | Mixture:
    """Puts a task or mixture under its name.

    Raises:
        UserError: the name is taken by something else (equal content is fine).
    """
    there = REGISTRY.get(entry.name)
    if there is not None and describe(there) != describe(entry):
        raise UserError(
            f"task {entry.name!r} is registered already with other content; give it another name"
        )
    return REGISTRY.setdefault(entry.name, entry)


def known() -> dict[str, Task | Mixture]:
    """Every task and mixture of the project, and what the program has registered, by name."""
    _import_shipped()
    return dict(REGISTRY)


@functools.cache
def _import_shipped() -> None:
    package = importlib.import_module("prompt_jax.tasks")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


# --- casts ---


def fill(template: Template, row: Row) -> str:
    """A template's text for a row: `{column}` stands for the column's text.

    Raises:
        UserError: a column that the row lacks.
    """
    if callable(template):
        return template(row)
    place = f"template {template!r}"
    parts = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if name is not None:
            parts.append(str(column(row, name, place)))
    return "".join(parts)


@dataclasses.dataclass(frozen=True)
class Choose:
    """One example per row; the target is the verbalizer of the row's label.

    Attributes:
        template: of the input.
        verbalizers: label -> text. Where no label is a number, numbers mean this order.
        label: the column.
    """

    template: Template
    verbalizers: Mapping[str, str]
    label: str = "label"

    def word(self, row: Row) -> str:
        """The verbalizer of a row's label.

        Raises:
            UserError: a label that has none.
        """
        given = str(column(row, self.label, "label"))
        if given in self.verbalizers:
            return self.verbalizers[given]
        numbered = not any(name.isdigit() for name in self.verbalizers)
        if numbered and given.isdigit() and int(given) < len(self.verbalizers):
            return list(self.verbalizers.values())[int(given)]
        hidden = "; the split has no labels" if given == "-1" else ""
        raise UserError(
            f"label {given!r} has no verbalizer; valid: {', '.join(self.verbalizers)}{hidden}"
        )

    def __call__(self, row: Row, split: str) -> list[dict]:
        """The example of a row."""
        del split
        word = self.word(row)
        extra = {"idx": row["idx"], "label": str(row[self.label])}
        return [{"inputs": fill(self.template, row), "targets": word, **extra}]


@dataclasses.dataclass(frozen=True)
class Write:
    """One example per row; the target is text, with further references if there are any.

    Attributes:
        template: of the input.
        target: of the target.
        references: the column that lists all right answers; None: the target alone.
    """

    template: Template
    target: Template
    references: str | None = None

    def __call__(self, row: Row, split: str) -> list[dict]:
        """The example of a row."""
        del split
        text = fill(self.target, row)
        references = as_list(row.get(self.references)) if self.references else []
        example = {"inputs": fill(self.template, row), "targets": text, "idx": row["idx"]}
        return [{**example, "references": references or [text]}]


def as_list(value: Any) -> list[str]:
    """Texts, of which a file may give one without a list."""
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]


def references(example: Mapping) -> list[str]:
    """All right answers of an example."""
    return list(example["references"])


# --- what users call ---


def register_text_task(
    name: str,
    source: Any,
    template: Template,
    *,
    verbalizers: Mapping[Any, str],
    label: str = "label",
    metrics: Sequence[Metric] | None = None,
    family: str = "yours",
) -> Task:
    """A task whose answer is one of a few words.

    Args:
        name: what MIXTURE_OR_TASK_NAME says.
        source: a folder of TRAIN.tsv or .jsonl files, a mapping split -> file, a `Source`, or a
            function split -> rows.
        template: the input; `{column}` stands for a column, or a function of the row.
        verbalizers: label -> word; where the data numbers its labels, in that order.
        label: the column of the label.
        metrics: functions of (targets, predictions); None: accuracy and the share of invalid
            answers.
        family: what it is listed under.

    Returns:
        The registered task.

    Raises:
        UserError: the name is taken by another task; no data there.
    """
    words = {str(key): text for key, text in verbalizers.items()}
    labels = tuple(dict.fromkeys(words.values()))
    measured = (metric.accuracy,) if metrics is None else tuple(metrics)
    invalid = functools.partial(metric.invalid, labels=labels)
    cast = Choose(template, words, label)
    return register(
        Task(name, as_source(source), cast, (*measured, invalid), labels=labels, family=family)
    )


def register_generation_task(
    name: str,
    source: Any,
    template: Template,
    target: Template,
    *,
    references_column: str | None = None,
    metrics: Sequence[Metric] = (metric.rouge,),
    family: str = "yours",
) -> Task:
    """A task whose answer is running text.

    Args:
        name, source, template, family: see `register_text_task`.
        target: template of the target.
        references_column: the column that lists all right answers, if there is one.
        metrics: functions of (list of right answers per example, predictions).
    """
    cast = Write(template, target, references_column)
    measured = tuple(metrics)
    return register(Task(name, as_source(source), cast, measured, target=references, family=family))


def register_extraction_task(
    name: str,
    source: Any,
    template: Template = "question: {question} context: {context}",
    *,
    answers: str = "answers",
    metrics: Sequence[Metric] = (metric.squad,),
    family: str = "yours",
) -> Task:
    """A task whose answer is a stretch of the input; the first right answer is trained on.

    Args:
        name, source, template, family: see `register_text_task`.
        answers: the column that lists all right answers.
        metrics: functions of (list of right answers per example, predictions).
    """
    first = functools.partial(_first, name=answers)
    return register_generation_task(
        name, source, template, first, references_column=answers, metrics=metrics, family=family
    )


def _first(row: Row, name: str) -> str:
    found = as_list(column(row, name, "answers"))
    if not found:
        raise UserError(f"row {row['idx']}: no answers; the split has no labels")
    return found[0]


def register_mixture(
    name: str,
    tasks: Sequence[str] | Mapping[str, float],
    *,
    cap: int | None = None,
    family: str = "yours",
) -> Mixture:
    """A mixture of registered tasks.

    Args:
        name: what MIXTURE_OR_TASK_NAME says.
        tasks: names (equal rates), or name -> rate.
        cap: rates are the tasks' sizes, at most this; None: rates as given.
        family: what it is listed under.

    Raises:
        UserError: the name is taken by something else, or both rates and a cap are given.
    """
    if isinstance(tasks, Mapping):
        if cap is not None:
            raise UserError(f"mixture {name!r}: give rates or a cap, not both")
        return register(Mixture(name, dict(tasks), family=family))
    if cap is None:
        return register(Mixture(name, dict.fromkeys(tasks, 1.0), family=family))
    return register(Mixture(name, dict.fromkeys(tasks), cap, family))
