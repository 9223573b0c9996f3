"""In what order a run proceeds; what is scored and switched off between its phases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.errors import UserError
from prompt_jax.parts.phases import Gradient
from prompt_jax.parts.prune import PrunePieces, PruneTokens
from prompt_jax.stages import stage_of, stages_of
from prompt_jax.step import jit_train_step, loss_and_grads
from prompt_jax.testing.contract import begin, method_of

P, K = 6, 4


def spans(phases, steps):
    return [(stage.first, stage.last) for stage in stages_of(phases, steps)]


def phase(name, steps=0):
    return Gradient(name, steps)


def test_counts_and_shares_and_what_is_left():
    assert spans([phase("a")], 7) == [(0, 7)]
    parts = [phase("a", 0.5), phase("b", 10), phase("c")]
    assert spans(parts, 100) == [(0, 50), (50, 60), (60, 100)]
    assert spans([phase("a", 3), phase("b", 4)], 7) == [(0, 3), (3, 7)]
    assert spans([phase("a")], 0) == [(0, 0)]


def test_a_step_belongs_to_the_phase_that_takes_it():
    found = stages_of([phase("a", 3), phase("b")], 7)
    assert [stage_of(found, step).number for step in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([phase("a", 5), phase("b", 5)], "are used up before"),
        ([phase("a"), phase("b")], "are used up before"),
        ([phase("a", 5)], "take 5 of TRAIN_STEPS = 8"),
        ([phase("a", 4), phase("a", 4)], "each with its own name"),
        ([phase("a", -1)], "is negative"),
        ([], "one or more"),
    ],
)
def test_phases_that_do_not_fit(phases, said):
    with pytest.raises(UserError, match=said):
        stages_of(phases, 8)


# --- scores ---


@pytest.fixture(scope="module")
def ours():
    settings = {"PROMPT_LENGTH": P, "PIECES": K, "MaskedBank.init": "@UniformInit()"}
    return begin(method_of("xprompt", settings))


def masked_loss(ours, tokens, pieces, batch):
    masks = {"prompt/encoder_tokens_mask": tokens, "prompt/encoder_pieces_mask": pieces}
    still = {**ours.frozen, **ours.state.buffers, **masks}
    return loss_and_grads(ours.model, ours.state.trainable, still, batch, None)[0]


def test_scores_are_sums_of_gradients_by_explicit_masks(ours):
    step = jit_train_step(ours.model, ours.optimizer, 1, "score")
    state, expected = jax.tree.map(jnp.copy, ours.state), [np.zeros(P), np.zeros((P, K))]
    ones = jnp.ones(P), jnp.ones((P, K))
    by_masks = jax.jit(jax.grad(lambda *given: masked_loss(ours, *given), (0, 1)))
    for seed in range(3):
        batch = ours.batch(4, seed=seed)
        grads = by_masks(*ones, batch)
        expected = [before + np.abs(grad) for before, grad in zip(expected, grads, strict=True)]
        np.testing.assert_allclose(np.sum(grads[1], -1), grads[0], rtol=1e-3, atol=1e-6)
        state, _ = step(state, ours.frozen, batch)
    for kind, sums in zip(("tokens", "pieces"), expected, strict=True):
        found = state.buffers[f"prompt/encoder_{kind}_score"]
        np.testing.assert_allclose(found, sums, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(state.trainable["prompt/encoder"], ours.params["prompt/encoder"])
    assert int(state.step) == 3


def leaves():
    rng = np.random.default_rng(0)
    return {
        "prompt/encoder": jnp.asarray(rng.normal(size=(P, 16)), jnp.float32),
        "prompt/encoder_tokens_mask": jnp.ones(P),
        "prompt/encoder_tokens_score": jnp.asarray(rng.random(P)),
        "prompt/encoder_pieces_mask": jnp.ones((P, K)),
        "prompt/encoder_pieces_score": jnp.asarray(rng.random((P, K))),
    }


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 2), (0.5, 3), (0.8, 5)])
def test_the_lowest_tokens_are_switched_off(share, count):
    before = leaves()
    after = PruneTokens(share)(before, dict)
    off = np.flatnonzero(np.asarray(after["prompt/encoder_tokens_mask"]) == 0)
    assert {*off} == {*np.argsort(before["prompt/encoder_tokens_score"])[:count].tolist()}
    np.testing.assert_array_equal(after["prompt/encoder"], before["prompt/encoder"])
    assert not np.any(after["prompt/encoder_tokens_score"])


def test_pieces_of_the_tokens_that_are_left():
    before = PruneTokens(0.3)(leaves(), dict)
    scores = np.random.default_rng(1).random((P, K))
    given = {**before, "prompt/encoder_pieces_score": jnp.asarray(scores)}
    after = PrunePieces(0.5)(given, dict)
    mask = np.asarray(after["prompt/encoder_pieces_mask"])
    for token, on in enumerate(np.asarray(before["prompt/encoder_tokens_mask"])):
        expected = {*np.argsort(scores[token])[: K // 2]} if on else set()
        assert {*np.flatnonzero(mask[token] == 0)} == expected
    np.testing.assert_array_equal(
        after["prompt/encoder_tokens_mask"], before["prompt/encoder_tokens_mask"]
    )


def test_larger_shares_keep_a_part():
    kept = [
        {*np.flatnonzero(PruneTokens(share)(leaves(), dict)["prompt/encoder_tokens_mask"])}
        for share in (0.2, 0.4, 0.6)
    ]
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize("share", [1.0, -0.1, 0.95])
def test_a_share_that_leaves_nothing(share):
    with pytest.raises(UserError, match="leaves none to prompt by"):
        PruneTokens(share)(leaves(), dict)


def test_what_is_off_is_nothing_and_gets_no_gradient(ours):
    mask = jnp.ones(P).at[2].set(0.0)
    buffers = {**ours.state.buffers, "prompt/encoder_tokens_mask": mask}
    off = dataclasses.replace(ours, state=dataclasses.replace(ours.state, buffers=buffers))
    batch = ours.batch()
    _, grads = off.gradients(batch)
    assert not np.any(grads["prompt/encoder"][2]) and np.all(grads["prompt/encoder"][1])
    other = {**off.params, "prompt/encoder": off.params["prompt/encoder"].at[2].set(9.0)}
    np.testing.assert_array_equal(off.logits(batch, other), off.logits(batch))
    assert np.abs(off.logits(batch) - ours.logits(batch)).max() > 1e-3


# --- removal, where what is off is not multiplied by zero but taken out ---

ON = np.array([1, 0, 1, 1, 0, 1], np.float32)
REMOVING = {"PROMPT_LENGTH": P, "PIECES": K, "MaskedBank.init": "@UniformInit()"}


def with_tokens_off(select):
    given = begin(method_of("xprompt", {**REMOVING, "Method.select": select}))
    buffers = {**given.state.buffers, "prompt/encoder_tokens_mask": jnp.asarray(ON)}
    return dataclasses.replace(given, state=dataclasses.replace(given.state, buffers=buffers))


def test_removal_is_a_shorter_prompt_and_multiplying_is_not():
    ours, zeros = with_tokens_off("@Remaining()"), with_tokens_off("@Static()")
    short = begin(method_of("prompt_tuning", {"PROMPT_LENGTH": int(ON.sum())}))
    vectors = ours.method.folded(ours.state.leaves)
    assert len(vectors) == ON.sum() and len(zeros.method.folded(zeros.state.leaves)) == P
    expected = short.logits(short.batch(), {**short.frozen, "prompt/encoder": vectors})
    np.testing.assert_allclose(ours.logits(ours.batch()), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(zeros.logits(zeros.batch()) - expected).max() > 1e-3
    loss, grads = ours.gradients(ours.batch(packed=True))
    whole, theirs = ours.gradients(ours.batch())
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    found, expected = grads["prompt/encoder"], theirs["prompt/encoder"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert not np.any(found[ON == 0]) and np.all(found[ON == 1])


def test_all_on_removes_nothing(ours):
    theirs = begin(method_of("xprompt", {**REMOVING, "Method.select": "@Remaining()"}))
    batch = ours.batch(packed=True)
    np.testing.assert_array_equal(theirs.logits(batch), ours.logits(batch))
