"""What the embedded backbones are pretrained on: generated text and instructions, natural text.

The natural sources read the folder named by PROMPT_JAX_CORPORA. None of these is an embedded task.
"""

import functools
import pathlib

from prompt_jax.data import micro
from prompt_jax.data.micro import corpora, instruct, text
from prompt_jax.data.source import Rows
from prompt_jax.data.task import Task, register, register_mixture

SEED = 0
TRAIN, VALIDATION = 300_000, 2_000
CORPUS = 120_000  # lines of natural text
RATINGS = 60_000  # draws: about five thousand reviews, each under a dozen instructions
_FILES = sorted(str(path) for path in pathlib.Path(micro.__file__).parent.glob("*.py"))


def _files(split: str) -> list[str]:
    del split
    return _FILES


def _count(split: str, train: int) -> int:
    return train if split == "train" else VALIDATION


def _text(split: str) -> list[dict]:
    rows = text.examples(split, SEED, 0, _count(split, TRAIN))
    return [{"targets": row["text"]} for row in rows]


def _instruct(split: str, tasks, without: tuple[str, ...] = ()) -> list[dict]:
    count = _count(split, TRAIN)
    return instruct.examples(split, SEED, 0, count, tasks=tasks, without=without)


def _corpus_text(split: str) -> list[dict]:
    count = _count(split, min(CORPUS, corpora.size(split)))
    return [{"targets": row["text"]} for row in corpora.text_examples(split, SEED, 0, count)]


def _corpus_ratings(split: str) -> list[dict]:
    return corpora.rating_examples(split, SEED, 0, _count(split, RATINGS))


def _as_written(row: dict, split: str) -> list[dict]:
    del split
    return [row]


def _add(name: str, read, text_only: bool = False) -> None:
    source = Rows(read, ("train", "validation"), _files)
    register(Task(name, source, _as_written, family="pretraining", text_only=text_only))


_add("micro_text", _text, text_only=True)
_add("micro_questions", functools.partial(_instruct, tasks=instruct.QUESTIONS))
_add("micro_cues", functools.partial(_instruct, tasks=instruct.CUES))
_add("micro_words", functools.partial(_instruct, tasks=instruct.WORDS))
_add("micro_labels", functools.partial(_instruct, tasks=instruct.LABELS))
_add("micro_mood_instruct", functools.partial(_instruct, tasks=instruct.MOODS))
_add("micro_follow", functools.partial(_instruct, tasks=instruct.FOLLOW))
_add("micro_pairs_instruct", functools.partial(_instruct, tasks=instruct.PAIRS))
_add("micro_instruct", functools.partial(_instruct, tasks=instruct.MIXTURE))
_NO_MOOD = functools.partial(_instruct, tasks=instruct.MIXTURE, without=instruct.SENTIMENT)
_add("micro_instruct_no_sentiment", _NO_MOOD)
_add("corpus_text", _corpus_text, text_only=True)
_add("corpus_ratings", _corpus_ratings)

# The stages of `tools/make_backbones.py`: the language (`runs/pretrain.gin`), then lessons
# (`runs/instruct.gin`): `micro_cues`, `micro_words`, `micro_labels`, `micro_follow`, the mixtures.
# A line of text has twenty times the target tokens of an instruction: 4 % of the examples are a
# third of the loss.
_TEXT = [("micro_text", 0.01), ("corpus_text", 0.03)]
for _name, _parts in {
    "micro_language": [("micro_text", 0.65), ("corpus_text", 0.35)],
    "micro_first_lessons": [("micro_questions", 0.92), ("micro_text", 0.06), ("corpus_text", 0.02)],
    "micro_moods": [("micro_mood_instruct", 0.92), ("corpus_ratings", 0.04), *_TEXT],
    "micro_pairs": [("micro_pairs_instruct", 0.96), *_TEXT],
    "micro_mixture": [("micro_instruct", 0.91), ("corpus_ratings", 0.05), *_TEXT],
    "micro_mixture_no_sentiment": [("micro_instruct_no_sentiment", 0.96), *_TEXT],
}.items():
    register_mixture(_name, dict(_parts), family="pretraining")
