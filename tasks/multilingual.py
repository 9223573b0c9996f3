"""Tasks in many languages, for mT5, umT5 and ByT5; a task per language and a mixture of all.

XNLI (Conneau et al. 2018), PAWS-X (Yang et al. 2019), TyDi QA GoldP (Clark et al. 2020), MLQA
(Lewis et al. 2020), XQuAD (Artetxe et al. 2020). XNLI trains on `mnli`, MLQA and XQuAD on `squad`.
Answers are compared as SQuAD compares them, whatever the language: for text without blanks between
words (zh, th) that is stricter than MLQA's own script, so such numbers are not the published ones.
"""

import functools

from prompt_jax.data.source import Source
from prompt_jax.data.task import register_extraction_task, register_mixture, register_text_task

FAMILY = "multilingual"
XNLI = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
PAWS_X = ("de", "en", "es", "fr", "ja", "ko", "zh")
MLQA = ("ar", "de", "en", "es", "hi", "vi", "zh")
XQUAD = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")


def _one_language(row: dict, language: str) -> dict:
    """TFDS holds all translations of a pair in one row."""
    hypothesis = row["hypothesis"]
    at = hypothesis["language"].index(language)
    said = hypothesis["translation"][at]
    return {"premise": row["premise"][language], "hypothesis": said, "label": row["label"]}


def _answers(row: dict) -> dict:
    """TFDS' answers with their places -> their texts."""
    return {**row, "answers": row["answers"]["text"]}


for _language in XNLI:
    register_text_task(
        f"xnli_{_language}",
        Source(
            "xnli",
            "xnli",
            ("validation", "test"),
            file="{split}." + _language,
            tidy=functools.partial(_one_language, language=_language),
        ),
        "hypothesis: {hypothesis} premise: {premise}",
        verbalizers={name: name for name in ("entailment", "neutral", "contradiction")},
        family=FAMILY,
    )
for _language in PAWS_X:
    register_text_task(
        f"paws_x_{_language}",
        Source("paws_x", f"paws_x_wiki/{_language}", file="{split}." + _language),
        "sentence1: {sentence1} sentence2: {sentence2}",
        verbalizers={"different_meaning": "different_meaning", "paraphrase": "paraphrase"},
        family=FAMILY,
    )
register_extraction_task(
    "tydiqa_goldp",
    Source("tydiqa_goldp", "tydi_qa", ("train", "validation"), tidy=_answers),
    family=FAMILY,
)
for _set, _languages, _splits in (
    ("mlqa", MLQA, ("validation", "test")),
    ("xquad", XQUAD, ("test",)),
):
    for _language in _languages:
        register_extraction_task(
            f"{_set}_{_language}",
            Source(
                _set,
                f"{_set}/{_language}",
                _splits,
                file="{split}." + _language,
                tidy=_answers,
            ),
            family=FAMILY,
        )
for _set, _languages in (("xnli", XNLI), ("paws_x", PAWS_X), ("mlqa", MLQA), ("xquad", XQUAD)):
    register_mixture(_set, [f"{_set}_{_language}" for _language in _languages], family=FAMILY)
