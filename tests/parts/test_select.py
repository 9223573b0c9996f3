"""Which vectors serve an example: retrieval and removal, by their properties."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax import checks
from prompt_jax.config import resolve
from prompt_jax.errors import UserError
from prompt_jax.parts.bank import Banks, PromptBank
from prompt_jax.parts.select import Remaining, Retrieved, Static, means
from prompt_jax.slots import SLOT0
from prompt_jax.testing.batches import lay_out

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(30, 6)).astype(np.float32)
SOFT = RNG.normal(size=(2, 6)).astype(np.float32)
K = 3


def embed(tokens):
    return jnp.asarray(TABLE)[jnp.where(tokens >= SLOT0, 0, tokens)]


def examples(*texts):
    one = np.array([5, 1], np.int32)
    return [(np.array([*text, 1], np.int32), one) for text in texts]


def retrieve(pairs, memory, packed=True, capacity=(32, 12), count=K):
    batch = lay_out(pairs, count + len(SOFT), packed, capacity)
    vectors = {"encoder": jnp.asarray(SOFT), "memory": jnp.asarray(memory)}
    found = Retrieved(count)(vectors, {k: jnp.asarray(v) for k, v in batch.items()}, embed)
    return np.asarray(found["encoder"]), batch


def nearest(text, memory):
    query = TABLE[[*text, 1]].mean(0)
    scores = memory @ query / np.linalg.norm(memory, axis=1) / np.linalg.norm(query)
    return np.argsort(-scores, kind="stable")[:K]


TEXTS = ([3, 4, 5], [7, 7], [20, 21, 22, 23])


@pytest.mark.parametrize("packed", [True, False])
def test_the_nearest_rows_best_first(packed):
    memory = RNG.normal(size=(12, 6)).astype(np.float32)
    found, batch = retrieve(examples(*TEXTS), memory, packed)
    seen = 0
    for row, segments in enumerate(batch["encoder_segment_ids"]):
        for segment in range(1, segments.max() + 1):
            tokens = batch["encoder_input_tokens"][row][segments == segment]
            text = [int(t) for t in tokens if t < SLOT0 and t != 1]
            expected = np.concatenate([memory[nearest(text, memory)], SOFT])
            np.testing.assert_array_equal(found[row, segment - 1], expected)
            seen += 1
    assert seen == len(TEXTS)


def test_a_query_that_is_a_row_finds_it():
    memory = RNG.normal(size=(12, 6)).astype(np.float32)
    memory[8] = 3.0 * TABLE[[3, 4, 5, 1]].mean(0)  # cosine: length is nothing
    found, _ = retrieve(examples(TEXTS[0]), memory)
    np.testing.assert_array_equal(found[0, 0, 0], memory[8])


def test_the_order_of_the_memory_is_nothing():
    memory = RNG.normal(size=(12, 6)).astype(np.float32)
    shuffled = memory[RNG.permutation(12)]
    (found, batch), (other, _) = (retrieve(examples(*TEXTS), m) for m in (memory, shuffled))
    there = [(row, s - 1) for row, own in enumerate(batch["encoder_segment_ids"]) for s in {*own}]
    there = [place for place in there if place[1] >= 0]
    assert len(there) == len(TEXTS)
    for place in there:
        np.testing.assert_array_equal(found[place], other[place])


def test_slots_and_padding_are_no_part_of_the_query():
    batch = lay_out(examples(*TEXTS), 5, True)
    tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
    noisy = np.where(segments == 0, 9, tokens)
    given = [jnp.asarray(x) for x in (tokens, segments)]
    expected = means(embed(given[0]), *given, 3)
    found = means(embed(jnp.asarray(noisy)), jnp.asarray(noisy), given[1], 3)
    np.testing.assert_array_equal(found, expected)
    assert np.count_nonzero(np.asarray(expected).any(-1)) == len(TEXTS)


def test_counts_that_cannot_be():
    banks = Banks((PromptBank(4), PromptBank(12, name="memory")))
    Retrieved(12).check(banks)
    for count in (13, -1):
        with pytest.raises(UserError, match=f"Retrieved.count = {count}: the memory has 12 rows"):
            Retrieved(count).check(banks)
    with pytest.raises(UserError, match='no bank is named "memory"'):
        Retrieved(1).check(PromptBank(4))


def test_static_gives_what_it_gets():
    vectors = {"encoder": SOFT}
    assert Static()(vectors, {}, embed) is vectors
    assert Static.slots == 0 and Retrieved(4).slots == 4


# --- removal ---


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("on", [(1, 0, 1, 0), (0, 1, 1, 1), (0, 0, 0, 1), (1, 1, 1, 1)])
def test_rows_without_the_slots_that_are_off(on, packed):
    batch = lay_out(examples(*TEXTS), len(on), packed, (32, 12))
    vectors = {"encoder": jnp.zeros((len(on), 6)), "encoder_on": jnp.asarray(on, jnp.float32)}
    found = Remaining().rows(vectors, {name: jnp.asarray(a) for name, a in batch.items()})
    assert found.keys() == batch.keys()
    for row, (tokens, segments) in enumerate(
        zip(batch["encoder_input_tokens"], batch["encoder_segment_ids"], strict=True)
    ):
        left = [
            (token, segment)
            for token, segment in zip(tokens, segments, strict=True)
            if token < SLOT0 or on[token - SLOT0]
        ]
        left += [(0, 0)] * (len(tokens) - len(left))
        expected = np.array(left).T
        np.testing.assert_array_equal(found["encoder_input_tokens"][row], expected[0])
        np.testing.assert_array_equal(found["encoder_segment_ids"][row], expected[1])
    for name in ("decoder_input_tokens", "decoder_segment_ids"):
        np.testing.assert_array_equal(found[name], batch[name])


def test_removal_folds_into_the_rows_that_are_on():
    vectors = {"encoder": jnp.asarray(TABLE[:4]), "encoder_on": jnp.asarray([0.0, 1.0, 0.0, 1.0])}
    np.testing.assert_array_equal(Remaining().folded(vectors), TABLE[[1, 3]])
    np.testing.assert_array_equal(Static().folded(vectors), TABLE[:4])


def test_removal_needs_masks():
    files = ["models/micro_xs.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin"]
    given = ["MIXTURE_OR_TASK_NAME='micro_sentiment'", "MODEL_DIR='out'"]
    run = resolve(files, [*given, "Method.select=@Remaining()"]).run
    with pytest.raises(UserError, match="Remaining needs a bank .* MaskedBank; .* is PromptBank"):
        checks.check(run)
