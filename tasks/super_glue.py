"""SuperGLUE, all eight (Wang et al. 2019). Text as T5 casts it, without the name of the task.

WSC is the generation of the referent: only true pairs
train, and an answer that names the referent says "True" (Raffel et al. 2020, section 2.4).
"""

import functools
import hashlib
import re

from prompt_jax.tasks import glue

from prompt_jax.data import metrics
from prompt_jax.data.source import Row, Source
from prompt_jax.data.task import (
    Choose,
    Task,
    as_list,
    references,
    register,
    register_mixture,
    register_text_task,
)
from prompt_jax.errors import UserError

FAMILY = "super_glue"
_TRUTH = {"False": "False", "True": "True"}

register_text_task(
    "boolq",
    Source("boolq", "super_glue/boolq"),
    "passage: {passage} question: {question}",
    verbalizers=_TRUTH,
    family=FAMILY,
)
_CB = ("entailment", "contradiction", "neutral")
register_text_task(
    "cb",
    Source("cb", "super_glue/cb"),
    "hypothesis: {hypothesis} premise: {premise}",
    verbalizers={name: name for name in _CB},
    metrics=(metrics.accuracy, functools.partial(metrics.macro_f1, labels=_CB)),
    family=FAMILY,
)
register_text_task(
    "copa",
    Source("copa", "super_glue/copa"),
    "choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
    verbalizers={"choice1": "choice1", "choice2": "choice2"},
    family=FAMILY,
)
register_text_task(
    "wic",
    Source("wic", "super_glue/wic"),
    "sentence1: {sentence1} sentence2: {sentence2} word: {word}",
    verbalizers=_TRUTH,
    family=FAMILY,
)

# --- MultiRC: every option of a question is an example ---

_OPTION = Choose("question: {question} answer: {answer} paragraph: {paragraph}", _TRUTH)


def _option(row: Row, split: str) -> list[dict]:
    """An option, without markup; `question_id` tells which ones belong together."""
    row = {**row, **{name: _plain_text(row[name]) for name in ("paragraph", "question", "answer")}}
    text = f"{row['paragraph']}\n{row['question']}"
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return [{**example, "idx": 0, "question_id": name} for example in _OPTION(row, split)]


def _plain_text(text: str) -> str:
    return re.sub(r"</?b>", "", text.replace("<br>", " "))


def _of_question(example: Row) -> dict:
    return {"question": example["question_id"], "label": example["targets_pretokenized"]}


register(
    Task(
        "multirc",
        Source("multirc", "super_glue/multirc"),
        _option,
        (metrics.multirc, functools.partial(metrics.invalid, labels=("False", "True"))),
        target=_of_question,
        labels=("False", "True"),
        family=FAMILY,
    )
)

# --- ReCoRD: the answer is one of the passage's entities ---


def _entities(row: Row, split: str) -> list[dict]:
    """One example per right answer in training, one per query elsewhere."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"])
    passage = passage.replace("\n@highlight\n", ". ")
    named = ", ".join(row["entities"])
    inputs = f"query: {row['query']} entities: {named} passage: {passage}"
    answers = as_list(row["answers"])
    if not answers:
        raise UserError(f"row {row['idx']}: no answers; the split has no labels")
    trained = list(dict.fromkeys(answers)) if split == "train" else answers[:1]
    extra = {"references": answers, "entities": list(row["entities"])}
    return [{"inputs": inputs, "targets": answer, **extra} for answer in trained]


register(
    Task(
        "record",
        Source("record", "super_glue/record"),
        _entities,
        (metrics.squad,),
        target=references,
        family=FAMILY,
    )
)

# --- WSC: which noun does the pronoun between asterisks mean? ---

_DETERMINERS = frozenset(
    "a an few he her his each every many much my our some that the their these this those which "
    "whose your its".split()
)


_TRUE = Choose("{text}", _TRUTH)


def _referent(row: Row, split: str) -> list[dict]:
    """The pronoun is marked; rows whose noun is not its referent train nothing."""
    label = _TRUE.word(row) == "True"
    if split == "train" and not label:
        return []
    words, pronoun = row["text"].split(" "), row["span2_text"]
    at = int(row["span2_index"])
    before, rest = " ".join(words[:at]), " ".join(words[at:])
    rest = rest.replace(pronoun, f"*{pronoun}*", 1)  # commas and the like stay outside
    words = [before, rest] if before else [rest]
    noun = row["span1_text"]
    return [{"inputs": " ".join(words), "targets": noun, "noun": noun, "label": label}]


def names(answer: str, noun: str) -> bool:
    """Whether an answer names a noun: one's words lie among the other's, determiners aside.

    "Bob" does not name "Bob's father".
    """
    if ("'" in answer) != ("'" in noun):
        return False
    words = [
        {w for w in re.sub(r"[^\w ]", " ", text.lower()).split() if w not in _DETERMINERS}
        for text in (answer, noun)
    ]
    return bool(words[0] and words[1]) and (words[0] <= words[1] or words[1] <= words[0])


def _named(text: str, example: Row) -> bool:
    return names(text, example["noun"])


def _is_referent(example: Row) -> bool:
    return bool(example["label"])


register(
    Task(
        "wsc",
        Source("wsc", "super_glue/wsc.fixed"),
        _referent,
        (metrics.accuracy,),
        answer=_named,
        target=_is_referent,
        family=FAMILY,
    )
)

register_text_task(
    "super_glue_rte",
    Source("rte", "glue/rte"),
    "hypothesis: {sentence2} premise: {sentence1}",
    verbalizers={"entailment": "entailment", "not_entailment": "not_entailment"},
    family=FAMILY,
)

TASKS = ("boolq", "cb", "copa", "multirc", "record", "super_glue_rte", "wic", "wsc")
register_mixture("super_glue", TASKS, cap=2**19, family=FAMILY)
register_mixture("super_glue_equal", TASKS, family=FAMILY)
_BOTH = tuple(dict.fromkeys((*glue.TASKS, *TASKS)))
register_mixture("glue_and_super_glue", _BOTH, cap=2**19, family=FAMILY)
