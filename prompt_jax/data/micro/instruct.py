"""Generated instructions, in lessons: what makes a small frozen T5 promptable.

A prompt steers a decoder that takes its labels from the words before the text. That is learned in
steps, each with a short plateau when it comes alone and none within reach when all come at once:
CUES choose one of two words; WORDS are good or bad; QUESTIONS ask in words and have fixed labels;
LABELS judge a text by two labels drawn anew for each example; MOODS the same in many forms; MIXTURE
is all of it, with every distinction. FOLLOW and PAIRS compare two sentences: first with one pair of
labels, then with labels drawn anew, of one piece or several.
Source: the idea of instruction mixtures is FLAN's (Wei et al. 2022); texts here are all generated.
"""

import functools
import importlib.resources
from collections.abc import Callable

from prompt_jax.data.micro import events, families, names, records
from prompt_jax.data.micro.distinctions import (
    FOLLOWS,
    PLEASED,
    SAME,
    SMALL,
    STATED,
    WORD_MOOD,
    Distinction,
)
from prompt_jax.data.micro.draws import Draws, blocks

_NATURAL = (
    "{}?",
    "{}:",
    "tell me: {}?",
    "question. {}? answer with one word.",
    "decide: {}.",
    "{} =",
)
_NATURAL += ("please say: {}?", "{}? options: {a}, {b}.", "read this. {}?", "classify: {}.")
_MARKS = (" text: ", " ", " ", " input: ", ": ", " here it is: ", " the text: ", " read: ", " - ")
_BETWEEN = (" or ", " or ", " / ", ", ", " ")
_AFTER = (" ? ", " : ", ". ", " text: ", "? ")


@functools.cache
def label_words() -> tuple[str, ...]:
    """Words that may be a label: no opinion words and none of the embedded tasks' labels."""
    folder = importlib.resources.files("prompt_jax") / "assets" / "vocabulary"
    return tuple((folder / "label_words.txt").read_text().split())


def asked(draws: Draws, task: Distinction, text: str, side: int) -> dict:
    """An ordinary question with labels of its own, then the text: {"inputs", "targets"}."""
    question, *labels = draws.pick(task.natural)
    a = draws.below(2)
    prefix = draws.pick(_NATURAL).format(question, a=labels[a], b=labels[1 - a])
    return {"inputs": f"{prefix}{draws.pick(_MARKS)}{text}", "targets": labels[side]}


def asked_plainly(draws: Draws, task: Distinction, text: str, side: int) -> dict:
    """The first of its questions, in one form: {"inputs", "targets"}."""
    question, *labels = task.natural[0]
    return {"inputs": f"{question}? {text}", "targets": labels[side]}


def one_piece(draws: Draws) -> tuple[str, str]:
    """Two labels that are words of the vocabulary."""
    return draws.two(label_words())


def any_labels(draws: Draws) -> tuple[str, str]:
    """Two labels: words, two words as one, or a word and its denial with "not_"."""
    words = one_piece(draws)
    form = draws.uniform()
    if form < 0.5:
        return words
    if form < 0.7:
        return f"{words[0]}_{draws.pick(label_words())}", words[1]
    pair = (f"not_{words[0]}", words[0])
    return pair if draws.chance(0.7) else pair[::-1]


def told(draws: Draws, task: Distinction, text: str, side: int, pair=one_piece) -> dict:
    """Two labels drawn anew, that of side 1 first, then the text: {"inputs", "targets"}."""
    labels = pair(draws)
    prefix = f"{draws.pick(task.openings)} {labels[1]}{draws.pick(_BETWEEN)}{labels[0]}"
    return {"inputs": f"{prefix}{draws.pick(_AFTER)}{text}".strip(), "targets": labels[side]}


def plainly_told(draws: Draws, task: Distinction, text: str, side: int) -> dict:
    """The same in one form with few words: the first that is learned."""
    labels = draws.two(names.LABELS)
    return {"inputs": f"{labels[1]} or {labels[0]} ? {text}", "targets": labels[side]}


def _distinction(task: Distinction, cast: Callable) -> Callable[[Draws], dict]:
    def make(draws: Draws) -> dict:
        side = draws.below(2)
        return cast(draws, task, task.text(draws, side), side)

    return make


def _say(draws: Draws) -> dict:
    word = draws.pick(label_words())
    return {"inputs": f"say {word}", "targets": word}


def _say_any(draws: Draws) -> dict:
    word = any_labels(draws)[draws.below(2)]
    return {"inputs": f"say {word}", "targets": word}


def _cue(draws: Draws) -> dict:
    # Balanced cues leave no slope towards either place: a plateau of thousands of steps. At 4 to 1
    # the first place is learned at once, then when to leave it.
    side = int(draws.chance(0.8))
    labels = draws.two(names.LABELS)
    inputs = f"{labels[1]} or {labels[0]} ? {('bad', 'good')[side]}"
    return {"inputs": inputs, "targets": labels[side]}


def _word(draws: Draws) -> dict:
    side = draws.below(2)
    question, *labels = WORD_MOOD.natural[1]  # one pair of labels: learned in fifty steps
    return {"inputs": f"{question}? {WORD_MOOD.text(draws, side)}", "targets": labels[side]}


_ASK = (
    "answer from the notes. ask: {q}? notes: {p}", "notes: {p} ask: {q}?", "{p} {q}?", "{q}? {p}",
    "read this: {p} now tell me, {q}?", "find the answer. {q}? text: {p}", "{q}? look it up: {p}",
    "someone asks: {q}? you know that {p}", "extract the words that answer \"{q}\" from: {p}",
    "give a short answer. {p} {q}?", "story: {p} quiz: {q}? reply:",
    "what do you answer to {q}? the facts are: {p}",
)  # fmt: skip


def _extract(draws: Draws) -> dict:
    if draws.chance(0.3):
        told = events.regular(draws, events.TOWN)
        text = events.tell(draws, told) + "."
        thing, past = told.thing[0], told.verb[1]
        question, answer = draws.pick(
            (
                (f"who {past} the {thing}", told.name),
                (f"what did {told.name} {told.verb[0]}", f"{told.colour} {thing}"),
                (f"where did {told.name} {told.verb[0]} the {thing}", told.place),
                (f"when did {told.name} {told.verb[0]} the {thing}", told.time),
                (f"what colour was the {thing}", told.colour),
            )
        )
        if answer not in text:  # the passive: places may be split by the time
            answer = told.name
            question = f"who {past} the {thing}"
    else:
        family = draws.pick(families.PRETRAINING)
        text, facts = records.passage(draws, family, 2 + draws.below(2))
        fact = draws.pick(facts)
        question, answer = records.ask(draws, fact), fact.value
    return {"inputs": draws.pick(_ASK).format(q=question, p=text), "targets": answer}


Maker = Callable[[Draws], dict]
Table = tuple[tuple[str, float, Maker], ...]


def _each(tasks: dict[Distinction, float], cast: Callable) -> Table:
    return tuple((task.name, weight, _distinction(task, cast)) for task, weight in tasks.items())


_ALL = {PLEASED: 0.40, WORD_MOOD: 0.16, SAME: 0.14, FOLLOWS: 0.12, STATED: 0.10}
_ALL |= dict.fromkeys(SMALL, 0.01)
QUESTIONS: Table = _each(_ALL, asked)
WORDS: Table = (("word", 1.0, _word),)
CUES: Table = (("cue", 1.0, _cue),)
LABELS: Table = (
    *_each({PLEASED: 0.18, WORD_MOOD: 0.12}, asked),
    *_each({PLEASED: 0.45, WORD_MOOD: 0.20}, plainly_told),
    ("cue", 0.05, _cue),
)
MOODS: Table = (
    *_each({PLEASED: 0.25, WORD_MOOD: 0.05}, asked),
    *_each({PLEASED: 0.50, WORD_MOOD: 0.10}, told),
    ("extract", 0.05, _extract),
    ("say", 0.03, _say),
    ("cue", 0.02, _cue),
)
FOLLOW: Table = _each({FOLLOWS: 1.0}, asked_plainly)
PAIRS: Table = (
    *_each({FOLLOWS: 0.30}, asked),
    *_each({FOLLOWS: 0.30, PLEASED: 0.10}, told),
    *_each({FOLLOWS: 0.22}, functools.partial(told, pair=any_labels)),
    ("say", 0.06, _say_any),
    ("cue", 0.02, _cue),
)
MIXTURE: Table = (
    *_each({PLEASED: 0.14, WORD_MOOD: 0.04, SAME: 0.03, FOLLOWS: 0.03, STATED: 0.03}, asked),
    *_each(dict.fromkeys(SMALL, 0.01), asked),
    *_each({PLEASED: 0.36, WORD_MOOD: 0.06, SAME: 0.03, FOLLOWS: 0.03, STATED: 0.03}, told),
    *_each(dict.fromkeys(SMALL, 0.01), told),
    ("extract", 0.03, _extract),
    ("say", 0.02, _say),
    ("cue", 0.01, _cue),
)
# Every task that asks for a mood: what the ablation leaves out.
SENTIMENT = (PLEASED.name, WORD_MOOD.name, "cue")


def examples(
    split: str,
    seed: int,
    start: int,
    count: int,
    *,
    tasks: Table = MIXTURE,
    without: tuple[str, ...] = (),
) -> list[dict]:
    """Instruction examples.

    Args:
        split: its name seeds the stream.
        seed: likewise.
        start: first index.
        count: how many.
        tasks: one of the tables above.
        without: names of tasks to leave out.

    Returns:
        {"inputs", "targets"} each.
    """
    ladder: list[Maker] = []
    for name, weight, make in tasks:
        ladder += [] if name in without else [make] * round(100 * weight)
    return blocks(
        "micro_instruct", split, seed, start, count, lambda draws, _: draws.pick(ladder)(draws)
    )
