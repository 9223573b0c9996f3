"""Prompts of few numbers and a random map, against twins that write the map down."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.errors import UserError
from prompt_jax.models.t5.network import T5
from prompt_jax.parts import inject
from prompt_jax.parts.banks.subspace import SubspaceBank
from prompt_jax.parts.head import LMHead
from prompt_jax.parts.init import UniformInit, Vocabulary
from prompt_jax.slots import SLOT0
from prompt_jax.testing.contract import CONFIG, begin, method_of, stirred

P, H, D = 10, 50, 500
DEVIATIONS = np.array([0.5, 3.0, 20.0], np.float32)
KEY = jax.random.key(3)
NAMES = ("encoder", "encoder_layers")
VOCABULARY = Vocabulary(
    width=H,
    rows=lambda ids: np.zeros((len(ids), H), np.float32),
    encode=lambda text: [3],
    pieces=30,
    deviations=lambda: DEVIATIONS,
)
SETTINGS = {"PROMPT_LENGTH": 3, "DIMENSION": 6, "CLASS_LABELS": "('a', 'b')"}


def bank(name="encoder", dimension=D, **given):
    return SubspaceBank(P, dimension, name=name, **given)


def with_z(leaves, name, z):
    return {**leaves, f"{name}_z": jnp.asarray(z, jnp.float32)}


def draw(name, dimension=8, seed=0):
    """z of any size: [d], or [L, d]."""
    shape = (dimension,) if name == "encoder" else (len(DEVIATIONS), dimension)
    return np.random.default_rng(seed).normal(size=shape)


def maps(leaves, name):
    """s A, column by column: what P is of each unit vector; [L, P H, d]."""
    own = bank(name).prompts
    nothing = leaves[f"{name}_z"]
    units = jnp.eye(nothing.shape[-1])
    zs = units if nothing.ndim == 1 else jnp.repeat(units[:, None], len(nothing), axis=1)
    found = jax.vmap(lambda z: own(with_z(leaves, name, z))[name])(zs)
    columns = found - own(leaves)[name]
    return np.moveaxis(np.asarray(columns).reshape(len(units), -1, P * H), 0, -1)


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_of_no_numbers_is_its_start(name):
    leaves = bank(name, init=UniformInit()).init_params(KEY, VOCABULARY)
    assert not np.any(leaves[f"{name}_z"])
    found = bank(name).prompts(leaves)[name]
    if name == "encoder":
        np.testing.assert_array_equal(found, UniformInit()(KEY, P, VOCABULARY))
        np.testing.assert_array_equal(found, leaves["encoder_start"])
    else:
        np.testing.assert_array_equal(found, np.zeros((3, P, H)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 1.0), (0.2, 3.0)])
def test_the_deviation_is_that_of_the_states(name, alpha, sigma):
    leaves = bank(name, alpha=alpha, sigma=sigma).init_params(KEY, VOCABULARY)
    own = bank(name).prompts
    shape = 24, *leaves[f"{name}_z"].shape
    zs = sigma * np.random.default_rng(0).normal(size=shape)
    found = jax.vmap(lambda z: own(with_z(leaves, name, z))[name])(jnp.asarray(zs, jnp.float32))
    layers = np.asarray(found).reshape(24, -1, P * H)
    for layer in range(layers.shape[1]):
        spread = layers[:, layer].std()
        np.testing.assert_allclose(spread, alpha * DEVIATIONS[layer], rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_by_hand(name):
    """A drawn here, row by row; P = X + s A z in float64."""
    leaves = bank(name, 8, alpha=0.7, sigma=2.0, init=UniformInit()).init_params(KEY, VOCABULARY)
    z = draw(name)
    found = np.atleast_3d(bank(name).prompts(with_z(leaves, name, z))[name]).reshape(-1, P, H)
    seed = jax.random.key(int(leaves[f"{name}_seed"]))
    start = np.float64(leaves["encoder_start"]) if name == "encoder" else np.zeros((P, H))
    for layer, numbers in enumerate(z.reshape(-1, 8)):
        matrix = np.float64(jax.random.normal(jax.random.fold_in(seed, layer), (P * H, 8)))
        s = 0.7 * DEVIATIONS[layer] / (8**0.5 * 2.0)
        for row in range(P):
            for column in range(H):
                expected = start[row, column] + s * sum(matrix[row * H + column] * numbers)
                np.testing.assert_allclose(
                    found[layer, row, column], expected, rtol=1e-5, atol=1e-5
                )


def test_layers_and_seeds_have_maps_of_their_own():
    leaves = bank("encoder_layers", 8).init_params(KEY, VOCABULARY)
    own = maps(leaves, "encoder_layers") / DEVIATIONS[:, None, None]
    again = bank("encoder_layers", 8).init_params(KEY, VOCABULARY)
    other = bank("encoder_layers", 8).init_params(jax.random.key(4), VOCABULARY)
    jax.tree.map(np.testing.assert_array_equal, leaves, again)
    assert leaves["encoder_layers_seed"] != other["encoder_layers_seed"]
    others = maps(other, "encoder_layers") / DEVIATIONS[:, None, None]
    flat = np.concatenate([own, others]).reshape(6, -1)  # six independent maps
    assert np.abs(np.corrcoef(flat) - np.eye(6)).max() < 0.1
    np.testing.assert_array_equal(own, maps(again, "encoder_layers") / DEVIATIONS[:, None, None])


def test_the_seed_outlives_a_file():
    """It is a whole number that float32 holds, of many."""
    init = bank(dimension=1).init_params
    seeds = [float(init(jax.random.key(n), VOCABULARY)["encoder_seed"]) for n in range(20)]
    assert all(seed == int(seed) and 0 <= seed < 2**24 for seed in seeds)
    assert len({*seeds}) == 20 and max(seeds) > 2**23


@pytest.mark.parametrize("name", NAMES)
def test_no_leaf_holds_the_map(name):
    leaves = bank(name).init_params(KEY, VOCABULARY)
    layers = 1 if name == "encoder" else len(DEVIATIONS)
    assert sum(leaf.size for leaf in leaves.values()) == layers * (D + 1) + P * H + 1
    assert all(leaf.dtype == np.float32 for leaf in leaves.values())


def test_what_cannot_be_a_subspace():
    with pytest.raises(UserError, match=r"SubspaceBank.dimension = 0, sigma = 1.0: both positive"):
        bank(dimension=0).init_params(KEY, VOCABULARY)
    with pytest.raises(UserError, match=r"dimension = 500, sigma = 0.0: both positive"):
        bank(sigma=0.0).init_params(KEY, VOCABULARY)
    with pytest.raises(UserError, match="PROMPT_LENGTH = 0"):
        SubspaceBank(0, 4).init_params(KEY, VOCABULARY)


# --- in the model ---


def test_vectors_are_added_in_slots_alone():
    rng = np.random.default_rng(0)
    tokens = np.array(
        [[SLOT0, SLOT0 + 1, 5, 1, 7, SLOT0, SLOT0 + 1], [9, SLOT0 + 1, 1, 0, 0, 0, 0]]
    )
    x, rows = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, 4))
    expected = x.copy()
    for row, t in np.ndindex(tokens.shape):
        if tokens[row, t] >= SLOT0:
            expected[row, t] += rows[tokens[row, t] - SLOT0]
    x, rows = (jnp.asarray(each, jnp.float32) for each in (x, rows))
    found = inject.add_to_slots(x, jnp.asarray(tokens), rows)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(found[tokens < SLOT0], x[tokens < SLOT0])
    half = inject.add_to_slots(x.astype(jnp.bfloat16), jnp.asarray(tokens), rows)
    assert half.dtype == jnp.bfloat16


def begun(name):
    settings = {
        **SETTINGS,
        ("SubspaceBank" if name == "bbt" else "PromptBank") + ".init": "@UniformInit()",
    }
    return begin(dataclasses.replace(method_of(name, settings), head=LMHead()))


@pytest.fixture(scope="module")
def deep():
    return begun("bbtv2")


@pytest.fixture(scope="module")
def plain():
    return begin(
        method_of("prompt_tuning", {"PROMPT_LENGTH": 3, "PromptBank.init": "@UniformInit()"})
    )


def test_before_the_search_it_is_a_plain_prompt(deep, plain):
    batch = deep.batch()
    np.testing.assert_array_equal(deep.params["prompt/encoder"], plain.params["prompt/encoder"])
    np.testing.assert_array_equal(deep.logits(batch), plain.logits(batch))
    shallow = begun("bbt")
    np.testing.assert_array_equal(
        shallow.params["prompt/encoder_start"], plain.params["prompt/encoder"]
    )
    np.testing.assert_array_equal(shallow.logits(batch), plain.logits(batch))


def test_layer_after_layer_by_hand(deep):
    """The encoder as networks of one layer each, the vectors added between them."""
    ours, batch = stirred(deep), deep.batch(packed=True)
    tokens, segments = (jnp.asarray(batch[f"encoder_{k}"]) for k in ("input_tokens", "segment_ids"))
    vectors = {name: np.asarray(v) for name, v in ours.method.vectors(ours.params).items()}
    weights = ours.model.variables(ours.params)["params"]
    network, left = T5(dataclasses.replace(CONFIG, num_encoder_layers=1)), []

    @jax.jit
    def through(weights, states):
        def tap(site, x, ctx):
            if site == "layer_out":
                jax.debug.callback(lambda x: left.append(np.asarray(x)), x)
            return states if site == "embed" else x

        tap.sites = ("embed", "layer_out")
        return network.apply({"params": weights}, tokens, segments, tap=tap, method="encode")

    slots = [tuple(at) for at in np.argwhere(np.asarray(tokens) >= SLOT0)]
    assert len(slots) == 12 * 3
    states = np.array(weights["token_embedder"]["embedding"])[np.where(tokens >= SLOT0, 0, tokens)]
    for at in slots:
        states[at] = vectors["encoder"][tokens[at] - SLOT0]
    for layer in range(CONFIG.num_encoder_layers):
        states = np.array(states)
        for at in slots:
            states[at] += vectors["encoder_layers"][layer, tokens[at] - SLOT0]
        own = jax.tree.map(lambda leaf: leaf[layer : layer + 1], weights["encoder"]["layers"])  # noqa: B023
        encoder = {**weights["encoder"], "layers": own}
        encoded = through({**weights, "encoder": encoder}, jnp.asarray(states))
        jax.block_until_ready(encoded)
        jax.effects_barrier()
        states = left[-1]
    found = jax.jit(ours.model.outputs)(ours.params, batch)["main"]["encoded"]
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(found[real], encoded[real], rtol=1e-4, atol=1e-5)
    still = jax.jit(deep.model.outputs)(deep.params, batch)["main"]["encoded"]
    assert np.abs(still - encoded)[real].max() > 0.1
