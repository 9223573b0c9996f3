"""GLUE, all nine (Wang et al. 2018). Text as T5 casts it, without the name of the task in front."""

import functools

from prompt_jax.data import metrics
from prompt_jax.data.source import Row, Source
from prompt_jax.data.task import Task, register, register_mixture, register_text_task
from prompt_jax.errors import UserError

FAMILY = "glue"
_PAIR = "sentence1: {sentence1} sentence2: {sentence2}"
_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}


def _words(*names: str) -> dict[str, str]:
    """Verbalizers that are the labels' own names."""
    return {name: name for name in names}


_COLA = ("unacceptable", "acceptable")
register_text_task(
    "cola",
    Source("cola", "glue/cola"),
    "sentence: {sentence}",
    verbalizers=_words(*_COLA),
    metrics=(functools.partial(metrics.matthews, labels=_COLA), metrics.accuracy),
    family=FAMILY,
)
register_text_task(
    "sst2",
    Source("sst2", "glue/sst2"),
    "sentence: {sentence}",
    verbalizers=_words("negative", "positive"),
    family=FAMILY,
)
register_text_task(
    "mrpc",
    Source("mrpc", "glue/mrpc"),
    _PAIR,
    verbalizers=_words("not_equivalent", "equivalent"),
    metrics=(metrics.accuracy, functools.partial(metrics.f1, positive="equivalent")),
    family=FAMILY,
)
register_text_task(
    "qqp",
    Source("qqp", "glue/qqp"),
    "question1: {question1} question2: {question2}",
    verbalizers=_words("not_duplicate", "duplicate"),
    metrics=(metrics.accuracy, functools.partial(metrics.f1, positive="duplicate")),
    family=FAMILY,
)
register_text_task(
    "mnli",
    Source(
        "mnli",
        "glue/mnli",
        splits=("train", "validation", "validation_mismatched", "test", "test_mismatched"),
        tfds_splits={"validation": "validation_matched", "test": "test_matched"},
    ),
    "hypothesis: {hypothesis} premise: {premise}",
    verbalizers=_words("entailment", "neutral", "contradiction"),
    family=FAMILY,
)
register_text_task(
    "qnli",
    Source("qnli", "glue/qnli"),
    "question: {question} sentence: {sentence}",
    verbalizers=_ENTAILMENT,
    family=FAMILY,
)
register_text_task(
    "rte",
    Source("rte", "glue/rte"),
    _PAIR,
    verbalizers=_ENTAILMENT,
    family=FAMILY,
)
register_text_task(
    "wnli",
    Source("wnli", "glue/wnli"),
    _PAIR,
    verbalizers=_words("not_entailment", "entailment"),
    family=FAMILY,
)


def _similarity(row: Row, split: str) -> list[dict]:
    """The score from 0 to 5 as text, to the nearest fifth (Raffel et al. 2020, section 2.4)."""
    del split
    score = float(row["label"])
    if score < 0:
        raise UserError(f"label {row['label']!r}: the split has no labels")
    text = f"{round(score * 5) / 5:.1f}"
    inputs = f"sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
    return [{"inputs": inputs, "targets": text, "score": score, "idx": row["idx"]}]


def _score(text: str, example: Row) -> float | None:
    del example
    return metrics.number(text)


def _gold(example: Row) -> float:
    return float(example["score"])


register(
    Task(
        "stsb",
        Source("stsb", "glue/stsb"),
        _similarity,
        (metrics.correlation,),
        answer=_score,
        target=_gold,
        family=FAMILY,
    )
)

TASKS = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
register_mixture("glue", TASKS, cap=2**19, family=FAMILY)
register_mixture("glue_equal", TASKS, family=FAMILY)
