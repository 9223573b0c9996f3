"""Embedded tasks: generated English, offline; what the demo and the study of the family run on."""

import functools
import pathlib

import seqio

from prompt_jax.data import metrics, micro
from prompt_jax.data.micro import tasks
from prompt_jax.data.preprocess import text_task

SEED = 0
# What a cache of these tasks depends on: the generator's own source.
_FILES = sorted(str(path) for path in pathlib.Path(micro.__file__).parent.glob("*.py"))


def _files(split: str) -> list[str]:
    del split
    return _FILES


def _read(split: str, name: str) -> list[dict]:
    return tasks.examples(name, split, SEED, 0, tasks.SPLITS[split])


for _name in tasks.NAMES:
    text_task(
        _name,
        functools.partial(_read, name=_name),
        files=_files,
        metric_fns=[metrics.squad if _name.startswith("micro_qa") else metrics.accuracy],
    )

seqio.MixtureRegistry.add("micro_all", list(tasks.NAMES), default_rate=1.0)
