"""Where vectors enter, against twins written with loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.assemble import assemble
from prompt_jax.models.t5 import deltas, storage
from prompt_jax.parts import inject
from prompt_jax.parts.banks.generator import DENOMINATOR, NUMERATOR
from prompt_jax.slots import SLOT0
from prompt_jax.testing.contract import CONFIG, begin, method_of, stirred

# Two rows of three and one examples: two slots each, the second in the middle of its text.
TOKENS = np.array(
    [
        [SLOT0, SLOT0 + 1, 5, 6, 1, 7, SLOT0, SLOT0 + 1, 1, SLOT0, SLOT0 + 1, 1, 0],
        [9, 8, 7, 6, 5, 1, SLOT0, SLOT0 + 1, 0, 0, 0, 0, 0],
    ]
)
SEGMENTS = np.array(
    [[1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]]
)
RNG = np.random.default_rng(0)


def real(row, segment):
    """Own tokens of one example: their places in the row."""
    return [
        t for t in range(TOKENS.shape[1]) if SEGMENTS[row, t] == segment and TOKENS[row, t] < SLOT0
    ]


def test_own_places_by_hand():
    expected = np.full(TOKENS.shape, -1)
    for row in range(len(TOKENS)):
        for segment in (1, 2, 3):
            for place, t in enumerate(real(row, segment)):
                expected[row, t] = place
    np.testing.assert_array_equal(
        inject.own_places(jnp.asarray(TOKENS), jnp.asarray(SEGMENTS)), expected
    )
    assert expected[0].tolist() == [-1, -1, 0, 1, 2, 0, -1, -1, 1, -1, -1, 0, -1]


def test_each_segment_gets_vectors_of_its_own():
    x = RNG.normal(size=(*TOKENS.shape, 4)).astype(np.float32)
    prompts = RNG.normal(size=(2, 3, 2, 4)).astype(np.float32)
    expected = x.copy()
    for row, t in zip(*np.nonzero(TOKENS >= SLOT0), strict=True):
        expected[row, t] = prompts[row, SEGMENTS[row, t] - 1, TOKENS[row, t] - SLOT0]
    found = inject.fill_own_slots(*map(jnp.asarray, (x, TOKENS, SEGMENTS, prompts)))
    np.testing.assert_array_equal(found, expected)
    same = np.broadcast_to(prompts[:1, :1], prompts.shape)
    shared = inject.fill_slots(*map(jnp.asarray, (x, TOKENS, prompts[0, 0])))
    found = inject.fill_own_slots(*map(jnp.asarray, (x, TOKENS, SEGMENTS, same)))
    np.testing.assert_array_equal(found, shared)


def test_the_gradient_of_taken_rows_is_that_of_indexing():
    table, ids = RNG.normal(size=(5, 3)).astype(np.float32), np.array([[0, 4, 4], [1, 0, 4]])
    weights = RNG.normal(size=(2, 3, 3)).astype(np.float32)
    ours = jax.grad(lambda t: jnp.sum(inject.take_rows(t, jnp.asarray(ids)) * weights))(table)
    expected = np.zeros_like(table)
    for row, column in np.ndindex(ids.shape):
        expected[ids[row, column]] += weights[row, column]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


# --- generated prompts ---


def rational(x):
    x = np.clip(x, -5, 5)
    above = sum(a * x**k for k, a in enumerate(NUMERATOR))
    return above / (1 + abs(sum(b * x ** (k + 1) for k, b in enumerate(DENOMINATOR))))


def test_the_activation_starts_as_gelu():
    x = np.linspace(-3, 3, 601)
    found = inject.rational(jnp.asarray(x), jnp.array(NUMERATOR), jnp.array(DENOMINATOR))
    np.testing.assert_allclose(found, rational(x), rtol=1e-4, atol=1e-5)
    assert np.abs(found - jax.nn.gelu(x)).max() < 0.01


def test_a_generator_by_hand():
    wide, hidden = 4, 3
    x = RNG.normal(size=(*TOKENS.shape, wide)).astype(np.float32)
    leaves = {
        "down": RNG.normal(size=(wide, hidden)),
        "pool": RNG.normal(size=(hidden, 2)),
        "up": RNG.normal(size=(hidden, wide)),
        "numerator": np.array(NUMERATOR),
        "denominator": np.array(DENOMINATOR),
    }
    expected = x.copy()
    for row, t in zip(*np.nonzero(TOKENS >= SLOT0), strict=True):
        own = real(row, SEGMENTS[row, t])
        h = x[row, own] / np.sqrt((x[row, own] ** 2).mean(-1, keepdims=True) + 1e-6)
        z = h @ leaves["down"]
        scores = z @ leaves["pool"][:, TOKENS[row, t] - SLOT0]
        shares = np.exp(scores - scores.max())
        pooled = (shares / shares.sum()) @ z
        expected[row, t] = rational(pooled) @ leaves["up"]
    given = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}
    found = inject.generate(*map(jnp.asarray, (x, TOKENS, SEGMENTS)), given)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


# --- a prefix ---


def test_a_prefix_is_more_keys_that_all_may_see():
    key, value = (RNG.normal(size=(2, 3, 2, 4)).astype(np.float32) for _ in range(2))
    first = [RNG.normal(size=(5, 8)).astype(np.float32) for _ in range(2)]
    bias = RNG.normal(size=(1, 2, 3, 3)).astype(np.float32)
    keys, values, wide = inject.prepend(*map(jnp.asarray, (key, value, bias, *first)))
    for row in range(2):
        for own, lead, joined in ((key, first[0], keys), (value, first[1], values)):
            np.testing.assert_array_equal(joined[row, :5], lead.reshape(5, 2, 4))
            np.testing.assert_array_equal(joined[row, 5:], own[row])
    np.testing.assert_array_equal(wide[..., :5], 0.0)
    np.testing.assert_array_equal(wide[..., 5:], bias)


def test_a_prefix_that_nobody_hears_changes_nothing():
    """Keys that all queries dislike by far: the softmax gives them no share."""
    ours = begin(method_of("prefix_tuning", {"PROMPT_LENGTH": 2}))
    plain = begin(method_of("prompt_design", {}))
    batch = ours.batch()
    assert np.abs(ours.logits(batch) - plain.logits(batch)).max() > 1e-2
    tap = ours.method.inject.tap(ours.method.vectors(ours.params))

    def deaf(site, x, ctx):
        if site != "attn_kv" or ctx.attention != "self":
            return x
        key, value, bias = tap(site, x, ctx)
        return key, value, bias.at[..., :2].set(-1e9)

    deaf.sites = tap.sites
    deaf.encoder_layers, deaf.decoder_layers = tap.encoder_layers, tap.decoder_layers
    network, variables = plain.model.network, plain.model.variables(plain.params)
    found = network.apply(variables, batch, tap=deaf)["logits"]
    expected = network.apply(variables, batch)["logits"]
    weights = batch["decoder_loss_weights"] > 0
    np.testing.assert_allclose(found[weights], expected[weights], rtol=1e-4, atol=1e-5)


# --- changed weights ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_factors_are_added_to_what_is_stored(dtype):
    kernel = jnp.asarray(RNG.normal(size=(64, 8)), jnp.float32)
    left, right = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((64, 3), (3, 8)))
    stored = storage.store("kernel", kernel, dtype)
    other = storage.store("kernel", 2 * kernel, dtype)
    layer = {"a": {**stored, "kernel_left": left, "kernel_right": right}, "b": other}
    found = storage.fetch(deltas.add(layer), "float32")
    base = storage.fetch({"a": stored, "b": other}, "float32")
    expected = np.asarray(base["a"]["kernel"], np.float64) + np.float64(left) @ np.float64(right)
    np.testing.assert_allclose(found["a"]["kernel"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["b"]["kernel"], base["b"]["kernel"])
    assert {*found["a"]} == {"kernel"}


def test_a_merged_backbone_answers_as_the_factors_do():
    ours = stirred(begin(method_of("lora", {"RANK": 3})))
    merged = dict(ours.frozen)
    for path, (left, right) in ours.method.vectors(ours.params)["weights"].items():
        merged[f"backbone/{path}/kernel"] = merged[f"backbone/{path}/kernel"] + left @ right
    plain = begin(method_of("prompt_design", {}))
    batch = ours.batch()
    found, expected = ours.logits(batch), plain.logits(batch, merged)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - plain.logits(batch)).max() > 0.1


def test_lora_on_int8_weights():
    """The backbone is dequantised, the factors are not quantised."""
    config = dataclasses.replace(CONFIG, param_dtype="int8")
    ours = stirred(begin(method_of("lora", {"RANK": 3}), config))
    plain = assemble(config, method_of("prompt_design", {}))
    loss, grads = ours.gradients(ours.batch())
    assert np.isfinite(loss) and all(np.any(grad) for grad in grads.values())
    assert plain.network.config.param_dtype == "int8"
