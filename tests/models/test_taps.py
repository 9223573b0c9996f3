"""Taps: one test per site, in both stacks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.models.t5.attention import attend, folds
from prompt_jax.models.t5.network import T5, Context, identity_tap
from prompt_jax.testing.tiny import tiny_batch, tiny_config, tiny_params

CONFIG = tiny_config()
PARAMS = tiny_params(CONFIG)
BATCH = tiny_batch(CONFIG)
B, T, U, H, F, N, D = 3, 12, 6, 64, 128, 4, 16
STACKS = ("encoder", "decoder")


def logits(tap, config=CONFIG):
    def call(params):
        return T5(config).apply({"params": params}, BATCH, tap=tap)["logits"]

    return np.asarray(jax.jit(call)(PARAMS))


PLAIN = None


def plain():
    global PLAIN
    if PLAIN is None:
        PLAIN = logits(identity_tap)
    return PLAIN


def check_site(site, stack, change, shape, attention=None):
    """The tap is called with right shapes and context, and what it returns is used."""
    calls = []

    def tap(where, x, context):
        assert isinstance(context, Context) and context.step is None
        if (where, context.stack, context.attention) != (site, stack, attention):
            return x
        calls.append(x)
        length = T if stack == "encoder" else U
        assert context.tokens.shape == context.segment_ids.shape == (B, length)
        assert context.positions.shape == (length,) and context.layer is None
        assert jax.tree.map(jnp.shape, x) == shape
        return change(x)

    changed = logits(tap)
    assert len(calls) == 1, f"traced {len(calls)} times"
    assert np.abs(changed - plain()).max() > 1e-3


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("site", ["embed", "layer_in", "layer_out", "stack_out"])
def test_residual_sites(site, stack):
    check_site(site, stack, lambda x: x * 1.5 + 0.1, (B, T if stack == "encoder" else U, H))


@pytest.mark.parametrize("stack", STACKS)
def test_mlp_act(stack):
    length = T if stack == "encoder" else U
    check_site("mlp_act", stack, lambda x: x * 1.5, (B, length, F))


@pytest.mark.parametrize(
    ("stack", "attention"), [("encoder", "self"), ("decoder", "self"), ("decoder", "cross")]
)
def test_attn_out(stack, attention):
    length = T if stack == "encoder" else U
    check_site("attn_out", stack, lambda x: x * 1.5, (B, length, H), attention)


@pytest.mark.parametrize(
    ("stack", "attention"), [("encoder", "self"), ("decoder", "self"), ("decoder", "cross")]
)
def test_attn_kv(stack, attention):
    queries = T if stack == "encoder" else U
    keys = U if (stack, attention) == ("decoder", "self") else T
    heads = 1 if attention == "cross" else N
    shape = ((B, keys, N, D), (B, keys, N, D), (B, heads, queries, keys))

    def change(x):
        return x[0], x[1] * 1.5, x[2]

    check_site("attn_kv", stack, change, shape, attention)


def identity(site, x, context):
    return x


def test_identity_leaves_every_bit_where_it_names_its_sites():
    def tap(site, x, context):
        return x

    tap.sites = ("embed", "layer_in", "attn_out", "mlp_act", "layer_out", "stack_out")
    np.testing.assert_array_equal(logits(tap), plain())


def test_cross_attention_without_keys_and_values_is_the_same():
    """A tap that names no sites gets keys and values; nobody asks for them in `plain`."""
    with_keys = logits(identity)
    assert not np.array_equal(with_keys, plain())  # else both went the same way
    np.testing.assert_allclose(with_keys, plain(), rtol=1e-5, atol=1e-5)


def test_keys_and_values_are_made_for_long_targets():
    assert folds(8, 228, 16) and folds(14, 228, 16) and not folds(15, 228, 16)
    assert not folds(16, 16, 16)


def test_sites_come_in_order():
    order = []

    def tap(site, x, context):
        order.append((context.stack, site, context.attention))
        return x

    logits(tap)
    expected = [("embed", None), ("layer_in", None), ("attn_kv", "self"), ("attn_out", "self")]
    tail = [("mlp_act", None), ("layer_out", None), ("stack_out", None)]
    cross = [("attn_kv", "cross"), ("attn_out", "cross")]
    assert order == [("encoder", *s) for s in expected + tail] + [
        ("decoder", *s) for s in expected + cross + tail
    ]


def prefixed(x, key, value):
    """Prepends keys and values [P,N,D] with bias 0."""
    k, v, bias = x
    spread = lambda p: jnp.broadcast_to(p, (k.shape[0], *p.shape)).astype(k.dtype)  # noqa: E731
    zeros = jnp.zeros((*bias.shape[:3], key.shape[0]))
    return (
        jnp.concatenate([spread(key), k], 1),
        jnp.concatenate([spread(value), v], 1),
        jnp.concatenate([zeros, bias], 3),
    )


def test_key_value_prefix_is_numpys():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    query, key, value, bias = draw(2, 5, N, D), draw(2, 7, N, D), draw(2, 7, N, D), draw(2, N, 5, 7)
    pre_key, pre_value = draw(3, N, D), draw(3, N, D)
    k, v, b = prefixed((key, value, bias), pre_key, pre_value)
    out = attend(query, k, v, b)
    for i in range(2):
        for n in range(N):
            old = query[i, :, n] @ key[i, :, n].T + bias[i, n]
            scores = np.concatenate([query[i, :, n] @ pre_key[:, n].T, old], 1).astype(np.float64)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            values = np.concatenate([pre_value[:, n], value[i, :, n]])
            np.testing.assert_allclose(out[i, :, n], weights @ values, atol=1e-5)


class PerLayer:
    """Prepends its own keys and values in each layer; adds its own row to layer_in."""

    def __init__(self, arrays):
        self.encoder_layers = self.decoder_layers = arrays

    def __call__(self, site, x, context):
        if site == "layer_in":
            assert jax.tree.map(jnp.shape, context.layer) == {
                "key": (5, N, D),
                "value": (5, N, D),
                "shift": (H,),
            }
            return x + context.layer["shift"]
        if site == "attn_kv":
            return prefixed(x, context.layer["key"], context.layer["value"])
        return x


def per_layer_arrays(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {"key": draw(2, 5, N, D), "value": draw(2, 5, N, D), "shift": 0.3 * draw(2, H)}


def test_per_layer_arrays_are_sliced_by_the_scan():
    arrays = per_layer_arrays()
    both = logits(PerLayer(arrays))
    assert np.abs(both - plain()).max() > 1e-3
    swapped = logits(PerLayer(jax.tree.map(lambda x: x[::-1], arrays)))
    assert np.abs(both - swapped).max() > 1e-3
    only = {name: x.at[1].set(0) for name, x in arrays.items()}
    assert np.abs(both - logits(PerLayer(only))).max() > 1e-3


def test_layer_slices_reach_their_own_layer():
    """A shift in layer 1 only must equal a shift of what layer 0 hands on."""
    shift = per_layer_arrays()["shift"][0]

    class Second:
        encoder_layers = jnp.stack([jnp.zeros(H), shift])
        decoder_layers = jnp.zeros((2, H))

        def __call__(self, site, x, context):
            return x + context.layer if site == "layer_in" else x

    class First:
        encoder_layers = jnp.asarray([1.0, 0.0])
        decoder_layers = jnp.zeros(2)

        def __call__(self, site, x, context):
            return x + context.layer * shift if site == "layer_out" else x

    np.testing.assert_allclose(logits(Second()), logits(First()), atol=1e-6)


@pytest.mark.parametrize("remat", ["none", "full", "minimal"])
def test_taps_close_over_what_is_differentiated(remat):
    """Gradients of a tap's arrays under grad, jit, scan and remat agree with differences."""
    config = dataclasses.replace(CONFIG, remat=remat)
    direction = per_layer_arrays(1)

    def loss(arrays):
        out = T5(config).apply({"params": PARAMS}, BATCH, tap=PerLayer(arrays))["logits"]
        return jnp.mean(jax.nn.log_softmax(out)[..., 3])

    arrays = per_layer_arrays()
    grad = jax.jit(jax.grad(loss))(arrays)
    slope = sum(jnp.vdot(grad[name], direction[name]) for name in grad)
    step = 1e-2
    near = jax.jit(lambda s: loss(jax.tree.map(lambda a, d: a + s * d, arrays, direction)))
    np.testing.assert_allclose((near(step) - near(-step)) / (2 * step), slope, rtol=2e-2)
    assert all((np.abs(g).reshape(2, -1).max(1) > 0).all() for g in grad.values())


@pytest.mark.parametrize("variant", ["t5_1_1", "umt5"])
def test_taps_do_the_same_when_decoding_with_a_cache(variant):
    config = tiny_config(variant)
    params, network, tap = tiny_params(config), T5(config), PerLayer(per_layer_arrays())
    batch = tiny_batch(config, decoder_lengths=(6, 6, 6))
    full = jax.jit(lambda p: network.apply({"params": p}, batch, tap=tap)["states"])(params)
    steps = []

    def watch(site, x, context):
        if context.stack == "decoder":
            assert context.step is not None and context.tokens.shape == (B, 1)
            steps.append(site)
        return tap(site, x, context)

    watch.decoder_layers, watch.encoder_layers = tap.decoder_layers, tap.encoder_layers

    def stepwise(params):
        apply = lambda *a, **k: network.apply({"params": params}, *a, **k)  # noqa: E731
        segments = batch["encoder_segment_ids"]
        encoded = apply(batch["encoder_input_tokens"], segments, tap=tap, method="encode")
        cache = apply(encoded, segments, 8, method="start_cache")

        def one(cache, column):
            states, cache = apply(cache, column, tap=watch, method="decode_step")
            return cache, states

        cache, states = jax.lax.scan(one, cache, jnp.asarray(batch["decoder_input_tokens"]).T)
        return states.swapaxes(0, 1), cache.index

    states, index = jax.jit(stepwise)(params)
    np.testing.assert_allclose(states, full, atol=2e-5)
    assert index == 6 and steps.count("attn_kv") == 2
