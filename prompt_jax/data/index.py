"""The shipped tasks, by name, so that listing them imports neither seqio nor TensorFlow.

A test compares this table with seqio's registry.
"""

from dataclasses import dataclass

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Entry:
    """A shipped task or mixture.

    module: `prompt_jax.tasks.<module>` registers it. family: what it is listed under. splits,
    metrics: names. parts: the tasks of a mixture.
    """

    module: str
    family: str
    splits: tuple[str, ...] = SPLITS
    metrics: tuple[str, ...] = ("accuracy",)
    parts: tuple[str, ...] = ()


def _micro(metrics: tuple[str, ...] = ("accuracy",), parts: tuple[str, ...] = ()) -> Entry:
    return Entry("micro", "micro", metrics=metrics, parts=parts)


def _pretrain(*parts: str) -> Entry:
    return Entry("micro_pretrain", "pretraining", ("train", "validation"), (), parts)


_QA = ("em", "f1")
_TEXT = ("micro_text", "corpus_text")
_REST = ("corpus_ratings", *_TEXT)

TASKS: dict[str, Entry] = {
    "sst2": Entry("glue", "glue"),
    "micro_sentiment": _micro(),
    "micro_sentiment_shift": _micro(),
    "micro_entailment": _micro(),
    "micro_paraphrase": _micro(),
    "micro_paraphrase_shift": _micro(),
    "micro_boolq": _micro(),
    "micro_qa": _micro(_QA),
    "micro_qa_shift1": _micro(_QA),
    "micro_qa_shift2": _micro(_QA),
    "micro_qa_shift3": _micro(_QA),
    "micro_text": _pretrain(),
    "micro_questions": _pretrain(),
    "micro_cues": _pretrain(),
    "micro_words": _pretrain(),
    "micro_labels": _pretrain(),
    "micro_mood_instruct": _pretrain(),
    "micro_instruct": _pretrain(),
    "micro_instruct_no_sentiment": _pretrain(),
    "corpus_text": _pretrain(),
    "corpus_ratings": _pretrain(),
    "micro_language": _pretrain(*_TEXT),
    "micro_first_lessons": _pretrain("micro_questions", *_TEXT),
    "micro_moods": _pretrain("micro_mood_instruct", *_REST),
    "micro_mixture": _pretrain("micro_instruct", *_REST),
    "micro_mixture_no_sentiment": _pretrain("micro_instruct_no_sentiment", *_TEXT),
}
TASKS["micro_all"] = _micro(
    ("accuracy", *_QA), tuple(name for name, entry in TASKS.items() if entry.module == "micro")
)
