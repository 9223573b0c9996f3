"""NumPy twins of the network, written with loops, float64: what the fast code must agree with."""

import math

import numpy as np
from flax import traverse_util

from prompt_jax.models.t5.config import T5Config


def relative_position_bucket(
    distance: int, bidirectional: bool, buckets: int, max_distance: int
) -> int:
    """The bucket of one relative position (key - query), by comparing integer powers.

    Args:
        distance: key position - query position.
        bidirectional: keys to the right have their own half.
        buckets: number of buckets.
        max_distance: beyond it all share one.

    Returns:
        The bucket.
    """
    start = 0
    if bidirectional:
        buckets //= 2
        start = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    steps = buckets - exact
    # Largest j with exact * (max_distance / exact)^(j / steps) <= distance, in whole numbers.
    j = 0
    while j + 1 < steps and exact**steps * max_distance ** (j + 1) <= distance**steps * exact ** (
        j + 1
    ):
        j += 1
    return start + exact + j


def position_bias(
    table: np.ndarray, queries: int, keys: int, bidirectional: bool, max_distance: int
) -> np.ndarray:
    """Bias [N, queries, keys] from a table [N, buckets].

    Args:
        table: learned.
        queries: number of query positions, from 0.
        keys: number of key positions, from 0.
        bidirectional: as in the encoder.
        max_distance: of the buckets.

    Returns:
        The bias.
    """
    out = np.zeros((table.shape[0], queries, keys))
    for q in range(queries):
        for k in range(keys):
            bucket = relative_position_bucket(k - q, bidirectional, table.shape[1], max_distance)
            out[:, q, k] = table[:, bucket]
    return out


def mask(query_segments: np.ndarray, key_segments: np.ndarray, causal: bool) -> np.ndarray:
    """Whether each query of one row may see each key.

    Args:
        query_segments: [Q].
        key_segments: [K].
        causal: not what lies to the right.

    Returns:
        Booleans [Q, K].
    """
    out = np.zeros((len(query_segments), len(key_segments)), bool)
    for q, one in enumerate(query_segments):
        for k, other in enumerate(key_segments):
            out[q, k] = one == other and not (causal and k > q)
    return out


def rms_norm(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    """RMS norm of the last axis.

    Args:
        x: [..., H].
        scale: [H].
        epsilon: added to the mean square.

    Returns:
        [..., H].
    """
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, bias: np.ndarray, visible: np.ndarray
) -> np.ndarray:
    """Attention of one row, one head and one query at a time, over visible keys only.

    Args:
        query: [Q, N, D].
        key: [K, N, D].
        value: [K, N, D].
        bias: [N, Q, K].
        visible: booleans [Q, K]; a query that sees nothing gets zeros.

    Returns:
        [Q, N, D].
    """
    out = np.zeros(query.shape)
    for q in range(query.shape[0]):
        seen = np.flatnonzero(visible[q])
        if not len(seen):
            continue
        for n in range(query.shape[1]):
            logits = np.array([query[q, n] @ key[k, n] + bias[n, q, k] for k in seen])
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            for weight, k in zip(weights, seen, strict=True):
                out[q, n] += weight * value[k, n]
    return out


def t5_forward(params: dict, config: T5Config, batch: dict) -> dict[str, np.ndarray]:
    """The whole T5, row by row.

    Args:
        params: the parameter tree.
        config: the shape.
        batch: tokens and segment ids.

    Returns:
        `encoded`, `states`, `logits`; meaningless at padding.
    """
    p = {
        "/".join(path): np.asarray(leaf, np.float64)
        for path, leaf in traverse_util.flatten_dict(params).items()
    }
    table, out = p["token_embedder/embedding"], {"encoded": [], "states": [], "logits": []}
    for i in range(len(batch["encoder_input_tokens"])):
        segments = batch["encoder_segment_ids"][i]
        x = table[batch["encoder_input_tokens"][i]]
        encoded = _stack(p, config, "encoder", x, segments, None, None)
        own = batch["decoder_segment_ids"][i]
        x = table[batch["decoder_input_tokens"][i]]
        states = _stack(p, config, "decoder", x, own, encoded, segments)
        scaled = states / math.sqrt(config.emb_dim) if config.scale_logits else states
        head = table.T if config.tied_head else p["decoder/logits_dense/kernel"]
        for name, value in zip(out, (encoded, states, scaled @ head), strict=True):
            out[name].append(value)
    return {name: np.stack(rows) for name, rows in out.items()}


def _stack(p, c, stack, x, segments, encoded, encoded_segments):
    encoder = stack == "encoder"
    own = "attention" if encoder else "self_attention"
    visible = mask(segments, segments, causal=not encoder)
    for i in range(c.num_encoder_layers if encoder else c.num_decoder_layers):
        layer = {
            name.removeprefix(f"{stack}/layers/"): leaf[i]
            for name, leaf in p.items()
            if name.startswith(f"{stack}/layers/")
        }
        rel = (
            layer["relpos_bias/rel_embedding"]
            if c.per_layer_position_bias
            else p[f"{stack}/relpos_bias/rel_embedding"]
        )
        bias = position_bias(rel, len(x), len(x), encoder, c.position_max_distance)
        y = rms_norm(x, layer[f"pre_{own}_layer_norm/scale"], c.norm_epsilon)
        x = x + _attention_block(layer, own, c, y, y, bias, visible)
        if not encoder:
            cross = "encoder_decoder_attention"
            y = rms_norm(x, layer["pre_cross_attention_layer_norm/scale"], c.norm_epsilon)
            none = np.zeros((c.num_heads, len(x), len(encoded)))
            seen = mask(segments, encoded_segments, causal=False)
            x = x + _attention_block(layer, cross, c, y, encoded, none, seen)
        y = rms_norm(x, layer["pre_mlp_layer_norm/scale"], c.norm_epsilon)
        if c.activation == "relu":
            hidden = np.maximum(y @ layer["mlp/wi/kernel"], 0)
        else:
            hidden = _gelu(y @ layer["mlp/wi_0/kernel"]) * (y @ layer["mlp/wi_1/kernel"])
        x = x + hidden @ layer["mlp/wo/kernel"]
    return rms_norm(x, p[f"{stack}/{stack}_norm/scale"], c.norm_epsilon)


def _attention_block(layer, name, c, x, keys, bias, visible):
    def project(part, y):
        return (y @ layer[f"{name}/{part}/kernel"]).reshape(len(y), c.num_heads, c.head_dim)

    out = attention(
        project("query", x), project("key", keys), project("value", keys), bias, visible
    )
    return out.reshape(len(x), -1) @ layer[f"{name}/out/kernel"]


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
