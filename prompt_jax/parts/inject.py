"""Where the selected vectors enter the model: a tap, called at the model's named sites."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_jax.slots import SLOT0

Vectors = dict[str, Any]  # as `bank` names them
MASKED = -1e9  # finite: a position without own tokens is uniform instead of NaN


@jax.custom_vjp
def take_rows(table: Float[Array, "P H"], ids: Int[Array, "*n"]) -> Float[Array, "*n H"]:
    """table[ids], whose gradient is a one-hot product: deterministic on every backend."""
    return table[ids]


def _take_rows_forward(table, ids):
    return table[ids], (ids, table.shape[0])


def _take_rows_backward(residual, grad):
    ids, length = residual
    one_hot = jax.nn.one_hot(ids, length, dtype=grad.dtype)
    axes = tuple(range(ids.ndim))
    return jnp.tensordot(one_hot, grad, axes=(axes, axes)), None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)


class Inject:
    """What every inject has: it takes vectors by name (see `bank`) and gives a tap, or deltas."""

    folds: ClassVar = False  # whether `[P, H]` rows of input say all
    changes_weights = False  # whether there are deltas

    def tap(self, vectors: Vectors) -> Callable | None:
        """`tap(site, x, ctx) -> x`; None: nothing enters at a site."""
        del vectors

    def deltas(self, vectors: Vectors) -> dict[str, tuple[Array, Array]]:
        """What is added to kernels of layers: path -> factors ([L, I, r], [L, r, O])."""
        del vectors
        return {}


@dataclasses.dataclass(frozen=True)
class EncoderSlots(Inject):
    """Slot SLOT0 + i of the encoder's input becomes vector i of "encoder" (DESIGN decision 2).

    Float32 [P, H], several prompts one after the other; or [B, S, P, H], each segment's own.
    """

    folds: ClassVar = True

    def tap(self, vectors: Vectors) -> Callable:
        prompts = vectors["encoder"]

        def fill(site, x, ctx):
            if site != "embed" or ctx.stack != "encoder":
                return x
            if prompts.ndim == 2:
                return fill_slots(x, ctx.tokens, prompts)
            return fill_own_slots(x, ctx.tokens, ctx.segment_ids, prompts)

        fill.sites = ("embed",)
        return fill


def fill_slots(
    x: Float[Array, "B T H"], tokens: Int[Array, "B T"], prompts: Float[Array, "P H"]
) -> Float[Array, "B T H"]:
    """`x` with the prompt's vectors in its slots."""
    slot = tokens - SLOT0
    rows = take_rows(prompts, jnp.clip(slot, 0, prompts.shape[0] - 1))
    return jnp.where((slot >= 0)[..., None], rows.astype(x.dtype), x)


def add_to_slots(
    x: Float[Array, "B T H"], tokens: Int[Array, "B T"], prompts: Float[Array, "P H"]
) -> Float[Array, "B T H"]:
    """`x` with the prompt's vectors added to what is in its slots."""
    return x + fill_slots(jnp.zeros_like(x), tokens, prompts)


def fill_own_slots(
    x: Float[Array, "B T H"],
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    prompts: Float[Array, "B S P H"],
) -> Float[Array, "B T H"]:
    """`x` with the vectors of its own segment in each slot."""
    batch, segments, length, _ = prompts.shape
    slot = tokens - SLOT0
    ids = (segment_ids - 1) * length + slot
    flat = prompts.reshape(batch, segments * length, -1)
    rows = jax.vmap(take_rows)(flat, jnp.clip(ids, 0, segments * length - 1))
    return jnp.where((slot >= 0)[..., None], rows.astype(x.dtype), x)


@dataclasses.dataclass(frozen=True)
class LayerSlots(Inject):
    """Before every layer of the encoder the slots hold that layer's vectors, "encoder_layers".

    What a layer left in them is dropped (P-tuning v2, Liu et al. 2022). Dropout of the encoder's
    input does not touch the first layer's vectors.
    """

    enter: ClassVar[Callable] = staticmethod(fill_slots)

    def tap(self, vectors: Vectors) -> Callable:
        def fill(site, x, ctx):
            if site != "layer_in" or ctx.stack != "encoder":
                return x
            return self.enter(x, ctx.tokens, ctx.layer)

        fill.sites = ("layer_in",)
        fill.encoder_layers = vectors["encoder_layers"]
        return fill


@dataclasses.dataclass(frozen=True)
class AddedSlots(LayerSlots):
    """Before every layer its vectors, "encoder_layers", are added to the slots' states (BBTv2)."""

    enter: ClassVar[Callable] = staticmethod(add_to_slots)


@dataclasses.dataclass(frozen=True)
class Generated(Inject):
    """Before every layer of the encoder the slots hold what that layer's generator makes.

    Of the example's own states h [t, H], each divided by its root mean square:
    z = h D, A = softmax over t of z W (column p: slot p), p = f(A^T z) U, with D, W, U "down",
    "pool", "up" and f the rational activation (Zhu et al. 2024). What a layer left in the slots is
    dropped.
    """

    def tap(self, vectors: Vectors) -> Callable:
        def fill(site, x, ctx):
            if site != "layer_in" or ctx.stack != "encoder":
                return x
            return generate(x, ctx.tokens, ctx.segment_ids, ctx.layer)

        fill.sites = ("layer_in",)
        fill.encoder_layers = vectors["generators"]
        return fill


def generate(x, tokens, segment_ids, leaves: dict[str, Array]) -> Float[Array, "B T H"]:
    """`x` with one layer's generated vectors in its slots, float32 inside."""
    slot = tokens - SLOT0
    own = (slot < 0) & (segment_ids > 0)
    wide = x.astype(jnp.float32)
    states = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
    hidden = states @ leaves["down"]
    scores = hidden @ leaves["pool"]  # [B, t, P]
    # Position q asks for slot q's column over the own tokens t of its segment.
    asked = jax.nn.one_hot(slot, scores.shape[-1])
    seen = own[:, None, :] & (segment_ids[:, :, None] == segment_ids[:, None, :])
    logits = jnp.where(seen, jnp.einsum("bqp,btp->bqt", asked, scores), MASKED)
    pooled = jnp.einsum("bqt,btm->bqm", jax.nn.softmax(logits, axis=-1), hidden)
    made = rational(pooled, leaves["numerator"], leaves["denominator"]) @ leaves["up"]
    return jnp.where((slot >= 0)[..., None], made.astype(x.dtype), x)


def rational(x: Array, numerator: Float[Array, " n"], denominator: Float[Array, " d"]) -> Array:
    """(a_0 + a_1 x + ...) / (1 + |b_1 x + b_2 x^2 + ...|), x cut to +-5."""
    x = jnp.clip(x, -5.0, 5.0)
    above = jnp.polyval(numerator[::-1], x)
    return above / (1 + jnp.abs(x * jnp.polyval(denominator[::-1], x)))


@dataclasses.dataclass(frozen=True)
class Prefix(Inject):
    """Self attention of a stack also sees the keys and values "STACK_prefix" of its layer.

    They have no place in the row: every segment sees them, at no distance (position bias 0).

    Attributes:
        stack: "encoder" or "decoder".
    """

    stack: str = "encoder"

    def tap(self, vectors: Vectors) -> Callable:
        def lead(site, x, ctx):
            here = site == "attn_kv" and ctx.stack == self.stack and ctx.attention == "self"
            return prepend(*x, *ctx.layer) if here else x

        lead.sites = ("attn_kv",)
        setattr(lead, f"{self.stack}_layers", vectors[f"{self.stack}_prefix"])
        return lead


def prepend(key, value, bias, first_keys: Float[Array, "P W"], first_values: Float[Array, "P W"]):
    """Keys [B, K, N, D], values and bias [b, n, Q, K] with P more in front, which all may see."""

    def join(first, own):
        heads = first.reshape(1, -1, *own.shape[2:]).astype(own.dtype)
        return jnp.concatenate([jnp.repeat(heads, len(own), 0), own], axis=1)

    wide = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (len(first_keys), 0)))
    return join(first_keys, key), join(first_values, value), wide


@dataclasses.dataclass(frozen=True)
class Offset(Inject):
    """Row j of "offset" is added to the embedding of an example's own j-th token (slots aside).

    Whatever the token is, and whatever lies beside the example in its row. An example has no more
    own tokens than there are rows: `checks` sees to it.
    """

    def tap(self, vectors: Vectors) -> Callable:
        offset = vectors["offset"]

        def add(site, x, ctx):
            if site != "embed" or ctx.stack != "encoder":
                return x
            places = own_places(ctx.tokens, ctx.segment_ids)
            rows = take_rows(offset, jnp.clip(places, 0, len(offset) - 1))
            return x + jnp.where((places >= 0)[..., None], rows, 0.0).astype(x.dtype)

        add.sites = ("embed",)
        return add


def own_places(tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """0, 1, 2, ... over each example's own tokens; -1 at slots and padding."""
    own = (tokens < SLOT0) & (segment_ids > 0)
    before = jnp.cumsum(own, axis=1) - own  # own tokens to the left, of all segments
    changes = jnp.diff(segment_ids, axis=1, prepend=0) != 0
    first = jax.lax.cummax(jnp.where(changes, before, 0), axis=1)
    return jnp.where(own, before - first, -1)


@dataclasses.dataclass(frozen=True)
class Weights(Inject):
    """Kernels of the layers are W + A B, the factors "weights" of the bank, added in float32."""

    changes_weights = True

    def deltas(self, vectors: Vectors) -> dict[str, tuple[Array, Array]]:
        return vectors["weights"]


@dataclasses.dataclass(frozen=True)
class Injects(Inject):
    """Several injects, one after the other at each site."""

    parts: tuple

    @property
    def changes_weights(self) -> bool:
        return any(part.changes_weights for part in self.parts)

    def tap(self, vectors: Vectors) -> Callable | None:
        taps = [tap for part in self.parts if (tap := part.tap(vectors))]
        if len(taps) < 2:
            return taps[0] if taps else None

        def all_of(site, x, ctx):
            for at, tap in enumerate(taps):
                mine = ctx.layer and ctx.layer.get(at)
                if site in tap.sites:
                    x = tap(site, x, dataclasses.replace(ctx, layer=mine))
            return x

        all_of.sites = tuple(dict.fromkeys(site for tap in taps for site in tap.sites))
        for name in ("encoder_layers", "decoder_layers"):
            sliced = {at: getattr(tap, name) for at, tap in enumerate(taps) if hasattr(tap, name)}
            if sliced:
                setattr(all_of, name, sliced)
        return all_of

    def deltas(self, vectors: Vectors) -> dict[str, tuple[Array, Array]]:
        return dict(pair for part in self.parts for pair in part.deltas(vectors).items())
