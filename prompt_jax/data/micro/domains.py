"""Nouns of the domains that opinions are about: of two embedded tasks, and of pretraining.

A plural noun ends in *.
"""

import dataclasses

Noun = tuple[str, str, str]  # the noun, was/were, it/they


@dataclasses.dataclass(frozen=True)
class Domain:
    """What a narrator speaks about.

    name: as in "this hotel". things: parts with qualities. people: who works there.
    neutral: sentences without an opinion. acts: past participles that an adverb of manner judges.
    """

    name: str
    things: tuple[Noun, ...]
    people: tuple[Noun, ...]
    neutral: tuple[str, ...]
    acts: tuple[str, ...]


def _nouns(text: str) -> tuple[Noun, ...]:
    parts = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
    found = []
    for part in parts:
        plural = part.endswith("*")
        found.append((part.rstrip("*"), "were" if plural else "was", "they" if plural else "it"))
    return tuple(found)


def _domain(name: str, things: str, people: str, neutral: str, acts: str) -> Domain:
    lines = tuple(line.strip() for line in neutral.replace("\n", "|").split("|") if line.strip())
    return Domain(name, _nouns(things), _nouns(people), lines, tuple(acts.split()))


HOTEL = _domain(
    "hotel",
    """room, bed, lobby, bathroom, shower, balcony, view, breakfast buffet, pool, corridor, sauna,
    suite, reception hall, lounge, minibar, carpet, pillows*, towels*, curtains*, elevator, spa,
    check-in, terrace, wardrobe, mattress, bedding, bathtub, foyer, guest wing, air conditioning,
    rooms*, sheets*, windows*, roof bar, conference hall, laundry service, shuttle, fitness room""",
    """receptionist, porter, concierge, night manager, housekeeper, bellboy, maids*, doorman,
    front desk staff*, lifeguard, room attendant, valet""",
    """we stayed for {n} nights|our room was on floor {n}|we arrived late on {day}
    the lobby is next to the lift|we booked through a travel agent|check-out is at eleven
    the pool opens at {n} in the morning|we left on {day}|there were {n} of us
    the building has {n} floors|we stayed here in {month}|the shuttle runs every hour""",
    "cleaned furnished heated decorated lit kept managed arranged prepared maintained",
)
RESTAURANT = _domain(
    "restaurant",
    """soup, steak, menu, dessert, wine list, starter, sauce, salad, risotto, pasta, curry, seafood,
    dumplings*, noodles*, burger, lasagna, sushi, tasting menu, side dishes*, main course, dip,
    dining area, table setting, house wine, cocktail, cheese board, lamb, salmon, fries*, platter,
    portions*, brunch, gravy, appetizers*, broth, filling, tiramisu, espresso""",
    """waiter, waitress, chef, bartender, hostess, sommelier, head cook, servers*, barista,
    kitchen crew*, maitre d, busboy""",
    """we ordered for {n}|the menu has {n} dishes|we sat near the bar|we ate there on {day}
    the kitchen closes at {n}|i had the set lunch|we came for dinner in {month}
    our table was by the door|we shared {n} plates|the bill came after an hour
    lunch is served from noon|it was our visit number {n}""",
    "cooked seasoned plated served grilled presented roasted spiced fried mixed",
)
OTHERS = tuple(
    _domain(*parts)
    for parts in (
        (
            "book",
            """story, plot, ending, novel, writing, cover, first chapter, dialogue, prose, hero,
            villain, chapters*, pictures*, poems*, title, index, translation, paper""",
            "author, editor, narrator, publisher, bookseller, librarian",
            """it has {n} chapters|i read it in {month}|i bought it on {day}|it is set in {city}
            my copy has a {colour} cover|the author lives in {city}|it is the book number {n}""",
            "written edited printed bound translated told paced researched",
        ),
        (
            "film",
            """film, movie, script, acting, camera work, music, scenes*, costumes*, ending, plot,
            soundtrack, cast, first half, effects*, jokes*, characters*, dialogue, sequel""",
            "director, actor, actress, star, writer, extras*, producer",
            """it runs for {n} hours|i saw it on {day}|it was shot in {city}|it came out in {month}
            there are {n} songs in it|the film is about a {job}|we sat in row {n}""",
            "acted filmed directed scripted cast paced edited scored shot",
        ),
        (
            "concert",
            """music, songs*, band, stage, sound, lights*, singing, drums*, hall, encore, guitar,
            choir, show, melody, opening act, piano, violins*, programme""",
            "singer, drummer, conductor, pianist, ushers*, guitarist, musicians*",
            """they played {n} songs|the doors opened at {n}|it took place in {city}
            we stood at the back
            the concert was on {day}|the band is from {city}|there was a break after an hour""",
            "played sung tuned rehearsed performed staged lit conducted",
        ),
        (
            "tool",
            """drill, hammer, saw, handle, blade, motor, ladder, toolbox, wrench, screws*, manual,
            grip, battery, cable, switch, pliers*, chain, pump""",
            "seller, mechanic, repairman, shop clerk, builder, maker",
            """i bought it in {month}|it weighs {n} pounds|it comes with {n} parts|it is {colour}
            the box came on {day}|i use it in the shed|it was made in {city}""",
            "built designed machined welded assembled packed balanced finished",
        ),
        (
            "gadget",
            """phone, screen, camera, battery, keyboard, speaker, headphones*, charger, tablet, app,
            laptop, software, buttons*, update, printer, watch, microphone, case""",
            "salesman, technician, support agent, developer, engineers*, helpdesk staff*",
            """it has {n} buttons|i ordered it on {day}|mine is {colour}|it arrived in {month}
            it needs {n} batteries|i use it at work|the box holds {n} cables""",
            "built designed programmed packaged tested translated assembled coded",
        ),
        (
            "game",
            """game, graphics*, levels*, puzzles*, story mode, rules*, controls*, board, cards*,
            dice*, final level, tutorial, map, sound effects*, quests*, mission, design,
            characters*""",
            "developer, referee, dealer, game master, opponent, players*",
            """it is for {n} players|we played it on {day}|it has {n} levels|one round takes an hour
            the board is {colour}|it came out in {month}|my friend is from {city}""",
            "designed animated balanced voiced programmed drawn planned explained",
        ),
        (
            "journey",
            """train, flight, seats*, ferry, bus, ride, cabin, route, station, airport, ticket,
            road,
            tour, landscape, boat trip, luggage service, scenery, compartment""",
            "driver, pilot, guide, captain, conductor, crew*, stewards*, travel agent",
            """we left at {n}|the trip took {n} hours|we went to {city}|we travelled in {month}
            it was a {day}|the bus was {colour}|we changed trains in {city}""",
            "organised planned steered timed scheduled driven guided handled",
        ),
        (
            "school",
            """lesson, course, classroom, library, playground, textbook, exam, lectures*, homework,
            campus, timetable, workshop, laboratory, field trip, classes*, canteen, project,
            seminar""",
            "teacher, professor, principal, tutor, coach, caretaker, students*, lecturer",
            """the course lasts {n} weeks|it starts on {day}|the class has {n} students
            the term ends in {month}|the school is in {city}|our classroom is on floor {n}""",
            "taught explained organised structured graded run prepared illustrated",
        ),
        (
            "match",
            """match, team, stadium, pitch, defence, attack, first half, goal, race, final,
            training,
            season, tournament, kit, tactics*, game plan, bench, tickets*""",
            "striker, goalkeeper, trainer, referee, captain, runner, fans*, swimmer",
            """the score was {n} to {n}|they played on {day}|the team is from {city}
            the season starts in {month}|they wore {colour} shirts|he is player number {n}""",
            "played defended trained coached timed refereed run planned",
        ),
        (
            "garden",
            """garden, roses*, lawn, hedge, pond, fountain, tulips*, path, bench, vegetables*,
            fence,
            greenhouse, trees*, flower bed, soil, orchard, herbs*, tomatoes*""",
            "gardener, neighbour, florist, landscaper, farmer, volunteers*",
            """we planted it in {month}|there are {n} trees|the gate is {colour}|it rained on {day}
            the garden lies behind the house|the seeds came from {city}""",
            "planted trimmed watered weeded planned tended mown arranged",
        ),
        (
            "car",
            """car, engine, brakes*, gearbox, dashboard, tyres*, paint, boot, steering, radio,
            heater,
            doors*, headlights*, bike, saddle, scooter, van, wipers*""",
            "mechanic, dealer, salesman, driver, inspector, previous owner",
            """it is {colour}|i bought it in {month}|it has {n} doors|it was built in {city}
            i drive it to work|the garage is open on {day}|it has {n} seats""",
            "built serviced painted repaired engineered tuned washed upholstered",
        ),
        (
            "coat",
            """coat, jacket, dress, shoes*, boots*, fabric, zip, sleeves*, buttons*, hat,
            scarf, jeans*,
            sweater, pockets*, collar, stitching, gloves*, lining""",
            "tailor, shop assistant, designer, cashier, seamstress, cobbler",
            """it is {colour}|it has {n} pockets|i ordered it on {day}|i wore it in {month}
            it was made in {city}|the shop has {n} branches|mine is a size {n}""",
            "sewn cut stitched knitted tailored dyed packed fitted",
        ),
        (
            "weather",
            """weather, morning, evening, climate, summer, winter, holiday, weekend, afternoon,
            spring,
            day at the beach, picnic, hike, walk, view from the hill, sky, sunset, outing""",
            "weatherman, ranger, guide, companion, hikers*, campers*",
            """it was {n} degrees|it was a {day} in {month}|we were near {city}
            the wind came from the north
            we walked for {n} miles|our tent was {colour}|clouds came from the sea""",
            "forecast planned chosen timed spent organised mapped described",
        ),
        (
            "recipe",
            """recipe, cake, bread, oven, pan, kettle, blender, dough, icing, cookbook, jam,
            biscuits*,
            knives*, mixer, frying pan, kitchen scales*, pie, pancakes*""",
            "baker, cook, grocer, butcher, my aunt, teacher",
            """it takes {n} minutes|you need {n} eggs|i baked it on {day}|it serves {n} people
            i found it in {month}|the bowl is {colour}|my aunt in {city} sent it""",
            "baked explained mixed measured written prepared tested decorated",
        ),
        (
            "museum",
            """painting, statue, exhibition, collection, drawings*, gallery, photographs*,
            audio guide,
            sculpture, portrait, pottery, frames*, drawing, mural, display, catalogue""",
            "curator, painter, artist, guard, sculptor, photographer",
            """it has {n} halls|we went on {day}|entry costs {n} dollars|it opened in {month}
            the artist was born in {city}|the main wall is {colour}""",
            "painted curated lit displayed carved arranged labelled restored",
        ),
        (
            "gym",
            """haircut, massage, dentist visit, treatment, yoga class, clinic, shampoo, soap,
            perfume,
            lotion, toothbrush, check-up, glasses*, waiting room, course of pills, workout""",
            "nurse, doctor, dentist, hairdresser, trainer, barber, pharmacist, therapist",
            """i went there on {day}|it took {n} minutes|the bottle is {colour}|it opened in {month}
            there were {n} people before me|the clinic is in {city}""",
            "done handled explained prepared fitted managed run",
        ),
    )
)
