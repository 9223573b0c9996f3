"""Words of opinion, in two polarities, split into those a task's train split may use and the rest.

A word that the train split never shows asks what pretraining taught: half of the sentiment test
sentences are made of such words only.
"""

import dataclasses
from collections.abc import Sequence

from prompt_jax.data.micro.draws import Draws

# The polarities, as indices into every pair below.
BAD, GOOD = 0, 1
PARTITION_SEED = 20221
SEEN_SHARE = 0.6

_GOOD_ADJECTIVES = """
admirable amazing appealing astonishing awesome beautiful blissful breathtaking bright brilliant
captivating charming classy clever comforting commendable compelling cool cosy cute dazzling
delightful dependable desirable divine dreamy elegant enchanting engaging enjoyable excellent
exceptional exciting exemplary exhilarating exquisite extraordinary fabulous fantastic fascinating
faultless fine first-rate flawless fresh fun genuine glorious good gorgeous graceful grand
gratifying great handy harmonious heartwarming heavenly helpful high-quality ideal immaculate
impeccable
impressive incredible ingenious inspired inspiring inviting irresistible joyful likeable lively
lovable lovely luminous luxurious magical magnificent majestic marvellous masterful matchless
memorable mesmerising neat nice noble outstanding peerless perfect phenomenal pleasant pleasing
pleasurable polished praiseworthy precious premium pretty priceless pristine radiant refreshing
reliable remarkable resplendent rewarding rich robust satisfying sensational serene sleek smart
smooth soothing sparkling special spectacular splendid spotless stellar sterling strong stunning
stylish sublime super superb superior superlative supreme sweet tasteful terrific thoughtful
thrilling tidy tiptop top-notch touching tranquil transcendent tremendous trusty unbeatable
unforgettable unmatched unrivalled uplifting valuable vibrant well-made winning wonderful wondrous
world-class worthy
"""
_BAD_ADJECTIVES = """
abominable abysmal annoying appalling atrocious awful bad bland bleak boring botched broken
careless chaotic cheerless clumsy coarse confusing contemptible crude cruel crummy damaged
dated defective deficient deplorable depressing detestable dingy dire dirty disagreeable
disappointing disastrous disgraceful disgusting dismal displeasing distasteful distressing
dodgy drab dreadful dreary dull dysfunctional embarrassing exasperating execrable faulty feeble
filthy flawed flimsy forgettable foul frustrating ghastly gloomy godawful gross grotty grim grubby
harsh hateful hideous hopeless horrendous horrible horrid horrific inadequate incompetent inept
inexcusable inferior infuriating insufferable insulting intolerable irksome irritating joyless
lacking lacklustre laughable lifeless lousy ludicrous mediocre messy miserable monotonous mouldy
nasty nauseating noisy objectionable obnoxious odious offensive off-putting outrageous overpriced
painful pathetic pitiful pointless poor rancid regrettable repellent repugnant repulsive
revolting ridiculous rotten rubbish second-rate shabby shameful shoddy sickening sloppy sluggish
smelly soulless squalid stale sterile stinking substandard tacky tasteless tedious terrible
third-rate tiresome trashy troubling ugly unacceptable unappealing unbearable uncomfortable
underwhelming unfair unhelpful uninspired unpleasant unreliable unsatisfactory unsound upsetting
useless vexing vile weak wearisome woeful worthless wretched
"""
_GOOD_PEOPLE = """
attentive caring charismatic cheerful considerate courteous devoted diligent efficient friendly
generous gentle gracious hospitable jolly kind kind-hearted knowledgeable obliging patient polite
professional respectful sincere sympathetic tactful tireless trustworthy warm welcoming witty
"""
_BAD_PEOPLE = """
abrupt aloof arrogant bad-tempered clueless condescending cranky dishonest disrespectful dismissive
grumpy heartless hostile ignorant ill-mannered impatient impolite indifferent lazy mean moody
neglectful nosy patronising pushy rude selfish snobbish sour spiteful sullen surly unfriendly
"""
_GOOD_VERBS = """
admired adored applauded appreciated celebrated cherished complimented enjoyed lauded loved
praised prized recommended relished revered savoured treasured valued welcomed commended
"""
_BAD_VERBS = """
abhorred bemoaned condemned criticised cursed deplored despised detested disliked faulted hated
lamented loathed mocked panned regretted rejected resented scorned slated
"""
_GOOD_ADVERBS = """
admirably beautifully brilliantly carefully charmingly delightfully elegantly excellently
expertly flawlessly gracefully ideally impeccably lovingly magnificently marvellously masterfully
nicely perfectly skilfully splendidly stylishly superbly tastefully wonderfully
"""
_BAD_ADVERBS = """
abysmally appallingly atrociously awfully badly carelessly cheaply clumsily crudely dismally
dreadfully hopelessly horribly ineptly lazily miserably painfully pathetically poorly shamefully
shoddily sloppily terribly woefully wretchedly
"""
_GOOD_NOUNS = """
a blessing|a bonus|a breeze|a charm|a classic|a credit to its makers|a delight|a dream|a gem
a godsend|a hit|a jewel|a joy|a marvel|a masterpiece|a miracle|a pearl|a pleasure|a revelation
a success|a thrill|a treasure|a treat|a triumph|a true gift|a winner|a wonder|bliss|heaven
pure gold|pure magic|a bargain|a work of art|a pleasant surprise|perfection
"""
_BAD_NOUNS = """
a bore|a burden|a calamity|a chore|a con|a curse|a debacle|a disappointment|a disaster|a disgrace
a dud|a failure|a farce|a fiasco|a flop|a headache|a horror|a joke|a letdown|a lost cause|a mess
a mistake|a nightmare|a nuisance|a pain|a rip-off|a scam|a shambles|a shame|a swindle|a torment
a torture|a travesty|garbage|trash
"""
_GOOD_IDIOMS = """
beat all our expectations|blew us away|brightened our day|came up trumps|ticked every box
could not be better|deserved five stars|exceeded our hopes|far surpassed what we hoped for
felt like home|gave us plenty to smile about|got our thumbs up|had us beaming|hit the spot
is second to none|kept us smiling|left nothing to be desired|left us grinning|lifted our spirits
lived up to its promise|made our day|made us very happy|more than paid off|put us in high spirits
raised the bar|really shone|set the standard|stole the show|swept us off our feet
took our breath away|warmed our hearts|was a cut above the rest|was a feast for the senses
was all we could wish for|was just what we needed|was just right|was out of this world
was the icing on the cake|was well worth it|was worth every penny|won our hearts
worked wonders|was top of the class
"""
_BAD_IDIOMS = """
made our blood boil|broke our hearts|came apart at once|could not be worse|cost far too much
deserved no stars|drove us mad|fell apart|fell flat|fell short|gave us nothing but trouble
got on our nerves|got our thumbs down|had us in tears|hit rock bottom|is not fit for use
kept us fuming|left a bitter taste|left a lot to be desired|left us cold|left us groaning
let us down|made our skin crawl|made us want to scream|missed the mark|never worked
put us in a foul mood|put us off for good|ruined our day|sent us running|spoiled everything
tested our patience|turned our stomachs|was a bitter pill|was a kick in the teeth
was a slap in the face|was a waste of money|was a waste of time|was beneath contempt
was money down the drain|was not worth a penny|was the last straw
wore us out
"""
_GOOD_ENDINGS = """
we will be back soon|i can not praise it enough|i told all my friends to try it
i would do it again tomorrow|we left with a smile|everyone went home happy|i could not be happier
we are so glad we chose it|we were sorry to see it end|thank you for everything
i want more of this|my hopes were met and more|i give it full marks|we had the time of our lives
it gets my vote|we cheered out loud|i am a big fan now|we were over the moon
i have nothing but praise|we felt truly spoiled|all of us were delighted|keep up the fine work
i was in heaven|we were thrilled to bits|my family was overjoyed
"""
_BAD_ENDINGS = """
we will never be back|i can not warn you enough|i told all my friends to avoid it
i would not do it again for free|we left in tears|everyone went home angry
i could not be more upset|we are so sorry we chose it|we could not wait for it to end
i want my money back|never again|stay away|my hopes were dashed|i give it zero marks
we had the worst time of our lives|save your money|we complained out loud|i am done with them
we were sick with anger|i have nothing but complaints|we felt truly cheated
all of us were disgusted|somebody should be fired|i demanded a refund|my family was furious
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split()))


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.replace("\n", "|").split("|") if part))


@dataclasses.dataclass(frozen=True)
class Opinions:
    """Words and phrases of opinion; every field is (bad ones, good ones).

    adjectives: of things. people: adjectives of persons. verbs: transitive, past tense.
    adverbs: of manner. nouns: predicates ("a delight"). idioms: whole predicates of a thing.
    endings: whole clauses.
    """

    adjectives: tuple[Sequence[str], Sequence[str]]
    people: tuple[Sequence[str], Sequence[str]]
    verbs: tuple[Sequence[str], Sequence[str]]
    adverbs: tuple[Sequence[str], Sequence[str]]
    nouns: tuple[Sequence[str], Sequence[str]]
    idioms: tuple[Sequence[str], Sequence[str]]
    endings: tuple[Sequence[str], Sequence[str]]

    def every(self, polarity: int) -> list[str]:
        """All words and phrases of one polarity."""
        fields = dataclasses.fields(self)
        return [entry for field in fields for entry in getattr(self, field.name)[polarity]]


ALL = Opinions(
    adjectives=(_words(_BAD_ADJECTIVES), _words(_GOOD_ADJECTIVES)),
    people=(_words(_BAD_PEOPLE), _words(_GOOD_PEOPLE)),
    verbs=(_words(_BAD_VERBS), _words(_GOOD_VERBS)),
    adverbs=(_words(_BAD_ADVERBS), _words(_GOOD_ADVERBS)),
    nouns=(_phrases(_BAD_NOUNS), _phrases(_GOOD_NOUNS)),
    idioms=(_phrases(_BAD_IDIOMS), _phrases(_GOOD_IDIOMS)),
    endings=(_phrases(_BAD_ENDINGS), _phrases(_GOOD_ENDINGS)),
)


def _split(opinions: Opinions) -> tuple[Opinions, Opinions]:
    """Cuts every list into a seen and an unseen part, by one fixed shuffle.

    A phrase that holds a word of the other part is left out of both.
    """
    draws = Draws("opinion partition", PARTITION_SEED)
    parts: tuple[dict, dict] = ({}, {})
    for field in dataclasses.fields(opinions):
        pair = [draws.shuffled(entries) for entries in getattr(opinions, field.name)]
        cuts = [round(SEEN_SHARE * len(entries)) for entries in pair]
        parts[0][field.name] = [entries[:cut] for entries, cut in zip(pair, cuts, strict=True)]
        parts[1][field.name] = [entries[cut:] for entries, cut in zip(pair, cuts, strict=True)]
    seen, unseen = (
        Opinions(
            **{name: tuple(_without(side, other) for side in pair) for name, pair in own.items()}
        )
        for own, other in (parts, parts[::-1])
    )
    return seen, unseen


def _without(entries: list[str], part: dict[str, list[list[str]]]) -> tuple[str, ...]:
    """Entries that hold no entry of a part."""
    others = {f" {entry} " for pair in part.values() for side in pair for entry in side}
    return tuple(e for e in entries if not any(other in f" {e} " for other in others))


SEEN, UNSEEN = _split(ALL)
