"""What makes a prompt from the input."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from prompt_jax.parts.bank import Bank, Leaves, check_length
from prompt_jax.parts.init import Vocabulary

# p(x) / (1 + |q(x)|) that is GELU within 0.006 on [-4, 4]: a least-squares fit.
NUMERATOR = (0.0002, 0.5, 0.3955, 0.3193, 0.1953, 0.0541, 0.0053)  # x^0 ... x^6
DENOMINATOR = (0.0001, 0.6384, 0.0, 0.1082, 0.0)  # x^1 ... x^5


@dataclasses.dataclass(frozen=True)
class GeneratorBank(Bank):
    """A prompt generator for every layer of the encoder (IAPT, Zhu et al. 2024).

    "down" [L, H, m], "pool" [L, m, P], "up" [L, m, H], and coefficients of a rational activation,
    7 and 5: L (2 H m + m P + 12) numbers. The activation starts as GELU. `inject.Generated` says
    what they compute.

    Attributes:
        length: P.
        hidden: m.
        scale: standard deviation of "up" at the start (and of "pool", times 1 / sqrt(m)).
        name: of its vectors.
    """

    length: int
    hidden: int = 64
    scale: float = 0.01
    name: str = "generators"

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        layers, width = vocabulary.kernel("encoder/layers/mlp/wo")[0], vocabulary.width
        shapes = {
            "down": ((width, self.hidden), 1 / math.sqrt(width)),
            "pool": ((self.hidden, self.length), 1 / math.sqrt(self.hidden)),
            "up": ((self.hidden, width), self.scale),
        }
        leaves = {
            f"{self.name}_{leaf}": scale
            * jax.random.normal(jax.random.fold_in(key, at), (layers, *shape))
            for at, (leaf, (shape, scale)) in enumerate(shapes.items())
        }
        for leaf, start in (("numerator", NUMERATOR), ("denominator", DENOMINATOR)):
            leaves[f"{self.name}_{leaf}"] = jnp.tile(jnp.array(start, jnp.float32), (layers, 1))
        return leaves

    def prompts(self, params: Leaves) -> dict[str, dict[str, Array]]:
        names = ("down", "pool", "up", "numerator", "denominator")
        return {self.name: {name: params[f"{self.name}_{name}"] for name in names}}
