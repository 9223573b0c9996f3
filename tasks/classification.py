"""Topics, questions and reviews: AG News (Zhang et al. 2015), TREC (Li and Roth 2002), IMDb (Maas
et al. 2011), Yelp (Zhang et al. 2015).

TFDS has no validation split of them: it is cut off the end of its training split.
"""

from prompt_jax.data.source import Source
from prompt_jax.data.task import register_text_task

FAMILY = "classification"


def _held_out(count: int) -> dict[str, str]:
    return {"train": f"train[:-{count}]", "validation": f"train[-{count}:]"}


register_text_task(
    "ag_news",
    Source("ag_news", "ag_news_subset", tfds_splits=_held_out(1000)),
    "{description}",
    verbalizers={
        "World": "world",
        "Sports": "sports",
        "Business": "business",
        "Sci/Tech": "technology",
    },
    family=FAMILY,
)
register_text_task(
    "trec",
    Source("trec", "trec", tfds_splits=_held_out(500)),
    "{text}",
    label="label-coarse",
    verbalizers={
        "DESC": "description",
        "ENTY": "entity",
        "ABBR": "abbreviation",
        "HUM": "human",
        "NUM": "number",
        "LOC": "location",
    },
    family=FAMILY,
)
register_text_task(
    "imdb",
    Source("imdb", "imdb_reviews", tfds_splits=_held_out(2500)),
    "{text}",
    verbalizers={"neg": "negative", "pos": "positive"},
    family=FAMILY,
)


def _stars(row: dict) -> dict:
    """TFDS numbers the labels 1 and 2 from zero."""
    return {**row, "label": row["label"] + 1}


register_text_task(
    "yelp",
    Source("yelp", "yelp_polarity_reviews", tfds_splits=_held_out(5000), tidy=_stars),
    "{text}",
    verbalizers={"1": "negative", "2": "positive"},
    family=FAMILY,
)
