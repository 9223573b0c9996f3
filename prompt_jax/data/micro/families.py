"""The families of things and people that passages tell of.

In a table, the lines of a relation are statements, then ? questions, then = its values.
"""

from prompt_jax.data.micro.names import CITIES, COLOURS, DAYS, JOBS, MONTHS, NAMES, NUMBERS
from prompt_jax.data.micro.records import Family, Relation

_FOODS = "fish bread cheese soup carrots nuts grapes honey rice eggs beans cake corn berries"
_LISTS = {
    "@names": NAMES,
    "@cities": CITIES,
    "@colours": COLOURS,
    "@days": DAYS,
    "@months": MONTHS,
    "@jobs": JOBS,
    "@numbers": NUMBERS,
    "@foods": _FOODS.split(),
}


def _family(entities: tuple[str, ...], table: str) -> Family:
    """Reads a table of relations."""
    relations, statements, questions = [], [], []
    for line in filter(None, (line.strip() for line in table.splitlines())):
        items = [item.strip() for item in line.lstrip("?= ").split("|")]
        if line[0] == "?":
            questions += items
        elif line[0] == "=":
            values = _LISTS.get(items[0], items)
            relations.append(Relation(tuple(statements), tuple(questions), tuple(values)))
            statements, questions = [], []
        else:
            statements += items
    return Family(entities, tuple(relations))


def _named(kinds: str, marks: str) -> tuple[str, ...]:
    return tuple(f"the {mark} {kind}" for mark in marks.split() for kind in kinds.split())


_TITLES = "silent lost last golden hidden first dark distant frozen broken secret wild quiet"
_VILLAGE_STARTS = "ash oak wood red black stone hill river green white"
_HOUSES = "bakery bookshop pharmacy butcher bank library museum cinema market chapel"
_PETS = "dog cat horse parrot rabbit fox pig goat"

# Of the embedded tasks: questions with short answers (source, shifts 1 to 3), yes/no questions.
WORKERS = _family(
    tuple(NAMES),
    """
    {e} works as a {v} | {e} is a {v} by trade
    ? what does {e} work as | what is the job of {e}
    = @jobs
    {e} lives in {v} | the home of {e} is in {v}
    ? where does {e} live | in which city does {e} live
    = @cities
    {e} starts work at {v} | the shift of {e} begins at {v}
    ? when does {e} start work | at what hour does the shift of {e} begin
    = @numbers
    {e} is off on {v} | {e} never works on {v}
    ? when is {e} off | on which day does {e} not work
    = @days
    """,
)
SHIPS = _family(
    _named("ship ferry tanker yacht trawler steamer", "grey old swift northern royal tall heavy"),
    """
    {e} carries {v} | the cargo of {e} is {v}
    ? what does {e} carry | what is the cargo of {e}
    = coal | timber | wheat | oil | sugar | salt | wool | iron | rice | cotton | coffee | tea
    {e} sails to {v} | {e} is bound for {v}
    ? where does {e} sail to | where is {e} bound for
    = @cities
    captain {v} commands {e} | {e} is under captain {v}
    ? who commands {e} | who is the captain of {e}
    = @names
    {e} leaves on {v} | {e} puts to sea on {v}
    ? when does {e} leave | on which day does {e} put to sea
    = @days
    """,
)
PLAYS = _family(
    _named("opera ballet drama musical comedy", _TITLES),
    """
    {e} was staged by {v} | {v} directed {e}
    ? who staged {e} | who directed {e}
    = @names
    {e} is set in {v} | {e} takes place in {v}
    ? where is {e} set | where does {e} take place
    = @cities
    {e} opens in {v} | the first night of {e} is in {v}
    ? when does {e} open | in which month is the first night of {e}
    = @months
    {e} is about a {v} | the hero of {e} is a {v}
    ? who is {e} about | who is the hero of {e}
    = @jobs
    """,
)
VILLAGES = _family(
    tuple(a + b for a in _VILLAGE_STARTS.split() for b in "ford ham ton bury wick dale".split()),
    """
    {e} lies on the river {v} | the river {v} runs through {e}
    ? on which river does {e} lie | which river runs through {e}
    = tarn | elde | wissen | brenn | lorn | mersk | otter | sable | dorn | vell
    the mayor of {e} is {v} | {e} elected {v} as mayor
    ? who is the mayor of {e} | whom did {e} elect
    = @names
    {e} is known for its {v} | people visit {e} for its {v}
    ? what is {e} known for | why do people visit {e}
    = castle | bridge | market | windmill | chapel | tower | fountain | abbey | lighthouse
    {e} holds its fair in {v} | the fair of {e} is in {v}
    ? when does {e} hold its fair | in which month is the fair of {e}
    = @months
    """,
)
SHOPS = _family(
    _named(_HOUSES, "old new small north main corner"),
    """
    {e} is closed on {v} | {e} shuts on {v}
    ? is {e} closed on {v} | does {e} shut on {v}
    = @days
    {e} opens at {v} | the doors of {e} open at {v}
    ? does {e} open at {v} | do the doors of {e} open at {v}
    = @numbers
    {e} belongs to {v} | {v} owns {e}
    ? does {e} belong to {v} | does {v} own {e}
    = @names
    {e} has a {v} door | the door of {e} is {v}
    ? does {e} have a {v} door | is the door of {e} {v}
    = @colours
    """,
)
# Of pretraining.
PRETRAINING = (
    _family(
        tuple(f"the {a} {b}" for b in _PETS.split() for a in "old young fat tame".split()),
        """
    {e} eats {v} | {v} is what {e} eats | {e} likes {v}
    ? what does {e} eat | what food does {e} like
    = @foods
    {e} sleeps in the {v} | the bed of {e} is in the {v}
    ? where does {e} sleep | where is the bed of {e}
    = barn | kitchen | garden | shed | attic | cellar | box | tree | basket | hall
    {e} belongs to {v} | {v} owns {e} | the owner of {e} is {v}
    ? who owns {e} | whose is {e} | who is the owner of {e}
    = @names
    {e} is {v} | the fur of {e} is {v}
    ? what colour is {e} | what is the colour of {e}
    = @colours
    """,
    ),
    _family(
        tuple(NAMES),
        """
    {e} plays {v} | {e} spends the day with {v}
    ? what does {e} play | what is the hobby of {e}
    = chess | tennis | painting | dancing | cooking | fishing | skating | hiking | reading
    {e} was born in {v} | {e} comes from {v} | {v} is the home town of {e}
    ? where was {e} born | where does {e} come from
    = @cities
    {e} has a {v} bag | the bag of {e} is {v}
    ? what colour is the bag of {e} | what is the colour of the bag of {e}
    = @colours
    {e} was born in {v} | the birthday of {e} is in {v}
    ? in which month was {e} born | when is the birthday of {e}
    = @months
    {e} is married to {v} | {v} is the partner of {e}
    ? who is {e} married to | who is the partner of {e}
    = @names
    {e} studied {v} | the subject of {e} was {v}
    ? what did {e} study | what was the subject of {e}
    = law | music | history | physics | art | biology | french | greek | geography | medicine
    """,
    ),
    _family(
        _named("team", " ".join(COLOURS) + " first second third junior senior"),
        """
    {e} trains on {v} | {v} is when {e} trains
    ? when does {e} train | on which day does {e} train
    = @days
    {e} comes from {v} | the home of {e} is {v}
    ? where does {e} come from | where is the home of {e}
    = @cities
    {v} coaches {e} | the coach of {e} is {v}
    ? who coaches {e} | who is the coach of {e}
    = @names
    {e} scored {v} goals | {v} goals were scored by {e}
    ? how many goals did {e} score
    = @numbers
    """,
    ),
    _family(
        _named("pie stew salad drink jam sauce", "sweet salty warm cold spicy plain"),
        """
    {e} is made of {v} | {v} goes into {e}
    ? what is {e} made of | what goes into {e}
    = @foods
    {e} takes {v} minutes | after {v} minutes {e} is done
    ? how long does {e} take | how many minutes does {e} take
    = @numbers
    {v} made {e} | {e} was made by {v}
    ? who made {e} | by whom was {e} made
    = @names
    {e} comes in a {v} bowl | the bowl of {e} is {v}
    ? what colour is the bowl of {e}
    = @colours
    """,
    ),
    _family(
        _named("novel poem letter song diary story", "long short thin thick second third last"),
        """
    {e} was written by {v} | {v} wrote {e} | the author of {e} is {v}
    ? who wrote {e} | who is the author of {e}
    = @names
    {e} is about a {v} | in {e} we meet a {v}
    ? what is {e} about | whom do we meet in {e}
    = @jobs
    {e} came out in {v} | {v} is when {e} came out
    ? when did {e} come out | in which month did {e} come out
    = @months
    {e} has {v} pages | there are {v} pages in {e}
    ? how many pages does {e} have
    = @numbers
    """,
    ),
)
