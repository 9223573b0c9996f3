"""How large the states of a backbone are, against one whose layers run one at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from prompt_jax import spread
from prompt_jax.assemble import Method, assemble
from prompt_jax.models.t5.network import T5
from prompt_jax.parallel.mesh import AXES, Shardings
from prompt_jax.testing.contract import CONFIG, method_of

PIECES = 50
DEEP = dataclasses.replace(CONFIG, num_encoder_layers=3, num_decoder_layers=1, dropout_rate=0.1)
TABLE = "backbone/token_embedder/embedding"


def cut(states):
    """Five times what lies beyond mean +- 3 deviations is set to these; then the deviation."""
    numbers = [float(x) for x in np.asarray(states, np.float32).ravel()]
    for _ in range(5):
        mean = sum(numbers) / len(numbers)
        size = 3 * (sum((x - mean) ** 2 for x in numbers) / len(numbers)) ** 0.5
        numbers = [min(max(x, mean - size), mean + size) for x in numbers]
    mean = sum(numbers) / len(numbers)
    return (sum((x - mean) ** 2 for x in numbers) / len(numbers)) ** 0.5


@functools.cache
def opened(config=DEEP):
    """A model and its backbone; one piece is much larger than the others."""
    model = assemble(config, Method("backbone"))
    params = jax.jit(model.init_backbone)(jax.random.key(0))
    return model, {**params, TABLE: params[TABLE].at[7].mul(20.0)}


@functools.cache
def measured(config=DEEP):
    return spread.deviations(*opened(config), PIECES)


def entering(model, params):
    """The states that enter each layer: what leaves a network of the layer before alone."""
    config = model.network.config
    network = T5(dataclasses.replace(config, num_encoder_layers=1, remat="none"))
    weights, left = model.variables(params)["params"], []
    tokens = np.random.default_rng(0).integers(3, PIECES, (spread.ROWS, spread.LENGTH))

    @jax.jit
    def through(weights, states):
        def tap(site, x, ctx):
            if site == "layer_out":
                jax.debug.callback(lambda x: left.append(np.asarray(x)), x)
            return states if site == "embed" else x

        tap.sites = ("embed", "layer_out")
        given = tokens.astype(np.int32), np.ones(tokens.shape, np.int32)
        return network.apply({"params": weights}, *given, tap=tap, method="encode")

    states = params[TABLE][tokens].astype(config.dtype)
    for layer in range(config.num_encoder_layers):
        yield states
        own = jax.tree.map(lambda leaf: leaf[layer : layer + 1], weights["encoder"]["layers"])  # noqa: B023
        encoder = {**weights["encoder"], "layers": own}
        through({**weights, "encoder": encoder}, states).block_until_ready()
        jax.effects_barrier()
        states = left[-1]


def test_what_is_cut():
    numbers = np.random.default_rng(0).normal(3.0, 2.0, (20, 30)).astype(np.float32)
    numbers[4, 5], numbers[6, 7] = 900.0, -700.0
    found = spread.cut_deviation(jnp.asarray(numbers))
    np.testing.assert_allclose(found, cut(numbers), rtol=1e-5)
    assert numbers.std() > 10 * found  # which is near the 2 of the others, as more rounds are
    assert abs(spread.cut_deviation(jnp.asarray(numbers), rounds=50) - 2.0) < 0.2
    plain = spread.cut_deviation(jnp.asarray(numbers), rounds=0)
    np.testing.assert_allclose(plain, numbers.std(), rtol=1e-5)
    wide = spread.cut_deviation(jnp.asarray(numbers, jnp.bfloat16))
    assert wide.dtype == np.float32 and abs(wide - found) < 0.02


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"param_dtype": "int8", "remat": "full"},
        {"param_dtype": "bfloat16", "dtype": "bfloat16"},
    ],
    ids=["float32", "int8", "bfloat16"],
)
def test_each_layer_by_itself(changed):
    config = dataclasses.replace(DEEP, **changed)
    found, states = measured(config), list(entering(*opened(config)))
    assert found.dtype == np.float32 and len({*found.tolist()}) == 3
    np.testing.assert_allclose(found, [cut(each) for each in states], rtol=1e-5)
    plain = [np.asarray(each, np.float32).std() for each in states]
    assert np.all(found < 0.97 * np.array(plain))


def test_a_method_and_shards_change_nothing():
    _, params = opened()
    shardings = Shardings(Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 2), AXES), True)
    ours = assemble(DEEP, method_of("lora", {"RANK": 2}), shardings.fetch_layer)
    places = {path: shardings.frozen(path, leaf.shape) for path, leaf in params.items()}
    own = {path: jnp.ones(leaf.shape) for path, leaf in ours.prompt_shapes().items()}
    found = spread.deviations(ours, {**jax.device_put(params, places), **own}, PIECES)
    np.testing.assert_allclose(found, measured(), rtol=1e-5)


def test_only_common_pieces_are_drawn():
    model, params = opened()
    rare = {**params, TABLE: params[TABLE].at[PIECES:].mul(1e3).at[:3].mul(1e3)}
    found = spread.deviations(model, rare, PIECES)
    np.testing.assert_array_equal(found, measured())
    assert np.all(spread.deviations(model, rare, CONFIG.vocab_size) > 2 * found)
