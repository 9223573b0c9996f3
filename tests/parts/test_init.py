"""Inits give the vectors that the paper describes."""

import dataclasses

import jax
import numpy as np
import pytest

from prompt_jax.errors import UserError
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.init import (
    ClassLabels,
    FileInit,
    Prompts,
    SampledVocabulary,
    TextInit,
    UniformInit,
    Vocabulary,
)

TABLE = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
WORDS = {"good": [3], "very bad": [4, 5, 9], "so": [7]}
VOCABULARY = Vocabulary(
    width=6,
    rows=lambda ids: TABLE[np.asarray(ids)],
    encode=lambda text: WORDS[text] if text in WORDS else [],
    pieces=30,
)
KEY = jax.random.key(3)


def ids_of(vectors):
    """Which row of the table each vector is, or -1."""
    match = (np.asarray(vectors)[:, None] == TABLE[None]).all(-1)
    return [int(row.argmax()) if row.any() else -1 for row in match]


def test_uniform_fills_its_range():
    vectors = np.asarray(UniformInit()(KEY, 2000, VOCABULARY))
    assert vectors.shape == (2000, 6)
    assert -0.5 <= vectors.min() < -0.49 and 0.49 < vectors.max() <= 0.5
    assert abs(vectors.mean()) < 0.01 and abs(vectors.var() - 1 / 12) < 0.002


def test_sampled_vocabulary_takes_real_pieces_without_repeats():
    ids = ids_of(SampledVocabulary()(KEY, 30, VOCABULARY))
    assert sorted(ids) == list(range(30))
    assert max(ids_of(SampledVocabulary(first=12)(KEY, 12, VOCABULARY))) == 11
    other = ids_of(SampledVocabulary()(jax.random.key(4), 30, VOCABULARY))
    assert other != ids


def test_sampled_vocabulary_refuses_more_than_there_are():
    with pytest.raises(UserError, match="31 different pieces"):
        SampledVocabulary()(KEY, 31, VOCABULARY)


def test_class_labels_average_their_pieces_and_fill_up():
    vectors = np.asarray(ClassLabels(("very bad", "good"))(KEY, 5, VOCABULARY))
    np.testing.assert_allclose(vectors[0], TABLE[[4, 5, 9]].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(vectors[1], TABLE[3])
    rest = ids_of(vectors[2:])
    assert len(set(rest)) == 3 and -1 not in rest
    assert ClassLabels(("very bad", "good"))(KEY, 1, VOCABULARY).shape == (1, 6)


def test_text_is_cut_or_filled_up():
    assert ids_of(TextInit("very bad")(KEY, 2, VOCABULARY)) == [4, 5]
    longer = ids_of(TextInit("very bad")(KEY, 4, VOCABULARY))
    assert longer[:3] == [4, 5, 9] and longer[3] >= 0
    with pytest.raises(UserError, match="empty"):
        TextInit("nothing known")(KEY, 2, VOCABULARY)


def test_file_is_taken_as_it_is():
    asked = []

    def read_prompt(path, force):
        asked.append((path, force))
        return TABLE[:3]

    vocabulary = dataclasses.replace(VOCABULARY, read_prompt=read_prompt)
    np.testing.assert_array_equal(FileInit("p.npy")(KEY, 3, vocabulary), TABLE[:3])
    with pytest.raises(UserError, match=r"\(3, 6\).*\(4, 6\)"):
        FileInit("p.npy", force=True)(KEY, 4, vocabulary)
    assert asked == [("p.npy", False), ("p.npy", True)]


def test_prompts_lie_one_after_the_other():
    read = {"a": TABLE[:3], "b": TABLE[5:8]}
    vocabulary = dataclasses.replace(VOCABULARY, read_prompt=lambda path, force: read[path])
    both = Prompts(("b", "a"))(KEY, 6, vocabulary)
    np.testing.assert_array_equal(both, np.concatenate([TABLE[5:8], TABLE[:3]]))
    with pytest.raises(UserError, match="2 prompts do not fill PROMPT_LENGTH = 7 rows evenly"):
        Prompts(("b", "a"))(KEY, 7, vocabulary)
    with pytest.raises(UserError, match=r"b: shape \(3, 6\), each of 2 prompts needs \(4, 6\)"):
        Prompts(("b", "a"))(KEY, 8, vocabulary)


def test_bank_refuses_an_empty_prompt():
    with pytest.raises(UserError, match="PROMPT_LENGTH = 0"):
        PromptBank(length=0).init_params(KEY, VOCABULARY)
