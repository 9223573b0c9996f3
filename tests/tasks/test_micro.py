"""The embedded tasks and the pretraining sources through stock seqio."""

import numpy as np
import pytest

from prompt_jax.data import cache, registry
from prompt_jax.data.micro import tasks
from prompt_jax.data.vocabulary import load_vocabulary

SOURCES = ("micro_text", "micro_instruct", "micro_instruct_no_sentiment")
SOURCES += ("corpus_text", "corpus_ratings")


@pytest.fixture(scope="module")
def seqio():
    from prompt_jax.data import preprocess

    preprocess.into_seqio()
    return preprocess.seqio


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary("prompt_jax/assets/vocabulary/micro.model")


def test_all_are_registered(seqio):
    assert {*tasks.NAMES, *SOURCES} <= set(seqio.TaskRegistry.names())
    mixture = seqio.MixtureRegistry.get("micro_all")
    assert sorted(task.name for task in mixture.tasks) == sorted(tasks.NAMES)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_stock_seqio_reads_every_split(seqio, name):
    task = seqio.TaskRegistry.get(name)
    assert sorted(task.splits) == ["test", "train", "validation"]
    lengths = {"inputs": 512, "targets": 64}
    dataset = task.get_dataset(lengths, "validation", shuffle=False)
    rows = list(dataset.as_numpy_iterator())
    made = tasks.examples(name, "validation", 0, 0, tasks.SPLITS["validation"])
    assert len(rows) == len(made)
    for row, example in zip(rows[:50], made, strict=False):
        assert row["inputs_pretokenized"].decode() == example["inputs"]
        assert row["targets"][-1] == 1 and row["inputs"][-1] == 1
        assert bytes(int(t) - 3 for t in row["targets"][:-1]).decode() == example["targets"]


def test_metrics_are_fractions(seqio):
    for name in tasks.NAMES:
        handle = registry.TaskHandle(seqio.TaskRegistry.get(name))
        found = handle.metrics(["a b", "c"], ["a b", "d"])
        extractive = name.startswith("micro_qa")
        assert found == (
            {"em": 0.5, "f1": 0.5} if extractive else {"accuracy": 0.5, "invalid": 1.0}
        )


def test_text_sources_need_no_inputs(seqio):
    for name in SOURCES:
        features = seqio.TaskRegistry.get(name).output_features
        needed = {key for key, feature in features.items() if feature.required}
        assert needed == ({"targets"} if name.endswith("_text") else {"inputs", "targets"})


def test_a_cache_holds_the_task_in_the_vocabulary(tmp_path, vocabulary, seqio):
    made = cache.build("micro_sentiment", "test", vocabulary, str(tmp_path))
    examples = tasks.examples("micro_sentiment", "test", 0, 0, tasks.SPLITS["test"])
    assert len(made) == len(examples)
    assert vocabulary.decode(made.inputs(7)) == examples[7]["inputs"]
    assert vocabulary.decode(made.targets(7)) == examples[7]["targets"]
    assert bool(made.example(7)["unseen"]) == examples[7]["unseen"]


def test_the_vocabulary_is_the_family_s(vocabulary):
    assert vocabulary.size == 4096
    assert vocabulary.encode("<extra_id_0>")[-1] == 4095
    one = "positive negative equivalent different yes no true false"
    assert all(len(vocabulary.encode(word)) == 1 for word in one.split())
    printable = "".join(map(chr, range(33, 127)))
    assert vocabulary.unk_id not in vocabulary.encode(printable)
    assert vocabulary.decode(vocabulary.encode("not_entailment")) == "not_entailment"


def test_examples_are_short(vocabulary):
    for name in tasks.NAMES:
        texts = [e["inputs"] for e in tasks.examples(name, "train", 0, 0, 300)]
        lengths = [len(vocabulary.encode(text)) for text in texts]
        assert 8 <= np.median(lengths) <= 45 and max(lengths) <= 64
