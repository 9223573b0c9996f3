"""Decoding: against transformers' outputs, exhaustive search, and teacher forcing."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax import decode
from prompt_jax.ckpt import load
from prompt_jax.models.t5.network import T5
from prompt_jax.testing.tiny import tiny_batch, tiny_config, tiny_params

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
NAMES = ("t5v11_tiny", "t5v10_tiny", "mt5_tiny")


@functools.cache
def published(name):
    config = load.open_source(FIXTURES / name).config
    oracle = np.load(FIXTURES / f"{name}.npz")
    batch = {
        "encoder_input_tokens": oracle["input_ids"].astype(np.int32),
        "encoder_segment_ids": oracle["attention_mask"].astype(np.int32),
    }
    return T5(config), {"params": load.load_backbone(FIXTURES / name, config).params}, batch, oracle


@functools.cache
def small_vocabulary(variant="t5_1_1"):
    """A T5 with 5 tokens, so that every sequence can be tried."""
    config = tiny_config(variant, vocab_size=5, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16)
    params = tiny_params(config, 3)
    batch = tiny_batch(config, encoder_lengths=(4, 2, 3), decoder_lengths=(2, 2, 2))
    return T5(config), {"params": params}, batch


def until_eos(tokens):
    """Zeros after the first EOS, whatever the padding was."""
    seen = np.cumsum(tokens == 1, -1) - (tokens == 1)
    return np.where(seen > 0, 0, tokens)


def run(method, network, variables, batch, *args, length=8, **fields):
    def call(variables, batch):
        return method(decode.Decoder(network, variables, length, **fields), batch, *args)

    return jax.jit(call)(variables, batch)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_that_of_transformers(name):
    network, variables, batch, oracle = published(name)
    out = run(decode.greedy, network, variables, batch)
    np.testing.assert_array_equal(out.tokens[:, 0], until_eos(oracle["greedy"][:, 1:]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("stored", "alpha"), [("beam4", 1.0), ("beam4_lp0", 0.0)])
def test_beams_are_those_of_transformers(name, stored, alpha):
    network, variables, batch, oracle = published(name)
    beam = decode.Beam(4, alpha, "hf")
    out = run(decode.beam_search, network, variables, batch, beam)
    np.testing.assert_array_equal(out.tokens, until_eos(oracle[f"{stored}_all"][..., 1:]))
    np.testing.assert_allclose(out.scores, oracle[f"{stored}_scores"], rtol=1e-4)


def every_sequence(network, variables, batch, length):
    """Each finished sequence of at most `length` tokens with its log-probability per row."""
    vocabulary = range(network.config.vocab_size)
    rows = [
        (*body, 1)
        for n in range(length)
        for body in itertools.product([t for t in vocabulary if t > 1], repeat=n)
    ]
    targets = np.zeros((len(rows), length), np.int32)
    for target, row in zip(targets, rows, strict=True):
        target[: len(row)] = row
    repeated = np.tile(targets, (len(batch["encoder_input_tokens"]), 1, 1))
    score = lambda d, b: decode.score_targets(d, b, jnp.asarray(repeated))  # noqa: E731
    return targets, np.asarray(run(score, network, variables, batch))


def test_wide_beam_finds_the_best_of_all_sequences_under_t5x_penalty():
    network, variables, batch = small_vocabulary()
    length, alpha = 3, 0.6
    # Token 0 is padding and not a target: mask it, so that both searches have the same space.
    mask = decode.LogitsMask(lambda state, logits, _: (logits.at[..., 0].set(-1e9), state))
    targets, sums = every_sequence(network, variables, batch, length)
    beam = decode.Beam(16, alpha)
    out = run(decode.beam_search, network, variables, batch, beam, length=length, mask=mask)
    # The teacher-forced sums are over 5 tokens, the search renormalises over 4: add it up here.
    sums = renormalised(network, variables, batch, targets)
    lengths = (targets > 0).sum(1)
    scores = sums / ((5 + lengths) / 6) ** alpha
    for i in range(len(scores)):
        best = np.argsort(-scores[i])[:5]
        np.testing.assert_array_equal(out.tokens[i, :5], targets[best])
        np.testing.assert_allclose(out.scores[i, :5], scores[i][best], rtol=1e-5)


def renormalised(network, variables, batch, targets):
    """Log-likelihoods over the tokens 1.. only, by one full forward pass per target."""
    rows = []
    for target in targets:
        inputs = np.concatenate([[0], target[:-1]]).astype(np.int32)
        full = dict(batch)
        count = len(batch["encoder_input_tokens"])
        full["decoder_input_tokens"] = np.tile(inputs, (count, 1))
        full["decoder_segment_ids"] = np.ones((count, len(target)), np.int32)
        logits = np.asarray(forward(network, variables, full), np.float64)
        logits[..., 0] = -np.inf
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(logits, np.tile(target, (count, 1))[..., None], -1)[..., 0]
        rows.append(np.where(target > 0, picked, 0).sum(1))
    return np.stack(rows, 1)


@functools.partial(jax.jit, static_argnums=0)
def forward(network, variables, batch):
    return network.apply(variables, batch)["logits"]


def test_t5x_beams_finish_or_are_returned_alive():
    network, variables, batch = small_vocabulary()
    never = decode.LogitsMask(lambda state, logits, _: (logits.at[..., 1].set(-1e9), state))
    out = run(decode.beam_search, network, variables, batch, decode.Beam(2), length=4, mask=never)
    assert (np.asarray(out.tokens) != 1).all() and (np.asarray(out.scores) > -1e3).all()


@pytest.mark.parametrize("style", ["t5x", "hf"])
def test_one_beam_is_greedy(style):
    network, variables, batch, _ = published("t5v11_tiny")
    one = run(decode.greedy, network, variables, batch)
    beam = decode.Beam(1, 0.0, style)
    other = run(decode.beam_search, network, variables, batch, beam)
    # With T5X's rule a hypothesis that finished second may win over a live first one.
    same = slice(None) if style == "hf" else np.asarray((one.tokens == 1).any(-1))[:, 0]
    if style == "hf":
        np.testing.assert_array_equal(one.tokens[same], other.tokens[same])
        np.testing.assert_allclose(one.scores[same], other.scores[same], rtol=1e-5)
    else:
        assert same.any()
        assert (other.scores[same] >= one.scores[same] - 1e-5).all()


@pytest.mark.parametrize("variant", ["t5_1_1", "t5_1_0", "umt5"])
def test_cached_steps_are_the_full_forward_pass(variant):
    network, variables, batch = (T5(c := tiny_config(variant)), {"params": tiny_params(c)}, None)
    batch = tiny_batch(c, encoder_lengths=(9, 5, 1), decoder_lengths=(7, 7, 7))
    out = run(decode.greedy, network, variables, batch, length=7)
    tokens = np.asarray(out.tokens[:, 0])
    batch["decoder_input_tokens"] = np.concatenate([np.zeros((3, 1), np.int32), tokens[:, :-1]], 1)
    logits = forward(network, variables, batch)
    before = np.cumsum(tokens == 1, 1) - (tokens == 1)
    real = before == 0
    np.testing.assert_array_equal(tokens[real], np.argmax(logits, -1)[real])
    gains = np.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(out.scores[:, 0], np.where(real, gains, 0).sum(1), rtol=1e-4)


def test_start_tokens_come_before_what_is_generated():
    network, variables, batch, oracle = published("t5v11_tiny")
    start = oracle["decoder_input_ids"][:, :3].astype(np.int32)
    out = run(decode.greedy, network, variables, batch, length=2, start=start)
    full = dict(batch, decoder_input_tokens=start, decoder_segment_ids=np.ones((4, 3), np.int32))
    logits = forward(network, variables, full)[:, -1]
    np.testing.assert_array_equal(out.tokens[:, 0, 0], np.argmax(logits, -1))


def test_decoding_stops_when_every_row_is_done():
    network, variables, batch = small_vocabulary()
    calls = []

    def count(state, logits, tokens):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.where(jnp.arange(5) == jnp.where(state > 1, 1, 2)[..., None], 0, -1e9), state + 1

    mask = decode.LogitsMask(count, np.zeros(3, np.int32))
    out = run(decode.greedy, network, variables, batch, length=50, mask=mask)
    jax.effects_barrier()
    assert out.tokens[0, 0, :4].tolist() == [2, 2, 1, 0] and len(calls) == 3


@pytest.mark.parametrize("style", ["t5x", "hf"])
def test_mask_state_follows_its_hypothesis(style):
    """The state sums the tokens of a hypothesis; only even sums may end."""
    network, variables, batch = small_vocabulary()

    def even(state, logits, tokens):
        state = state + tokens
        end = jnp.where(state % 2 == 1, -1e9, logits[..., 1] + 2)
        return logits.at[..., 1].set(end).at[..., 0].set(-1e9), state

    mask = decode.LogitsMask(even, np.zeros(3, np.int32))
    beam = decode.Beam(6, 0.6, style)
    out = run(decode.beam_search, network, variables, batch, beam, length=5, mask=mask)
    tokens = np.asarray(out.tokens)
    ended = (tokens == 1).any(-1) & (np.asarray(out.scores) > -1e6)
    sums = np.where(tokens > 1, tokens, 0).sum(-1)
    assert ended.sum() > 6 and (sums[ended] % 2 == 0).all()
    assert len({tuple(row) for row in tokens[0].tolist()}) == 6


def test_tap_sees_the_rows_of_the_batch_in_every_method():
    """A per-example shift of the decoder's states: the same in beams as in a full pass."""
    network, variables, batch = small_vocabulary()
    shift = np.random.default_rng(0).standard_normal((3, 1, 16)).astype(np.float32)

    def tap(site, x, context):
        return x + shift if site == "layer_in" and context.stack == "decoder" else x

    plain = run(decode.beam_search, network, variables, batch, decode.Beam(3), length=4)
    out = run(decode.beam_search, network, variables, batch, decode.Beam(3), length=4, tap=tap)
    assert (np.asarray(plain.scores) != np.asarray(out.scores)).any()
    targets = jnp.asarray(out.tokens)

    def score(decoder, batch):
        return decode.score_targets(decoder, batch, targets)

    sums = np.asarray(run(score, network, variables, batch, tap=tap))
    lengths = (np.asarray(targets) > 0).sum(-1)
    # Padding inside a target would be skipped by the score: compare clean sequences.
    tokens = np.asarray(targets)
    clean = (np.diff((tokens > 0).astype(int), axis=-1) <= 0).all(-1) & (tokens == 1).any(-1)
    assert clean.any()
    expected = sums / ((5 + lengths) / 6) ** 0.6
    np.testing.assert_allclose(out.scores[clean], expected[clean], rtol=1e-4)


def test_score_targets_is_the_full_forward_pass_and_normalises():
    network, variables, batch, oracle = published("t5v11_tiny")
    labels = oracle["labels"].astype(np.int32)
    short = labels.copy()
    short[:, 3:] = 0
    targets = jnp.asarray(np.stack([labels, short, np.zeros_like(labels)], 1))
    inputs = np.concatenate([np.zeros((4, 1), np.int32), labels[:, :-1]], 1)
    full = dict(batch, decoder_input_tokens=inputs, decoder_segment_ids=np.ones((4, 8), np.int32))
    scores = np.asarray(jax.nn.log_softmax(forward(network, variables, full)))
    gains = np.take_along_axis(scores, labels[..., None], -1)[..., 0]
    method = lambda d, b, **named: decode.score_targets(d, b, targets, **named)  # noqa: E731
    sums = run(method, network, variables, batch)
    np.testing.assert_allclose(sums[:, 0], np.where(labels > 0, gains, 0).sum(1), rtol=1e-5)
    np.testing.assert_allclose(sums[:, 1], np.where(short > 0, gains, 0).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(sums[:, 2], 0)
    means = run(functools.partial(method, normalise=True), network, variables, batch)
    np.testing.assert_allclose(means[:, 1] * 3, sums[:, 1], rtol=1e-5)


def test_sampling_draws_from_the_models_distribution():
    network, variables, batch = small_vocabulary()
    how = decode.Sampling(samples=4000)
    out = run(decode.sample, network, variables, batch, jax.random.key(0), how, length=1)
    full = dict(batch, decoder_input_tokens=np.zeros((3, 1), np.int32))
    full["decoder_segment_ids"] = np.ones((3, 1), np.int32)
    chances = jax.nn.softmax(forward(network, variables, full)[:, 0])
    drawn = np.asarray(out.tokens)[..., 0]
    found = np.stack([(drawn == t).mean(1) for t in range(5)], 1)
    np.testing.assert_allclose(found, chances, atol=0.03)
    assert (np.diff(np.asarray(out.scores), axis=1) <= 0).all()


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        (decode.Sampling(samples=300, top_k=2), lambda p: np.argsort(-p)[:2]),
        (
            decode.Sampling(samples=300, top_p=0.6),
            lambda p: np.argsort(-p)[: 1 + (np.cumsum(np.sort(p)[::-1]) < 0.6).sum()],
        ),
        (decode.Sampling(samples=3, temperature=0.0), lambda p: np.argsort(-p)[:1]),
        (decode.Sampling(samples=300, temperature=1e-3), lambda p: np.argsort(-p)[:1]),
    ],
)
def test_restricted_sampling_draws_what_is_allowed_and_all_of_it(how, allowed):
    network, variables, batch = small_vocabulary()
    out = run(decode.sample, network, variables, batch, jax.random.key(1), how, length=1)
    full = dict(batch, decoder_input_tokens=np.zeros((3, 1), np.int32))
    full["decoder_segment_ids"] = np.ones((3, 1), np.int32)
    chances = np.asarray(jax.nn.softmax(forward(network, variables, full)[:, 0]))
    for drawn, row in zip(np.asarray(out.tokens)[..., 0], chances, strict=True):
        assert set(drawn.tolist()) == set(allowed(row).tolist())


def test_draws_of_a_row_do_not_depend_on_other_rows():
    network, variables, batch = small_vocabulary()
    key = jax.random.key(2)
    all_rows = run(decode.sample, network, variables, batch, key, length=4)
    first = {name: value[:1] for name, value in batch.items()}
    alone = run(decode.sample, network, variables, first, key, length=4)
    np.testing.assert_array_equal(all_rows.tokens[:1], alone.tokens)


def test_each_step_draws_anew():
    network, variables, batch = small_vocabulary()
    even = lambda state, logits, _: (jnp.zeros_like(logits).at[..., :2].set(-1e9), state)  # noqa: E731
    how, mask = decode.Sampling(samples=200), decode.LogitsMask(even)
    key = jax.random.key(4)
    out = run(decode.sample, network, variables, batch, key, how, length=2, mask=mask)
    first, second = np.moveaxis(np.asarray(out.tokens), -1, 0)
    assert abs((first == second).mean() - 1 / 3) < 0.08


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="'t5x' or 'hf'"):
        decode.Beam(style="fairseq")
