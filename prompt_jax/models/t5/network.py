"""T5 with scanned layers and a tap at every place where a method may enter.

The network knows no method: it calls `tap(site, x, context)` and goes on with what comes back.
Sites, in both stacks, in the order of the computation:

    embed      [B,T,H]   looked-up embeddings (row 0 at prompt slots), before dropout
    layer_in   [B,T,H]   the residual stream that enters a layer
    attn_kv    (k, v, bias)   k, v [B,K,N,D] and bias [*,*,Q,K], self and cross attention
    attn_out   [B,T,H]   what attention adds to the residual stream, before dropout
    mlp_act    [B,T,F]   activations of the MLP
    layer_out  [B,T,H]   the residual stream that leaves a layer
    stack_out  [B,T,H]   after the last norm, before dropout

A tap that works at some of them only may name them in `tap.sites`: where nothing asks for cross
attention's keys and values and targets are short, they are not made (`layers.Attention.folded`).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.models.t5.config import T5Config
from prompt_jax.models.t5.stacks import (
    Context,
    Decoder,
    Embedder,
    Encoder,
    identity_fetch,
    identity_tap,
)

__all__ = ["T5", "Cache", "Context", "identity_fetch", "identity_tap"]


@flax.struct.dataclass
class Cache:
    """What decoding remembers; a pytree, so it goes through `jax.lax.while_loop`.

    Attributes:
        keys: of the decoder's self attention, [L,B,U,N,D], filled up to `index`.
        values: the same.
        cross_keys: of the encoded input, [L,B,T,N,D].
        cross_values: the same.
        encoder_segment_ids: [B,T]; rows hold one example each, segment 1.
        index: the next position, a scalar.
    """

    keys: Any
    values: Any
    cross_keys: Any
    cross_values: Any
    encoder_segment_ids: Any
    index: Any


class T5(nn.Module):
    """The encoder-decoder (Raffel et al. 2020).

    Attributes:
        config: sizes and switches.
        fetch_layer: called in the scan body with one layer's parameters (a nested dict without
            the layer axis); returns them gathered, dequantised, as the layer is to use them.
    """

    config: T5Config
    fetch_layer: Callable = identity_fetch

    def setup(self):
        self.token_embedder = Embedder(self.config)
        self.encoder = Encoder(self.config, self.fetch_layer)
        self.decoder = Decoder(self.config, self.fetch_layer)

    def __call__(
        self, batch: dict, *, tap: Callable = identity_tap, deterministic: bool = True
    ) -> dict:
        """Runs both stacks and the head on a batch.

        Args:
            batch: `encoder_input_tokens`, `encoder_segment_ids` [B,T], `decoder_input_tokens`,
                `decoder_segment_ids` [B,U].
            tap: called at every site.
            deterministic: no dropout; else the rng "dropout" is needed.

        Returns:
            `encoded` [B,T,H], `states` [B,U,H], `logits` [B,U,V] float32.
        """
        segments = batch["encoder_segment_ids"]
        encoded = self.encode(
            batch["encoder_input_tokens"], segments, tap=tap, deterministic=deterministic
        )
        states = self.decode(
            encoded,
            segments,
            batch["decoder_input_tokens"],
            batch["decoder_segment_ids"],
            tap=tap,
            deterministic=deterministic,
        )
        return {"encoded": encoded, "states": states, "logits": self.logits(states)}

    def encode(
        self,
        tokens: Int[Array, "B T"] | Int[np.ndarray, "B T"],
        segment_ids: Int[Array, "B T"] | Int[np.ndarray, "B T"],
        *,
        tap: Callable = identity_tap,
        deterministic: bool = True,
    ) -> Float[Array, "B T H"]:
        """Runs the encoder.

        Args:
            tokens: token ids or slots.
            segment_ids: 0 = padding, 1.. = example within the row.
            tap: called at every site.
            deterministic: no dropout.

        Returns:
            Encoded states; those of padding mean nothing.
        """
        tokens, segment_ids = jnp.asarray(tokens), jnp.asarray(segment_ids)
        context = Context("encoder", tokens, segment_ids, jnp.arange(tokens.shape[1]))
        return self.encoder(self.token_embedder(tokens), tap, context, deterministic)

    def decode(
        self,
        encoded: Float[Array, "B T H"],
        encoder_segment_ids: Int[Array, "B T"] | Int[np.ndarray, "B T"],
        tokens: Int[Array, "B U"] | Int[np.ndarray, "B U"],
        segment_ids: Int[Array, "B U"] | Int[np.ndarray, "B U"],
        *,
        tap: Callable = identity_tap,
        deterministic: bool = True,
    ) -> Float[Array, "B U H"]:
        """Runs the decoder on whole targets (teacher forcing).

        Args:
            encoded: from `encode`.
            encoder_segment_ids: as given to `encode`.
            tokens: decoder inputs: targets shifted right.
            segment_ids: 0 = padding; a segment attends to the same one of the encoder.
            tap: called at every site.
            deterministic: no dropout.

        Returns:
            States after the last norm and dropout.
        """
        tokens, segment_ids = jnp.asarray(tokens), jnp.asarray(segment_ids)
        context = Context("decoder", tokens, segment_ids, jnp.arange(tokens.shape[1]))
        x = self.token_embedder(tokens)
        encoder_segment_ids = jnp.asarray(encoder_segment_ids)
        return self.decoder(x, encoded, encoder_segment_ids, tap, context, deterministic)

    def logits(self, states: Float[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        """The LM head: `states W`, after `states H^-0.5` when `scale_logits`.

        Args:
            states: from `decode` or `decode_step`.

        Returns:
            float32 logits over the vocabulary.
        """
        if self.config.scale_logits:
            states = states * states.shape[-1] ** -0.5
        if self.config.tied_head:
            return self.token_embedder.attend(states)
        return self.decoder.logits_dense(states)

    def start_cache(
        self,
        encoded: Float[Array, "B T H"],
        encoder_segment_ids: Int[Array, "B T"] | Int[np.ndarray, "B T"],
        length: int,
    ) -> Cache:
        """Prepares decoding; each row must hold one example, as segment 1.

        Args:
            encoded: from `encode`.
            encoder_segment_ids: as given to `encode`.
            length: most steps that will be decoded.

        Returns:
            An empty cache at index 0.
        """
        c = self.config
        cross_keys, cross_values = self.decoder.cross_keys_values(encoded)
        shape = (c.num_decoder_layers, encoded.shape[0], length, c.num_heads, c.head_dim)
        empty = jnp.zeros(shape, c.dtype)
        segments = jnp.asarray(encoder_segment_ids)
        return Cache(empty, empty, cross_keys, cross_values, segments, jnp.zeros((), jnp.int32))

    def decode_step(
        self, cache: Cache, tokens: Int[Array, " B"], *, tap: Callable = identity_tap
    ) -> tuple[Float[Array, "B H"], Cache]:
        """Decodes one position.

        Args:
            cache: from `start_cache` or the last step.
            tokens: the decoder's input at `cache.index` (0 at the first), slots allowed.
            tap: called at every site, with T = 1 and `context.step` set.

        Returns:
            States [B,H] (for `logits`) and the cache for the next step.
        """
        tokens = tokens[:, None]
        positions = cache.index[None]
        ones = jnp.ones_like(tokens)
        context = Context("decoder", tokens, ones, positions, step=cache.index)
        states, cache = self.decoder.step(self.token_embedder(tokens), cache, tap, context)
        return states[:, 0], cache
