"""Every registered task, offline: rows, batch, one step with a finite loss, every metric."""

import json

import jax
import numpy as np
import pytest
from prompt_jax.tasks import micro, micro_pretrain

from prompt_jax.assemble import Method, assemble
from prompt_jax.data import cache, task
from prompt_jax.data.loader import Data
from prompt_jax.data.objectives import PrefixLM
from prompt_jax.data.open import open_loader
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.errors import UserError
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.init import UniformInit, Vocabulary
from prompt_jax.parts.inject import EncoderSlots
from prompt_jax.step import loss_and_grads
from prompt_jax.testing.tiny import tiny_config

BYTE = load_vocabulary("byte")
TASKS = {name: e for name, e in task.known().items() if isinstance(e, task.Task)}
MIXTURES = {name: e for name, e in task.known().items() if isinstance(e, task.Mixture)}
# Random values of TFDS' mock are no rows of these: language lists, labels without a class.
ROWS = {
    "xnli": {"premise": "es regnet", "hypothesis": "it rains", "label": "neutral"},
    "hellaswag": {"context": "he", "endings": ["a", "b", "c", "d"], "label": 2},
    "quoref": {"question": "who?", "context": "she did", "answers": ["she"]},
}
P = 3
METHOD = Method("prompt_tuning", bank=PromptBank(P, UniformInit()), inject=EncoderSlots())
CORPORA = ("corpus_text", "corpus_ratings")


@pytest.fixture(scope="module")
def steps():
    """batch -> (loss, norm of the prompt's gradient), compiled once per shape."""
    config = tiny_config(vocab_size=384, num_encoder_layers=1, num_decoder_layers=1)
    model = assemble(config, METHOD)
    backbone = model.init_backbone(jax.random.key(0))
    table = np.asarray(backbone["backbone/token_embedder/embedding"])
    vocabulary = Vocabulary(config.emb_dim, lambda ids: table[ids], lambda text: [3], 259)
    params = {**backbone, **model.init_prompt(jax.random.key(1), vocabulary)}
    frozen, trainable, _ = METHOD.trainable.split(params)

    @jax.jit
    def run(batch):
        loss, grads, _ = loss_and_grads(model, trainable, frozen, batch, None, 1)
        return loss, sum((g**2).sum() for g in grads.values()) ** 0.5

    return run


@pytest.fixture
def offline(monkeypatch):
    """TFDS' mock; files where it cannot be used; nothing from the network."""
    import tensorflow_datasets as tfds

    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    with tfds.testing.mock_data(num_examples=5):
        yield


def step(steps, name, cache_dir, text_only=False):
    """(loss, gradient norm, batch) of a step on a task's first batch."""
    data = Data(
        name,
        task_feature_lengths={"inputs": 24, "targets": 8},
        batch_size=4,
        packing=False,
        cache_dir=cache_dir,
        objective=PrefixLM(length=24) if text_only else None,
        split="train" if "train" in TASKS[name].splits else TASKS[name].splits[0],
    )
    loader = open_loader(data, BYTE, slots=P)
    batch, account = loader.batch(0)
    loss, norm = steps(widened(batch))
    return float(loss), float(norm), account


def widened(batch):
    """In the one shape that is compiled."""
    wide = {"encoder": 32, "decoder": 8}
    return {
        name: np.pad(array, ((0, 0), (0, wide[name.split("_")[0]] - array.shape[1])))
        for name, array in batch.items()
    }


# Of families whose tasks differ in language or domain alone: one every day, the others also.
FAMILIES = ("xnli", "paws_x", "mlqa", "xquad", "tydiqa", "mrqa")
FIRST = {next((n for n in TASKS if n.startswith(family)), family) for family in FAMILIES}
EVERY = [
    pytest.param(n, marks=[pytest.mark.slow] * (n.startswith(FAMILIES) and n not in FIRST))
    for n in TASKS
]


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_and_a_finite_loss(steps, offline, tmp_path, monkeypatch, name):
    entry, source = TASKS[name], getattr(TASKS[name].source, "source", TASKS[name].source)
    if name in CORPORA:
        pytest.skip("reads the folder that PROMPT_JAX_CORPORA names; no corpus is in the project")
    if getattr(source, "name", "") in ROWS:
        folder = tmp_path / "data" / source.name
        folder.mkdir(parents=True)
        for split in source.splits:
            rows = [json.dumps(ROWS[source.name])] * 5
            (folder / f"{source.file.format(split=split)}.jsonl").write_text("\n".join(rows))
        monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path / "data"))
    for split in micro.tasks.SPLITS:  # generated: a few of them are enough
        monkeypatch.setitem(micro.tasks.SPLITS, split, 8)
    monkeypatch.setattr(micro_pretrain, "TRAIN", 8)
    monkeypatch.setattr(micro_pretrain, "VALIDATION", 8)
    loss, norm, _ = step(steps, name, str(tmp_path / "cache"), entry.text_only)
    assert np.isfinite(loss) and loss > 0 and norm > 0
    if entry.text_only or not entry.metrics:
        return
    split = entry.splits[-1]
    tokens = cache.build(name, split, BYTE, str(tmp_path / "cache"))
    handle = cache.get_task(name)
    examples = [tokens.example(i) for i in range(len(tokens))]
    right = handle.metrics(
        [handle.target(e) for e in examples],
        [handle.postprocess(e["targets_pretokenized"], e) for e in examples],
    )
    wrong = handle.metrics(
        [handle.target(e) for e in examples],
        [handle.postprocess("no such answer", e) for e in examples],
    )
    assert list(right) == entry.metric_names
    assert all(wrong[key] < value or value == 0 for key, value in right.items() if key != "invalid")
    assert wrong.get("invalid", 1) == 1 and right.get("invalid", 0) == 0


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_are_of_tasks(name):
    """Each part is a task here, and has a split that all of them have."""
    assert set(MIXTURES[name].rates) <= set(TASKS)
    assert len(set(MIXTURES[name].rates)) > 1
    shared = set.intersection(*(set(TASKS[part].splits) for part in MIXTURES[name].rates))
    assert "validation" in shared or name == "xquad"


HIDDEN = {
    "cola": {"sentence": "a", "label": -1},
    "stsb": {"sentence1": "a", "sentence2": "b", "label": -1.0},
    "wsc": {"text": "a b", "span1_text": "a", "span2_text": "b", "span2_index": 1, "label": -1},
    "record": {"passage": "a", "query": "b", "entities": ["c"], "answers": []},
    "multirc": {"paragraph": "a", "question": "b", "answer": "c", "label": -1},
    "squad": {"question": "a", "context": "b", "answers": []},
}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_labels_are_no_targets(name):
    """As TFDS has them in the test splits of GLUE and SuperGLUE."""
    with pytest.raises(UserError, match="the split has no labels"):
        list(TASKS[name].cast({**HIDDEN[name], "idx": 0}, "test"))


def cast(name, split="validation", **row):
    return list(TASKS[name].cast({**row, "idx": 0}, split))


def test_wsc_is_the_generation_of_the_referent():
    row = {"text": "Bob saw Al, and he, too, left.", "span1_text": "Bob", "span2_text": "he"}
    row |= {"span2_index": 4, "label": 1}
    (example,) = cast("wsc", **row)
    assert example["inputs"] == "Bob saw Al, and *he*, too, left." and example["targets"] == "Bob"
    assert cast("wsc", "train", **{**row, "label": 0}) == []
    handle = TASKS["wsc"]
    assert [handle.answer(t, example) for t in ("the Bob", "Bob's father", "Al", "")] == [
        *(True, False, False, False),
    ]
    assert handle.target(example) is True


def test_record_has_its_highlights_as_sentences():
    row = {"passage": 'He died.\n@highlight\nShe left\n@highlight\n"No"', "query": "@placeholder"}
    row |= {"entities": ["A", "B"], "answers": ["A", "B", "A"]}
    examples = cast("record", "train", **row)
    assert [e["targets"] for e in examples] == ["A", "B"]
    assert examples[0]["inputs"].endswith('passage: He died. She left. "No"')
    (one,) = cast("record", **row)
    assert one["references"] == ["A", "B", "A"]


def test_multirc_has_no_markup_and_knows_its_question():
    row = {"paragraph": "<b>Sent 1: </b>a<br>b", "question": "q", "answer": "x", "label": 1}
    (one,), (other,) = cast("multirc", **row), cast("multirc", **{**row, "answer": "y"})
    assert one["inputs"] == "question: q answer: x paragraph: Sent 1: a b"
    assert one["question_id"] == other["question_id"]
    assert one["question_id"] != cast("multirc", **{**row, "question": "r"})[0]["question_id"]


def test_labels_that_tfds_numbers_from_zero():
    """Yelp's files say 1 and 2; TFDS' numbers of them are 0 and 1."""
    yelp = TASKS["yelp"]
    tidied = [yelp.source.tidy({"text": "x", "label": number, "idx": 0}) for number in (0, 1)]
    assert [yelp.cast(row, "test")[0]["targets"] for row in tidied] == ["negative", "positive"]


def test_scores_of_similarity_are_fifths():
    texts = [cast("stsb", sentence1="a", sentence2="b", label=x)[0]["targets"] for x in (2.72, 5)]
    assert texts == ["2.8", "5.0"]
    assert TASKS["stsb"].answer("2.8", {}) == 2.8 and TASKS["stsb"].answer("two", {}) is None


def test_a_mixture_of_the_mock_trains(steps, offline, tmp_path):
    data = Data(
        "super_glue",
        task_feature_lengths={"inputs": 24, "targets": 8},
        batch_size=4,
        packing=False,
        cache_dir=str(tmp_path),
    )
    loader = open_loader(data, BYTE, slots=P)
    losses = [float(steps(widened(loader.batch(n)[0]))[0]) for n in range(3)]
    assert np.isfinite(losses).all()
