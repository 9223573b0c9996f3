"""The embedded tasks other than sentiment, and one function for all of them."""

from prompt_jax.data.micro import events, families, records, sentiment
from prompt_jax.data.micro.draws import Draws, blocks, in_split

SPLITS = {"train": 8_000, "validation": 500, "test": 1_000}
ENTAILMENT = ("not_entailment", "entailment")
PARAPHRASE = ("different", "equivalent")
BOOLQ = ("no", "yes")
_SCENES = {"micro_paraphrase": events.OFFICE, "micro_paraphrase_shift": events.FARM}
_FAMILIES = {
    "micro_qa": families.WORKERS,
    "micro_qa_shift1": families.SHIPS,
    "micro_qa_shift2": families.PLAYS,
    "micro_qa_shift3": families.VILLAGES,
}
NAMES = (*sentiment.DOMAINS, "micro_entailment", *_SCENES, "micro_boolq", *_FAMILIES)


def _entailment(draws: Draws, index: int) -> dict:
    premise, hypothesis = events.follows(draws, events.HOME, index % 2 == 1)
    return {
        "inputs": f"premise: {premise} hypothesis: {hypothesis}",
        "targets": ENTAILMENT[index % 2],
    }


def _boolq(draws: Draws, index: int) -> dict:
    text, facts = records.passage(draws, families.SHOPS, 3)
    fact = draws.pick(facts)
    value = fact.value if index % 2 else records.wrong_value(draws, facts, fact)
    question = records.ask(draws, fact, value)
    return {"inputs": f"question: {question}? passage: {text}", "targets": BOOLQ[index % 2]}


def _paraphrase(draws: Draws, index: int, scene: events.Scene) -> dict:
    first, second = events.same_meaning(draws, scene, index % 2 == 1)
    return {
        "inputs": f"sentence1: {first} sentence2: {second}",
        "targets": PARAPHRASE[index % 2],
    }


def _qa(draws: Draws, family: records.Family) -> dict:
    text, facts = records.passage(draws, family, 3)
    fact = draws.pick(facts)
    return {
        "inputs": f"question: {records.ask(draws, fact)}? context: {text}",
        "targets": fact.value,
    }


def examples(name: str, split: str, seed: int, start: int, count: int) -> list[dict]:
    """Examples of an embedded task; labels come in turn, so every even range is balanced.

    Args:
        name: one of NAMES.
        split: train, validation or test; no text lies in two of them, whatever the seed.
        seed: of the stream.
        start: first index.
        count: how many.

    Returns:
        {"inputs", "targets"} each (sentiment: "unseen" too).
    """
    if name in sentiment.DOMAINS:
        return sentiment.examples(split, seed, start, count, task=name)

    def once(draws: Draws, index: int) -> dict:
        if name == "micro_entailment":
            return _entailment(draws, index)
        if name == "micro_boolq":
            return _boolq(draws, index)
        if name in _SCENES:
            return _paraphrase(draws, index, _SCENES[name])
        return _qa(draws, _FAMILIES[name])

    def make(draws: Draws, index: int) -> dict:
        example = once(draws, index)
        while not in_split(example["inputs"], split):
            example = once(draws, index)
        return example

    return blocks(name, split, seed, start, count, make)
