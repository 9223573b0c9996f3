"""Generated running text: narrators of one mood, events and facts in pretraining's own domains."""

from prompt_jax.data.micro import events, families, records
from prompt_jax.data.micro.domains import HOTEL, OTHERS, RESTAURANT
from prompt_jax.data.micro.draws import Draws, blocks
from prompt_jax.data.micro.lexicon import ALL
from prompt_jax.data.micro.opinion import neutral, passage

_TASK_FAMILIES = (
    families.WORKERS,
    families.SHIPS,
    families.PLAYS,
    families.VILLAGES,
    families.SHOPS,
)


def _mood(draws: Draws) -> str:
    return passage(draws, draws.pick(OTHERS), ALL, draws.below(2))


def _facts(draws: Draws) -> str:
    family = draws.pick(families.PRETRAINING)
    text, facts = records.passage(draws, family, 3 + draws.below(2))
    fact = draws.pick(facts)
    if draws.chance(0.5):
        return f"{text} {records.ask(draws, fact)}? {records.state(draws, fact, fact.value)}."
    return text


def _retold(draws: Draws) -> str:
    said = []
    for _ in range(2):
        if draws.chance(0.5):
            said += events.same_meaning(draws, events.TOWN, True)
        else:
            text, implied = events.follows(draws, events.TOWN, True)
            said += [text, draws.pick(("so ", "thus ", "that is, ", "in other words, ")) + implied]
    return " ".join(said)


def _neutral(draws: Draws) -> str:
    """Words of the embedded tasks' domains, mentioned without any of their distinctions."""
    kind = draws.uniform()
    if kind < 0.4:
        domain = draws.pick((HOTEL, RESTAURANT))
        nouns = [noun[0] for noun in draws.sample(domain.things, 3)]
        person = draws.pick(domain.people)
        listed = f"the {nouns[0]}, the {nouns[1]} and the {nouns[2]}"
        asked = f"the {person[0]} {person[1]} asked about the {draws.pick(domain.things)[0]}"
        return f"{neutral(draws, domain)}. they spoke about {listed}. {asked}."
    if kind < 0.7:
        scene = draws.pick((events.OFFICE, events.FARM, events.HOME))
        things = [thing for thing, _ in draws.sample(scene.objects, 3)]
        verb, past = draws.pick(scene.verbs)[:2]
        return (
            f"there is a {things[0]} {draws.pick(scene.places)}. to {verb} a {things[1]} "
            f"{draws.pick(scene.times)}. the {things[2]} was {past}."
        )
    family = draws.pick(_TASK_FAMILIES)
    entities = draws.sample(family.entities, 2)
    relation = draws.pick(family.relations)
    values = draws.sample(relation.values, 2)
    return f"on the list we read {entities[0]}, {values[0]}, {values[1]} and then {entities[1]}."


def examples(split: str, seed: int, start: int, count: int) -> list[dict]:
    """Short passages, up to about 64 word pieces.

    Args:
        split: its name seeds the stream.
        seed: likewise.
        start: first index.
        count: how many.

    Returns:
        {"text"} each.
    """
    ladder = (_mood,) * 11 + (_facts,) * 4 + (_retold,) * 3 + (_neutral,) * 2

    def make(draws: Draws, _: int) -> dict:
        return {"text": draws.pick(ladder)(draws)}

    return blocks("micro_text", split, seed, start, count, make)
