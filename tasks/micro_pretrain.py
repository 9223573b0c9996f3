"""What the embedded backbones are pretrained on: generated text and instructions, natural text.

The natural sources read the folder named by PROMPT_JAX_CORPORA. None of these is an embedded task.
"""

import functools
import pathlib

import seqio

from prompt_jax.data import micro
from prompt_jax.data.micro import corpora, instruct, text
from prompt_jax.data.preprocess import text_task

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


def _instruct(split: str, without: tuple[str, ...] = (), tasks=instruct.TASKS) -> list[dict]:
    count = _count(split, TRAIN)
    return instruct.examples(split, SEED, 0, count, without=without, tasks=tasks)


def _corpus_text(split: str) -> list[dict]:
    count = _count(split, min(CORPUS, corpora.size(split)))
    return [{"targets": row["text"]} for row in corpora.text_examples(split, SEED, 0, count)]


def _corpus_ratings(split: str) -> list[dict]:
    return corpora.rating_examples(split, SEED, 0, _count(split, RATINGS))


_add = functools.partial(text_task, splits=("train", "validation"), metric_fns=(), files=_files)
_add("micro_text", _text, text_only=True)
_add("micro_instruct", _instruct)
_add("micro_instruct_no_sentiment", functools.partial(_instruct, without=("pleased",)))
_add("micro_lessons", functools.partial(_instruct, tasks=instruct.LESSONS))
_add("corpus_text", _corpus_text, text_only=True)
_add("corpus_ratings", _corpus_ratings)

# Stage 1, `runs/pretrain.gin`: the language. Stages 2 and 3, `runs/instruct.gin`: first lessons,
# then instructions in many forms.
_LANGUAGE = [("micro_text", 0.65), ("corpus_text", 0.35)]
_REST = [("corpus_ratings", 0.05), ("micro_text", 0.08), ("corpus_text", 0.02)]
for _name, _parts in {
    "micro_language": _LANGUAGE,
    "micro_first_lessons": [("micro_lessons", 0.92), ("micro_text", 0.06), ("corpus_text", 0.02)],
    "micro_mixture": [("micro_instruct", 0.85), *_REST],
    "micro_mixture_no_sentiment": [("micro_instruct_no_sentiment", 0.85), *_REST[1:]],
}.items():
    seqio.MixtureRegistry.add(_name, _parts)
