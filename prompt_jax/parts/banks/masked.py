"""Vectors of which parts are switched off."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.errors import UserError
from prompt_jax.parts.bank import Bank, Leaves, check_length
from prompt_jax.parts.init import SampledVocabulary, Vocabulary


@dataclasses.dataclass(frozen=True)
class MaskedBank(Bank):
    """A matrix of which tokens, and pieces of tokens, are switched off (XPrompt, Ma et al. 2022).

    P_ie = gamma_i zeta_ie p_ie for token i and piece e, of k pieces of H / k numbers. The masks are
    0 or 1 and are buffers, and so are the scores that choose them: the sum over batches of
    |dL/dgamma_i| = |<dL/dp_i, p_i>| and of |dL/dzeta_ie| likewise, at masks as they are.

    Attributes:
        length: P.
        pieces: k, divides H.
        init: where the vectors start.
        name: of its vectors.
    """

    length: int
    pieces: int = 16
    init: Any = SampledVocabulary()
    name: str = "encoder"

    varies: ClassVar = ("init",)
    masks: ClassVar = True

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if self.pieces < 1 or vocabulary.width % self.pieces:
            raise UserError(
                f"MaskedBank.pieces = {self.pieces} does not divide the width {vocabulary.width}"
            )
        shapes = {"tokens": (self.length,), "pieces": (self.length, self.pieces)}
        leaves = {self.name: self.init(key, self.length, vocabulary)}
        for kind, shape in shapes.items():
            leaves[f"{self.name}_{kind}_mask"] = jnp.ones(shape)
            leaves[f"{self.name}_{kind}_score"] = jnp.zeros(shape)
        return leaves

    def _split(self, whole: Float[Array, "P H"]) -> Float[Array, "P k h"]:
        return whole.reshape(len(whole), self.pieces, -1)

    def prompts(self, params: Leaves) -> dict[str, Array]:
        whole = params[self.name]
        mask = params[f"{self.name}_tokens_mask"][:, None] * params[f"{self.name}_pieces_mask"]
        return {
            self.name: (self._split(whole) * mask[..., None]).reshape(whole.shape),
            f"{self.name}_on": params[f"{self.name}_tokens_mask"],
        }

    def scored(self, params: Leaves, gradient: Leaves) -> Leaves:
        """The scores with a batch's share added."""
        pieces = jnp.sum(self._split(params[self.name] * gradient[self.name]), axis=-1)
        found = {"tokens": jnp.abs(jnp.sum(pieces, axis=-1)), "pieces": jnp.abs(pieces)}
        names = {kind: f"{self.name}_{kind}_score" for kind in found}
        return {name: params[name] + found[kind] for kind, name in names.items()}
