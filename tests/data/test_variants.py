"""Few-shot subsets and in-context baselines: what is drawn, and that nothing leaks."""

import collections
import dataclasses
import functools

import numpy as np
import pytest

from prompt_jax.data import cache, registry, task, variants
from prompt_jax.data.objectives import SpanCorruption
from prompt_jax.data.templates import Template
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.errors import UserError

BYTE = load_vocabulary("byte")


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """What a test registers is forgotten."""
    task.known()
    monkeypatch.setattr(task, "REGISTRY", dict(task.REGISTRY))


def rows(split, size):
    return [{"text": f"{split} {n}", "label": str(n % 2)} for n in range(size)]


@pytest.fixture
def base():
    source = functools.partial(rows, size=60)
    return task.register_text_task(
        "t_base", source, "say: {text}", verbalizers={"0": "no", "1": "yes"}
    )


def texts(name, split):
    return [e["inputs"] for e in registry.find(name).examples(split)]


@pytest.mark.parametrize("count", [1, 4, 15])
def test_k_of_each_class_and_as_many_for_dev(base, count):
    name = f"t_base_{count}shot_3"
    made = {split: list(registry.find(name).examples(split)) for split in ("train", "validation")}
    for examples in made.values():
        counts = collections.Counter(e["targets"] for e in examples)
        assert counts == {"no": count, "yes": count}
        assert all(e["inputs"].startswith("say: train ") for e in examples)
    both = [e["inputs"] for examples in made.values() for e in examples]
    assert len(set(both)) == 4 * count
    assert len(texts(name, "test")) == 60 and "validation" in texts(name, "test")[0]


def test_draws_follow_the_seed_and_grow_with_k(base):
    assert texts("t_base_4shot_0", "train") == texts("t_base_4shot_0", "train")
    assert set(texts("t_base_4shot_0", "train")) != set(texts("t_base_4shot_1", "train"))
    assert set(texts("t_base_4shot_0", "train")) < set(texts("t_base_8shot_0", "train"))


def test_too_few_rows_and_no_labels(base):
    with pytest.raises(UserError, match="30 rows of 'no': 16 for training and as many"):
        list(registry.find("t_base_16shot_0").examples("train"))
    with pytest.raises(UserError, match="need labels"):
        registry.find("squad_4shot_0")
    with pytest.raises(UserError, match="at least one"):
        registry.find("t_base_0shot_0")
    assert registry.find("t_bsae_4shot_0") is None
    with pytest.raises(UserError, match="no task or mixture 't_bsae_4shot_0'"):
        registry.get_tasks("t_bsae_4shot_0")


def test_a_subset_is_a_task_like_any_other(base, tmp_path):
    tokens = cache.build("t_base_4shot_0", "train", BYTE, str(tmp_path))
    assert len(tokens) == 8
    handle = cache.get_task("t_base_4shot_0")
    assert handle.metrics(["no"], ["maybe"]) == {"accuracy": 0.0, "invalid": 1.0}


def test_examples_stand_before_the_input(base):
    (first, *_) = registry.find("t_base_2demos_0").examples("validation")
    *demos, query = first["inputs"].split(" answer:")[:-1]
    assert first["inputs"].endswith("say: validation 0 answer:")
    assert query.endswith("say: validation 0") and len(demos) == 2
    assert {part.split(" say")[0].strip() for part in (demos[1], query)} == {"no", "yes"}
    assert "train" in demos[0] and "validation" not in demos[0] + demos[1]
    assert first["targets"] == "no"
    (again, *_) = registry.find("t_base_2demos_1").examples("validation")
    assert again["inputs"] != first["inputs"]


def test_prompt_design_is_an_instruction(base):
    made = variants.register_in_context(
        "t_asked", base, instruction="Yes or no?", template=Template()
    )
    (first, *_) = made.examples("test")
    assert first["inputs"] == "Yes or no? say: test 0"
    with pytest.raises(UserError, match="60 examples in the train split, 61 are asked for"):
        list(registry.find("t_base_61demos_0").examples("test"))


# --- a sentinel before the target ---

MICRO = load_vocabulary("prompt_jax/assets/vocabulary/micro.model")


def test_targets_follow_the_sentinel_that_span_corruption_begins_with(base, tmp_path):
    tokens = cache.build("t_base_sentinel", "train", MICRO, str(tmp_path))
    plain = cache.build("t_base", "train", MICRO, str(tmp_path))
    corrupted = SpanCorruption()(
        np.arange(5, 45, dtype=np.int32), np.random.default_rng(0), MICRO.size
    )[1]
    for at in range(4):
        assert tokens.targets(at)[0] == corrupted[0] == MICRO.size - 1
        np.testing.assert_array_equal(tokens.targets(at)[1:], plain.targets(at))
        np.testing.assert_array_equal(tokens.inputs(at), plain.inputs(at))


def test_answers_are_scored_without_it(base, tmp_path):
    task.register(dataclasses.replace(base, name="t_said"))  # seqio forgets nothing
    handle = cache.get_task("t_said_sentinel")
    tokens = cache.build("t_said_sentinel", "test", MICRO, str(tmp_path))
    examples = [tokens.example(at) for at in range(4)]
    targets = [handle.target(example) for example in examples]
    assert targets == ["no", "yes", "no", "yes"]
    said = [MICRO.decode(tokens.targets(at)) for at in (0, 1)] + ["no", "yes yes"]
    answers = [handle.postprocess(text, e) for text, e in zip(said, examples, strict=True)]
    assert answers == ["no", "yes", "no", "yes yes"]
    assert handle.metrics(targets, answers) == {"accuracy": 0.75, "invalid": 0.25}


def test_a_task_with_a_reading_of_its_own_keeps_it():
    for name, text in (("squad_sentinel", "the cat"), ("wsc_sentinel", "the cat")):
        own, made = registry.find(name.removesuffix("_sentinel")), registry.find(name)
        example = {"references": ["cat"], "noun": "cat", "label": True}
        example["targets_pretokenized"] = f"<extra_id_0> {text}"
        assert made.target(example) == own.target(example)
        expected = own.answer(text, example) if own.answer else text
        assert made.answer(f"<extra_id_0> {text}", example) == expected
    multirc = {"question_id": "q", "targets_pretokenized": "<extra_id_0> True"}
    assert registry.find("multirc_sentinel").target(multirc) == {"question": "q", "label": "True"}


def test_few_shots_of_either_order(base):
    for name in ("t_base_4shot_0_sentinel", "t_base_sentinel_4shot_0"):
        targets = [e["targets"] for e in registry.find(name).examples("train")]
        assert sorted(set(targets)) == ["<extra_id_0> no", "<extra_id_0> yes"] and len(targets) == 8
    assert registry.find("micro_all_sentinel") is None and registry.find("x_sentinel") is None
