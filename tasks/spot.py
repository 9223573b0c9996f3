"""The mixtures of source tasks of SPoT (Vu et al. 2022, section 3.1): rates by size, capped.

Without the names of the tasks in front, as everywhere here (SPoT kept them). Of its mixtures,
translation is not here; the others hold what this project registers of them.
"""

from prompt_jax.tasks import data_to_text, glue, mrqa, super_glue

from prompt_jax.data.task import register_mixture

CAP = 2**19
MIXTURES = {
    "spot_glue": glue.TASKS,
    "spot_super_glue": super_glue.TASKS,
    "spot_nli": ("mnli", "qnli", "anli_r1", "anli_r2", "anli_r3"),
    "spot_paraphrase": ("mrpc", "qqp", "paws"),
    "spot_sentiment": ("sst2", "imdb", "yelp"),
    "spot_mrqa": ("squad", *mrqa.SOURCES),
    "spot_rainbow": ("cosmos_qa", "hellaswag", "piqa", "winogrande"),
    "spot_summarization": ("xsum", "cnn_dailymail", "samsum"),
    "spot_gem": data_to_text.TASKS,
}
for _name, _tasks in MIXTURES.items():
    register_mixture(_name, _tasks, cap=CAP, family="spot")
_ALL = dict.fromkeys(name for tasks in MIXTURES.values() for name in tasks)
register_mixture("spot_all", tuple(_ALL), cap=CAP, family="spot")
