"""Sentences of opinion about a domain: the grammar of sentiment tasks and pretraining text."""

from prompt_jax.data.micro.domains import Domain, Noun
from prompt_jax.data.micro.draws import Draws
from prompt_jax.data.micro.lexicon import BAD, GOOD, Opinions
from prompt_jax.data.micro.names import CITIES, COLOURS, DAYS, JOBS, MONTHS, NUMBERS

_DEGREES = ("", "", "", "very ", "really ", "so ", "quite ", "truly ", "extremely ", "rather ")
_DEGREES += ("absolutely ", "wholly ", "utterly ", "totally ", "simply ", "just ")
_DETERMINERS = ("the ", "the ", "the ", "the ", "its ", "their ", "our ")
_NOT = ("not {} at all", "hardly {}", "far from {}", "nowhere near {}", "by no means {}")
_NOT += ("not even remotely {}", "anything but {}", "not the least bit {}", "never {}")
_BUT = (", but ", ", yet ", ". however, ", ". still, ", ", but in the end ", ", but overall ")
_BUT += (". even so, ", ", and yet ")
_ALTHOUGH = ("although ", "even though ", "while ", "though ", "despite that ")
_AND = (" and ", ", and ", "; ", ". also, ", ". besides, ", " and what is more, ", ". ")
_THINK = ("", "", "", "", "i think ", "we found that ", "i must say ", "to be honest, ", "for me ")
_THINK += ("in my view ", "everyone said that ", "my wife agreed that ", "it seemed to us that ")
_TIMES = ("", "", "", " this time", " again", " from start to finish", " that day", " for us")
_ACTORS = ("we ", "i ", "my friends ", "my sister ", "everyone ", "my family ", "my parents ")


def article(word: str) -> str:
    """The word with a or an."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def neutral(draws: Draws, domain: Domain) -> str:
    """A clause without an opinion."""
    text = draws.pick(domain.neutral)
    if "{" not in text:
        return text
    text = text.replace("{n}", draws.pick(NUMBERS)).replace("{day}", draws.pick(DAYS))
    text = text.replace("{month}", draws.pick(MONTHS)).replace("{city}", draws.pick(CITIES))
    return text.replace("{colour}", draws.pick(COLOURS)).replace("{job}", draws.pick(JOBS))


def _subject(draws: Draws, noun: Noun) -> str:
    return draws.pick(_DETERMINERS) + noun[0]


def clause(draws: Draws, domain: Domain, words: Opinions, polarity: int) -> str:
    """One clause that judges a part of the domain.

    Args:
        draws: stream.
        domain: spoken about.
        words: opinion words that may be used.
        polarity: BAD or GOOD, of the whole clause (a negated word is of the other one).

    Returns:
        lower-case text without a full stop.
    """
    kind = draws.uniform()
    if kind < 0.34:
        noun = draws.pick(domain.things)
        said = draws.pick(_DEGREES) + draws.pick(words.adjectives[polarity])
        if draws.chance(0.25):
            said += " and " + draws.pick(words.adjectives[polarity])
        return f"{_subject(draws, noun)} {noun[1]} {said}{draws.pick(_TIMES)}"
    if kind < 0.48:
        noun = draws.pick(domain.things)
        said = draws.pick(_NOT).format(draws.pick(words.adjectives[1 - polarity]))
        return f"{_subject(draws, noun)} {noun[1]} {said}{draws.pick(_TIMES)}"
    if kind < 0.60:
        person = draws.pick(domain.people)
        if draws.chance(0.25):
            said = draws.pick(_NOT).format(draws.pick(words.people[1 - polarity]))
        else:
            said = draws.pick(_DEGREES) + draws.pick(words.people[polarity])
        return f"{_subject(draws, person)} {person[1]} {said}"
    if kind < 0.70:
        noun = draws.pick(domain.things)
        return f"{draws.pick(_ACTORS)}{draws.pick(words.verbs[polarity])} the {noun[0]}"
    if kind < 0.78:
        noun = draws.pick(domain.things)
        act = f"{draws.pick(words.adverbs[polarity])} {draws.pick(domain.acts)}"
        return f"{_subject(draws, noun)} {noun[1]} {act}"
    if kind < 0.86:
        noun = draws.pick(domain.things)
        return f"{_subject(draws, noun)} {noun[1]} {draws.pick(words.nouns[polarity])}"
    if kind < 0.94:
        noun = draws.pick(domain.things)
        said = draws.pick(words.idioms[polarity])
        if noun[1] == "were":
            said = said.replace("was ", "were ", 1) if said.startswith("was ") else said
            said = said.replace("is ", "are ", 1) if said.startswith("is ") else said
        return f"{_subject(draws, noun)} {said}"
    noun = draws.pick(domain.things)
    adjective = draws.pick(words.adjectives[polarity])
    thing = f"{adjective} {noun[0]}" if noun[1] == "were" else article(f"{adjective} {noun[0]}")
    return f"this {domain.name} has {thing}" if draws.chance(0.6) else f"we had {thing}"


def contrast(draws: Draws, domain: Domain, words: Opinions, polarity: int) -> str:
    """Two clauses of opposite polarity; the main or last one decides."""
    weaker = clause(draws, domain, words, 1 - polarity)
    deciding = clause(draws, domain, words, polarity)
    if draws.chance(0.3):
        return f"{draws.pick(_ALTHOUGH[:4])}{weaker}, {deciding}"
    return f"{weaker}{draws.pick(_BUT)}{deciding}"


def review(draws: Draws, domain: Domain, words: Opinions, polarity: int) -> str:
    """One to three clauses, about a dozen to thirty word pieces, with one verdict.

    Args:
        draws: stream.
        domain: spoken about.
        words: opinion words that may be used.
        polarity: BAD or GOOD.

    Returns:
        lower-case sentences with full stops.
    """
    kind = draws.uniform()
    opening = draws.pick(_THINK)
    if kind < 0.2:
        body = opening + clause(draws, domain, words, polarity)
    elif kind < 0.5:
        first, second = (clause(draws, domain, words, polarity) for _ in range(2))
        body = f"{opening}{first}{draws.pick(_AND)}{second}"
    elif kind < 0.7:
        body = contrast(draws, domain, words, polarity)
    elif kind < 0.85:
        said = clause(draws, domain, words, polarity)
        told = neutral(draws, domain)
        body = f"{told}. {said}" if draws.chance(0.6) else f"{opening}{said}. {told}"
    else:
        said = clause(draws, domain, words, polarity)
        body = f"{opening}{said}. {draws.pick(words.endings[polarity])}"
    return body + ("!" if draws.chance(0.1) else ".")


def passage(draws: Draws, domain: Domain, words: Opinions, polarity: int) -> str:
    """Running text of one mood: three to five sentences of a pleased or an upset narrator."""
    moods = (_UPSET, _PLEASED)[polarity]
    parts = [draws.pick(_STARTS).format(domain.name)] if draws.chance(0.5) else []
    parts.append(neutral(draws, domain))
    for _ in range(2 + draws.below(2)):
        parts.append(clause(draws, domain, words, polarity))
    if draws.chance(0.3):
        parts.append(contrast(draws, domain, words, polarity))
    if draws.chance(0.5):
        because = clause(draws, domain, words, polarity)
        parts.append(f"{draws.pick(_WHO)} {draws.pick(moods)} because {because}")
    if draws.chance(0.5):
        parts.append(draws.pick(words.endings[polarity]))
    return ". ".join(parts) + "."


_PLEASED = "was pleased|was happy|smiled|felt glad|was in a good mood|laughed with joy".split("|")
_UPSET = "was upset|was angry|complained|felt sad|was in a bad mood|sighed and cursed".split("|")
_PLEASED += ["was satisfied", "cheered", "was delighted", "left content", "was grateful"]
_UPSET += ["was annoyed", "was unhappy", "was disappointed", "left furious", "was dissatisfied"]
_STARTS = ("this is about the {}", "i will tell you about the {}", "we tried a new {}")
_STARTS += ("my brother told us of a {}", "it was our first {}", "let me describe the {}")
_WHO = ("i", "my mother", "my wife", "his brother", "everyone", "my friend", "the old man", "she")
POLARITIES = (BAD, GOOD)
