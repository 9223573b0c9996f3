"""T5X's own checkpoints, read into our network, against T5X's own outputs (random weights)."""

import pathlib

import jax
import numpy as np
import pytest

from prompt_jax.ckpt import load, tree
from prompt_jax.models.t5.network import T5
from prompt_jax.testing.tiny import tiny_config

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "t5x"
FORMS = ("zarr", "mixed", "msgpack", "bf16")


@pytest.fixture(scope="module")
def apply():
    """Encoder output and logits of the oracle's batch, compiled once."""
    oracle = np.load(FIXTURES / "oracle.npz")
    batch = {
        "encoder_input_tokens": oracle["encoder_input_tokens"],
        "encoder_segment_ids": (oracle["encoder_input_tokens"] > 0).astype(np.int32),
        "decoder_input_tokens": oracle["decoder_input_tokens"],
        "decoder_segment_ids": (oracle["decoder_target_tokens"] > 0).astype(np.int32),
    }
    return jax.jit(lambda params: T5(tiny_config()).apply({"params": params}, batch))


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_t5x_logits(apply, form):
    oracle = np.load(FIXTURES / "oracle.npz")
    loaded = load.load_backbone(FIXTURES / form, tiny_config())
    out = apply(loaded.params)
    real = oracle["decoder_target_tokens"] > 0
    expected = oracle["logits_bf16_weights" if form == "bf16" else "logits"]
    np.testing.assert_allclose(
        np.asarray(out["logits"])[real], expected[real], atol=1e-5, rtol=1e-5
    )
    if form != "bf16":
        real = oracle["encoder_input_tokens"] > 0
        np.testing.assert_allclose(
            np.asarray(out["encoded"])[real], oracle["encoded"][real], atol=1e-5, rtol=1e-5
        )


def test_sizes_are_read_from_the_checkpoint():
    config = load.open_source(FIXTURES / "zarr").config
    assert config == tiny_config(dropout_rate=config.dropout_rate)


def test_forms_of_one_checkpoint_have_one_fingerprint():
    found = {form: load.load_backbone(FIXTURES / form).fingerprint for form in FORMS}
    assert found["zarr"] == found["mixed"] == found["msgpack"] != found["bf16"]


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
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = tuple(key.key for key in path)
        shape = leaf.shape[1:] if "layers" in path else leaf.shape
        ours |= dict.fromkeys(tree.canonical_names(path, leaf.shape[0]), shape)
    theirs = load.open_source(FIXTURES / "zarr")
    assert ours == {name: tensor.shape for name, tensor in theirs.tensors.items()}
    assert not theirs.unknown
