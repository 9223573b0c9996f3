"""A search without gradients, against evosax driven by hand; and its steps."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import CMA_ES

from prompt_jax import checks
from prompt_jax.config import resolve
from prompt_jax.errors import UserError
from prompt_jax.losses import CrossEntropy
from prompt_jax.parts.evolution import CMAES
from prompt_jax.step import SEARCH, TrainState, jit_train_step, purpose_key
from prompt_jax.testing.batches import examples, lay_out
from prompt_jax.testing.contract import CONFIG, INPUTS, begin, method_of

D, POPULATION, SIGMA = 5, 6, 0.5
PATH = "prompt/encoder_z"
RNG = np.random.default_rng(0)


def search(**given):
    return CMAES(**{"population": POPULATION, "sigma": SIGMA, **given}).build()


@functools.cache
def compiled(evolution):
    return jax.jit(evolution.ask), jax.jit(evolution.tell)


def start(*rows, width=D):
    return {PATH: jnp.asarray(RNG.normal(size=(*rows, width)), jnp.float32)}


def sphere(rows):
    return jnp.sum(rows**2, axis=-1)


def generations(evolution, trainable, count, losses_of=sphere):
    """Yields (leaves and state before, candidates, rows asked about, losses, leaves and state)."""
    ask, tell = compiled(evolution)
    state = evolution.init(trainable)
    for step in range(count):
        key = jax.random.key(step)
        candidates, found, asked = ask(key, state, trainable)
        losses = jnp.asarray(losses_of(found), jnp.float32)
        before = trainable, state
        trainable, state = tell(key, found, losses, asked, trainable)
        yield before, candidates, np.asarray(found), np.asarray(losses), (trainable, state)


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_sphere_is_found():
    """20 numbers, 4000 evaluations."""
    evolution, trainable = search(population=20, sigma=1.0, keep="best"), start(width=20)

    def generation(carry, key):
        trainable, state = carry
        candidates, found, state = evolution.ask(key, state, trainable)
        told = evolution.tell(key, found, sphere(candidates[PATH]), state, trainable)
        return told, sphere(told[0][PATH])

    keys = jax.random.split(jax.random.key(0), 200)
    carry = trainable, evolution.init(trainable)
    _, losses = jax.jit(lambda carry: jax.lax.scan(generation, carry, keys))(carry)
    assert sphere(trainable[PATH]) > 5.0
    assert losses[-1] < 1e-8
    assert np.all(np.diff(losses) <= 0)


@pytest.mark.parametrize("keep", ["mean", "best"])
def test_one_row_is_evosax_to_the_bit(keep):
    trainable, key = start(), jax.random.key(9)
    strategy = CMA_ES(population_size=POPULATION, solution=jnp.zeros(D))
    params = strategy.default_params.replace(std_init=jnp.float32(SIGMA))
    theirs = strategy.init(key, trainable[PATH], params)
    for step, told in enumerate(generations(search(keep=keep), trainable, 4)):
        _, candidates, found, losses, (leaves, state) = told
        expected, theirs = strategy.ask(jax.random.key(step), theirs, params)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(candidates[PATH], expected)
        theirs, _ = strategy.tell(jax.random.key(step), expected, losses, theirs, params)
        same(jax.tree.map(lambda leaf: leaf[0], state["rows"]), theirs)
        kept = theirs.mean if keep == "mean" else theirs.best_solution
        np.testing.assert_array_equal(leaves[PATH], kept)
        assert int(state["turn"]) == step + 1
