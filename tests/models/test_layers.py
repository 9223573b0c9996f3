"""Layers against their loop-written NumPy twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.models.t5 import layers
from prompt_jax.testing import oracles
from prompt_jax.testing.tiny import tiny_config


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (8, 20)])
def test_buckets_are_those_of_whole_number_arithmetic(bidirectional, buckets, max_distance):
    distances = np.arange(-700, 701)
    found = layers.relative_position_bucket(
        distances, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance
    )
    expected = [
        oracles.relative_position_bucket(int(d), bidirectional, buckets, max_distance)
        for d in distances
    ]
    np.testing.assert_array_equal(found, expected)
    assert set(found) <= set(range(buckets))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 2, 7, 150])
def test_position_bias_and_its_rows(bidirectional, length):
    config = tiny_config()
    module = layers.RelativePositionBias(config, bidirectional)
    table = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    variables = {"params": {"rel_embedding": table}}
    bias = jax.jit(lambda v: module.apply(v, length))(variables)
    few = min(length, 40)
    expected = oracles.position_bias(table, few, few, bidirectional, 128)
    np.testing.assert_allclose(np.asarray(bias)[0, :, :few, :few], expected, rtol=1e-6)
    if not bidirectional:
        index = jnp.asarray(length - 1)
        row = jax.jit(lambda v, i: module.apply(v, i, length, method="row"))(variables, index)
        np.testing.assert_allclose(row[0, :, 0], np.asarray(bias)[0, :, length - 1], rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_segment_bias_is_the_mask(causal):
    query = np.array([[1, 1, 2, 0, 0], [1, 2, 3, 3, 3]], np.int32)
    key = query if causal else np.array([[1, 1, 1, 2, 0, 0, 0], [1, 2, 2, 3, 3, 0, 0]], np.int32)
    bias = layers.segment_bias(jnp.asarray(query), jnp.asarray(key), causal=causal)
    for row in range(2):
        expected = oracles.mask(query[row], key[row], causal)
        np.testing.assert_array_equal(np.asarray(bias)[row, 0] == 0, expected)
    assert set(np.unique(bias)) == {np.float32(0), np.float32(layers.MASKED)}


def attention_inputs(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    visible = rng.random((2, 5, 7)) < 0.5
    visible[:, :, 0] = True
    arrays = draw(2, 5, 3, 8), draw(2, 7, 3, 8), draw(2, 7, 3, 8), draw(2, 3, 5, 7)
    return *(jnp.asarray(array) for array in arrays), visible


def test_attention_is_that_of_loops():
    query, key, value, bias, visible = attention_inputs()
    added = bias + np.where(visible, 0, layers.MASKED)[:, None].astype(np.float32)
    out = jax.jit(layers.attend)(query, key, value, added)
    for row in range(2):
        arrays = (np.asarray(x)[row] for x in (query, key, value, bias, visible))
        expected = oracles.attention(*arrays)
        np.testing.assert_allclose(out[row], expected, atol=1e-5, rtol=1e-5)


def test_attention_survives_large_logits_and_fully_masked_rows():
    query, key, value, bias, _ = attention_inputs()
    out = layers.attend(100 * query, 100 * key, value, bias)
    assert np.isfinite(out).all()
    masked = layers.attend(query, key, value, jnp.full_like(bias, layers.MASKED))
    np.testing.assert_allclose(masked[:, 0], value.mean(1), atol=1e-5)


def test_attention_dropout_is_a_mask_on_the_weights():
    query, key, value, bias, _ = attention_inputs()
    keep = (np.random.default_rng(1).random((2, 3, 1, 7)) < 0.7).astype(np.float32) / 0.7
    out = layers.attend(query, key, value, bias, jnp.asarray(keep))
    logits = np.einsum("bqnd,bknd->bnqk", query, key) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True) * keep
    np.testing.assert_allclose(out, np.einsum("bnqk,bknd->bqnd", weights, value), atol=1e-5)


def test_rms_norm_is_float32_inside():
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    scale = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    norm = layers.RMSNorm(1e-6, "float32")
    apply = jax.jit(lambda x: norm.apply({"params": {"scale": scale}}, x))
    np.testing.assert_allclose(apply(x), oracles.rms_norm(x, scale, 1e-6), rtol=1e-5)
    # Squares of 1e-20 vanish in float32 too: the epsilon keeps the result finite; bfloat16
    # inputs give the float32 result, rounded once.
    low = apply(jnp.asarray(x, jnp.bfloat16))
    wide = apply(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, wide.astype(jnp.bfloat16))


def test_dropout_has_one_mask_along_the_length():
    x = jnp.ones((4, 6, 50))
    shared = layers.Dropout(0.5).apply({}, x, False, rngs={"dropout": jax.random.key(0)})
    own = layers.Dropout(0.5, shared=False).apply({}, x, False, rngs={"dropout": jax.random.key(0)})
    assert (shared == shared[:, :1]).all() and (own != own[:, :1]).any()
    assert (shared[0] != shared[1]).any()
    assert abs(float(shared.mean()) - 1) < 0.3
    same = layers.Dropout(0.5).apply({}, x, True)
    np.testing.assert_array_equal(same, x)
