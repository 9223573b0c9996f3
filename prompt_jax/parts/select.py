"""Which prompt vectors serve an example.

The same for all examples of a task: then it is the slots, which the data layer writes, that say
which (`bank.TaskBank`). Others look at the example, or take slots out of its row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.errors import UserError
from prompt_jax.parts.inject import take_rows
from prompt_jax.slots import SLOT0

Vectors = dict[str, Any]  # as `bank` names them
Embed = Callable[[Array], Array]  # tokens [B, T] -> the backbone's embeddings [B, T, H]


class Select:
    """What every select has; it is called for the vectors that the inject takes."""

    folds: ClassVar = True  # whether the vectors are the same whatever the example
    slots: ClassVar = 0  # slots beside those of the bank

    def check(self, bank: Any) -> None:
        """Refuses a bank that it is not for, before anything is opened.

        Raises:
            UserError: with what would do.
        """
        del bank

    def __call__(self, vectors: Vectors, batch: dict[str, Array], embed: Embed) -> Vectors:
        del batch, embed
        return vectors

    def rows(self, vectors: Vectors, batch: dict[str, Array]) -> dict[str, Array]:
        """The batch as the backbone reads it."""
        del vectors
        return batch

    def folded(self, vectors: Vectors) -> Float[np.ndarray, "P H"]:
        """The input vectors that say all, where it folds."""
        return np.asarray(vectors["encoder"])


@dataclasses.dataclass(frozen=True)
class Static(Select):
    """The same vectors for every example, each in its slot."""


@dataclasses.dataclass(frozen=True)
class Remaining(Select):
    """The vectors that are on; slots of the others are taken out of the rows.

    The function of a shorter prompt made of the vectors that are on, "encoder_on" [P]: nothing
    attends to the others, and what stood behind them moves up, so distances are those of the
    shorter prompt. Where they are multiplied by zero instead (`Static`), they stay and are attended
    to (XPrompt, Ma et al. 2022; the removal is ours).
    """

    def check(self, bank: Any) -> None:
        if not (bank and bank.masks):
            raise UserError(
                "Remaining needs a bank that switches vectors off, MaskedBank; "
                f"Method.bank is {type(bank).__name__}"
            )

    def rows(self, vectors: Vectors, batch: dict[str, Array]) -> dict[str, Array]:
        names = "encoder_input_tokens", "encoder_segment_ids"
        tokens, segment_ids = (jnp.asarray(batch[name]) for name in names)
        on = vectors["encoder_on"]
        off = (tokens >= SLOT0) & (on[jnp.clip(tokens - SLOT0, 0, len(on) - 1)] == 0)
        last = jnp.argsort(off, axis=1, stable=True)  # what is off behind all that is not
        compact = [
            jnp.take_along_axis(jnp.where(off, 0, array), last, axis=1)
            for array in (tokens, segment_ids)
        ]
        return {**batch, **dict(zip(names, compact, strict=True))}

    def folded(self, vectors: Vectors) -> Float[np.ndarray, "P H"]:
        return np.asarray(vectors["encoder"])[np.asarray(vectors["encoder_on"]) > 0]


@dataclasses.dataclass(frozen=True)
class Retrieved(Select):
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

    def check(self, bank: Any) -> None:
        memory = [part.length for part in getattr(bank, "parts", ()) if part.name == "memory"]
        if not memory or not 0 <= self.count <= memory[0]:
            rows = f"the memory has {memory[0]} rows" if memory else 'no bank is named "memory"'
            raise UserError(f"Retrieved.count = {self.count}: {rows}")

    def __call__(self, vectors: Vectors, batch: dict[str, Array], embed: Embed) -> Vectors:
        tokens, segment_ids = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
        soft, memory = vectors["encoder"], vectors["memory"]
        # An example has its slots and at least one token of its own.
        segments = max(1, tokens.shape[1] // (self.count + len(soft) + 1))
        queries = means(embed(tokens), tokens, segment_ids, segments)
        scores = jnp.matmul(unit(queries), unit(memory).T, precision="highest")
        scores = jax.lax.stop_gradient(scores)
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
    wide = x.astype(jnp.float32)
    sums = jnp.einsum("bts,bth->bsh", weights, wide, precision="highest")
    return sums / jnp.maximum(weights.sum(1), 1.0)[..., None]


def unit(x: Float[Array, "*n H"]) -> Float[Array, "*n H"]:
    """Rows of length 1; a row of zeros stays."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
