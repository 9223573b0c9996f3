"""How prompt vectors are stored."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.errors import UserError
from prompt_jax.parts.init import SampledVocabulary, Vocabulary


@dataclasses.dataclass(frozen=True)
class PromptBank:
    """One matrix [P, H], trained as it is (Lester et al. 2021, section 2).

    Attributes:
        length: P.
        init: where the vectors start: `init(key, length, vocabulary) -> [P, H]`.
    """

    length: int
    init: Any = SampledVocabulary()

    varies: ClassVar = ("length", "init")

    def init_params(self, key: Array, vocabulary: Vocabulary) -> dict[str, Array]:
        """Fresh leaves of the bank, {"encoder": float32 [P, H]}.

        Raises:
            UserError: `length` is not positive, or the init cannot fill it.
        """
        if self.length < 1:
            raise UserError(f"PROMPT_LENGTH = {self.length}: a prompt has at least one vector")
        return {"encoder": self.init(key, self.length, vocabulary)}

    def prompts(self, params: dict[str, Array]) -> Float[Array, "P H"]:
        """The vectors that enter the model."""
        return params["encoder"]

    def pad(self, leaf: Float[Array, "P H"], length: int) -> Float[Array, "Q H"]:
        """The leaf as the first rows of `length`; the others are zero and have no slot."""
        return jnp.pad(leaf, ((0, length - self.length), (0, 0)))

    def trim(self, leaf: Float[Array, "Q H"]) -> Float[Array, "P H"]:
        """The rows of its own."""
        return leaf[: self.length]
