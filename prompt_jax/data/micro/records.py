"""Passages that give the attributes of a few things or people, and questions about them."""

import dataclasses

from prompt_jax.data.micro.draws import Draws


@dataclasses.dataclass(frozen=True)
class Relation:
    """An attribute. statements: "{e} ... {v}". questions: "... {e}". values: what it may be."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """Entities of a domain, and the relations that they have."""

    entities: tuple[str, ...]
    relations: tuple[Relation, ...]


_VOWELS = tuple("aeiou")


@dataclasses.dataclass
class Fact:
    """One attribute of one entity, as stated in a passage."""

    entity: str
    relation: Relation
    value: str


def passage(draws: Draws, family: Family, count: int) -> tuple[str, list[Fact]]:
    """States facts about one, two or three entities.

    Args:
        draws: stream.
        family: domain.
        count: how many facts; two share a relation where there are three or more, so that the
            entity must be read too.

    Returns:
        (text with full stops, the facts in the order told).
    """
    entities = draws.sample(family.entities, 2)
    relations = draws.sample(family.relations, 2)
    slots = [(e, r) for e in (0, 1) for r in (0, 1)]
    facts: list[Fact] = []
    for e, r in draws.sample(slots, count):
        value = draws.pick(relations[r].values)
        while value in entities or any(fact.value == value for fact in facts):
            value = draws.pick(relations[r].values)
        facts.append(Fact(entities[e], relations[r], value))
    return ". ".join(state(draws, fact, fact.value) for fact in facts) + ".", facts


def state(draws: Draws, fact: Fact, value: str) -> str:
    """A statement of a fact with this value."""
    return _fill(draws.pick(fact.relation.statements), fact.entity, value)


def ask(draws: Draws, fact: Fact, value: str = "") -> str:
    """A question about a fact (about whether it has this value, where its questions say so)."""
    return _fill(draws.pick(fact.relation.questions), fact.entity, value)


def _fill(form: str, entity: str, value: str) -> str:
    if value[:1] in _VOWELS:
        form = form.replace(" a {v}", " an {v}")
    return form.replace("{e}", entity).replace("{v}", value)


def wrong_value(draws: Draws, facts: list[Fact], fact: Fact) -> str:
    """Another value: of the other entity where the passage has one (half the time), else any."""
    rivals = [f.value for f in facts if f.relation is fact.relation and f is not fact]
    if rivals and draws.chance(0.5):
        return rivals[0]
    return draws.other(fact.relation.values, fact.value)
