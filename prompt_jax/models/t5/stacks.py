"""The two stacks: scanned layers that call the tap, and the tables at both ends."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from prompt_jax.models.t5 import attention, layers, storage
from prompt_jax.models.t5.config import T5Config
from prompt_jax.slots import SLOT0

_KEEP_ALL = object()
_POLICIES = {
    "full": None,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Context:
    """Where in the network, and on what, a tap is called.

    Attributes:
        stack: "encoder" or "decoder".
        attention: "self" or "cross" at attn_kv and attn_out, else None.
        tokens: the stack's tokens, slots included.
        segment_ids: the stack's segments, 0 = padding.
        positions: row positions.
        layer: this layer's slice of the tap's `encoder_layers` / `decoder_layers`, or None.
        step: the decoding step when decoding with a cache (T is 1 then), else None.
    """

    stack: str
    tokens: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, " T"]
    attention: str | None = None
    layer: Any = None
    step: Int[Array, ""] | None = None


def identity_tap(site: str, x: Any, context: Context) -> Any:
    """The tap that changes nothing.

    Args:
        site: name of the place.
        x: what flows there.
        context: where and on what.

    Returns:
        `x`.
    """
    return x


identity_tap.sites = ()


def identity_fetch(layer_params: dict) -> dict:
    """The `fetch_layer` that changes nothing.

    Args:
        layer_params: one layer's parameters (its slice of the stacked ones).

    Returns:
        The same.
    """
    return layer_params


def uses(tap: Callable, site: str) -> bool:
    """Whether a tap does anything at a site: those it names in `tap.sites`, by default all."""
    return site in getattr(tap, "sites", (site,))


@dataclasses.dataclass(frozen=True)
class Cross:
    """What cross attention looks at: the encoded input, or keys and values made of it before.

    Attributes:
        bias: additive mask [B,1,U,T].
        encoded: [B,T,H].
        keys_values: ([B,T,N,D], [B,T,N,D]) of this layer.
    """

    bias: Array
    encoded: Array | None = None
    keys_values: tuple[Array, Array] | None = None


class Layer(nn.Module):
    """One layer of either stack: self attention, cross attention in the decoder, MLP."""

    config: T5Config
    stack: str

    def setup(self):
        c = self.config
        norm = lambda: layers.RMSNorm(c.norm_epsilon, c.float_dtype)  # noqa: E731
        self.pre_mlp_layer_norm = norm()
        self.mlp = layers.MLP(c)
        if self.stack == "encoder":
            self.pre_attention_layer_norm = norm()
            self.attention = layers.Attention(c)
        else:
            self.pre_self_attention_layer_norm = norm()
            self.self_attention = layers.Attention(c)
            self.pre_cross_attention_layer_norm = norm()
            self.encoder_decoder_attention = layers.Attention(c)
        if c.per_layer_position_bias:
            self.relpos_bias = layers.RelativePositionBias(c, self.stack == "encoder")
        self.dropout = layers.Dropout(c.dropout_rate)

    def _self_block(self) -> tuple[nn.Module, nn.Module]:
        if self.stack == "encoder":
            return self.pre_attention_layer_norm, self.attention
        return self.pre_self_attention_layer_norm, self.self_attention

    def _position_bias(self, shared: Array | None, context: Context, length: int) -> Array:
        if shared is not None:
            return shared
        if context.step is not None:
            return self.relpos_bias.row(context.step, length)
        return self.relpos_bias(length)

    def _attend(self, block, x, normed, kv_bias, tap, context, deterministic):
        key, value, bias = tap("attn_kv", kv_bias, context)
        key, value = key.astype(normed.dtype), value.astype(normed.dtype)
        out = block(normed, key, value, bias, deterministic)
        return self._add(x, out, tap, context, deterministic)

    def _add(self, x, out, tap, context, deterministic):
        out = tap("attn_out", out, context).astype(x.dtype)
        return x + self.dropout(out, deterministic)

    def _cross(self, x, cross, tap, context, deterministic):
        block = self.encoder_decoder_attention
        normed = self.pre_cross_attention_layer_norm(x)
        if cross.keys_values is None and not uses(tap, "attn_kv"):
            if attention.folds(x.shape[1], cross.encoded.shape[1], self.config.head_dim):
                out = block.folded(normed, cross.encoded, cross.bias, deterministic)
                return self._add(x, out, tap, context, deterministic)
        keys_values = cross.keys_values or block.keys_values(cross.encoded)
        return self._attend(
            block, x, normed, (*keys_values, cross.bias), tap, context, deterministic
        )

    def __call__(self, x, mask, position_bias, cross, cached, tap, context, deterministic):
        """Runs the layer.

        Args:
            x: residual stream [B,T,H].
            mask: additive mask of self attention [B,1,T,K].
            position_bias: [1,N,T,K], or None when the layer has its own.
            cross: None, or what cross attention looks at.
            cached: None, or the cached (keys, values) [B,U,N,D] of self attention.
            tap: the tap.
            context: with this layer's slice.
            deterministic: no dropout.

        Returns:
            The residual stream, and the new cached (keys, values) or None.
        """
        c = self.config
        x = tap("layer_in", x, context).astype(c.dtype)
        norm, attention = self._self_block()
        normed = norm(x)
        key, value = attention.keys_values(normed)
        if cached is not None:
            at = (0, context.step, 0, 0)
            key = jax.lax.dynamic_update_slice(cached[0], key, at)
            value = jax.lax.dynamic_update_slice(cached[1], value, at)
            cached = (key, value)
        bias = self._position_bias(position_bias, context, key.shape[1]) + mask
        here = dataclasses.replace(context, attention="self")
        x = self._attend(attention, x, normed, (key, value, bias), tap, here, deterministic)
        if cross is not None:
            here = dataclasses.replace(context, attention="cross")
            x = self._cross(x, cross, tap, here, deterministic)
        normed = self.pre_mlp_layer_norm(x)
        out = self.mlp(normed, lambda hidden: tap("mlp_act", hidden, context), deterministic)
        x = x + self.dropout(out, deterministic)
        return tap("layer_out", x, context).astype(c.dtype), cached

    def cross_keys_values(self, encoded):
        """Keys and values [B,T,N,D] of the encoded input."""
        return self.encoder_decoder_attention.keys_values(encoded)


class Encoder(nn.Module):
    """The encoder's stack; scans `Layer` over the stacked parameters."""

    config: T5Config
    fetch_layer: Callable

    def setup(self):
        c = self.config
        self.layers = Layer(c, "encoder")
        if not c.per_layer_position_bias:
            self.relpos_bias = layers.RelativePositionBias(c, True)
        self.encoder_norm = layers.RMSNorm(c.norm_epsilon, c.float_dtype)
        self.dropout = layers.Dropout(c.dropout_rate)
        self.dropout_out = layers.Dropout(c.dropout_rate, shared=False)

    def __call__(self, x, tap, context, deterministic):
        """Embeddings [B,T,H] to encoded states [B,T,H]."""
        x = _enter(self.config, x, tap, context)
        x = self.dropout(x, deterministic)
        mask = attention.segment_bias(context.segment_ids, context.segment_ids)
        shared = None if self.config.per_layer_position_bias else self.relpos_bias(x.shape[1])

        def body(layer, x, sliced):
            here = dataclasses.replace(context, layer=sliced)
            return layer(x, mask, shared, None, None, tap, here, deterministic)[0], None

        sliced = getattr(tap, "encoder_layers", None)
        length = self.config.num_encoder_layers
        x, _ = _scan(self, body, length)(self.layers, x, sliced)
        x = tap("stack_out", self.encoder_norm(x), context).astype(self.config.dtype)
        return self.dropout_out(x, deterministic)


class Decoder(nn.Module):
    """The decoder's stack, and the head of an untied model."""

    config: T5Config
    fetch_layer: Callable

    def setup(self):
        c = self.config
        self.layers = Layer(c, "decoder")
        if not c.per_layer_position_bias:
            self.relpos_bias = layers.RelativePositionBias(c, False)
        self.decoder_norm = layers.RMSNorm(c.norm_epsilon, c.float_dtype)
        self.dropout = layers.Dropout(c.dropout_rate)
        if not c.tied_head:
            self.logits_dense = Head(c)

    def __call__(self, x, encoded, encoder_segment_ids, tap, context, deterministic):
        """Embeddings [B,U,H] and encoded input [B,T,H] to states [B,U,H]."""
        x = _enter(self.config, x, tap, context)
        x = self.dropout(x, deterministic)
        segments = context.segment_ids
        mask = attention.segment_bias(segments, segments, causal=True)
        cross_mask = attention.segment_bias(segments, encoder_segment_ids)
        shared = None if self.config.per_layer_position_bias else self.relpos_bias(x.shape[1])

        def body(layer, x, sliced):
            here = dataclasses.replace(context, layer=sliced)
            cross = Cross(cross_mask, encoded=encoded)
            return layer(x, mask, shared, cross, None, tap, here, deterministic)[0], None

        sliced = getattr(tap, "decoder_layers", None)
        x, _ = _scan(self, body, self.config.num_decoder_layers)(self.layers, x, sliced)
        return self._leave(x, tap, context, deterministic)

    def cross_keys_values(self, encoded):
        """Cross attention's keys and values of every layer, [L,B,T,N,D] each."""

        def body(layer, carry, _):
            return carry, layer.cross_keys_values(encoded)

        _, cross = _scan(self, body, self.config.num_decoder_layers)(self.layers, (), None)
        return cross

    def step(self, x, cache, tap, context):
        """One position [B,1,H] to its state [B,1,H] and the new cache."""
        x = _enter(self.config, x, tap, context)
        length = cache.keys.shape[2]
        ahead = jnp.arange(length) > cache.index
        mask = jnp.where(ahead, attention.MASKED, 0.0).astype(jnp.float32)[None, None, None]
        cross_mask = attention.segment_bias(context.segment_ids, cache.encoder_segment_ids)
        own = self.config.per_layer_position_bias
        shared = None if own else self.relpos_bias.row(cache.index, length)

        def body(layer, x, xs):
            sliced, cached, cross_kv = xs
            here = dataclasses.replace(context, layer=sliced)
            cross = Cross(cross_mask, keys_values=cross_kv)
            return layer(x, mask, shared, cross, cached, tap, here, True)

        xs = (
            getattr(tap, "decoder_layers", None),
            (cache.keys, cache.values),
            (cache.cross_keys, cache.cross_values),
        )
        x, (keys, values) = _scan(self, body, self.config.num_decoder_layers)(self.layers, x, xs)
        cache = cache.replace(keys=keys, values=values, index=cache.index + 1)
        return self._leave(x, tap, context, True), cache

    def _leave(self, x, tap, context, deterministic):
        x = tap("stack_out", self.decoder_norm(x), context).astype(self.config.dtype)
        return self.dropout(x, deterministic)


class Head(nn.Module):
    """The LM head of an untied model; logits are float32."""

    config: T5Config

    @nn.compact
    def __call__(self, states):
        c = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        shape = (c.emb_dim, c.vocab_size)
        return _float32_product(states, self.param("kernel", init, shape, c.float_dtype), 0)


class Embedder(nn.Module):
    """The embedding table, also the head of a tied model."""

    config: T5Config

    def setup(self):
        c = self.config
        shape = (c.vocab_size, c.emb_dim)
        self.embedding = self.param(
            "embedding", nn.initializers.normal(1.0), shape, jnp.dtype(c.float_dtype)
        )

    def __call__(self, tokens):
        """Looks tokens up; slots get row 0."""
        return self.embedding[jnp.where(tokens >= SLOT0, 0, tokens)].astype(self.config.dtype)

    def attend(self, states):
        """Logits of a tied head."""
        return _float32_product(states, self.embedding, 1)


def _float32_product(states, table, axis):
    dtype = jnp.promote_types(states.dtype, table.dtype)
    dims = (((states.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(
        states.astype(dtype), table.astype(dtype), dims, preferred_element_type=jnp.float32
    )


def _enter(config, x, tap, context):
    return tap("embed", x, context).astype(config.dtype)


def _scan(stack, body, length):
    """Lifts `body(layer, carry, xs) -> (carry, ys)` over the stacked layers of `stack`."""
    config = stack.config
    if not stack.is_initializing():
        # One layer's weights at a time: gathered by the hook, then dequantised and cast. Inside
        # the rematerialised body, so that the backward pass fetches again instead of keeping.
        body = nn.map_variables(body, "params", trans_in_fn=_fetch(stack.fetch_layer, config))
    policy = _policy(stack)
    if policy is not _KEEP_ALL:
        body = nn.remat(body, policy=policy, prevent_cse=False)
    return nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
        check_constancy_invariants=False,
    )


def _policy(stack):
    """What the backward pass finds again of a layer."""
    config = stack.config
    if config.remat != "none":
        return _POLICIES[config.remat]
    gathers = stack.fetch_layer is not identity_fetch
    makes_anew = gathers or config.param_dtype != config.dtype
    return storage.saveable if makes_anew else _KEEP_ALL


def _fetch(fetch_layer, config):
    def trans_in(variables):
        return {"params": storage.fetch(fetch_layer(variables["params"]), config.dtype)}

    return trans_in
