"""Questions with an answer in the text: SQuAD for training, six other domains to transfer to.

Zero-shot domain transfer as in Lester et al. 2021, section 5 (MRQA 2019: Fisch et al. 2019). TFDS
has the out-of-domain sets as `test` splits; here each is the dev of its own task.
"""

from prompt_jax.data.source import Source
from prompt_jax.data.task import register_extraction_task, register_mixture

FAMILY = "mrqa"
DOMAINS = ("textbook_qa", "bio_asq", "race", "relation_extraction", "duo_rc", "drop")
SOURCES = ("news_qa", "trivia_qa", "search_qa", "hotpot_qa", "natural_questions")

register_extraction_task(
    "squad", Source("squad", "mrqa/squad", ("train", "validation")), family=FAMILY
)
for _name in SOURCES:
    _source = Source(_name, f"mrqa/{_name}", ("train", "validation"))
    register_extraction_task(_name, _source, family=FAMILY)
for _name in DOMAINS:
    _source = Source(_name, f"mrqa/{_name}", ("validation",), tfds_splits={"validation": "test"})
    register_extraction_task(f"mrqa_{_name}", _source, family=FAMILY)
# Questions of Quoref and their hand-made contrast set (Gardner et al. 2020); files alone.
register_extraction_task("quoref", Source("quoref", splits=("test", "contrast")), family=FAMILY)

register_mixture("mrqa", ("squad", *SOURCES), cap=2**19, family=FAMILY)
