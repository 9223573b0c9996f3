"""A search without gradients: against evosax driven by hand, and a step of it candidate by one."""

import dataclasses
import functools
from typing import Any, NamedTuple

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
from prompt_jax.parts.head import LMHead
from prompt_jax.step import SEARCH, jit_train_step, purpose_key
from prompt_jax.testing.batches import examples, lay_out
from prompt_jax.testing.contract import CONFIG, INPUTS, begin, method_of

D, POPULATION, SIGMA = 5, 7, 0.5
Z = "prompt/encoder_z"
ROWS = 3


def search(**given):
    return CMAES(**{"population": POPULATION, "sigma": SIGMA, **given}).build()


def start(*shape):
    return {Z: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)}


def sphere(rows):
    return jnp.sum(rows**2, axis=-1)


class Generation(NamedTuple):
    """What one asked and was told."""

    before: tuple[dict, Any]  # leaves, state
    candidates: np.ndarray
    found: np.ndarray
    losses: np.ndarray
    after: tuple[dict, Any]


@functools.cache
def compiled(evolution):
    return jax.jit(evolution.ask), jax.jit(evolution.tell)


def run(evolution, trainable, keys, functions=None):
    """A generation for each key; the loss is the sphere's."""
    ask, tell = functions or compiled(evolution)
    state, seen = evolution.init(trainable), []
    for key in keys:
        candidates, found, asked = ask(key, state, trainable)
        after = tell(key, found, sphere(found), asked, trainable)
        told = [np.asarray(each) for each in (candidates[Z], found, sphere(found))]
        seen.append(Generation((trainable, state), *told, after))
        trainable, state = after
    return seen


def keys_of(count):
    return list(jax.random.split(jax.random.key(1), count))


def row_of(state, row):
    return jax.tree.map(lambda leaf: leaf[row], state["rows"])


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_sphere_is_found():
    """Of 20 numbers, in 4000 evaluations."""
    evolution, trainable = search(population=20, sigma=1.0), start(20)

    def generation(carry, key):
        trainable, state = carry
        candidates, found, state = evolution.ask(key, state, trainable)
        told = evolution.tell(key, found, sphere(candidates[Z]), state, trainable)
        return told, sphere(told[0][Z])

    @jax.jit
    def whole(*carry):
        keys = jax.random.split(jax.random.key(0), 200)
        return jax.lax.scan(generation, carry, keys)

    (_, state), losses = whole(trainable, evolution.init(trainable))
    assert sphere(trainable[Z]) > 5.0
    assert losses[-1] < 1e-8 and state["rows"].best_fitness[0] < 1e-8
    assert int(state["turn"]) == 200


def test_each_row_is_evosax_to_the_bit():
    evolution, trainable, keys = search(), start(2, D), keys_of(4)
    strategy = CMA_ES(population_size=POPULATION, solution=jnp.zeros(D))
    params = strategy.default_params.replace(std_init=jnp.float32(SIGMA))
    theirs = [strategy.init(keys[0], row, params) for row in trainable[Z]]
    # Not compiled by us: another program rounds otherwise.
    told = run(evolution, trainable, keys, (evolution.ask, evolution.tell))
    for step, (key, here) in enumerate(zip(keys, told, strict=True)):
        row = step % 2
        expected, asked = strategy.ask(key, theirs[row], params)
        np.testing.assert_array_equal(here.found, expected)
        np.testing.assert_array_equal(here.candidates[:, row], expected)
        theirs[row], _ = strategy.tell(key, expected, sphere(expected), asked, params)
        same(row_of(here.after[1], row), theirs[row])
        np.testing.assert_array_equal(here.after[0][Z][row], theirs[row].mean)


def test_the_first_mean_by_hand():
    """Of the better half, weighted by ln((n + 1) / 2) - ln(rank)."""
    (told,) = run(search(), start(D), keys_of(1))
    better = np.argsort(told.losses)[: POPULATION // 2]
    weights = [np.log((POPULATION + 1) / 2) - np.log(rank + 1) for rank in range(len(better))]
    expected = sum(w * np.float64(told.found[at]) for w, at in zip(weights, better, strict=True))
    np.testing.assert_allclose(told.after[0][Z], expected / sum(weights), rtol=1e-5, atol=1e-6)


def test_only_the_row_whose_turn_it_is_moves():
    for step, told in enumerate(run(search(), start(ROWS, D), keys_of(2 * ROWS + 1))):
        (leaves, state), (new, next_state) = told.before, told.after
        np.testing.assert_array_equal(told.candidates[:, step % ROWS], told.found)
        assert np.all(new[Z][step % ROWS] != leaves[Z][step % ROWS])
        assert int(row_of(next_state, step % ROWS).generation_counter) == step // ROWS + 1
        for row in {0, 1, 2} - {step % ROWS}:
            np.testing.assert_array_equal(new[Z][row], leaves[Z][row])
            same(row_of(next_state, row), row_of(state, row))
            for candidate in told.candidates:
                np.testing.assert_array_equal(candidate[row], leaves[Z][row])


def test_the_best_that_was_ever_told_is_kept():
    best = [(np.inf, None)] * ROWS
    for step, told in enumerate(run(search(keep="best"), start(ROWS, D), keys_of(6 * ROWS))):
        row = step % ROWS
        for loss, candidate in zip(told.losses, told.found, strict=True):
            if loss < best[row][0]:
                best[row] = loss, candidate
        leaves, state = told.after
        np.testing.assert_array_equal(leaves[Z][row], best[row][1])
        assert row_of(state, row).best_fitness == best[row][0]
    assert not np.array_equal(row_of(state, row).mean, leaves[Z][row])


def test_the_mean_is_kept():
    for step, told in enumerate(run(search(), start(ROWS, D), keys_of(2 * ROWS))):
        leaves, state = told.after
        np.testing.assert_array_equal(leaves[Z][step % ROWS], row_of(state, step % ROWS).mean)


@pytest.mark.parametrize("keep", ["mean", "best"])
@pytest.mark.parametrize("said", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_no_number_is_the_worst(said, keep):
    evolution, trainable, key = search(keep=keep), start(D), jax.random.key(3)
    ask, tell = compiled(evolution)
    _, found, asked = ask(key, evolution.init(trainable), trainable)
    at = int(np.argmin(sphere(found)))
    tells = [
        tell(key, found, sphere(found).at[at].set(loss), asked, trainable) for loss in (said, 1e6)
    ]
    same(*tells)
    # Nothing is learned of a generation without a number.
    none, state = tell(key, found, jnp.full(POPULATION, said), asked, trainable)
    same((none, state["rows"]), (trainable, asked["rows"]))
    assert int(state["turn"]) == 1


def test_what_cannot_be_searched():
    with pytest.raises(UserError, match=r"CMAES.population = 3, sigma = 0.5: 4 or more, positive"):
        search(population=3)
    with pytest.raises(UserError, match=r"sigma = 0.0: 4 or more, positive"):
        search(sigma=0.0)
    with pytest.raises(UserError, match=r"CMAES.keep = 'last': 'mean' or 'best'"):
        search(keep="last")
    with pytest.raises(UserError, match=r"searches one leaf, but \['a', 'b'\] train"):
        search().init({"a": jnp.zeros(3), "b": jnp.zeros(3)})


# --- a step ---


@jax.custom_jvp
def forward_only(x):
    return x


@forward_only.defjvp
def differentiated(primals, tangents):
    raise AssertionError("a gradient was taken")


SEEN = []  # what the loss said, pass by pass


@dataclasses.dataclass(frozen=True)
class Watched(CrossEntropy):
    """A cross-entropy that counts its passes, and that nobody may differentiate."""

    def sum(self, outputs, batch):
        value = super().sum(outputs, batch)
        jax.debug.callback(lambda value: SEEN.append(float(value)), value)
        return forward_only(value)


LABELS = "('negative', 'positive')"
SETTINGS = {
    "PROMPT_LENGTH": 3,
    "DIMENSION": D,
    "POPULATION": POPULATION,
    "CLASS_LABELS": LABELS,
    "PromptBank.init": "@UniformInit()",
}
LAYERS = "prompt/encoder_layers_z"
DROPOUT = dataclasses.replace(CONFIG, dropout_rate=0.5)
PAIRS = examples(6, CONFIG.vocab_size, longest=INPUTS)
BATCH = lay_out(PAIRS, 3, False)


@functools.cache
def begun(config=CONFIG):
    method = method_of("bbtv2", SETTINGS)
    return begin(dataclasses.replace(method, head=LMHead(), losses=(Watched(),)), config)


@functools.cache
def step_of(config, parts):
    ours = begun(config)
    return jit_train_step(ours.model, ours.optimizer, parts, ours.kind)


def stepped(state=None, batch=BATCH, config=CONFIG, parts=1):
    """The next state, what the log wants, and what each pass said."""
    ours = begun(config)
    SEEN.clear()
    given = jax.tree.map(jnp.copy, state or ours.state)  # a step reuses its memory
    new, numbers = step_of(config, parts)(given, ours.frozen, batch)
    jax.block_until_ready(new)
    jax.effects_barrier()
    return new, numbers, [*SEEN]


def cross_entropy(logits, batch):
    """(mean, how many are right), in a loop."""
    total, right = 0.0, 0
    weights = batch["decoder_loss_weights"]
    for place in zip(*np.nonzero(weights), strict=True):
        own, target = np.float64(logits[place]), batch["decoder_target_tokens"][place]
        log_z = np.log(np.sum(np.exp(own)))
        total += log_z - own[target] + 1e-4 * log_z**2
        right += int(own.argmax() == target)
    return total / weights.sum(), right


def test_a_step_asks_measures_each_and_tells():
    ours, state = begun(), begun().state
    ask, tell = compiled(ours.optimizer)
    for _ in range(2):
        key = purpose_key(jax.random.wrap_key_data(state.key), state.step, SEARCH)
        candidates, found, asked = ask(key, state.opt_state, state.trainable)
        losses = [
            cross_entropy(ours.logits(BATCH, {**ours.params, LAYERS: each}), BATCH)
            for each in candidates[LAYERS]
        ]
        values = jnp.array([loss for loss, _ in losses], jnp.float32)
        trainable, opt_state = tell(key, found, values, asked, state.trainable)
        state, numbers, seen = stepped(state)
        np.testing.assert_allclose(state.trainable[LAYERS], trainable[LAYERS], rtol=1e-4, atol=1e-5)
        for leaf, expected in zip(*map(jax.tree.leaves, (state.opt_state, opt_state)), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-4)
        weight = BATCH["decoder_loss_weights"].sum()
        np.testing.assert_allclose(sorted(seen), sorted(values * weight), rtol=1e-5)
        np.testing.assert_allclose(numbers["loss"], np.mean(values), rtol=1e-5)
        np.testing.assert_allclose(numbers["correct"], np.mean([right for _, right in losses]))
        np.testing.assert_allclose(numbers["norm"], np.linalg.norm(trainable[LAYERS]), rtol=1e-4)
        assert numbers["targets"] == weight and numbers["grad_norm"] == 0
    assert int(state.step) == 2


def test_the_trap_for_gradients_works():
    with pytest.raises(AssertionError, match="a gradient was taken"):
        begun().gradients(BATCH)


def test_candidates_one_after_the_other():
    """3 and 3 and 1 at once: as many passes, and the same step."""
    expected, _, theirs = stepped()
    state, _, seen = stepped(parts=3)
    assert len(seen) == len(theirs) == POPULATION
    np.testing.assert_allclose(sorted(seen), sorted(theirs), rtol=1e-5)
    np.testing.assert_allclose(
        state.trainable[LAYERS], expected.trainable[LAYERS], rtol=1e-5, atol=1e-6
    )


def test_the_same_state_and_batch_give_the_same_bits():
    found, expected = stepped(), stepped()
    same(found[:2], expected[:2])
    later = dataclasses.replace(begun().state, step=jnp.ones((), jnp.int32))
    other = stepped(later)[0].trainable[LAYERS]
    assert not np.any(other[0] == found[0].trainable[LAYERS][0])  # each step draws its own


def test_rows_of_padding_change_nothing():
    padded = lay_out(PAIRS, 3, False, row_multiple=8)
    assert len(padded["encoder_input_tokens"]) == 8 and len(BATCH["encoder_input_tokens"]) == 6
    (state, numbers, _), (expected, theirs, _) = stepped(batch=padded), stepped()
    np.testing.assert_allclose(
        state.trainable[LAYERS], expected.trainable[LAYERS], rtol=1e-5, atol=1e-6
    )
    for name in numbers:
        np.testing.assert_allclose(numbers[name], theirs[name], rtol=1e-5)


def test_there_is_no_dropout():
    found, expected = stepped(config=DROPOUT), stepped()
    same(found[0].trainable, expected[0].trainable)
    assert sorted(found[2]) == sorted(expected[2])


# --- what a run refuses ---


def checked(*more):
    files = ["models/micro_xs.gin", "methods/bbt.gin", "runs/prompt_tune.gin"]
    given = ["MIXTURE_OR_TASK_NAME='micro_sentiment'", "MODEL_DIR='out'", f"CLASS_LABELS={LABELS}"]
    checks.check(resolve(files, [*given, *more]).run)


def test_a_search_and_a_gradient_do_not_mix():
    checked()
    checked("Trainable.optimizer=@Adafactor()", "Method.phases=(@Gradient(),)")
    said = r"Adafactor of group 'train' is for phases of gradient, .* are \['Search'\]"
    with pytest.raises(UserError, match=said):
        checked("Trainable.optimizer=@Adafactor()")
    said = r"CMAES of group 'train' is for phases of search, .* are \['Gradient'\]"
    with pytest.raises(UserError, match=said):
        checked("Method.phases=(@Gradient(),)")
    other = "Trainable.rules=(('prompt/encoder_z','other'),('.*',None))"
    with pytest.raises(UserError, match="CMAES of group 'other' is for phases of search"):
        checked(other, "Trainable.groups={'other':@CMAES()}", "Method.phases=(@Gradient(),)")
    with pytest.raises(UserError, match="CMAES.population = 2"):
        checked("POPULATION=2")
    checked("Method.phases=(@Gradient(),)", "TRAIN_STEPS=0")  # nothing is done
