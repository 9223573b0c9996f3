"""Data to text: E2E (Novikova et al. 2017), WebNLG (Gardent et al. 2017), DART (Nan et al. 2021).

Outside training a meaning has one example with all its references, as their metrics have it.
"""

from prompt_jax.data import metrics
from prompt_jax.data.source import Grouped, Row, Source
from prompt_jax.data.task import register_generation_task, register_mixture

FAMILY = "data_to_text"
_METRICS = (metrics.bleu, metrics.rouge)


def _e2e(row: dict) -> dict:
    """GEM's columns -> those of the set's own files."""
    return {"mr": row["meaning_representation"], "ref": row["target"]}


def _web_nlg(row: Row) -> str:
    return " && ".join(row["input"])


def _dart(row: Row) -> str:
    triples = row["tripleset"]
    return " && ".join(t if isinstance(t, str) else " | ".join(t) for t in triples)


register_generation_task(
    "e2e",
    Grouped(Source("e2e", "gem/e2e_nlg", tidy=_e2e), "mr", "ref"),
    "{mr}",
    "{ref}",
    references_column="references",
    metrics=_METRICS,
    family=FAMILY,
)
register_generation_task(
    "web_nlg",
    Source("web_nlg", "gem/web_nlg_en"),
    _web_nlg,
    "{target}",
    references_column="references",
    metrics=_METRICS,
    family=FAMILY,
)
register_generation_task(
    "dart",
    Source("dart", "gem/dart"),
    _dart,
    "{target}",
    references_column="references",
    metrics=_METRICS,
    family=FAMILY,
)
TASKS = ("e2e", "web_nlg", "dart")
register_mixture("data_to_text", TASKS, cap=2**19, family=FAMILY)
