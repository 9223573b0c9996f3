"""Banks that make a prompt of other numbers, against twins written with loops, in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.errors import UserError
from prompt_jax.parts.banks.low_rank import BottleneckBank, LowRankBank, OffsetBank
from prompt_jax.parts.banks.residual import ResidualBank
from prompt_jax.parts.banks.tasks import TaskBank
from prompt_jax.parts.init import UniformInit, Vocabulary

P, H, R = 5, 12, 3
KEY = jax.random.key(3)
X = np.random.default_rng(1).normal(size=(P, H)).astype(np.float32)
VOCABULARY = Vocabulary(
    width=H,
    rows=lambda ids: np.zeros((len(ids), H), np.float32),
    encode=lambda text: [3],
    pieces=30,
)


def given(key, length, vocabulary):
    """An init: X."""
    return jnp.asarray(X)


def stirred(bank, size=0.5):
    """Leaves with noise on each: nothing is zero or one, nothing at its start."""
    rng = np.random.default_rng(0)
    return {
        path: leaf + jnp.asarray(size * rng.normal(size=leaf.shape), jnp.float32)
        for path, leaf in bank.init_params(KEY, VOCABULARY).items()
    }


def wide(leaves):
    return {path.split("_", 1)[1]: np.float64(leaf) for path, leaf in leaves.items()}


def product(a, b):
    """a b, number by number."""
    out = np.zeros((len(a), b.shape[1]))
    for i, j in np.ndindex(out.shape):
        out[i, j] = sum(a[i, k] * b[k, j] for k in range(len(b)))
    return out


def agree(bank, leaves, expected):
    (found,) = bank.prompts(leaves).values()
    assert [*bank.prompts(leaves)] == [bank.name] and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# --- two factors ---


def test_two_factors_by_hand():
    bank = LowRankBank(P, R, scale=2.5)
    leaves = stirred(bank)
    own = wide(leaves)
    agree(bank, leaves, 2.5 * product(own["left"], own["right"]))


def test_factors_fill_their_ranges():
    bank = LowRankBank(400, 50, left=0.5, right=2.0)
    leaves = bank.init_params(KEY, dataclasses.replace(VOCABULARY, width=300))
    for name, scale in (("left", 0.5), ("right", 2.0)):
        leaf = np.asarray(leaves[f"encoder_{name}"])
        assert -scale <= leaf.min() < -0.99 * scale and 0.99 * scale < leaf.max() <= scale
        assert abs(leaf.mean()) < 0.02 * scale
    square = LowRankBank(H, H).init_params(KEY, VOCABULARY)
    assert np.all(square["encoder_left"] != square["encoder_right"])  # of keys of their own


@pytest.mark.parametrize("rank", [1, R, P])
def test_factors_of_a_start_are_its_best_product(rank):
    bank = LowRankBank(P, rank, scale=0.5, init=given)
    leaves = bank.init_params(KEY, VOCABULARY)
    left, values, right = np.linalg.svd(np.float64(X), full_matrices=False)
    expected = sum(values[k] * np.outer(left[:, k], right[k]) for k in range(rank))
    agree(bank, leaves, expected)
    sizes = [np.linalg.norm(leaf) for leaf in leaves.values()]
    np.testing.assert_allclose(*sizes, rtol=1e-5)  # shared evenly


def test_ranks_that_cannot_be():
    with pytest.raises(UserError, match="LowRankBank.rank = 0: must be at least 1"):
        LowRankBank(P, 0).init_params(KEY, VOCABULARY)
    with pytest.raises(UserError, match=r"LowRankBank.rank = 6: a start of shape \[5, 12\]"):
        LowRankBank(P, 6, init=given).init_params(KEY, VOCABULARY)
    assert LowRankBank(P, 6).init_params(KEY, VOCABULARY)["encoder_left"].shape == (P, 6)
    with pytest.raises(UserError, match="PROMPT_LENGTH = 0"):
        LowRankBank(0, 1).init_params(KEY, VOCABULARY)


@pytest.mark.parametrize("rank", [4, 30])
def test_an_offset_by_hand_scales_with_its_rank(rank):
    bank = OffsetBank(60, rank)
    leaves = bank.init_params(KEY, VOCABULARY)
    assert not np.any(leaves["offset_right"])
    left = np.abs(leaves["offset_left"]) * np.sqrt(rank)
    assert 0.95 < left.max() <= 1.0 + 1e-6
    moved = stirred(bank)
    own = wide(moved)
    agree(bank, moved, 8 / np.sqrt(rank) * product(own["left"], own["right"]))


def test_the_sizes_of_the_papers_offset():
    """60 vectors and an offset of rank 30 over 256 tokens are a prompt of 100, at width 768."""
    vocabulary = dataclasses.replace(VOCABULARY, width=768)
    leaves = OffsetBank(256, 30).init_params(KEY, vocabulary)
    assert 60 * 768 + sum(leaf.size for leaf in leaves.values()) == 76_800 == 100 * 768


# --- a bottleneck ---

FUNCTIONS = {
    "gelu": lambda x: x / 2 * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "tanh": math.tanh,
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_bottleneck_by_hand(name):
    bank = BottleneckBank(P, R, activation=name, init=given)
    leaves = stirred(bank)
    own = wide(leaves)
    hidden = np.vectorize(FUNCTIONS[name])(product(own["start"], own["down"]))
    agree(bank, leaves, product(hidden, own["up"]))


def test_a_bottleneck_starts_with_the_deviations_of_its_sheet():
    rows = np.random.default_rng(2).normal(size=(20, 300)).astype(np.float32) * 7
    bank = BottleneckBank(20, 200, init=lambda *_: jnp.asarray(rows))
    leaves = bank.init_params(KEY, dataclasses.replace(VOCABULARY, width=300))
    np.testing.assert_array_equal(leaves["encoder_start"], rows)
    np.testing.assert_allclose(np.std(leaves["encoder_down"]), 300**-0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(leaves["encoder_up"]), rows.std() * 200**-0.5, rtol=0.02)


def test_bottlenecks_that_cannot_be():
    with pytest.raises(UserError, match="BottleneckBank.rank = 0: must be at least 1"):
        BottleneckBank(P, 0).init_params(KEY, VOCABULARY)
    with pytest.raises(UserError, match="BottleneckBank.activation = 'rleu': .*'relu'"):
        BottleneckBank(P, R, activation="rleu").init_params(KEY, VOCABULARY)
    with pytest.raises(UserError, match="PROMPT_LENGTH = 0"):
        BottleneckBank(0, R).init_params(KEY, VOCABULARY)


# --- a network that is added ---


def test_a_residual_by_hand():
    bank = ResidualBank(P, R, init=given)
    leaves = stirred(bank)
    own = wide(leaves)
    hidden = np.maximum(product(own["start"], own["down"]) + own["down_bias"], 0.0)
    out = product(hidden, own["up"]) + own["up_bias"]
    expected = np.zeros((P, H))
    for row in range(P):
        mean = sum(out[row]) / H
        variance = sum((x - mean) ** 2 for x in out[row]) / H
        for column in range(H):
            normed = (out[row, column] - mean) / math.sqrt(variance + 1e-5)
            expected[row, column] = (
                own["start"][row, column]
                + normed * own["norm_scale"][column]
                + own["norm_shift"][column]
            )
    agree(bank, leaves, expected)


def test_a_residual_whose_network_says_nothing_is_no_division_by_zero():
    bank = ResidualBank(P, R, init=given)
    leaves = bank.init_params(KEY, VOCABULARY)
    agree(bank, {**leaves, "encoder_up": jnp.zeros((R, H))}, X)


def test_a_residual_starts_as_its_sheet_says():
    bank = ResidualBank(P, 200, scale=0.3, init=given)
    leaves = bank.init_params(KEY, VOCABULARY)
    sizes = {path.split("_", 1)[1]: leaf.shape for path, leaf in leaves.items()}
    assert sum(math.prod(shape) for shape in sizes.values()) == P * H + 2 * 200 * H + 200 + 3 * H
    assert sizes["down"] == (H, 200) and sizes["up"] == (200, H)
    np.testing.assert_array_equal(leaves["encoder_start"], X)
    np.testing.assert_allclose(np.std(leaves["encoder_down"]), H**-0.5, rtol=0.05)
    np.testing.assert_allclose(np.std(leaves["encoder_up"]), 200**-0.5, rtol=0.05)
    np.testing.assert_array_equal(leaves["encoder_norm_scale"], np.full(H, np.float32(0.3)))
    for name in ("down_bias", "up_bias", "norm_shift"):
        assert not np.any(leaves[f"encoder_{name}"])
    (found,) = bank.prompts(leaves).values()
    np.testing.assert_allclose(np.std(found - X, axis=1), 0.3, rtol=1e-3)
    agree(dataclasses.replace(bank, scale=0.0), {**leaves, "encoder_norm_scale": jnp.zeros(H)}, X)
    other = bank.init_params(jax.random.key(4), VOCABULARY)
    assert np.all(other["encoder_down"] != leaves["encoder_down"])


def test_a_residual_of_another_name():
    bank = ResidualBank(P, R, init=given, name="encoder_other")
    leaves = bank.init_params(KEY, VOCABULARY)
    assert all(path.startswith("encoder_other_") for path in leaves)
    (plain,) = (
        ResidualBank(P, R, init=given)
        .prompts(ResidualBank(P, R, init=given).init_params(KEY, VOCABULARY))
        .values()
    )
    agree(bank, leaves, plain)


def test_residuals_that_cannot_be():
    with pytest.raises(UserError, match="ResidualBank.hidden = 0: must be at least 1"):
        ResidualBank(P, 0).init_params(KEY, VOCABULARY)
    with pytest.raises(UserError, match="PROMPT_LENGTH = 0"):
        ResidualBank(0, R).init_params(KEY, VOCABULARY)


# --- several tasks ---


def test_tasks_by_hand():
    bank = TaskBank(P, ("a", "b", "c"), init=UniformInit())
    leaves = stirred(bank)
    own = wide(leaves)
    expected = np.zeros((3 * P, H))
    for task in range(3):
        for row in range(P):
            for column in range(H):
                change = own["rows"][task, row] * own["columns"][task, column]
                expected[task * P + row, column] = own["shared"][row, column] * change
    agree(bank, leaves, expected)
    assert [bank.first_slot(name) for name in ("a", "b", "c")] == [0, P, 2 * P]


def test_tasks_start_alike():
    bank = TaskBank(P, ("a", "b"), init=given)
    leaves = bank.init_params(KEY, VOCABULARY)
    assert sum(leaf.size for leaf in leaves.values()) == P * H + 2 * (P + H)
    np.testing.assert_array_equal(bank.prompts(leaves)["encoder"], np.concatenate([X, X]))


def test_tasks_that_cannot_be():
    for names in ((), ("a", "b", "a")):
        with pytest.raises(UserError, match="names of one task or more, each once"):
            TaskBank(P, names).init_params(KEY, VOCABULARY)
    with pytest.raises(UserError, match="TASKS has no prompt for task 'd'"):
        TaskBank(P, ("a", "b")).first_slot("d")
    with pytest.raises(UserError, match="PROMPT_LENGTH = 0"):
        TaskBank(0, ("a",)).init_params(KEY, VOCABULARY)
