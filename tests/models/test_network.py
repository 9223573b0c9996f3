"""The network: its NumPy twin, what must not matter, rematerialisation, dtypes, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from prompt_jax.ckpt import tree
from prompt_jax.models.t5.network import T5
from prompt_jax.slots import SLOT0
from prompt_jax.testing import oracles
from prompt_jax.testing.tiny import VARIANTS, tiny_batch, tiny_config, tiny_params


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, batch):
    return T5(config).apply({"params": params}, batch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_is_that_of_loops(variant):
    config = tiny_config(variant)
    params, batch = tiny_params(config), tiny_batch(config)
    out = forward(config, params, batch)
    expected = oracles.t5_forward(params, config, batch)
    for name, segments in (("encoded", "encoder"), ("states", "decoder"), ("logits", "decoder")):
        real = batch[f"{segments}_segment_ids"] > 0
        np.testing.assert_allclose(
            np.asarray(out[name])[real], expected[name][real], atol=2e-5, rtol=1e-5
        )
    assert out["logits"].dtype == jnp.float32


def real_logits(config, params, batch):
    return np.asarray(forward(config, params, batch)["logits"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_right_padding_changes_nothing(variant):
    config = tiny_config(variant)
    params, batch = tiny_params(config), tiny_batch(config)
    wide = {name: np.pad(value, ((0, 0), (0, 5))) for name, value in batch.items()}
    # What lies in the padding must not matter either.
    wide["encoder_input_tokens"][wide["encoder_segment_ids"] == 0] = 7
    real = batch["decoder_segment_ids"] > 0
    before = real_logits(config, params, batch)[real]
    after = real_logits(config, params, wide)[:, : real.shape[1]][real]
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_other_rows_change_nothing():
    config = tiny_config()
    params, batch = tiny_params(config), tiny_batch(config)
    other = tiny_batch(config, seed=9)
    mixed = {name: np.concatenate([batch[name][:1], other[name][1:]]) for name in batch}
    before, after = (real_logits(config, params, b)[0] for b in (batch, mixed))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packing_two_examples_in_a_row_changes_nothing(variant):
    config = tiny_config(variant)
    params = tiny_params(config)
    batch = tiny_batch(config, encoder_lengths=(7, 4), decoder_lengths=(3, 5))
    packed = {}
    for name, value in batch.items():
        side = name.split("_")[0]
        lengths = batch[f"{side}_segment_ids"].sum(1)
        parts = [row[:length] for row, length in zip(value, lengths, strict=True)]
        if name.endswith("segment_ids"):
            parts = [part * (i + 1) for i, part in enumerate(parts)]
        packed[name] = np.pad(np.concatenate(parts), (0, 2))[None]
    before = real_logits(config, params, batch)[batch["decoder_segment_ids"] > 0]
    after = real_logits(config, params, packed)[packed["decoder_segment_ids"] > 0]
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_later_decoder_tokens_change_nothing():
    config = tiny_config()
    params = tiny_params(config)
    batch = tiny_batch(config, decoder_lengths=(6, 6, 6))
    changed = dict(batch, decoder_input_tokens=batch["decoder_input_tokens"].copy())
    changed["decoder_input_tokens"][:, 3:] = 9
    before, after = (real_logits(config, params, b) for b in (batch, changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any()


def test_slots_look_up_row_zero():
    config = tiny_config()
    params, batch = tiny_params(config), tiny_batch(config)
    zero, slots = (
        dict(batch, encoder_input_tokens=batch["encoder_input_tokens"].copy()) for _ in "ab"
    )
    zero["encoder_input_tokens"][:, 0] = 0
    slots["encoder_input_tokens"][:, 0] = SLOT0 + np.arange(3)
    np.testing.assert_array_equal(
        real_logits(config, params, zero), real_logits(config, params, slots)
    )


@functools.partial(jax.jit, static_argnums=0)
def encoder_gradient(config, params, batch, key):
    """Gradient of a loss in the encoder's weights, through both stacks, with dropout."""

    def loss(encoder):
        out = T5(config).apply(
            {"params": {**params, "encoder": encoder}},
            batch,
            deterministic=False,
            rngs={"dropout": key},
        )
        return jnp.mean(out["logits"][..., 3] ** 2)

    return jax.grad(loss)(params["encoder"])


@pytest.mark.parametrize("remat", ["full", "minimal"])
def test_rematerialisation_changes_no_gradient(remat):
    config = tiny_config(dropout_rate=0.1)
    params, batch = tiny_params(config), tiny_batch(config)
    plain = encoder_gradient(config, params, batch, jax.random.key(0))
    config = dataclasses.replace(config, remat=remat)
    again = encoder_gradient(config, params, batch, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), plain, again)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(again))


def test_layers_are_compiled_once_whatever_their_number():
    def size(layers):
        config = tiny_config(num_encoder_layers=layers, num_decoder_layers=layers)
        params = jax.eval_shape(lambda: tiny_params(config))
        return len(forward.lower(config, params, tiny_batch(config)).as_text().splitlines())

    assert size(6) == size(2)


def test_bfloat16_compute_and_storage_stay_near_float32():
    config = tiny_config()
    params, batch = tiny_params(config), tiny_batch(config)
    real = batch["decoder_segment_ids"] > 0
    exact = real_logits(config, params, batch)[real]
    low = dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16")
    out = forward(low, tiny_params(low), batch)
    assert out["states"].dtype == jnp.bfloat16 and out["logits"].dtype == jnp.float32
    error = np.abs(np.asarray(out["logits"])[real] - exact)
    assert 1e-4 < error.mean() < 0.05, error.mean()
    # bfloat16 weights computed in float32: only the weights are rounded.
    stored = dataclasses.replace(config, param_dtype="bfloat16")
    kept = forward(stored, tiny_params(stored), batch)
    assert kept["states"].dtype == jnp.float32
    assert np.abs(np.asarray(kept["logits"])[real] - exact).mean() < error.mean()


def test_fetch_layer_gets_one_layer_at_a_time():
    config = tiny_config()
    params, batch = tiny_params(config), tiny_batch(config)
    seen = []

    def fetch(layer):
        seen.append(traverse_util.flatten_dict(layer, sep="/"))
        return jax.tree.map(lambda x: x.astype(jnp.float32) / 4, layer)

    times4 = {
        stack: {
            **params[stack],
            "layers": jax.tree.map(lambda x: (4 * x).astype(jnp.bfloat16), params[stack]["layers"]),
        }
        for stack in ("encoder", "decoder")
    }
    stored = {**params, **times4}
    rounded = jax.tree.map(
        lambda x: x.astype(jnp.float32),
        {
            **params,
            **{
                s: {
                    **params[s],
                    "layers": jax.tree.map(lambda x: x.astype(jnp.bfloat16), params[s]["layers"]),
                }
                for s in ("encoder", "decoder")
            },
        },
    )
    out = T5(config, fetch).apply({"params": stored}, batch)["logits"]
    np.testing.assert_allclose(out, forward(config, rounded, batch)["logits"], atol=1e-5)
    assert {layer["mlp/wo/kernel"].shape for layer in seen} == {(128, 64)}
    assert any("attention/query/kernel" in layer for layer in seen)
    assert any("encoder_decoder_attention/query/kernel" in layer for layer in seen)


def test_dropout_is_at_t5xs_places():
    """Every place at which T5X drops: count the masks of a forward pass by their shapes."""
    config = tiny_config(dropout_rate=0.5)
    params, batch = tiny_params(config), tiny_batch(config)
    shapes = []
    bernoulli = jax.random.bernoulli

    def spy(key, p=0.5, shape=None, **named):
        shapes.append(tuple(shape))
        return bernoulli(key, p, shape, **named)

    try:
        jax.random.bernoulli = spy
        T5(config).apply(
            {"params": params}, batch, deterministic=False, rngs={"dropout": jax.random.key(0)}
        )
    finally:
        jax.random.bernoulli = bernoulli
    b, t, u, h, f, n = 3, 12, 6, 64, 128, 4
    one_pass = [(b, 1, h)] * 3 + [(b, n, 1, t), (b, 1, f)]  # embeddings, layer of the encoder
    one_pass += [(b, t, h)]  # after the encoder: T5X has one mask per position here
    one_pass += [(b, 1, h)] * 5 + [(b, n, 1, u), (b, n, 1, t), (b, 1, f)]
    # Scanned bodies may be traced more than once: each place at least once, none elsewhere.
    assert set(shapes) == set(one_pass)
    assert shapes.count((b, t, h)) == 1


def test_dropout_differs_between_layers_and_keys():
    config = tiny_config(dropout_rate=0.5)
    params, batch = tiny_params(config), tiny_batch(config)
    masks = []

    def tap(site, x, context):
        """Leaves of each encoder layer nothing but its attention's dropout mask, times two."""
        if context.stack == "encoder" and site in ("layer_in", "mlp_act"):
            return jnp.zeros_like(x)
        if context.stack == "encoder" and site == "attn_out":
            return jnp.ones_like(x)
        if context.stack == "encoder" and site == "layer_out":
            jax.debug.callback(lambda x: masks.append(np.asarray(x)), x)
        return x

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        return T5(config).apply({"params": params}, batch, tap=tap, deterministic=False, rngs=rngs)

    for key in (0, 0, 1):
        jax.block_until_ready(run(jax.random.key(key)))
    jax.effects_barrier()
    assert len(masks) == 6 and all(set(np.unique(mask)) == {0, 2} for mask in masks)
    one, same, other = ({mask.tobytes() for mask in masks[i : i + 2]} for i in (0, 2, 4))
    assert len(one) == 2 and one == same and not one & other


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_weights_have_t5xs_distributions(variant):
    config = tiny_config(variant, emb_dim=128, mlp_dim=256, num_heads=4, head_dim=32)
    batch = tiny_batch(config)
    init = jax.jit(lambda k: T5(config).init(k, batch)["params"])
    params = traverse_util.flatten_dict(init(jax.random.key(0)))
    assert {p: x.shape for p, x in params.items()} == {
        leaf.path: leaf.full_shape for leaf in tree.leaves(config)
    }
    for path, array in params.items():
        if path[-1] == "scale":
            assert (array == 1).all()
            continue
        if path[-1] == "embedding":
            std = 1.0
        elif path[-1] == "rel_embedding":
            std = np.sqrt(2 / (4 + 32))  # fan_avg
            assert abs(np.asarray(array)).max() <= np.sqrt(3) * std
        else:
            std = array.shape[-2] ** -0.5
            std /= np.sqrt(32) if path[-2] == "query" else 1
        assert abs(np.std(array) / std - 1) < (0.3 if path[-1] == "rel_embedding" else 0.03), path
        if "layers" in path:
            assert (array[0] != array[1]).any()
    # Dense kernels are cut at two standard deviations (of the uncut normal), attention's are not.
    cut = params[("encoder", "layers", "mlp", "wo", "kernel")]
    assert np.abs(cut).max() * np.sqrt(256) < 2.3
    assert np.abs(params[("encoder", "layers", "attention", "key", "kernel")]).max() * 128**0.5 > 3
