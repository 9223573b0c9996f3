"""The maps between our tree and Hugging Face folders."""

import json
import pathlib

import numpy as np
import pytest
from safetensors import safe_open

from prompt_jax.ckpt import hf, hf_config, tree
from prompt_jax.errors import UserError
from prompt_jax.testing.tiny import VARIANTS, tiny_config

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"


def shapes(config):
    """HF's names and shapes of every tensor."""
    return dict(hf.own(name, leaf.shape) for leaf in tree.leaves(config) for name in leaf.names)


def fields(name):
    return json.loads((FIXTURES / name).read_text())


@pytest.mark.parametrize(
    ("folder", "variant"),
    [("t5v11_tiny", "t5_1_1"), ("t5v10_tiny", "t5_1_0"), ("mt5_tiny", "t5_1_1")],
)
def test_names_and_shapes_are_those_transformers_wrote(folder, variant):
    with safe_open(FIXTURES / folder / "model.safetensors", "numpy") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert shapes(tiny_config(variant)) == theirs


def test_shapes_are_told_apart_when_nothing_is_square():
    config = tiny_config("umt5", emb_dim=24, num_heads=3, head_dim=4, mlp_dim=40, vocab_size=50)
    found = shapes(config)
    block = "decoder.block.1.layer"
    assert found[f"{block}.0.SelfAttention.q.weight"] == (12, 24)
    assert found[f"{block}.1.EncDecAttention.o.weight"] == (24, 12)
    assert found[f"{block}.2.DenseReluDense.wi_1.weight"] == (40, 24)
    assert found[f"{block}.2.DenseReluDense.wo.weight"] == (24, 40)
    # umT5 has a bias in every layer of both stacks.
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    for stack in ("encoder", "decoder"):
        assert all(found[f"{stack}.block.{i}.{bias}"] == (32, 3) for i in range(2))
    assert found["lm_head.weight"] == found["shared.weight"] == (50, 24)


def test_canonical_names_are_unstacked():
    path = ("encoder", "layers", "attention", "query", "kernel")
    assert tree.canonical_names(path, 2) == [
        "encoder/layers_0/attention/query/kernel",
        "encoder/layers_1/attention/query/kernel",
    ]
    assert tree.canonical_names(("token_embedder", "embedding"), 512) == [
        "token_embedder/embedding"
    ]


@pytest.mark.parametrize(
    ("file", "tied_head", "variant"),
    [
        ("t5v11_tiny/config.json", False, "t5_1_1"),
        ("t5v11_tiny_pubcfg.json", False, "t5_1_1"),
        ("t5v10_tiny/config.json", True, "t5_1_0"),
        ("mt5_tiny/config.json", False, "t5_1_1"),
    ],
)
def test_configs_of_transformers_are_read(file, tied_head, variant):
    found = hf_config.from_hf(fields(file), tied_head=tied_head, place=file)
    assert found == tiny_config(variant)


@pytest.mark.parametrize(
    ("family", "written", "scaled"),
    [
        ("t5", {}, True),
        ("t5", {"tie_word_embeddings": True}, True),
        ("t5", {"tie_word_embeddings": False}, False),
        ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ("t5", {"tie_word_embeddings": False, "scale_decoder_outputs": True}, True),
        ("mt5", {"tie_word_embeddings": True}, False),
        ("umt5", {"tie_word_embeddings": True}, False),
        ("umt5", {"scale_decoder_outputs": True}, True),
    ],
)
def test_output_scaling_follows_the_family(family, written, scaled):
    config = fields("t5v11_tiny_pubcfg.json") | {"model_type": family}
    del config["tie_word_embeddings"]
    found = hf_config.from_hf(config | written, tied_head=False, place="config.json")
    assert found.scale_logits == scaled
    assert found.per_layer_position_bias == (family == "umt5")


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_we_write_we_read_and_both_transformers_read(variant):
    config = tiny_config(variant, dropout_rate=0.1)
    written = json.loads(json.dumps(hf_config.to_hf(config)))
    assert hf_config.from_hf(written, tied_head=config.tied_head, place="x") == config
    # transformers 4 unties and scales by this field; transformers 5 scales T5 by the second.
    assert written["tie_word_embeddings"] is config.tied_head
    assert written["scale_decoder_outputs"] is config.scale_logits
    assert written["model_type"] == ("umt5" if variant == "umt5" else "t5")
    assert written["feed_forward_proj"] in ("relu", "gated-gelu")


def test_stacks_of_unequal_depth():
    config = tiny_config(num_encoder_layers=3, num_decoder_layers=1)
    written = hf_config.to_hf(config)
    assert (written["num_layers"], written["num_decoder_layers"]) == (3, 1)
    assert hf_config.from_hf(written, tied_head=False, place="x") == config
    del written["num_decoder_layers"]
    assert hf_config.from_hf(written, tied_head=False, place="x").num_decoder_layers == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bart"}, "model_type 'bart'.*'t5'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu'.*gated-gelu"),
        ({"d_kv": None}, "'d_kv' is missing"),
        ({"num_layers": 10_000_000}, "num_layers = 10000000: expected a whole number below 1000"),
        ({"d_model": True}, "d_model = True: expected a whole number"),
        ({"layer_norm_epsilon": False}, "layer_norm_epsilon = False: expected a number"),
    ],
)
def test_other_models_are_refused(change, message):
    config = fields("t5v11_tiny/config.json") | change
    config = {name: value for name, value in config.items() if value is not None}
    with pytest.raises(UserError, match=message):
        hf_config.from_hf(config, tied_head=False, place="config.json")


def test_leaves_cover_each_path_once():
    for variant in VARIANTS:
        paths = [leaf.path for leaf in tree.leaves(tiny_config(variant))]
        assert len(paths) == len(set(paths))
        total = sum(int(np.prod(leaf.full_shape)) for leaf in tree.leaves(tiny_config(variant)))
        assert 1.9e5 < total < 3e5
