"""bfloat16 and int8 weights: what they cost in memory, and what they change in the logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.assemble import Method, assemble
from prompt_jax.errors import UserError
from prompt_jax.models.t5 import storage
from prompt_jax.models.t5.config import T5Config
from prompt_jax.models.t5.network import T5
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.init import UniformInit
from prompt_jax.parts.inject import EncoderSlots
from prompt_jax.step import loss_and_grads
from prompt_jax.testing.tiny import tiny_batch, tiny_config, tiny_params

# Wide layers, so that weights and not activations fill the memory.
WIDE = T5Config(
    vocab_size=256,
    emb_dim=256,
    num_heads=4,
    head_dim=64,
    mlp_dim=1024,
    num_encoder_layers=6,
    num_decoder_layers=6,
    dropout_rate=0.0,
)
P = 3
METHOD = Method("prompt_tuning", bank=PromptBank(P, UniformInit()), inject=EncoderSlots())


@pytest.mark.parametrize(("inputs", "groups"), [(5, 1), (64, 1), (192, 3)])
def test_levels_are_those_of_loops(inputs, groups):
    kernel = np.random.default_rng(0).normal(size=(2, inputs, 3)).astype(np.float32)
    kernel[1, :, 2] = 0
    levels, scale = storage.quantise(jnp.asarray(kernel))
    assert levels.dtype == jnp.int8 and scale.shape == (2, groups, 3)
    size = inputs // groups
    for layer in range(2):
        back = storage.dequantise(levels[layer], scale[layer], "float32")
        for o in range(3):
            for i in range(inputs):
                group = kernel[layer, i // size * size :, o][:size]
                step = max(abs(group)) / 127
                expected = round(float(kernel[layer, i, o]) / step) if step else 0
                assert levels[layer, i, o] == expected
                np.testing.assert_allclose(back[i, o], expected * step, rtol=1e-5)


def test_only_kernels_of_layers_are_int8():
    layer, int8 = ("encoder", "layers", "mlp", "wo"), tiny_config(param_dtype="int8")
    assert storage.stored_dtype((*layer, "kernel"), int8) == "int8"
    assert storage.stored_dtype((*layer, "kernel"), tiny_config()) == "float32"
    for path in (
        ("token_embedder", "embedding"),
        ("decoder", "logits_dense", "kernel"),
        ("encoder", "layers", "pre_mlp_layer_norm", "scale"),
    ):
        assert storage.stored_dtype(path, int8) == "bfloat16"


def test_logits_of_stored_weights_are_close_to_those_of_floats():
    config = tiny_config()
    batch, params = tiny_batch(config), tiny_params(config)
    exact = T5(config).apply({"params": params}, batch)["logits"]
    errors = {}
    for dtype in ("bfloat16", "int8"):
        other = dataclasses.replace(config, param_dtype=dtype)
        model = assemble(other, METHOD)
        shapes = jax.eval_shape(model.init_backbone, jax.random.key(0))
        flat = {}
        for path, leaf in _flat(params).items():
            low = storage.store(path[-1], leaf, storage.stored_dtype(path, other))
            flat |= {"/".join(("backbone", *path[:-1], name)): x for name, x in low.items()}
        assert {k: (v.shape, v.dtype) for k, v in flat.items()} == {
            k: (v.shape, v.dtype) for k, v in shapes.items()
        }
        found = model.network.apply(model.variables(flat), batch)["logits"]
        real = batch["decoder_segment_ids"] > 0
        difference = np.asarray(found - exact)[real]
        errors[dtype] = np.sqrt(np.mean(difference**2) / np.mean(np.asarray(exact)[real] ** 2))
    assert 1e-4 < errors["bfloat16"] < 0.03
    assert 1e-3 < errors["int8"] < 0.06


def _flat(tree, prefix=()):
    found = {}
    for name, leaf in tree.items():
        found |= _flat(leaf, (*prefix, name)) if isinstance(leaf, dict) else {(*prefix, name): leaf}
    return found


def temporaries(config, rows=2, length=16):
    """Bytes of weights, and of temporaries of a compiled gradient step."""
    model = assemble(config, METHOD)
    frozen = jax.eval_shape(model.init_backbone, jax.random.key(0))
    trainable = {"prompt/encoder": jax.ShapeDtypeStruct((P, config.emb_dim), jnp.float32)}
    names = ("encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens")
    names += ("decoder_target_tokens", "decoder_segment_ids")
    batch = {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in names}
    batch["decoder_loss_weights"] = jax.ShapeDtypeStruct((rows, length), jnp.float32)
    step = jax.jit(lambda t, f, b: loss_and_grads(model, t, f, b, None))
    compiled = step.lower(trainable, frozen, batch).compile()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in frozen.values())
    return weights, compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_no_policy_keeps_a_backbone_of_floats(remat):
    """int8 only: XLA's CPU backend itself makes float32 copies of bfloat16 stacks."""
    config = dataclasses.replace(WIDE, remat=remat)
    whole, plain = temporaries(config)
    weights, temporary = temporaries(dataclasses.replace(config, param_dtype="int8"))
    assert weights < 0.35 * whole
    layer = whole / 12
    assert temporary < plain + 3 * layer, (temporary, plain, layer)


def test_an_unknown_dtype_is_one_line():
    with pytest.raises(UserError, match="T5Config.param_dtype = 'int4': .*int8"):
        tiny_config(param_dtype="int4")
