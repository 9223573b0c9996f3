"""Our network against T5X's own outputs (random weights stored in bfloat16, float32 compute)."""

import pathlib

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from prompt_jax.ckpt import hf
from prompt_jax.models.t5.network import T5
from prompt_jax.testing.tiny import tiny_config

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"


def t5x_params(config):
    """The fixture's unstacked T5X tensors as our stacked float32 tree."""
    tensors = load_file(FIXTURES / "t5x_v11_tiny.safetensors")
    flat = {}
    for leaf in hf.leaves(config):
        names = hf.canonical_names(leaf.path, len(leaf.names))
        arrays = [tensors.pop(name).astype(np.float32) for name in names]
        flat[leaf.path] = np.stack(arrays) if leaf.stacked else arrays[0]
    assert not tensors, f"T5X tensors without a place in our tree: {sorted(tensors)}"
    return traverse_util.unflatten_dict(flat)


def test_logits_are_t5x_logits():
    config = tiny_config()
    oracle = np.load(FIXTURES / "t5x_v11_tiny.npz")
    batch = {
        "encoder_input_tokens": oracle["encoder_input_tokens"],
        "encoder_segment_ids": (oracle["encoder_input_tokens"] > 0).astype(np.int32),
        "decoder_input_tokens": oracle["decoder_input_tokens"],
        "decoder_segment_ids": (oracle["decoder_target_tokens"] > 0).astype(np.int32),
    }
    params = t5x_params(config)
    logits = jax.jit(lambda p: T5(config).apply({"params": p}, batch)["logits"])(params)
    real = oracle["decoder_target_tokens"] > 0
    np.testing.assert_allclose(
        np.asarray(logits)[real], oracle["logits_bf16_weights"][real], atol=1e-5, rtol=1e-5
    )


def test_parameter_tree_is_t5x_tree():
    config = tiny_config()
    batch = {
        name: np.ones((1, 2), np.int32)
        for name in (
            "encoder_input_tokens",
            "encoder_segment_ids",
            "decoder_input_tokens",
            "decoder_segment_ids",
        )
    }
    shapes = jax.eval_shape(lambda: T5(config).init(jax.random.key(0), batch)["params"])
    ours = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        shape = leaf.shape[1:] if "layers" in path else leaf.shape
        ours |= dict.fromkeys(hf.canonical_names(path, leaf.shape[0]), shape)
    theirs = load_file(FIXTURES / "t5x_v11_tiny.safetensors")
    assert ours == {name: array.shape for name, array in theirs.items()}
