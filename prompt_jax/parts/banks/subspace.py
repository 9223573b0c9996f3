"""Few numbers that a fixed random map makes a prompt of: what a search without gradients moves."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.errors import UserError
from prompt_jax.parts.bank import Bank, Leaves, check_length
from prompt_jax.parts.init import Vocabulary

SEEDS = 2**24  # whole numbers that float32 holds


@dataclasses.dataclass(frozen=True)
class SubspaceBank(Bank):
    """A point of a random subspace, P = X + A z, A [P H, d] ~ N(0, s^2) (BBT, Sun et al. 2022).

    s = alpha sd / (sqrt(d) sigma), so that the numbers of A z have the deviation alpha sd where
    those of z have sigma; sd is that of the states which the vectors meet, measured once. z starts
    at 0. Of "encoder" X is the start, and sd that of the first layer's input; of "encoder_layers"
    each layer has z, A and sd of its own, and there is no X (BBTv2, Sun et al. 2022). A is drawn
    anew from a seed whenever it is needed: it takes no memory. Seed, s and X are buffers.

    Attributes:
        length: P.
        dimension: d.
        alpha: of s.
        sigma: of s: the step with which the search begins.
        init: X: `init(key, length, vocabulary) -> [P, H]`; None: 0.
        name: "encoder" or "encoder_layers".
    """

    length: int
    dimension: int
    alpha: float = 1.0
    sigma: float = 1.0
    init: Any = None
    name: str = "encoder"

    varies: ClassVar = ("alpha", "sigma", "init")

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if self.dimension < 1 or self.sigma <= 0:
            raise UserError(
                f"SubspaceBank.dimension = {self.dimension}, sigma = {self.sigma}: both positive"
            )
        spread = jnp.asarray(vocabulary.deviations(), jnp.float32)
        spread = spread if self.name == "encoder_layers" else spread[0]
        shape = (self.length, vocabulary.width)
        start = self.init(key, *shape[:1], vocabulary) if self.init else jnp.zeros(shape)
        drawn = jax.random.randint(jax.random.fold_in(key, 1), (), 0, SEEDS)
        return {
            f"{self.name}_z": jnp.zeros((*spread.shape, self.dimension)),
            f"{self.name}_scale": spread * (self.alpha / (self.sigma * math.sqrt(self.dimension))),
            f"{self.name}_seed": drawn.astype(jnp.float32),
            f"{self.name}_start": start,
        }

    def prompts(self, params: Leaves) -> dict[str, Array]:
        z, scale, seed, start = (
            params[f"{self.name}_{leaf}"] for leaf in ("z", "scale", "seed", "start")
        )
        key = jax.random.key(seed.astype(jnp.int32))

        def point(layer, z, scale) -> Float[Array, "P H"]:
            matrix = jax.random.normal(jax.random.fold_in(key, layer), (start.size, z.size))
            return scale * jnp.matmul(matrix, z, precision="highest").reshape(start.shape)

        if z.ndim == 1:
            return {self.name: start + point(0, z, scale)}
        return {self.name: jax.lax.map(lambda own: point(*own), (jnp.arange(len(z)), z, scale))}
