"""How the answer is read from the decoder's states."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_jax import likelihood


@dataclasses.dataclass(frozen=True)
class LMHead:
    """Text: the backbone's own language-model head on every decoder state.

    Attributes:
        limit_mb: most megabytes of float32 logits at a time.
    """

    limit_mb: float = likelihood.LIMIT_MB

    def __call__(
        self,
        logits_of: Callable[[Array], Array],
        states: Float[Array, "B U H"],
        targets: Int[Array, "B U"],
        vocab_size: int,
    ) -> dict[str, Array]:
        """The head's share of the outputs record: `likelihood.token_numbers`, and V."""
        numbers = likelihood.token_numbers(logits_of, states, targets, vocab_size, self.limit_mb)
        return {**numbers, "vocab_size": jnp.float32(vocab_size)}

    def distance(
        self,
        logits_of: Callable[[Array], Array],
        states: Float[Array, "B U H"],
        others: Float[Array, "B U H"],
        vocab_size: int,
    ) -> Float[Array, "B U"]:
        """Mean squared difference of the logits of two passes, position by position."""
        between = states.astype(jnp.float32) - others.astype(jnp.float32)
        return likelihood.mean_square(logits_of, between, vocab_size, self.limit_mb)
