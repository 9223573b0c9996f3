"""Embedded tasks: generated English, offline; what the demo and the study of the family run on."""

import functools
import pathlib

from prompt_jax.data import metrics, micro
from prompt_jax.data.micro import tasks
from prompt_jax.data.source import Rows
from prompt_jax.data.task import Task, register, register_mixture

SEED = 0
# What a cache of these tasks depends on: the generator's own source.
_FILES = sorted(str(path) for path in pathlib.Path(micro.__file__).parent.glob("*.py"))


def _files(split: str) -> list[str]:
    del split
    return _FILES


def _read(split: str, name: str) -> list[dict]:
    return tasks.examples(name, split, SEED, 0, tasks.SPLITS[split])


def _as_written(row: dict, split: str) -> list[dict]:
    del split
    return [row]


_LABELS = {
    "micro_sentiment": ("negative", "positive"),
    "micro_sentiment_shift": ("negative", "positive"),
    "micro_entailment": ("entailment", "not_entailment"),
    "micro_paraphrase": ("different", "equivalent"),
    "micro_paraphrase_shift": ("different", "equivalent"),
    "micro_boolq": ("no", "yes"),
}
for _name in tasks.NAMES:
    _source = Rows(functools.partial(_read, name=_name), reads=_files)
    _labels = _LABELS.get(_name, ())
    _choice = (metrics.accuracy, functools.partial(metrics.invalid, labels=_labels))
    _metrics = _choice if _labels else (metrics.squad,)
    register(Task(_name, _source, _as_written, _metrics, labels=_labels, family="micro"))

register_mixture("micro_all", tasks.NAMES, family="micro")
# A task of each kind that is answered by one of its labels.
register_mixture(
    "micro_labelled",
    ("micro_sentiment", "micro_entailment", "micro_paraphrase", "micro_boolq"),
    family="micro",
)
