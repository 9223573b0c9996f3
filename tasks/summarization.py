"""Summaries: XSum (Narayan et al. 2018), CNN / DailyMail (See et al. 2017), SAMSum (Gliwa et al.
2019)."""

from prompt_jax.data.source import Source
from prompt_jax.data.task import register_generation_task, register_mixture

FAMILY = "summarization"

register_generation_task("xsum", Source("xsum", "xsum"), "{document}", "{summary}", family=FAMILY)
register_generation_task(
    "cnn_dailymail", Source("cnn_dailymail", "cnn_dailymail"), "{article}", "{highlights}",
    family=FAMILY,
)  # fmt: skip
register_generation_task(
    "samsum", Source("samsum", "samsum"), "{dialogue}", "{summary}", family=FAMILY
)
register_mixture("summarization", ("xsum", "cnn_dailymail", "samsum"), cap=2**19, family=FAMILY)
