"""How large the states of a backbone are, layer by layer: measured once, for inits."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from prompt_jax.assemble import Method, Model, Tree

ROWS, LENGTH = 8, 64
COMMON = 5000  # the pieces that texts are drawn from


def deviations(model: Model, params: Tree, pieces: int) -> Float[np.ndarray, " L"]:
    """The standard deviation of all numbers that enter each layer of the encoder, without outliers.

    Of random common pieces; five times what lies beyond three standard deviations is cut to them,
    as BBTv2's code does with the states of its training batch.

    Args:
        model: assembled functions; the backbone is measured without its method.
        params: of the backbone.
        pieces: of the vocabulary.
    """
    config, found = model.network.config, {}
    drawn = np.random.default_rng(0).integers(3, min(pieces, COMMON), (ROWS, LENGTH))
    tokens, segments = jnp.asarray(drawn, jnp.int32), jnp.ones((ROWS, LENGTH), jnp.int32)

    def measure(site, x, ctx):
        if site == "layer_in" and ctx.stack == "encoder":
            jax.debug.callback(note, ctx.layer, cut_deviation(x))
        return x

    def note(layer, value):
        found[int(layer)] = float(value)

    measure.sites = ("layer_in",)
    measure.encoder_layers = jnp.arange(config.num_encoder_layers)
    plain = Model(model.network, Method("backbone"), model.fetch)

    def encode(params):
        options = {"tap": measure, "method": "encode"}
        return model.network.apply(plain.variables(params), tokens, segments, **options)

    jax.jit(encode)(params).block_until_ready()
    jax.effects_barrier()
    # The callback runs on the process of the first device alone.
    own = np.array([found.get(at, 0.0) for at in range(config.num_encoder_layers)], np.float32)
    return np.asarray(multihost_utils.process_allgather(own)).reshape(-1, len(own)).max(0)


def cut_deviation(x: Float[Array, "..."], rounds: int = 5, limit: float = 3.0) -> Float[Array, ""]:
    """The standard deviation of all numbers, after `rounds` of cutting them to mean +- `limit` of
    it."""
    wide = x.astype(jnp.float32)
    for _ in range(rounds):
        mean, size = jnp.mean(wide), limit * jnp.std(wide)
        wide = jnp.clip(wide, mean - size, mean + size)
    return jnp.std(wide)
