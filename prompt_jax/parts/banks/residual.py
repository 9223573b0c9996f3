"""A prompt that a small network is added to."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.errors import UserError
from prompt_jax.parts.bank import Bank, Leaves, check_length
from prompt_jax.parts.init import SampledVocabulary, Vocabulary

EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class ResidualBank(Bank):
    """P = X + norm(relu(X D + b) U + c): X and the network both train (Razdaibiedina et al. 2023).

    D [H, m] ~ N(0, 1/H), U [m, H] ~ N(0, 1/m), b [m] = c [H] = 0, the same for all rows; norm is
    LayerNorm with a scale and a shift [H]: P H + 2 m H + m + 3 H numbers.

    Attributes:
        length: P.
        hidden: m.
        scale: LayerNorm's at the start; 0: the prompt starts as X.
        init: X: `init(key, length, vocabulary) -> [P, H]`.
        name: of its vectors.
    """

    length: int
    hidden: int
    scale: float = 1.0
    init: Any = SampledVocabulary()
    name: str = "encoder"

    varies: ClassVar = ("scale", "init")

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if self.hidden < 1:
            raise UserError(f"ResidualBank.hidden = {self.hidden}: must be at least 1")
        width, hidden = vocabulary.width, self.hidden
        down, up = jax.random.split(jax.random.fold_in(key, 1))
        leaves = {
            "start": self.init(key, self.length, vocabulary),
            "down": jax.random.normal(down, (width, hidden)) / math.sqrt(width),
            "down_bias": jnp.zeros(hidden),
            "up": jax.random.normal(up, (hidden, width)) / math.sqrt(hidden),
            "up_bias": jnp.zeros(width),
            "norm_scale": jnp.full(width, self.scale, jnp.float32),
            "norm_shift": jnp.zeros(width),
        }
        return {f"{self.name}_{leaf}": array for leaf, array in leaves.items()}

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "P H"]]:
        own = {path.removeprefix(f"{self.name}_"): leaf for path, leaf in params.items()}
        start = own["start"]
        hidden = jnp.matmul(start, own["down"], precision="highest") + own["down_bias"]
        wide = jnp.matmul(jax.nn.relu(hidden), own["up"], precision="highest") + own["up_bias"]
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.var(wide, axis=-1, keepdims=True) + EPSILON)
        return {self.name: start + normed * own["norm_scale"] + own["norm_shift"]}
