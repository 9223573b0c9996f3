"""Vectors for every layer: of slots, or of keys and values."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.parts.bank import Bank, Leaves, check_length
from prompt_jax.parts.init import SampledVocabulary, Vocabulary


@dataclasses.dataclass(frozen=True)
class LayersBank(Bank):
    """Vectors of their own for every layer of the encoder, [L, P, H] ("deep" prompts).

    Attributes:
        length: P.
        init: where each layer's vectors start, drawn anew for each.
        name: of its vectors.
    """

    length: int
    init: Any = SampledVocabulary()
    name: str = "encoder_layers"

    varies: ClassVar = ("init",)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        layers = vocabulary.kernel("encoder/layers/mlp/wo")[0]
        # The first layer's are those of a plain prompt of this seed.
        keys = [key, *(jax.random.fold_in(key, layer) for layer in range(1, layers))]
        return {self.name: jnp.stack([self.init(k, self.length, vocabulary) for k in keys])}

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "L P H"]]:
        return {self.name: params[self.name]}


@dataclasses.dataclass(frozen=True)
class PrefixBank(Bank):
    """Keys and values of P positions that are not there, for every layer, [L, P, W] each.

    W = N D. Li and Liang 2021, without their reparameterisation, as in P-tuning v2.

    Attributes:
        length: P.
        scale: of the start, U(-scale, scale).
        name: "encoder_prefix" or "decoder_prefix".
    """

    length: int
    scale: float = 0.5
    name: str = "encoder_prefix"

    varies: ClassVar = ("scale",)
    attentions: ClassVar = {"encoder": "attention", "decoder": "self_attention"}

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        stack = self.name.partition("_")[0]
        layers, _, wide = vocabulary.kernel(f"{stack}/layers/{self.attentions[stack]}/key")
        shape = layers, self.length, wide
        return {
            f"{self.name}_{kind}": jax.random.uniform(
                jax.random.fold_in(key, at), shape, jnp.float32, -self.scale, self.scale
            )
            for at, kind in enumerate(("key", "value"))
        }

    def prompts(self, params: Leaves) -> dict[str, tuple[Array, Array]]:
        return {self.name: (params[f"{self.name}_key"], params[f"{self.name}_value"])}
