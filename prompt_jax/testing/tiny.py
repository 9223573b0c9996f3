"""Tiny backbones for tests: every variant of T5, weights that leave nothing trivial."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from prompt_jax.models.t5.config import T5Config
from prompt_jax.models.t5.network import T5

_V11 = T5Config(
    vocab_size=512,
    emb_dim=64,
    num_heads=4,
    head_dim=16,
    mlp_dim=128,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)
VARIANTS = {
    "t5_1_1": {},
    "t5_1_0": {"activation": "relu", "tied_head": True, "scale_logits": True},
    "umt5": {"per_layer_position_bias": True},
}


def tiny_config(variant: str = "t5_1_1", **changes: Any) -> T5Config:
    """A T5 of 0.2M parameters.

    Args:
        variant: "t5_1_1", "t5_1_0" or "umt5".
        **changes: fields to change.

    Returns:
        V 512, H 64, N 4, D 16, F 128, L 2 and 2, no dropout.
    """
    return dataclasses.replace(_V11, **VARIANTS[variant] | changes)


def tiny_params(config: T5Config, seed: int = 0) -> dict:
    """Random weights in which no scale is 1 and no bias is 0.

    Args:
        config: the shape.
        seed: of NumPy's generator.

    Returns:
        The parameter tree, in `config.param_dtype`.
    """
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in _shapes(config).items():
        values = rng.standard_normal(shape)
        if path[-1] == "scale":
            values = 1 + 0.25 * values
        elif path[-1] == "kernel":
            values /= np.sqrt(shape[-2])
        if path[-2] == "query":
            values /= np.sqrt(config.head_dim)
        flat[path] = jnp.asarray(values, config.param_dtype)
    return traverse_util.unflatten_dict(flat)


@functools.cache
def _shapes(config: T5Config) -> dict:
    batch = tiny_batch(config, encoder_lengths=(1,), decoder_lengths=(1,))
    init = lambda: T5(config).init(jax.random.key(0), batch)["params"]  # noqa: E731
    leaves = traverse_util.flatten_dict(jax.eval_shape(init))
    return {path: leaf.shape for path, leaf in sorted(leaves.items())}


def tiny_batch(
    config: T5Config,
    seed: int = 0,
    encoder_lengths: tuple[int, ...] = (12, 9, 1),
    decoder_lengths: tuple[int, ...] = (6, 3, 2),
) -> dict[str, np.ndarray]:
    """One example per row, right padded, targets ending in EOS.

    Args:
        config: for the vocabulary.
        seed: of NumPy's generator.
        encoder_lengths: real input tokens of each row, EOS included.
        decoder_lengths: real target tokens of each row, EOS included.

    Returns:
        The six arrays of a batch.
    """
    rng = np.random.default_rng(seed)

    def rows(lengths: tuple[int, ...]) -> np.ndarray:
        out = np.zeros((len(lengths), max(lengths)), np.int32)
        for row, length in zip(out, lengths, strict=True):
            row[:length] = rng.integers(2, config.vocab_size, length)
            row[length - 1] = 1
        return out

    inputs, targets = rows(encoder_lengths), rows(decoder_lengths)
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    real = (targets > 0).astype(np.int32)
    return {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": (inputs > 0).astype(np.int32),
        "decoder_input_tokens": shifted * real,
        "decoder_target_tokens": targets,
        "decoder_segment_ids": real,
        "decoder_loss_weights": real.astype(np.float32),
    }
