"""Natural English from a folder of corpora: running text, and reviews that state their own rating.

The folder is named by PROMPT_JAX_CORPORA; it holds NAME/train.txt.xz and NAME/validation.txt.xz
with one passage a line. A corpus that is absent is left out; none at all is an error.
"""

import functools
import lzma
import os
import pathlib
import re

from prompt_jax.data.micro.distinctions import PLEASED
from prompt_jax.data.micro.draws import Draws, blocks
from prompt_jax.data.micro.instruct import asked, told
from prompt_jax.errors import UserError

ENVIRONMENT = "PROMPT_JAX_CORPORA"
CORPORA = ("wiki_articles", "imdb_unsup", "eltec_novels")
RATED = "imdb_unsup"
SHORTEST, LONGEST = 20, 400
WINDOW = 60  # words of a rated review, around its end
GOOD_FROM, BAD_TO = 7.0, 4.0

_SENTENCES = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[A-Z\"'(])")
_ODD = re.compile(r"[^\x20-\x7e]")
_SPACED = re.compile(r"\s*([.,!?;:()\"]|n't\b|'(?:s|re|ve|ll|d|m)\b)\s*")
_WORDS = {
    w: n for n, w in enumerate("zero one two three four five six seven eight nine ten".split())
}
_NUMBER = r"(\d{1,2}(?:[.,]\d)?|" + "|".join(_WORDS) + ")"
_RATING = re.compile(
    rf"(?<![\d./-]){_NUMBER}\s*(?:/\s*(10|5|ten|five)\b(?!/)"
    rf"|(?:stars? )?out of\s*(?:a (?:possible )?)?(10|5|ten|five|4|four)\b(?:\s*stars?)?|stars?\b)",
    re.IGNORECASE,
)
_IT = r"(?: (?:it|this|this (?:film|movie)|the (?:film|movie)))?"
_I_GAVE = r"\bi(?:'d| would| will|'ll)? (?:gave|give|rate|rated)"
_NOUN = r"\b(?:my |overall |final )*(?:rating|score|vote|grade|verdict|mark)"
_MORE_RATINGS = re.compile(
    rf"{_NOUN}\s*(?:is|was|:|-|of)*\s*[\d.]*|{_I_GAVE}{_IT}(?: as)?(?: an?)?(?=\s*(?:[.,!?]|$))",
    re.IGNORECASE,
)
# Stars may be actors ("the two stars"), unless something gives them.
_GIVES = re.compile(r"\b(?:giv|gave|rat|deserv|award|earn|scor|verdict|overall)|[:=(-]\s*$", re.I)


def _folder() -> pathlib.Path:
    folder = os.environ.get(ENVIRONMENT, "")
    if not folder or not any((pathlib.Path(folder) / name).is_dir() for name in CORPORA):
        raise UserError(
            f"{ENVIRONMENT}={folder!r} holds none of {', '.join(CORPORA)}; "
            "set it to a folder with NAME/train.txt.xz, one passage a line"
        )
    return pathlib.Path(folder)


def _passages(folder: str, corpus: str, split: str) -> list[str]:
    path = pathlib.Path(folder) / corpus / f"{'train' if split == 'train' else 'validation'}.txt.xz"
    if not path.is_file():
        return []
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def cut(passage: str) -> list[str]:
    """Sentences of a passage joined into lines of at most LONGEST characters; longer ones drop."""
    lines, current = [], ""
    for sentence in _SENTENCES.split(passage.replace("<br />", " ").strip()):
        if len(current) + len(sentence) < LONGEST:
            current = f"{current} {sentence}".strip()
            continue
        lines.append(current)
        current = sentence
    lines.append(current)
    return [line for line in lines if SHORTEST <= len(line) <= LONGEST and not _ODD.search(line)]


@functools.lru_cache(maxsize=4)
def _lines(folder: str, split: str) -> tuple[str, ...]:
    """All lines of the corpora in one fixed shuffled order."""
    found: list[str] = []
    for corpus in CORPORA:
        for passage in _passages(folder, corpus, split):
            found += cut(passage)
    return tuple(Draws(f"corpus order {split}").shuffled(found))


def spaced(text: str) -> str:
    """The lower-case, space-separated style of tokenised data sets."""
    return " ".join(_SPACED.sub(r" \1 ", text.lower()).split())


def size(split: str, *, source: str = "text") -> int:
    """How many different examples a source ("text" or "ratings") has."""
    folder = str(_folder())
    return len(_lines(folder, split) if source == "text" else _rated(folder, split))


def text_examples(split: str, seed: int, start: int, count: int) -> list[dict]:
    """Lines of natural text in shuffled order, again from the front after the last.

    Args:
        split: train or validation.
        seed: of the style: a quarter is in the style of tokenised data sets.
        start: first index.
        count: how many.

    Returns:
        {"text"} each.

    Raises:
        UserError: no corpora.
    """
    lines = _lines(str(_folder()), split)

    def make(draws: Draws, index: int) -> dict:
        line = lines[index % len(lines)]
        return {"text": spaced(line) if draws.chance(0.25) else line}

    return blocks("corpus_text", split, seed, start, count, make)


def _value(match: re.Match) -> float:
    """The rating on a scale of ten; stars without a scale count to five (to ten if above)."""
    stated = match.group(1).lower().replace(",", ".")
    value = float(_WORDS[stated]) if stated in _WORDS else float(stated)
    scale = (match.group(2) or match.group(3) or ("5" if value <= 5 else "10")).lower()
    return 10 * value / (_WORDS[scale] if scale in _WORDS else float(scale))


def rated(review: str) -> tuple[str, int] | None:
    """The end of a review without its rating, and its side.

    Args:
        review: natural text.

    Returns:
        (at most WINDOW words, 0 for a rating of at most BAD_TO or 1 for at least GOOD_FROM); None
        when it states no rating, several unlike ones, or one in between.
    """
    review = review.replace("<br />", " ")
    values = [
        _value(match)
        for match in _RATING.finditer(review)
        if match.group(2) or match.group(3) or _GIVES.search(review[: match.start()][-30:])
    ]
    if not values or max(values) > 10:
        return None
    if min(values) < GOOD_FROM and max(values) > BAD_TO:
        return None
    text = _ODD.sub(" ", _MORE_RATINGS.sub(" ", _RATING.sub(" ", review)))
    words = text.split()[-WINDOW:]
    while words and not re.search(r"[a-zA-Z]", words[-1]):
        words.pop()
    return (" ".join(words), int(values[0] >= GOOD_FROM)) if len(words) >= 10 else None


@functools.lru_cache(maxsize=4)
def _rated(folder: str, split: str) -> tuple[tuple[str, int], ...]:
    passages = _passages(folder, RATED, split)
    return tuple(found for found in map(rated, passages) if found is not None)


def rating_examples(split: str, seed: int, start: int, count: int) -> list[dict]:
    """Instructions about natural reviews labelled by the rating that they stated, in balance.

    Args:
        split: train or validation.
        seed: of the stream.
        start: first index.
        count: how many; reviews recur with other instructions, labels and windows.

    Returns:
        {"inputs", "targets"} each.

    Raises:
        UserError: no corpora.
    """
    found = _rated(str(_folder()), split)
    sides = [[text for text, side in found if side == wanted] for wanted in (0, 1)]
    if not all(sides):
        raise UserError(f"{RATED}/{split} in {ENVIRONMENT} states no ratings of both kinds")

    def make(draws: Draws, index: int) -> dict:
        text = draws.pick(sides[index % 2])
        words = text.split()
        text = " ".join(words[-(12 + draws.below(WINDOW - 11)) :])
        text = spaced(text) if draws.chance(0.5) else text
        cast = asked if draws.chance(0.3) else told
        return cast(draws, PLEASED, text, index % 2)

    return blocks("corpus_ratings", split, seed, start, count, make)
