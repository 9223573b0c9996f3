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
