"""Paraphrase transfer: QQP to MRPC and back (Lester et al. 2021, section 5).

Labels and columns of one set are mapped to the other's, so that a prompt learned on `qqp` is
evaluated on `mrpc_as_qqp`, and one learned on `mrpc` on `qqp_as_mrpc`.
"""

import functools

from prompt_jax.data import metrics
from prompt_jax.data.source import Source
from prompt_jax.data.task import register_text_task

register_text_task(
    "mrpc_as_qqp",
    Source("mrpc", "glue/mrpc"),
    "question1: {sentence1} question2: {sentence2}",
    verbalizers={"not_equivalent": "not_duplicate", "equivalent": "duplicate"},
    metrics=(metrics.accuracy, functools.partial(metrics.f1, positive="duplicate")),
    family="paraphrase",
)
register_text_task(
    "qqp_as_mrpc",
    Source("qqp", "glue/qqp"),
    "sentence1: {question1} sentence2: {question2}",
    verbalizers={"not_duplicate": "not_equivalent", "duplicate": "equivalent"},
    metrics=(metrics.accuracy, functools.partial(metrics.f1, positive="equivalent")),
    family="paraphrase",
)
register_text_task(
    "paws",
    Source("paws", "paws_wiki/labeled_final_raw"),
    "sentence1: {sentence1} sentence2: {sentence2}",
    verbalizers={"different_meaning": "not_equivalent", "paraphrase": "equivalent"},
    metrics=(metrics.accuracy, functools.partial(metrics.f1, positive="equivalent")),
    family="paraphrase",
)
