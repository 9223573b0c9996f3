"""Inference beyond the benchmarks: ANLI's three rounds (Nie et al. 2020)."""

from prompt_jax.data.source import Source
from prompt_jax.data.task import register_text_task

for _round in ("r1", "r2", "r3"):
    register_text_task(
        f"anli_{_round}",
        Source(f"anli_{_round}", f"anli/{_round}"),
        "hypothesis: {hypothesis} premise: {context}",
        verbalizers={"e": "entailment", "n": "neutral", "c": "contradiction"},
        family="nli",
    )
