"""C4 (Raffel et al. 2020, section 2.2): running text for pretraining and LM adaptation.

The objective (`data/objectives.py`) is the run's. The whole of C4 is no cache: take a slice that
fits the disk by `Source.tfds_splits`, as `c4_sample` does, or put files under PROMPT_JAX_DATA/c4.
"""

from prompt_jax.data.source import Row, Source
from prompt_jax.data.task import Task, register

FAMILY = "pretraining"


def _text(row: Row, split: str) -> list[dict]:
    del split
    return [{"targets": row["text"]}]


_SPLITS = ("train", "validation")
register(Task("c4", Source("c4", "c4/en", _SPLITS), _text, family=FAMILY, text_only=True))
_SAMPLE = Source("c4_sample", "c4/en", _SPLITS, tfds_splits={"train": "train[:1000000]"})
register(Task("c4_sample", _SAMPLE, _text, family=FAMILY, text_only=True))
