"""Two-way distinctions of pretraining, in other domains and words than the embedded tasks'."""

import dataclasses
from collections.abc import Callable

from prompt_jax.data.micro import events, families, records
from prompt_jax.data.micro.domains import HOTEL, OTHERS, RESTAURANT
from prompt_jax.data.micro.draws import Draws
from prompt_jax.data.micro.lexicon import ALL
from prompt_jax.data.micro.names import CITIES, JOBS, NAMES
from prompt_jax.data.micro.opinion import article, clause, neutral, review


@dataclasses.dataclass(frozen=True)
class Distinction:
    """A question with two sides, 0 and 1.

    openings: words that ask for it without a label. natural: (question, label of side 0, label of
    side 1). text: (draws, side) -> a text of that side.
    """

    name: str
    openings: tuple[str, ...]
    natural: tuple[tuple[str, str, str], ...]
    text: Callable[[Draws, int], str]


def _opinion(draws: Draws, side: int) -> str:
    return review(draws, draws.pick(OTHERS), ALL, side)


def _clause(draws: Draws, side: int) -> str:
    return clause(draws, draws.pick(OTHERS), ALL, side) + "."


def _word(draws: Draws, side: int) -> str:
    lists = (ALL.adjectives, ALL.adjectives, ALL.people, ALL.verbs, ALL.adverbs, ALL.nouns)
    return draws.pick(draws.pick((*lists, ALL.idioms, ALL.endings))[side])


_PAIR_FORMS = ("{} / {}", "one: {} two: {}", "first: {} second: {}", "a. {} b. {}", "{} | {}")
_PAIR_FORMS += ("{} compare: {}", "{} versus: {}", "he said: {} she said: {}")
_TEXT_FORMS = ("{} so: {}", "facts: {} claim: {}", "given: {} guess: {}", "story: {} then: {}")
_TEXT_FORMS += ("{} therefore: {}", "known: {} said: {}", "{} | {}", "read: {} check: {}")


def _same(draws: Draws, side: int) -> str:
    return draws.pick(_PAIR_FORMS).format(*events.same_meaning(draws, events.TOWN, side == 1))


def _follows(draws: Draws, side: int) -> str:
    return draws.pick(_TEXT_FORMS).format(*events.follows(draws, events.TOWN, side == 1))


def _stated(draws: Draws, side: int) -> str:
    family = draws.pick(families.PRETRAINING)
    text, facts = records.passage(draws, family, 2 + draws.below(2))
    fact = draws.pick(facts)
    value = fact.value if side else records.wrong_value(draws, facts, fact)
    claim = records.state(draws, fact, value) + "."
    if draws.chance(0.5):
        return draws.pick(_TEXT_FORMS).format(text, claim)
    return draws.pick(("claim: {} facts: {}", "{} / {}", "check: {} read: {}")).format(claim, text)


def _tense(draws: Draws, side: int) -> str:
    told = events.regular(draws, events.TOWN)
    if side:
        return f"{events.tell(draws, told)}."
    thing = article(told.thing[0])
    will = draws.pick(("will {}", "is going to {}", "plans to {}", "shall {}")).format(told.verb[0])
    return f"{told.name} {will} {thing} {draws.pick(('', told.place))}".strip() + "."


def _number(draws: Draws, side: int) -> str:
    noun = draws.pick(events.TOWN.objects)[0]
    many = draws.pick(("two", "three", "some", "many", "several", "a few"))
    thing = f"{many} {plural(noun)}" if side else article(noun)
    return f"{draws.pick(NAMES)} {draws.pick(('saw', 'has', 'found', 'wants'))} {thing}."


def plural(noun: str) -> str:
    """A regular plural."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun[-1] in "sx" or noun[-2:] in ("ch", "sh") else "s")


def _place(draws: Draws, side: int) -> str:
    lists = (NAMES, CITIES)
    carriers = ("{}", "{}", "i saw {}", "we spoke of {}", "they wrote about {}", "tell me about {}")
    return draws.pick(carriers).format(draws.pick(lists[side]))


def _colour(draws: Draws, side: int) -> str:
    told = events.event(draws, events.TOWN)
    return events.tell(draws, told if side else dataclasses.replace(told, colour="")) + "."


def _topic(draws: Draws, side: int) -> str:
    domain = draws.pick(_SPORTS if side else _ARTS)
    if draws.chance(0.5):
        return neutral(draws, domain) + f". the {draws.pick(domain.things)[0]}"
    return clause(draws, domain, ALL, draws.below(2))


def _person_or_thing(draws: Draws, side: int) -> str:
    domain = draws.pick((*OTHERS, HOTEL, RESTAURANT))
    words = [noun[0] for noun in (domain.things if side else domain.people)]
    return draws.pick(words if side else [*words, *JOBS]).removesuffix("*")


def _grown(draws: Draws, side: int) -> str:
    noun = draws.pick([o for o in events.TOWN.objects if (o[1] in _LIVING) == bool(side)])[0]
    return draws.pick(("{}", "{}", "the {}", "we saw the {}")).format(noun)


def _question(draws: Draws, side: int) -> str:
    if side:
        family = draws.pick(families.PRETRAINING)
        return records.ask(draws, records.passage(draws, family, 1)[1][0])
    return records.passage(draws, draws.pick(families.PRETRAINING), 1)[0].rstrip(".")


_LIVING = ("animal", "plant", "fruit")
_ARTS = tuple(d for d in OTHERS if d.name in ("book", "film", "concert", "museum", "recipe"))
_SPORTS = tuple(d for d in OTHERS if d.name in ("match", "car", "tool", "gadget", "journey"))

PLEASED = Distinction(
    "pleased",
    ("", "", "is it", "was it", "say", "answer", "choose", "mood:", "we say", "the writer says")
    + ("tell me", "verdict:", "the opinion is"),
    (
        ("is the writer pleased or upset", "upset", "pleased"),
        ("happy or sad", "sad", "happy"),
        ("is the person glad or sorry", "sorry", "glad"),
        ("do they like it or dislike it", "dislike", "like"),
        ("praise or complaint", "complaint", "praise"),
        ("is it good or bad", "bad", "good"),
        ("would they buy it again or never", "never", "again"),
        ("thumbs up or thumbs down", "down", "up"),
        ("what does the writer feel, joy or anger", "anger", "joy"),
        ("do they love it or hate it", "hate", "love"),
        ("should others try it or avoid it", "avoid", "try"),
    ),
    lambda draws, side: _clause(draws, side) if draws.chance(0.3) else _opinion(draws, side),
)
WORD_MOOD = Distinction(
    "word_mood",
    ("", "is it", "mood:"),
    (
        ("is this praise or complaint", "complaint", "praise"),
        ("good or bad", "bad", "good"),
        ("sunny or sour word", "sour", "sunny"),
        ("like or dislike", "dislike", "like"),
        ("happy or sad words", "sad", "happy"),
    ),
    _word,
)
SAME = Distinction(
    "same",
    ("same meaning:", "the same?", "do they agree,", "compare:", "both:"),
    (
        ("do both say the same thing", "unlike", "alike"),
        ("same meaning or another meaning", "another", "same"),
        ("is the second a copy in other words", "change", "copy"),
        ("do the two lines match", "clash", "match"),
    ),
    _same,
)
FOLLOWS = Distinction(
    "follows",
    ("does it follow,", "conclude", "can we conclude,", "so:"),
    (
        ("does the second follow from the first", "open", "follows"),
        ("must it be so or is it a guess", "guess", "must"),
        ("is that certain or doubtful", "doubtful", "certain"),
        ("can we conclude it", "unproven", "proven"),
    ),
    _follows,
)
STATED = Distinction(
    "stated",
    ("is that so,", "check the claim:", "is the claim", "fact check"),
    (
        ("true or false", "false", "true"),
        ("is the claim right or wrong", "wrong", "right"),
        ("lie or truth", "lie", "truth"),
        ("is it correct", "incorrect", "correct"),
    ),
    _stated,
)
SMALL = (
    Distinction(
        "tense",
        ("time:", "when,"),
        (("past or future", "future", "past"), ("is it done or planned", "planned", "done")),
        _tense,
    ),
    Distinction(
        "number",
        ("how many,", "count:"),
        (("singular or plural", "singular", "plural"), ("one or many", "one", "many")),
        _number,
    ),
    Distinction(
        "place",
        ("who or where,", "name:"),
        (("person or place", "person", "place"), ("who or where", "who", "where")),
        _place,
    ),
    Distinction(
        "colour",
        ("colour:", "any colour,"),
        (("is a colour told", "plain", "coloured"),),
        _colour,
    ),
    Distinction(
        "topic",
        ("topic:", "about"),
        (("arts or machines", "arts", "machines"),),
        _topic,
    ),
    Distinction(
        "thing",
        ("what or who,", "noun:"),
        (("person or thing", "person", "thing"), ("someone or something", "someone", "something")),
        _person_or_thing,
    ),
    Distinction(
        "living",
        ("alive:", "did it grow,"),
        (("made or grown", "made", "grown"), ("dead thing or living thing", "dead", "living")),
        _grown,
    ),
    Distinction(
        "question",
        ("is this asked,", "kind of sentence:"),
        (("ask or tell", "tell", "ask"), ("told or asked", "told", "asked")),
        _question,
    ),
)  # fmt: skip
