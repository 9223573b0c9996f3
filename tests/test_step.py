"""The step: what moves, what accumulates, and that packing changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.assemble import Method, assemble
from prompt_jax.models.t5.config import T5Config
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.init import UniformInit, Vocabulary
from prompt_jax.parts.inject import EncoderSlots
from prompt_jax.parts.trainable import AdamW, Trainable
from prompt_jax.step import init_state, jit_train_step, loss_and_grads
from prompt_jax.testing.batches import examples, lay_out

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)
P = 5
PROMPT = Method("prompt_tuning", bank=PromptBank(P, UniformInit()), inject=EncoderSlots())
EVERYTHING = Method(
    "model_tuning",
    trainable=Trainable(rules=((".*", "train"),), optimizer=AdamW(learning_rate=1e-3)),
)


def start(method, config=CONFIG):
    model = assemble(config, method)
    backbone = model.init_backbone(jax.random.key(0))
    table = np.asarray(backbone["backbone/token_embedder/embedding"])
    vocabulary = Vocabulary(config.emb_dim, lambda ids: table[ids], lambda text: [3], 60)
    params = {**backbone, **model.init_prompt(jax.random.key(1), vocabulary)}
    frozen, trainable, _ = method.trainable.split(params)
    return model, frozen, trainable


def grads_of(model, frozen, trainable, batch, microbatches=1):
    run = jax.jit(lambda t, f, b: loss_and_grads(model, t, f, b, None, microbatches))
    loss, grads, counts = run(trainable, frozen, batch)
    return float(loss), jax.device_get(grads), jax.device_get(counts)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_packed_and_unpacked_give_the_same_loss_and_prompt_gradient():
    model, frozen, trainable = start(PROMPT)
    pairs = examples(12, CONFIG.vocab_size)
    packed, unpacked = lay_out(pairs, P, True), lay_out(pairs, P, False)
    assert len(packed["encoder_input_tokens"]) < len(unpacked["encoder_input_tokens"])
    loss, grads, counts = grads_of(model, frozen, trainable, packed)
    expected_loss, expected, expected_counts = grads_of(model, frozen, trainable, unpacked)
    weight = counts["targets"]
    assert weight == expected_counts["targets"] == sum(len(pair[1]) for pair in pairs)
    np.testing.assert_allclose(loss * weight, expected_loss * weight, rtol=1e-5)
    assert relative(grads["prompt/encoder"], expected["prompt/encoder"]) < 1e-5


@pytest.mark.parametrize("method", [PROMPT, EVERYTHING], ids=lambda method: method.name)
def test_microbatches_with_unequal_targets_equal_one_batch(method):
    model, frozen, trainable = start(method)
    batch = lay_out(examples(8, CONFIG.vocab_size, seed=2), method.slots, False)
    whole_loss, whole, whole_counts = grads_of(model, frozen, trainable, batch)
    loss, parts, counts = grads_of(model, frozen, trainable, batch, microbatches=4)
    np.testing.assert_allclose(loss, whole_loss, rtol=1e-6)
    assert counts["targets"] == whole_counts["targets"]
    flat = [np.concatenate([g.ravel() for g in tree.values()]) for tree in (parts, whole)]
    assert relative(*flat) < 1e-5


def test_eight_microbatches_need_no_more_memory_than_one():
    """Nor does a backbone appear among the temporaries: gradients are of the prompt alone."""
    wide = dataclasses.replace(CONFIG, emb_dim=128, mlp_dim=512, num_heads=4, head_dim=32)
    model, frozen, trainable = start(PROMPT, wide)
    batch = lay_out(examples(16, CONFIG.vocab_size, seed=2), P, False)

    def temporaries(count):
        step = jax.jit(lambda t, f, b: loss_and_grads(model, t, f, b, None, count))
        compiled = step.lower(trainable, frozen, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, eight = temporaries(1), temporaries(8)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in frozen.values())
    assert eight < one, (eight, one)
    assert eight < weights, (eight, weights)


def test_gradient_and_optimizer_state_have_the_trainable_leaves_only():
    model, frozen, trainable = start(PROMPT)
    optimizer = PROMPT.trainable.build(trainable)
    state = init_state(trainable, optimizer, 0)
    assert set(trainable) == {"prompt/encoder"}
    size = P * CONFIG.emb_dim
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * size
    _, grads, _ = grads_of(
        model, frozen, trainable, lay_out(examples(4, CONFIG.vocab_size), P, False)
    )
    assert set(grads) == {"prompt/encoder"}


def test_a_step_moves_the_prompt_lowers_the_loss_and_compiles_once():
    model, frozen, trainable = start(PROMPT)
    before = jax.device_get(frozen)
    optimizer = PROMPT.trainable.build(trainable)
    state = init_state(trainable, optimizer, 0)
    step = jit_train_step(model, optimizer, 1)
    batch = lay_out(examples(8, CONFIG.vocab_size), P, False)
    seen = []
    for _ in range(30):
        state, numbers = step(state, frozen, batch)
        seen.append(float(numbers["loss"]))
    assert int(state.step) == 30
    assert seen[-1] < seen[0] - 0.2
    assert step._cache_size() == 1
    for name, leaf in before.items():
        np.testing.assert_array_equal(leaf, np.asarray(frozen[name]))


def test_every_slot_gets_a_gradient_and_no_slot_none():
    model, frozen, trainable = start(PROMPT)
    pairs = examples(4, CONFIG.vocab_size)
    _, grads, _ = grads_of(model, frozen, trainable, lay_out(pairs, P, False))
    assert np.all(np.abs(grads["prompt/encoder"]).max(-1) > 0)
    _, grads, _ = grads_of(model, frozen, trainable, lay_out(pairs, 0, False))
    assert np.all(grads["prompt/encoder"] == 0)


def test_a_prompt_of_real_embeddings_is_those_tokens():
    model, frozen, _ = start(PROMPT)
    pairs = examples(4, CONFIG.vocab_size)
    own = np.array([7, 9, 11, 13, 17], np.int32)
    table = frozen["backbone/token_embedder/embedding"]
    slots = lay_out(pairs, P, True)
    written = dict(slots)
    tokens = slots["encoder_input_tokens"]
    is_slot = tokens >= 1 << 20
    written["encoder_input_tokens"] = np.where(is_slot, own[(tokens - (1 << 20)) * is_slot], tokens)
    params = {**frozen, "prompt/encoder": table[own]}
    with_slots, with_tokens = (
        model.outputs(params, jax.tree.map(jnp.asarray, batch))["main"]["log_z"]
        for batch in (slots, written)
    )
    np.testing.assert_array_equal(np.asarray(with_slots), np.asarray(with_tokens))


def test_dropout_is_a_function_of_seed_and_step():
    config = dataclasses.replace(CONFIG, dropout_rate=0.3)
    model, frozen, trainable = start(PROMPT, config)
    optimizer = PROMPT.trainable.build(trainable)
    batch = lay_out(examples(6, CONFIG.vocab_size), P, False)
    step = jit_train_step(model, optimizer, 1)

    def losses(seed):
        fresh = jax.tree.map(jnp.copy, trainable)
        state = init_state(fresh, optimizer, seed)
        out = []
        for _ in range(3):
            state, numbers = step(state, frozen, batch)
            out.append(float(numbers["loss"]))
        return out

    assert losses(0) == losses(0)
    assert losses(0)[0] != losses(1)[0]
