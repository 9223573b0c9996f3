"""Our network and loader against what Hugging Face transformers and PEFT computed.

transformers 5.23; umT5's weights are random ones that we wrote, opened by 4.57.6 and by 5.23.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prompt_jax.ckpt import load
from prompt_jax.models.t5.network import T5, identity_tap
from prompt_jax.slots import SLOT0

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
MODELS = (
    "t5v11_tiny",
    "t5v11_tiny_pubcfg",
    "t5v11_tiny_sharded",
    "t5v10_tiny",
    "mt5_tiny",
    "umt5_tiny",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The three stored folders, plus the published-config and sharded forms of t5v11_tiny."""
    root = tmp_path_factory.mktemp("hf")
    weights = load_file(FIXTURES / "t5v11_tiny" / "model.safetensors")
    for name in ("t5v11_tiny", "t5v10_tiny", "mt5_tiny", "umt5_tiny"):
        shutil.copytree(FIXTURES / name, root / name)
    published = root / "t5v11_tiny_pubcfg"
    shutil.copytree(FIXTURES / "t5v11_tiny", published)
    shutil.copy(FIXTURES / "t5v11_tiny_pubcfg.json", published / "config.json")
    sharded = root / "t5v11_tiny_sharded"
    sharded.mkdir()
    shutil.copy(FIXTURES / "t5v11_tiny" / "config.json", sharded / "config.json")
    index = FIXTURES / "t5v11_tiny_sharded.index.json"
    shutil.copy(index, sharded / "model.safetensors.index.json")
    where = json.loads(index.read_text())["weight_map"]
    for file in sorted(set(where.values())):
        save_file({n: weights[n] for n, f in where.items() if f == file}, sharded / file)
    return root


def oracle_of(name):
    stored = "t5v11_tiny" if name.startswith("t5v11_tiny") else name
    return np.load(FIXTURES / f"{stored}.npz")


def batch_of(oracle):
    return {
        "encoder_input_tokens": oracle["input_ids"].astype(np.int32),
        "encoder_segment_ids": oracle["attention_mask"].astype(np.int32),
        "decoder_input_tokens": oracle["decoder_input_ids"].astype(np.int32),
        "decoder_segment_ids": np.ones(oracle["decoder_input_ids"].shape, np.int32),
    }


def cross_entropy(logits, labels):
    scores = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(scores, labels[..., None], -1).mean()


@pytest.mark.parametrize("name", MODELS)
def test_logits_encoded_and_loss_are_those_of_transformers(folders, name):
    oracle = oracle_of(name)
    config = load.open_source(folders / name).config
    params = load.load_backbone(folders / name, config).params
    batch = batch_of(oracle)
    out = jax.jit(lambda p: T5(config).apply({"params": p}, batch))(params)
    np.testing.assert_allclose(out["logits"], oracle["logits"], atol=1e-5, rtol=1e-5)
    real = oracle["attention_mask"] > 0
    np.testing.assert_allclose(
        np.asarray(out["encoded"])[real],
        oracle["encoder_last_hidden_state"][real],
        atol=1e-5,
        rtol=1e-5,
    )
    loss = cross_entropy(out["logits"], oracle["labels"])
    np.testing.assert_allclose(loss, oracle["loss"], rtol=1e-5)


def test_umt5_is_scaled_as_transformers_5_does_when_asked(folders):
    """transformers 4 and T5X leave umT5's states as they are, transformers 5 scales them."""
    oracle = oracle_of("umt5_tiny")
    config = load.open_source(folders / "umt5_tiny").config
    assert not config.scale_logits
    config = dataclasses.replace(config, scale_logits=True)
    params = load.load_backbone(folders / "umt5_tiny", config).params
    logits = T5(config).apply({"params": params}, batch_of(oracle))["logits"]
    np.testing.assert_allclose(logits, oracle["logits_transformers5"], atol=1e-5, rtol=1e-5)


def prompt_tap(prompt):
    """Puts prompt vectors into the slots of the encoder's input."""

    def tap(site, x, context):
        if site != "embed" or context.stack != "encoder":
            return identity_tap(site, x, context)
        slot = context.tokens - SLOT0
        return jnp.where((slot >= 0)[..., None], prompt[jnp.maximum(slot, 0)], x)

    return tap


def test_prompt_in_slots_is_peft_prompt_tuning(folders):
    oracle = np.load(FIXTURES / "peft_prompt10_on_t5v11_tiny.npz")
    config = load.open_source(folders / "t5v11_tiny").config
    params = load.load_backbone(folders / "t5v11_tiny", config).params
    batch = batch_of(oracle)
    slots = np.tile(SLOT0 + np.arange(10, dtype=np.int32), (4, 1))
    ones = np.ones_like(slots)
    for name, left in (("encoder_input_tokens", slots), ("encoder_segment_ids", ones)):
        batch[name] = np.concatenate([left, batch[name]], 1)

    def loss(prompt):
        out = T5(config).apply({"params": params}, batch, tap=prompt_tap(prompt))
        return cross_entropy(out["logits"], oracle["labels"]), out

    prompt = jnp.asarray(oracle["prompt"])
    (value, out), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(prompt)
    np.testing.assert_allclose(out["logits"], oracle["logits"], atol=1e-5, rtol=1e-5)
    real = batch["encoder_segment_ids"] > 0
    np.testing.assert_allclose(
        np.asarray(out["encoded"])[real],
        oracle["encoder_last_hidden_state"][real],
        atol=1e-5,
        rtol=1e-5,
    )
    np.testing.assert_allclose(value, oracle["loss"], rtol=1e-5)
    np.testing.assert_allclose(grad, oracle["prompt_grad"], atol=1e-6, rtol=1e-4)
