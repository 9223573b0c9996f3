"""Generated instructions: text-to-text examples whose labels can only be read from their prefix.

What makes a small frozen T5 promptable is a decoder that takes its labels, and what to look for,
from the words before the text. So labels are drawn anew for most examples, out of hundreds of
ordinary words, and instructions vary in form and length.
Source: the idea of instruction mixtures is FLAN's (Wei et al. 2022); texts here are all generated.
"""

from collections.abc import Callable

from prompt_jax.data.micro import events, families, records
from prompt_jax.data.micro.distinctions import (
    ALIKE,
    FOLLOWS,
    PLEASED,
    SAME,
    SMALL,
    STATED,
    WORD_MOOD,
    Distinction,
)
from prompt_jax.data.micro.domains import HOTEL, OTHERS, RESTAURANT
from prompt_jax.data.micro.draws import Draws, blocks
from prompt_jax.data.micro.lexicon import ALL
from prompt_jax.data.micro.names import CODE_SYLLABLES, LABELS, NUMBERS
from prompt_jax.data.micro.opinion import clause, neutral

# {a} is the label where {A} holds, {b} where {B} holds; the text comes last.
_FORMS = (
    "choose {a} if {A}, otherwise choose {b}.", "if {A} answer {a}; if {B} answer {b}.",
    "say {a} when {A} and {b} when {B}.", "{a}: {A}. {b}: {B}.", "{a} means {A}, {b} means {B}.",
    "options: {a} / {b}. {a} means that {A}.", "write {a} if {A}, else {b}.",
    "{A}? then {a}. {B}? then {b}.", "when {A}, reply {a}; when {B}, reply {b}.",
    "{a} if {A} else {b}", "your answer is {a} if {A} and {b} if {B}.", "{a} = {A} ; {b} = {B}",
    "pick one of {a} and {b}. {a} stands for: {A}. {b} stands for: {B}.", "{A}: {a}. or else: {b}.",
    "label the text with {a} if {A}; label it with {b} if {B}.", "{A} -> {a} | {B} -> {b}",
    "read the text and tell me {a} if you think that {A}, but {b} if you think that {B}.",
    "we call it {a} if {A}. we call it {b} if {B}. what do we call this?", "{a} or {b}? ({a}: {A})",
    "the code is {a} for texts where {A} and {b} for all the others.",
    "map {A} to {a}, {B} to {b}.",
)  # fmt: skip
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
CODES = 3
# Shares of the forms of an instruction: labels drawn anew and stated, an ordinary question, a code
# with labels of its own; the rest shows two solved examples.
STATED_LABELS, QUESTION, CODE = 0.25, 0.35, 0.32


def _code(name: str, index: int) -> tuple[str, str, str]:
    """A made-up task name and its fixed labels."""
    draws = Draws(f"code {name}", index)
    count = 2 + draws.below(5)
    words = ["".join(draws.sample(CODE_SYLLABLES, 1 + draws.below(2))) for _ in range(count)]
    return (" ".join(words), *draws.two(LABELS))


_CODES = {
    task.name: tuple(_code(task.name, index) for index in range(CODES))
    for task in (PLEASED, WORD_MOOD, ALIKE, SAME, FOLLOWS, STATED, *SMALL)
}


def asked(draws: Draws, task: Distinction, text: str, side: int) -> dict:
    """An ordinary question with labels of its own, then the text: {"inputs", "targets"}."""
    question, *labels = draws.pick(task.natural)
    a = draws.below(2)
    prefix = draws.pick(_NATURAL).format(question, a=labels[a], b=labels[1 - a])
    return {"inputs": f"{prefix}{draws.pick(_MARKS)}{text}", "targets": labels[side]}


def classify(draws: Draws, task: Distinction, text: str, side: int) -> dict:
    """An instruction for a distinction, a text of a side, and the label that the prefix gives it.

    Args:
        draws: stream.
        task: the distinction.
        text: to be judged.
        side: of the text.

    Returns:
        {"inputs", "targets"}.
    """
    form = draws.uniform()
    mark = draws.pick(_MARKS)
    if form < STATED_LABELS:
        labels = draws.two(LABELS)
        a = draws.below(2)  # which side is named first
        prefix = draws.pick(_FORMS).format(
            a=labels[a], b=labels[1 - a],
            A=draws.pick(task.conditions[a]), B=draws.pick(task.conditions[1 - a]),
        )  # fmt: skip
    elif form < STATED_LABELS + QUESTION:
        return asked(draws, task, text, side)
    elif form < STATED_LABELS + QUESTION + CODE:
        prefix, *labels = draws.pick(_CODES[task.name])
    else:
        labels = draws.two(LABELS)
        a = draws.below(2)
        shown = [f"{task.text(draws, s)} => {labels[s]}." for s in (a, 1 - a)]
        return {"inputs": f"{' '.join(shown)} {text} =>", "targets": labels[side]}
    if draws.chance(0.06):
        return {"inputs": f"{text} {prefix}", "targets": labels[side]}
    return {"inputs": f"{prefix}{mark}{text}", "targets": labels[side]}


def _distinction(task: Distinction, cast: Callable = classify) -> Callable[[Draws], dict]:
    def make(draws: Draws) -> dict:
        side = draws.below(2)
        return cast(draws, task, task.text(draws, side), side)

    return make


_ASK = (
    "answer from the notes. ask: {q}? notes: {p}", "notes: {p} ask: {q}?", "{p} {q}?", "{q}? {p}",
    "read this: {p} now tell me, {q}?", "find the answer. {q}? text: {p}", "{q}? look it up: {p}",
    "someone asks: {q}? you know that {p}", "extract the words that answer \"{q}\" from: {p}",
    "give a short answer. {p} {q}?", "vexgan tavmib. {q}? {p}", "story: {p} quiz: {q}? reply:",
    "jolkem rud. {p} {q}?", "what do you answer to {q}? the facts are: {p}", "lup lup. {q} / {p}",
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


_COPY = (
    ("repeat the first word: {}", 0), ("first word? {}", 0), ("say how this begins: {}", 0),
    ("the word at the start of: {}", 0), ("repeat the last word: {}", -1), ("last word? {}", -1),
    ("say how this ends: {}", -1), ("the word at the end of: {}", -1), ("second word of: {}", 1),
    ("name the second word. {}", 1), ("kem dex {}", 0), ("sil nul {}", -1),
)  # fmt: skip


def _copy(draws: Draws) -> dict:
    words = draws.sample(LABELS, 3 + draws.below(5))
    form, index = draws.pick(_COPY)
    return {"inputs": form.format(" ".join(words)), "targets": words[index]}


def _complete(draws: Draws) -> dict:
    domain = draws.pick((*OTHERS, HOTEL, RESTAURANT))
    mood = draws.below(2)
    text = neutral(draws, domain)
    if domain is not HOTEL and domain is not RESTAURANT:
        text += ". " + clause(draws, domain, ALL, mood)
    words = text.split()
    cut = max(len(words) - 1 - draws.below(3), 2)
    form = draws.pick(("go on: {}", "finish the line: {}", "continue: {}", "what comes next? {}"))
    return {"inputs": form.format(" ".join(words[:cut])), "targets": " ".join(words[cut:])}


_PLACES = (("hotel", HOTEL), ("restaurant", RESTAURANT), *((d.name, d) for d in OTHERS))

_SCENES = (events.TOWN, events.TOWN, events.TOWN, events.OFFICE, events.FARM, events.HOME)


def _category(draws: Draws) -> dict:
    if draws.chance(0.5):
        scene = draws.pick(_SCENES)
        noun, kind = draws.pick(scene.objects)
        form = draws.pick(("what kind of thing is a {}?", "{} is a kind of", "name the kind: {}"))
        return {"inputs": form.format(noun), "targets": kind}
    name, domain = draws.pick(_PLACES)
    noun = draws.pick((*domain.things, *domain.people))[0]
    form = draws.pick(("where do we meet this: {}?", "{} belongs to a", "this is part of what? {}"))
    return {"inputs": form.format(noun), "targets": name}


def _count(draws: Draws) -> dict:
    word, other = draws.two(LABELS)
    count = 1 + draws.below(5)
    words = draws.shuffled([word] * count + [other] * draws.below(3))
    form = draws.pick(("how many times {w}? {t}", "count {w}: {t}", "number of {w} in: {t}"))
    return {
        "inputs": form.format(w=word, t=" ".join(words)),
        "targets": ("one", *NUMBERS)[count - 1],
    }


def _select(draws: Draws) -> dict:
    """Which of two words or sentences has a mood."""
    side, first = draws.below(2), draws.below(2)
    task = WORD_MOOD if draws.chance(0.7) else PLEASED
    pair = [task.text(draws, side if place == first else 1 - side) for place in (0, 1)]
    labels = draws.two(LABELS)
    ask = draws.pick(
        ("which one shows that {}?", "find the part where {}.", "where is it so that {}?")
    )
    condition = draws.pick(PLEASED.conditions[side])
    text = f"{labels[0]}: {pair[0]} {labels[1]}: {pair[1]}"
    return {"inputs": f"{ask.format(condition)} {text}", "targets": labels[first]}


Maker = Callable[[Draws], dict]
TASKS: tuple[tuple[str, float, Maker], ...] = (
    ("pleased", 0.36, _distinction(PLEASED)),
    ("word_mood", 0.12, _distinction(WORD_MOOD)),
    ("alike", 0.02, _distinction(ALIKE)),
    ("select", 0.02, _select),
    ("same", 0.10, _distinction(SAME)),
    ("follows", 0.10, _distinction(FOLLOWS)),
    ("extract", 0.10, _extract),
    ("stated", 0.05, _distinction(STATED)),
    *((task.name, 0.01, _distinction(task)) for task in SMALL),
    ("copy", 0.02, _copy),
    ("complete", 0.01, _complete),
    ("category", 0.01, _category),
    ("count", 0.01, _count),
)
# Every task that asks for a mood: what the ablation leaves out.
SENTIMENT = ("pleased", "word_mood", "alike", "select")


# The first lessons: few fixed labels, ordinary questions. From these a small model learns what is
# asked for; from random weights the varied forms above teach it little for thousands of steps.
_LESSONS = ((PLEASED, 0.40), (WORD_MOOD, 0.16), (SAME, 0.14), (FOLLOWS, 0.12), (STATED, 0.10))
LESSONS: tuple[tuple[str, float, Maker], ...] = (
    *((task.name, weight, _distinction(task, asked)) for task, weight in _LESSONS),
    *((task.name, 0.01, _distinction(task, asked)) for task in SMALL),
)


def examples(
    split: str,
    seed: int,
    start: int,
    count: int,
    *,
    without: tuple[str, ...] = (),
    tasks: tuple[tuple[str, float, Maker], ...] = TASKS,
) -> list[dict]:
    """Instruction examples.

    Args:
        split: its name seeds the stream.
        seed: likewise.
        start: first index.
        count: how many.
        without: names of tasks to leave out ("pleased" leaves out all of SENTIMENT).
        tasks: TASKS, or LESSONS.

    Returns:
        {"inputs", "targets"} each.
    """
    gone = {*without, *(SENTIMENT if "pleased" in without else ())}
    ladder: list[Maker] = []
    for name, weight, make in tasks:
        ladder += [] if name in gone else [make] * round(100 * weight)
    return blocks(
        "micro_instruct", split, seed, start, count, lambda draws, _: draws.pick(ladder)(draws)
    )
