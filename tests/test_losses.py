"""Loss terms against loop-written NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax import losses
from prompt_jax.losses import CrossEntropy
from prompt_jax.parts.head import LMHead

RNG = np.random.default_rng(1)
LOGITS = RNG.normal(size=(2, 3, 7)).astype(np.float32) * 3
TARGETS = RNG.integers(0, 7, (2, 3)).astype(np.int32)
WEIGHTS = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
BATCH = {
    "decoder_target_tokens": jnp.asarray(TARGETS),
    "decoder_loss_weights": jnp.asarray(WEIGHTS),
}


def record(logits, targets=TARGETS):
    """The outputs record of given logits."""
    batch = {**BATCH, "decoder_target_tokens": jnp.asarray(targets)}
    return {"main": LMHead()({}, jnp.asarray(logits), batch, jnp.asarray, 7)}


def twin(logits, targets, weights, z, s):
    total = 0.0
    for row in range(2):
        for place in range(3):
            x = logits[row, place].astype(np.float64)
            log_z = np.log(np.exp(x).sum())
            want = np.full(7, s / 6)
            want[targets[row, place]] = 1 - s
            loss = -(want * (x - log_z)).sum()
            if s:
                loss += (want * np.log(want)).sum()
            total += weights[row, place] * (loss + z * log_z**2)
    return total


@pytest.mark.parametrize("z", [0.0, 1e-2])
@pytest.mark.parametrize("s", [0.0, 0.1])
def test_cross_entropy_is_the_loop(z, s):
    term = CrossEntropy(z_loss=z, label_smoothing=s)
    outputs = record(LOGITS)
    np.testing.assert_allclose(
        term.sum(outputs, BATCH), twin(LOGITS, TARGETS, WEIGHTS, z, s), rtol=1e-5
    )
    assert float(term.weight(BATCH)) == 3.0


def test_parts_of_a_batch_add_up_to_its_mean():
    terms = (CrossEntropy(z_loss=0.0),)
    whole = losses.weights(terms, BATCH)
    parts = [
        losses.total(
            terms,
            record(LOGITS[i : i + 1], TARGETS[i : i + 1]),
            {name: value[i : i + 1] for name, value in BATCH.items()},
            whole,
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(sum(parts), twin(LOGITS, TARGETS, WEIGHTS, 0, 0) / 3, rtol=1e-5)


def test_token_counts_ignore_padding():
    logits = jax.nn.one_hot(TARGETS, 7)
    logits = logits.at[0, 1].set(-logits[0, 1])  # one miss among three
    counts = losses.counts(record(logits), BATCH)
    assert (float(counts["correct"]), float(counts["targets"])) == (2.0, 3.0)
