"""Numbers of each target position: in parts as in one piece, and never all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax import likelihood

B, U, H, V = 3, 12, 8, 64
RNG = np.random.default_rng(0)
STATES = jnp.asarray(RNG.normal(size=(B, U, H)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, V, (B, U)), jnp.int32)
HEAD = jnp.asarray(RNG.normal(size=(H, V)), jnp.float32)
ONE_POSITION = B * V * 4 / 2**20  # megabytes


def numbers(states, head, limit_mb):
    return likelihood.token_numbers(lambda s: s @ head, states, TARGETS, V, limit_mb)


def test_the_numbers_are_those_of_loops():
    found = jax.device_get(numbers(STATES, HEAD, 1e9))
    logits = np.asarray(STATES, np.float64) @ np.asarray(HEAD, np.float64)
    for b in range(B):
        for u in range(U):
            row, y = logits[b, u], int(TARGETS[b, u])
            expected = {
                "log_z": np.log(np.exp(row).sum()),
                "target_logit": row[y],
                "mean_logit": sum(row) / V,
                "hit": float(max(range(V), key=row.__getitem__) == y),
            }
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][b, u], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", [1, 4])
def test_parts_give_the_values_and_gradients_of_one_piece(positions):
    def loss(states, head, limit_mb):
        found = numbers(states, head, limit_mb)
        return jnp.sum(found["log_z"] ** 2 - found["target_logit"] + 0.3 * found["mean_logit"])

    grads = jax.grad(loss, (0, 1))
    whole, parts = grads(STATES, HEAD, 1e9), grads(STATES, HEAD, positions * ONE_POSITION)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    found = numbers(STATES, HEAD, positions * ONE_POSITION)
    for name, value in numbers(STATES, HEAD, 1e9).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("most", "size"), [(0.2, 1), (1, 1), (5, 4), (6.9, 6), (100, 12)])
def test_a_part_divides_the_length(most, size):
    assert likelihood.chunk(12, most) == size


def test_no_array_of_all_logits_is_made():
    """mT5's vocabulary: 8 rows of 32 tokens would be 256 MB of float32 logits."""
    rows, length, vocab = 8, 32, 250_112

    def loss(states, head, targets):
        found = likelihood.token_numbers(lambda s: s @ head, states, targets, vocab, limit_mb=32)
        return jnp.sum(found["log_z"] - found["target_logit"])

    shapes = ((rows, length, 16), (16, vocab))
    states, head = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(states, head, targets).compile()
    everything = rows * length * vocab * 4
    assert compiled.memory_analysis().temp_size_in_bytes < everything / 2
    assert f"[{rows},{length},{vocab}]" not in compiled.as_text()
