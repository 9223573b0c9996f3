"""Where the selected vectors enter the model: a tap, called at the model's named sites."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_jax.slots import SLOT0


@jax.custom_vjp
def take_rows(table: Float[Array, "P H"], ids: Int[Array, "B T"]) -> Float[Array, "B T H"]:
    """table[ids], whose gradient is a one-hot product: deterministic on every backend."""
    return table[ids]


def _take_rows_forward(table, ids):
    return table[ids], (ids, table.shape[0])


def _take_rows_backward(residual, grad):
    ids, length = residual
    one_hot = jax.nn.one_hot(ids, length, dtype=grad.dtype)
    return jnp.einsum("btp,bth->ph", one_hot, grad), None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)


@dataclasses.dataclass(frozen=True)
class EncoderSlots:
    """Slot SLOT0 + i of the encoder's input becomes prompt vector i (DESIGN decision 2)."""

    def tap(self, prompts: Float[Array, "P H"]) -> Callable:
        """A tap that fills the encoder's slots.

        Args:
            prompts: the bank's vectors, float32; several prompts lie one after the other.

        Returns:
            `tap(site, x, ctx) -> x`.
        """

        def fill(site, x, ctx):
            if site != "embed" or ctx.stack != "encoder":
                return x
            slot = ctx.tokens - SLOT0
            vectors = take_rows(prompts, jnp.clip(slot, 0, prompts.shape[0] - 1))
            return jnp.where((slot >= 0)[..., None], vectors.astype(x.dtype), x)

        fill.sites = ("embed",)
        return fill
