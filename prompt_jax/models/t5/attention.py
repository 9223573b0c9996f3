"""Attention behind one function: plain XLA, or cuDNN's flash attention where that can be had."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.errors import UserError

# Finite, so that a row whose keys are all masked is uniform instead of NaN (as in T5X).
MASKED = -1e10


def segment_bias(
    query_segments: Int[Array, "B Q"], key_segments: Int[Array, "B K"], *, causal: bool = False
) -> Float[Array, "B 1 Q K"]:
    """Additive mask: 0 where a query may see a key (same segment, not later if causal).

    Padding is segment 0: padding queries see padding keys only, real ones never do.

    Args:
        query_segments: segment of each query.
        key_segments: segment of each key.
        causal: also hide keys to the right of the query.

    Returns:
        0 or `MASKED`, float32, to be added to the attention logits.
    """
    visible = query_segments[:, :, None] == key_segments[:, None, :]
    if causal:
        rows, columns = visible.shape[1:]
        visible &= np.arange(rows)[:, None] >= np.arange(columns)[None, :]
    return jnp.where(visible, 0.0, MASKED).astype(jnp.float32)[:, None]


def attend(
    query: Float[Array, "B Q N D"],
    key: Float[Array, "B K N D"],
    value: Float[Array, "B K N D"],
    bias: Float[Array, "b n Q K"],
    keep: Float[Array, "B N 1 K"] | None = None,
    implementation: str = "xla",
) -> Float[Array, "B Q N D"]:
    """Softmax attention without scaling: `softmax(q k^T + bias) v`, softmax in float32.

    Args:
        query: projected queries.
        key: projected keys.
        value: projected values.
        bias: position bias plus mask, float32; `b` is 1 or B, `n` is 1 or N.
        keep: dropout of attention weights, one mask for all queries, already divided by the
            probability of keeping; None when there is no dropout.
        implementation: "xla", "cudnn", or "auto": cuDNN where it pays.

    Returns:
        One vector per query and head.

    Raises:
        UserError: "cudnn" where there is none, or in float32.
    """
    if implementation == "cudnn" or (implementation == "auto" and _flash_pays(query, key)):
        return fused(query, key, value, bias, keep, "cudnn")
    return _plain(query, key, value, bias, keep)


def _flash_pays(query: Array, key: Array) -> bool:
    """On a GPU, in half precision, for lengths and widths that cuDNN takes."""
    (_, queries, _, width), keys = query.shape, key.shape[1]
    fits = queries % 2 == 0 and keys % 2 == 0 and width % 8 == 0 and width <= 128
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and fits and queries >= 64


def fused(
    query: Float[Array, "B Q N D"],
    key: Float[Array, "B K N D"],
    value: Float[Array, "B K N D"],
    bias: Float[Array, "b n Q K"],
    keep: Float[Array, "B N 1 K"] | None,
    implementation: str,
) -> Float[Array, "B Q N D"]:
    """`attend` by `jax.nn.dot_product_attention`.

    Args:
        query: as in `attend`.
        key: the same.
        value: the same.
        bias: the same; rounded to the dtype of the queries.
        keep: the same; a mask that all queries share can as well be laid on the values.
        implementation: the library's: "cudnn" or "xla".

    Raises:
        UserError: it refuses these shapes, this dtype or this machine.
    """
    if keep is not None:
        value = value * keep.transpose(0, 3, 1, 2).astype(value.dtype)
    try:
        return jax.nn.dot_product_attention(
            query, key, value, bias.astype(query.dtype), scale=1.0, implementation=implementation
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"T5Config.attention = {implementation!r}: {error}; use 'auto'") from error


# Recomputed in the backward pass: else the scan stacks the weights of all layers, [L, B, N, Q, K].
@functools.partial(jax.checkpoint, prevent_cse=False)
def _plain(
    query: Float[Array, "B Q N D"],
    key: Float[Array, "B K N D"],
    value: Float[Array, "B K N D"],
    bias: Float[Array, "b n Q K"],
    keep: Float[Array, "B N 1 K"] | None = None,
) -> Float[Array, "B Q N D"]:
    """`attend` in plain XLA."""
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    logits = jnp.einsum("bnqd,bnkd->bnqk", query, key, preferred_element_type=jnp.float32) + bias
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    # Dividing the D outputs is cheaper than dividing the K weights; and a dropout mask shared
    # by all queries can as well be laid on the values.
    total = weights.sum(-1, keepdims=True)
    if keep is not None:
        value = value * keep.swapaxes(2, 3).astype(value.dtype)
    out = jnp.einsum(
        "bnqk,bnkd->bnqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return (out / total).astype(value.dtype).transpose(0, 2, 1, 3)


def folds(queries: int, keys: int, width: int) -> bool:
    """Whether `layers.Attention.folded` takes fewer operations than all keys and values.

    Args:
        queries: positions that ask.
        keys: positions that are attended to.
        width: D.
    """
    return queries * (width + keys) < keys * width


@functools.partial(jax.checkpoint, prevent_cse=False)
def mix_states(
    query: Float[Array, "B N Q H"],
    states: Float[Array, "B K H"],
    bias: Float[Array, "b n Q K"],
    keep: Float[Array, "B N 1 K"] | None,
) -> Float[Array, "B N Q H"]:
    """`softmax(q s^T + bias) s`, all heads over the same states."""
    logits = jnp.einsum("bnqh,bkh->bnqk", query, states, preferred_element_type=jnp.float32) + bias
    weights = jax.nn.softmax(logits, axis=-1)
    if keep is not None:
        weights = weights * keep
    return jnp.einsum("bnqk,bkh->bnqh", weights.astype(states.dtype), states)
