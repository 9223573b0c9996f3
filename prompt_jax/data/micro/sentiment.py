"""The embedded sentiment tasks: reviews of a hotel (source) or a restaurant (shifted)."""

from prompt_jax.data.micro.domains import HOTEL, RESTAURANT
from prompt_jax.data.micro.draws import Draws, blocks, in_split
from prompt_jax.data.micro.lexicon import SEEN, UNSEEN
from prompt_jax.data.micro.opinion import review

LABELS = ("negative", "positive")
DOMAINS = {"micro_sentiment": HOTEL, "micro_sentiment_shift": RESTAURANT}


def examples(
    split: str, seed: int, start: int, count: int, *, task: str = "micro_sentiment"
) -> list[dict]:
    """Reviews with labels in turn.

    Args:
        split: train, validation or test. In test, examples whose index // 2 is odd use only
            opinion words that train never shows.
        seed: of the stream.
        start: first index.
        count: how many.
        task: a key of DOMAINS.

    Returns:
        {"inputs", "targets", "unseen"} each.
    """
    domain = DOMAINS[task]

    def make(draws: Draws, index: int) -> dict:
        unseen = split == "test" and index // 2 % 2 == 1
        text = ""
        while not in_split(text, split) or not text:
            text = review(draws, domain, UNSEEN if unseen else SEEN, index % 2)
        return {"inputs": text, "targets": LABELS[index % 2], "unseen": unseen}

    return blocks(task, split, seed, start, count, make)
