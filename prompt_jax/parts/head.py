"""How the answer is read from the decoder's states."""

import dataclasses

from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class LMHead:
    """Text: the backbone's own language-model head on every decoder state."""

    def __call__(self, network, states: Float[Array, "B U H"]) -> dict[str, Array]:
        """The head's share of the outputs record: {"logits": float32 [B, U, V]}."""
        return {"logits": network.logits(states)}
