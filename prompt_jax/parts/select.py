"""Which prompt vectors serve an example.

The same for all examples of a task: then it is the slots, which the data layer writes, that say
which (`bank.TaskBank`). Others look at the example.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_jax.errors import UserError
from prompt_jax.parts.inject import take_rows
from prompt_jax.slots import SLOT0

Vectors = dict[str, Any]  # as `bank` names them
Embed = Callable[[Array], Array]  # tokens [B, T] -> the backbone's embeddings [B, T, H]


@dataclasses.dataclass(frozen=True)
class Static:
    """The same vectors for every example."""

    folds: ClassVar = True  # whether the vectors are the same whatever the example
    slots: ClassVar = 0  # slots beside those of the bank

    def __call__(self, vectors: Vectors, batch: dict[str, Array], embed: Embed) -> Vectors:
        del batch, embed
        return vectors


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """The k rows of a memory that are most like the example, before the vectors "encoder".

    q = mean of the embeddings of the example's own tokens; score_j = cos(q, M_j) for the rows M of
    the vectors "memory"; the k highest, the best first, of equals the earlier (SPT, Bari et al.
    2022; the mechanism for a frozen T5 is ours). Gradients reach the chosen rows only.

    Attributes:
        count: k.
    """

    count: int
    folds: ClassVar = False

    @property
    def slots(self) -> int:
        """k."""
        return self.count

    def __call__(self, vectors: Vectors, batch: dict[str, Array], embed: Embed) -> Vectors:
        tokens, segment_ids = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
        soft, memory = vectors["encoder"], vectors["memory"]
        if not 0 <= self.count <= len(memory):
            raise UserError(f"Retrieved.count = {self.count}: the memory has {len(memory)} rows")
        # An example has its slots and at least one token of its own.
        segments = max(1, tokens.shape[1] // (self.count + len(soft) + 1))
        queries = means(embed(tokens), tokens, segment_ids, segments)
        scores = jax.lax.stop_gradient(unit(queries) @ unit(memory).T)
        _, best = jax.lax.top_k(scores, self.count)
        found = take_rows(memory, best.reshape(len(tokens), -1))
        found = found.reshape(len(tokens), segments, self.count, memory.shape[1])
        shared = jnp.broadcast_to(soft, (len(tokens), segments, *soft.shape))
        return {**vectors, "encoder": jnp.concatenate([found, shared], axis=2)}


def means(
    x: Float[Array, "B T H"],
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    segments: int,
) -> Float[Array, "B S H"]:
    """The mean over each segment's own tokens, float32; 0 where there is no such segment."""
    own = (tokens < SLOT0)[..., None] & (segment_ids[..., None] == jnp.arange(1, segments + 1))
    weights = own.astype(jnp.float32)
    sums = jnp.einsum("bts,bth->bsh", weights, x.astype(jnp.float32))
    return sums / jnp.maximum(weights.sum(1), 1.0)[..., None]


def unit(x: Float[Array, "*n H"]) -> Float[Array, "*n H"]:
    """Rows of length 1; a row of zeros stays."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
