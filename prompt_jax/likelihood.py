"""What losses and scores need to know of the logits, without holding all of them.

Logits are [B, U, V]; with V = 250,112 those of 32 rows of 32 tokens are a gigabyte. What is read
from them is a few numbers a position, so they are made for some positions at a time, and made
again in the backward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LIMIT_MB = 256.0  # most megabytes of float32 logits at a time


def token_numbers(
    logits_of: Callable[[Array], Array],
    states: Float[Array, "B U H"],
    targets: Int[Array, "B U"],
    vocab_size: int,
    limit_mb: float | int = LIMIT_MB,
) -> dict[str, Float[Array, "B U"]]:
    """The numbers of each position: log_z = logsumexp_v l_v, l_y of the target y, mean_v l_v.

    Args:
        logits_of: states [B, u, H] -> logits float32 [B, u, V]: the LM head.
        states: of the decoder.
        targets: y.
        vocab_size: V.
        limit_mb: positions are taken in turn as soon as all logits together are larger.

    Returns:
        "log_z", "target_logit", "mean_logit", and "hit": 1 where y has the highest logit.
    """

    def numbers(part: tuple[Array, Array]) -> dict[str, Array]:
        own, wanted = part
        logits = logits_of(own)
        best = jnp.argmax(logits, axis=-1)
        return {
            "log_z": jax.nn.logsumexp(logits, axis=-1),
            "target_logit": jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0],
            "mean_logit": jnp.mean(logits, axis=-1),
            "hit": (best == wanted).astype(jnp.float32),
        }

    rows, length, _ = states.shape
    size = chunk(length, limit_mb * 2**18 / (rows * vocab_size))
    if size == length:
        return numbers((states, targets))
    # Along U, so that rows that lie on different devices stay where they are.
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(rows, length // size, size, *x.shape[2:]), 1, 0),
        (states, targets),
    )
    found = jax.lax.map(jax.checkpoint(numbers, prevent_cse=False), parts)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, length), found)


def mean_square(
    logits_of: Callable[[Array], Array],
    states: Float[Array, "B U H"],
    vocab_size: int,
    limit_mb: float | int = LIMIT_MB,
) -> Float[Array, "B U"]:
    """mean_v l_v^2 of each position: of a difference of states, their logits' squared distance.

    Args:
        logits_of: the LM head, linear in the states.
        states: [B, U, H].
        vocab_size: V.
        limit_mb: as in `token_numbers`.
    """

    def squares(part: Array) -> Array:
        return jnp.mean(jnp.square(logits_of(part)), axis=-1)

    rows, length, width = states.shape
    size = chunk(length, limit_mb * 2**18 / (rows * vocab_size))
    if size == length:
        return squares(states)
    parts = jnp.moveaxis(states.reshape(rows, length // size, size, width), 1, 0)
    found = jax.lax.map(jax.checkpoint(squares, prevent_cse=False), parts)
    return jnp.moveaxis(found, 0, 1).reshape(rows, length)


def chunk(length: int, most: float | int) -> int:
    """The largest divisor of `length` that is at most `most` (at least 1)."""
    return max(d for d in range(1, length + 1) if length % d == 0 and d <= max(most, 1))
