"""Choices that need common sense, of the Rainbow suite (Lourie et al. 2021): CosmosQA, HellaSwag,
PIQA, WinoGrande."""

from prompt_jax.data.source import Row, Source
from prompt_jax.data.task import register_mixture, register_text_task

FAMILY = "commonsense"


def _endings(row: Row) -> str:
    choices = " ".join(f"choice{i}: {text}" for i, text in enumerate(row["endings"], 1))
    return f"{choices} context: {row['context']}"


def _choices(count: int) -> dict[str, str]:
    return {f"choice{i}": f"choice{i}" for i in range(1, count + 1)}


_SPLITS = ("train", "validation")
register_text_task(
    "cosmos_qa",
    Source("cosmos_qa", "cosmos_qa", _SPLITS),
    "choice1: {answer0} choice2: {answer1} choice3: {answer2} choice4: {answer3} "
    "question: {question} context: {context}",
    verbalizers=_choices(4),
    family=FAMILY,
)
register_text_task(
    "hellaswag",
    Source("hellaswag", "hellaswag", _SPLITS),
    _endings,
    verbalizers=_choices(4),
    family=FAMILY,
)
register_text_task(
    "piqa",
    Source("piqa", "piqa", _SPLITS),
    "choice1: {sol1} choice2: {sol2} goal: {goal}",
    verbalizers=_choices(2),
    family=FAMILY,
)
register_text_task(
    "winogrande",
    Source("winogrande", "winogrande", _SPLITS, tfds_splits={"train": "train_xl"}),
    "choice1: {option1} choice2: {option2} sentence: {sentence}",
    verbalizers=_choices(2),
    family=FAMILY,
)
register_mixture(
    "rainbow", ("cosmos_qa", "hellaswag", "piqa", "winogrande"), cap=2**19, family=FAMILY
)
