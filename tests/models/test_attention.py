"""Attention and its masks against loop-written NumPy twins; the library's kernels against ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.errors import UserError
from prompt_jax.models.t5 import attention, layers
from prompt_jax.testing import oracles
from prompt_jax.testing.tiny import tiny_config


@pytest.mark.parametrize("causal", [False, True])
def test_segment_bias_is_the_mask(causal):
    query = np.array([[1, 1, 2, 0, 0], [1, 2, 3, 3, 3]], np.int32)
    key = query if causal else np.array([[1, 1, 1, 2, 0, 0, 0], [1, 2, 2, 3, 3, 0, 0]], np.int32)
    bias = attention.segment_bias(jnp.asarray(query), jnp.asarray(key), causal=causal)
    for row in range(2):
        expected = oracles.mask(query[row], key[row], causal)
        np.testing.assert_array_equal(np.asarray(bias)[row, 0] == 0, expected)
    assert set(np.unique(bias)) == {np.float32(0), np.float32(attention.MASKED)}


def attention_inputs(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    visible = rng.random((2, 5, 7)) < 0.5
    visible[:, :, 0] = True
    arrays = draw(2, 5, 3, 8), draw(2, 7, 3, 8), draw(2, 7, 3, 8), draw(2, 3, 5, 7)
    return *(jnp.asarray(array) for array in arrays), visible


def test_attention_is_that_of_loops():
    query, key, value, bias, visible = attention_inputs()
    added = bias + np.where(visible, 0, attention.MASKED)[:, None].astype(np.float32)
    out = jax.jit(attention.attend)(query, key, value, added)
    for row in range(2):
        arrays = (np.asarray(x)[row] for x in (query, key, value, bias, visible))
        expected = oracles.attention(*arrays)
        np.testing.assert_allclose(out[row], expected, atol=1e-5, rtol=1e-5)


def test_attention_survives_large_logits_and_fully_masked_rows():
    query, key, value, bias, _ = attention_inputs()
    out = attention.attend(100 * query, 100 * key, value, bias)
    assert np.isfinite(out).all()
    masked = attention.attend(query, key, value, jnp.full_like(bias, attention.MASKED))
    np.testing.assert_allclose(masked[:, 0], value.mean(1), atol=1e-5)


def test_attention_dropout_is_a_mask_on_the_weights():
    query, key, value, bias, _ = attention_inputs()
    keep = (np.random.default_rng(1).random((2, 3, 1, 7)) < 0.7).astype(np.float32) / 0.7
    out = attention.attend(query, key, value, bias, jnp.asarray(keep))
    logits = np.einsum("bqnd,bknd->bnqk", query, key) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True) * keep
    np.testing.assert_allclose(out, np.einsum("bnqk,bknd->bqnd", weights, value), atol=1e-5)


@pytest.mark.parametrize("dropout", [False, True])
def test_the_library_agrees_with_ours(dropout):
    """The wrapper that calls cuDNN's kernel, around the same library's plain XLA path."""
    query, key, value, bias, visible = attention_inputs()
    bias = bias + np.where(visible, 0, attention.MASKED)[:, None].astype(np.float32)
    keep = None
    if dropout:
        drawn = np.random.default_rng(1).random((2, 3, 1, 7)) < 0.7
        keep = jnp.asarray(drawn.astype(np.float32) / 0.7)
    ours = attention.attend(query, key, value, bias, keep, "xla")
    theirs = attention.fused(query, key, value, bias, keep, "xla")
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)
    low = (x.astype(jnp.bfloat16) for x in (query, key, value))
    rounded = attention.fused(*low, bias, keep, "xla").astype(jnp.float32)
    assert np.abs(rounded - ours).max() < 0.05 and not np.array_equal(rounded, ours)


def test_cudnn_where_there_is_none_is_one_line():
    query, key, value, bias, _ = attention_inputs()
    with pytest.raises(UserError, match="T5Config.attention = 'cudnn': .*; use 'auto'"):
        attention.attend(query, key, value, bias, None, "cudnn")


@pytest.mark.parametrize(("queries", "dropout"), [(1, 0.0), (4, 0.3)])
def test_folded_attention_is_attention(queries, dropout):
    config = tiny_config(dropout_rate=dropout)
    block = layers.Attention(config)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    x, states = draw(2, queries, config.emb_dim), draw(2, 9, config.emb_dim)
    bias = jnp.where(draw(2, 1, queries, 9) > 0.8, attention.MASKED, 0.0)

    def by_keys(block, x, states):
        return block(x, *block.keys_values(states), bias, not dropout)

    def folded(block, x, states):
        return block.folded(x, states, bias, not dropout)

    variables = block.init(jax.random.key(0), x, states, method=by_keys)
    rngs = {"dropout": jax.random.key(1)}

    def gradients(way):
        def loss(variables, x, states):
            out = block.apply(variables, x, states, method=way, rngs=rngs)
            return jnp.sum(out**2), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(variables, x, states)

    for one, other in zip(*map(jax.tree.leaves, map(gradients, (by_keys, folded))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * float(jnp.abs(one).max()))
