"""Who did what to which thing, where and when: sentences of the same or another sense."""

import dataclasses

from prompt_jax.data.micro.draws import Draws
from prompt_jax.data.micro.names import COLOURS, NAMES
from prompt_jax.data.micro.opinion import article


@dataclasses.dataclass(frozen=True)
class Scene:
    """The nouns and verbs of a domain.

    verbs: (base form, past form = participle, a synonym's past form or "", an unlike past form).
    objects: (noun, its kind). places: with preposition. times: likewise. exchanges: (X verb the
    thing preposition Y, Y verb the thing preposition X), the same event seen from both sides.
    """

    verbs: tuple[tuple[str, str, str, str], ...]
    objects: tuple[tuple[str, str], ...]
    places: tuple[str, ...]
    times: tuple[str, ...]
    exchanges: tuple[tuple[str, str, str, str], ...]


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", "|").split("|") if part.strip())


def _scene(verbs: str, objects: str, places: str, times: str, exchanges: str) -> Scene:
    pairs = [part.split(": ") for part in _parts(objects)]
    things = tuple((noun, kind) for kind, nouns in pairs for noun in nouns.split())
    return Scene(
        tuple(tuple(part.split("/")) for part in _parts(verbs)),
        things,
        _parts(places),
        _parts(times),
        tuple(tuple(part.split("/")) for part in _parts(exchanges)),
    )


# Domains of the embedded tasks: an office, a farm, a home.
OFFICE = _scene(
    """find/found/discovered/lost|order/ordered/requested/cancelled|deliver/delivered/brought/withheld
    inspect/inspected/checked/skipped|move/moved/shifted/abandoned|need/needed/required/refused
    replace/replaced/exchanged/kept|label/labelled/marked/misplaced""",
    """document: report letter invoice contract memo form|device: scanner monitor projector router
    furniture: cupboard armchair bookcase stool|supply: stapler folder envelope notebook""",
    """in the office|in the archive|at the front desk|in the meeting room|in the mail room
    on the third floor|in the basement|near the copier""",
    """before noon|after lunch|on payday|at nine|during the meeting|before the deadline
    late in the evening|on monday""",
    """handed/to/received/from|sent/to/got/from|passed/to/took/from|mailed/to/obtained/from""",
)
FARM = _scene(
    """wash/washed/cleaned/stained|load/loaded//unloaded|fetch/fetched/brought/hid
    carry/carried/bore/dropped|pull/pulled/dragged/pushed|count/counted//forgot
    photograph/photographed//ignored|weigh/weighed/measured/neglected""",
    """animal: donkey calf lamb pony rooster|tool: rake pitchfork sickle plough
    container: crate barrel sack churn|crop: pumpkin turnip cabbage beet""",
    """in the stable|behind the barn|on the field|at the well|near the mill|by the haystack
    in the pasture|in the hen house""",
    "at dawn|before the harvest|after milking|at dusk|in the heat|at sunrise|on tuesday",
    "brought/to/collected/from|sold/to/bought/from|gave/to/accepted/from|left/to/inherited/from",
)
HOME = _scene(
    """store/stored/kept/discarded|wrap/wrapped/packed/unwrapped|polish/polished/shined/scratched
    dust/dusted//smeared|rinse/rinsed/washed/soiled|cover/covered//uncovered
    sort/sorted//mixed|remove/removed//added|test/tested/tried/ignored""",
    """dish: casserole muffin waffle lasagne|cloth: apron tablecloth towel napkin quilt
    appliance: toaster freezer stove heater|furniture: sideboard cradle dresser footstool
    utensil: ladle spatula whisk sieve|container: teapot vase thermos canister""",
    """in the pantry|in the laundry room|in the nursery|on the porch|in the hallway|by the fireplace
    in the dining room|in the cellar|on the staircase|in the spare room""",
    """before supper|after the visit|on wednesday|at teatime|during the storm|before bedtime
    after the holidays|at noon|on thursday""",
    "handed/to/received/from",
)
# Domains of pretraining.
TOWN = _scene(
    """buy/bought/purchased/sold|paint/painted/coloured/scratched|hide/hid/concealed/showed
    steal/stole/took/returned|throw/threw/tossed/caught|borrow/borrowed//lent|clean/cleaned/wiped/soiled
    choose/chose/picked/rejected|see/saw/noticed/missed|like/liked//disliked
    watch/watched/observed/ignored|draw/drew/sketched/erased|lift/lifted/raised/lowered
    hold/held/gripped/dropped|want/wanted/desired/refused|win/won//lost|touch/touched//avoided
    send/sent/shipped/received|remember/remembered/recalled/forgot""",
    """fruit: apple pear plum cherry lemon melon|tool: hammer saw drill wrench axe shovel
    animal: dog cat rabbit parrot turtle pigeon|toy: doll ball kite puzzle drum robot
    vehicle: bicycle scooter van truck boat wagon|garment: coat hat scarf shirt sweater glove
    instrument: flute violin trumpet guitar harp|vessel: bowl cup jug kettle pan bottle
    jewel: ring necklace bracelet crown|weapon: sword spear dagger bow|plant: rose tulip fern cactus
    book: novel diary atlas dictionary|meal: pizza sandwich omelette stew""",
    """in the park|at the market|in the garden|at school|on the beach|in the square|at the station
    under the bridge|in the kitchen|behind the church|on the hill|at the harbour|in the forest
    near the river|at the zoo|in the attic|on the bus|in the tent|at the fair|by the lake""",
    """in the morning|at night|on friday|on sunday|last week|in may|in winter|after school
    before breakfast|at midnight|in spring|yesterday|two days ago|on saturday|in the afternoon""",
    """gave/to/got/from|lent/to/borrowed/from|sold/to/bought/from|offered/to/accepted/from
    paid/to/earned/from|rented/to/hired/from|threw/to/caught/from|mailed/to/received/from
    promised/to/expected/from|returned/to/recovered/from""",
)
_FAILED = ("failed to", "refused to", "forgot to", "was too late to", "never managed to")
_FAILED += ("was not able to", "declined to", "had no chance to")
_CARRIERS = ("{}", "{}", "{}", "it was said that {}", "we know that {}", "they wrote that {}")


@dataclasses.dataclass
class Event:
    """One event; a field of "" is not told."""

    name: str
    verb: tuple[str, str, str, str]
    colour: str
    thing: tuple[str, str]
    place: str
    time: str


def event(draws: Draws, scene: Scene) -> Event:
    """Draws an event in which everything is told; a fifth tell what the unlike verb says."""
    verb = draws.pick(scene.verbs)
    return Event(
        draws.pick(NAMES),
        ("", verb[3], "", verb[1]) if draws.chance(0.2) else verb,
        draws.pick(COLOURS),
        draws.pick(scene.objects),
        draws.pick(scene.places),
        draws.pick(scene.times),
    )


def regular(draws: Draws, scene: Scene) -> Event:
    """An event whose verb is known in its base form too."""
    told = event(draws, scene)
    return told if told.verb[0] else regular(draws, scene)


def tell(draws: Draws, told: Event, verb: str = "", noun: str = "") -> str:
    """A sentence that tells an event, active or passive, adverbials first or last.

    Args:
        draws: stream, for the form.
        told: the event.
        verb: past form instead of the event's.
        noun: noun instead of the event's.

    Returns:
        lower-case text without a full stop.
    """
    verb = verb or told.verb[1]
    noun = noun or told.thing[0]
    thing = article(f"{told.colour} {noun}" if told.colour else noun)
    place = f" {told.place}" if told.place else ""
    time = f" {told.time}" if told.time else ""
    form = draws.uniform()
    participle = _PARTICIPLES.get(verb, verb)
    if form < 0.5:
        return f"{told.name} {verb} {thing}{place}{time}"
    if form < 0.7 and time:
        return f"{told.time}, {told.name} {verb} {thing}{place}"
    if form < 0.85:
        return f"{thing} was {participle} by {told.name}{place}{time}"
    if place:
        return f"{told.place}{time}, {told.name} {verb} {thing}"
    return f"it was {told.name} who {verb} {thing}{time}"


_PARTICIPLES = {
    "hid": "hidden", "stole": "stolen", "threw": "thrown", "chose": "chosen", "saw": "seen",
    "drew": "drawn", "took": "taken", "bore": "borne", "forgot": "forgotten",
}  # fmt: skip


def changed(draws: Draws, scene: Scene, told: Event) -> tuple[Event, str]:
    """An event with one part made another, and the past form to tell it with."""
    kind = draws.uniform()
    if kind < 0.25:
        return dataclasses.replace(told, name=draws.other(NAMES, told.name)), ""
    if kind < 0.5:
        return dataclasses.replace(told, thing=draws.other(scene.objects, told.thing)), ""
    if kind < 0.6 and told.colour:
        return dataclasses.replace(told, colour=draws.other(COLOURS, told.colour)), ""
    if kind < 0.7 and told.place:
        return dataclasses.replace(told, place=draws.other(scene.places, told.place)), ""
    if kind < 0.8 and told.time:
        return dataclasses.replace(told, time=draws.other(scene.times, told.time)), ""
    return told, told.verb[3]


def weakened(draws: Draws, told: Event) -> Event:
    """The event with some of its particulars left out."""
    gone = {part: "" for part in ("colour", "place", "time") if draws.chance(0.6)}
    return dataclasses.replace(told, **(gone or {"colour": ""}))


def follows(draws: Draws, scene: Scene, holds: bool) -> tuple[str, str]:
    """A text, and a sentence that follows from it or does not.

    Both sides use denials, synonyms, kinds and the passive, so that no word alone tells the side.

    Args:
        draws: stream.
        scene: domain.
        holds: whether it follows: particulars dropped, a kind for a thing, a synonym, the passive,
            a denial of what failed; else another part, a denial of what was done, an act that
            failed, or a particular that the text does not tell.

    Returns:
        (text, sentence), with full stops.
    """
    full = event(draws, scene)
    full = weakened(draws, full) if draws.chance(0.4) else full
    if full.verb[0] and draws.chance(0.25):
        return _denial(draws, full, holds)
    if not holds and draws.chance(0.25):
        short = weakened(draws, full)
        full.colour = full.colour or draws.pick(COLOURS)
        full.place = full.place or draws.pick(scene.places)
        return f"{tell(draws, short)}.", f"{tell(draws, full)}."
    text = f"{draws.pick(_CARRIERS).format(tell(draws, full))}."
    short = weakened(draws, full)
    kind = short.thing[1] if draws.chance(0.25) else ""
    verb = short.verb[2] if draws.chance(0.3) else ""
    if not holds and kind and draws.chance(0.6):
        kind = draws.other([thing[1] for thing in scene.objects], kind)
    elif not holds:
        short, unlike = changed(draws, scene, short)
        kind, verb = "", unlike or verb
    short.colour = "" if kind else short.colour
    return text, f"{tell(draws, short, verb, kind)}."


def _denial(draws: Draws, told: Event, holds: bool) -> tuple[str, str]:
    """Something done or failed, and a sentence that says that it was or was not done."""
    base, thing = told.verb[0], article(told.thing[0])
    denied = f"{told.name} did not {base} {thing}."
    done = f"{tell(draws, told)}."
    failed = f"{told.name} {draws.pick(_FAILED)} {base} {thing}."
    if holds:
        return failed, denied
    short = dataclasses.replace(told, colour="", place="", time="")
    return (done, denied) if draws.chance(0.5) else (failed, f"{tell(draws, short)}.")


def same_meaning(draws: Draws, scene: Scene, holds: bool) -> tuple[str, str]:
    """Two sentences that tell the same or not.

    Args:
        draws: stream.
        scene: domain.
        holds: the same event in other words (exchange seen from both sides, passive, synonym,
            moved adverbials); else one part or the roles differ.

    Returns:
        (sentence, sentence), with full stops.
    """
    if draws.chance(0.5):
        return _exchange(draws, scene, holds)
    full = event(draws, scene)
    if draws.chance(0.5):
        full.place = ""
    if draws.chance(0.5):
        full.colour = ""
    first = tell(draws, full)
    if holds:
        second = first
        while second == first:
            second = tell(draws, full, full.verb[2] if draws.chance(0.4) else "")
        return f"{first}.", f"{second}."
    other, verb = changed(draws, scene, full)
    verb = verb or (full.verb[2] if draws.chance(0.4) else "")
    return f"{first}.", f"{tell(draws, other, verb)}."


def _exchange(draws: Draws, scene: Scene, holds: bool) -> tuple[str, str]:
    giver, taker = draws.two(NAMES)
    gave, to, got, from_ = draws.pick(scene.exchanges)
    thing = draws.pick(scene.objects)[0]
    first = f"{giver} {gave} the {thing} {to} {taker}"
    second = f"{taker} {got} the {thing} {from_} {giver}"
    if not holds:
        kind = draws.uniform()
        if kind < 0.5:
            second = f"{giver} {got} the {thing} {from_} {taker}"
        elif kind < 0.75:
            second = second.replace(thing, draws.other(scene.objects, (thing, ""))[0])
        else:
            second = second.replace(giver, draws.other(NAMES, giver))
    time = f" {draws.pick(scene.times)}" if draws.chance(0.3) else ""
    pair = (f"{first}{time}.", f"{second}{time}.")
    return pair if draws.chance(0.5) else pair[::-1]
