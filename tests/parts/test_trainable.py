"""Optimizers against T5X's recorded updates; path rules that must cover everything."""

import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_jax.errors import UserError
from prompt_jax.parts.trainable import Adafactor, AdamW, Trainable

ORACLE = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "t5x_adafactor.npz")


def follow(transform, steps=5):
    params = {"prompt/encoder": jnp.asarray(ORACLE["prompt0"])}
    state = transform.init(params)
    for i in range(steps):
        grads = {"prompt/encoder": jnp.asarray(ORACLE[f"grad{i}"])}
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield np.asarray(params["prompt/encoder"])


@pytest.mark.parametrize("start", [0, 1_100_000])
def test_adafactor_is_t5x_for_five_updates(start):
    for i, prompt in enumerate(follow(Adafactor(step=start).build())):
        np.testing.assert_allclose(prompt, ORACLE[f"step{start}_after{i}"], rtol=0, atol=1e-6)


def test_the_two_clocks_of_adafactor_differ_widely():
    early = list(follow(Adafactor(step=0).build()))[-1]
    late = list(follow(Adafactor(step=1_100_000).build()))[-1]
    assert np.abs(early - late).max() > 0.1


def test_adamw_warms_up_and_decays_to_its_end_rate():
    schedule = AdamW(warmup_steps=10, decay_steps=100, end_rate=0.1).schedule()
    shares = [float(schedule(step)) for step in (0, 5, 10, 55, 100, 1000)]
    np.testing.assert_allclose(shares, [0.0, 0.5, 1.0, 0.55, 0.1, 0.1], atol=1e-6)
    constant = AdamW(learning_rate=2.0).schedule()
    assert [float(constant(step)) for step in (0, 7)] == [1.0, 1.0]


def test_adamw_clips_by_the_global_norm():
    # With b1 = 0 and b2 near 1, after bias correction, a clipped gradient moves by the same sign;
    # the second step shows the size: v averages both squares.
    def second_update(clip_norm):
        transform = AdamW(learning_rate=1.0, clip_norm=clip_norm, b1=0.0, b2=0.5).build()
        params = {"a": jnp.zeros(2)}
        state = transform.init(params)
        for size in (1.0, 100.0):
            updates, state = transform.update({"a": jnp.array([0.6, 0.8]) * size}, state, params)
        return np.asarray(updates["a"])

    np.testing.assert_allclose(second_update(1.0), [-1.0, -1.0], rtol=1e-5)
    expected = -100 / np.sqrt((0.25 * 1 + 0.5 * 100**2) / 0.75)
    np.testing.assert_allclose(second_update(0.0), [expected, expected], rtol=1e-5)


def test_rules_split_every_leaf_first_match_wins():
    rules = (("prompt/.*", "train"), (".*/scale", "norms"), ("backbone/.*", None))
    trainable = Trainable(rules=rules, groups={"norms": AdamW(learning_rate=1e-3)})
    params = {"prompt/encoder": 1, "backbone/encoder/norm/scale": 2, "backbone/kernel": 3}
    frozen, moved, _ = trainable.split(params)
    assert frozen == {"backbone/kernel": 3}
    assert moved == {"prompt/encoder": 1, "backbone/encoder/norm/scale": 2}


def test_groups_have_their_own_rates():
    rules = (("prompt/.*", "train"), (".*/scale", "slow"))
    trainable = Trainable(
        rules=rules, optimizer=AdamW(learning_rate=1.0), groups={"slow": AdamW(learning_rate=0.01)}
    )
    params = {"prompt/encoder": jnp.zeros(3), "norm/scale": jnp.zeros(3)}
    transform = trainable.build(params)
    grads = {name: jnp.ones(3) for name in params}
    updates, _ = transform.update(grads, transform.init(params), params)
    np.testing.assert_allclose(np.asarray(updates["prompt/encoder"]), -1.0, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(updates["norm/scale"]), -0.01, rtol=1e-5)


def test_a_leaf_without_a_rule_is_named():
    with pytest.raises(UserError, match="backbone/extra"):
        Trainable(rules=(("prompt/.*", "train"),)).split({"prompt/encoder": 1, "backbone/extra": 2})


def test_a_rule_with_an_unknown_group_is_refused():
    with pytest.raises(UserError, match="slow"):
        Trainable(rules=((".*", "slow"),)).split({"prompt/encoder": 1})
