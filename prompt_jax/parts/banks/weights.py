"""Changes of the backbone's kernels."""

import dataclasses
import math
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from prompt_jax.errors import UserError
from prompt_jax.parts.bank import Bank, Leaves
from prompt_jax.parts.init import Vocabulary


@dataclasses.dataclass(frozen=True)
class WeightsBank(Bank):
    """Factors of a change of kernels: W + (alpha / r) A B, A [L, I, r], B [L, r, O] (LoRA).

    A ~ U(-1, 1) sqrt(3 / I), B = 0: nothing changes at first. r (I + O) numbers a kernel and layer
    (Hu et al. 2022, section 4).

    Attributes:
        rank: r.
        alpha: of the scale.
        kernels: regular expression for whole paths of kernels in the layers, without "/kernel".
        name: of its factors.
    """

    rank: int
    alpha: float = 16.0
    kernels: str = r".*/(query|value)"
    name: str = "weights"
    length: ClassVar = 0

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        if self.rank < 1:
            raise UserError(f"WeightsBank.rank = {self.rank}: must be at least 1")
        known = {
            path.removesuffix("/kernel"): shape
            for path, shape in vocabulary.shapes.items()
            if path.endswith("/kernel") and "/layers/" in path
        }
        chosen = [path for path in sorted(known) if re.fullmatch(self.kernels, path)]
        if not chosen:
            raise UserError(
                f"WeightsBank.kernels = {self.kernels!r} matches none of {sorted(known)}"
            )
        leaves = {}
        for at, path in enumerate(chosen):
            layers, inputs, outputs = known[path]
            bound = math.sqrt(3 / inputs)
            shape = layers, inputs, self.rank
            own = jax.random.fold_in(key, at)
            left = jax.random.uniform(own, shape, jnp.float32, -bound, bound)
            leaves[f"{self.name}/{path}/left"] = left
            leaves[f"{self.name}/{path}/right"] = jnp.zeros((layers, self.rank, outputs))
        return leaves

    def prompts(self, params: Leaves) -> dict[str, dict[str, tuple[Array, Array]]]:
        before = f"{self.name}/"
        lefts = [path for path in params if path.startswith(before) and path.endswith("/left")]
        factors = {}
        for path in lefts:
            kernel = path.removesuffix("/left")
            scaled = params[path] * (self.alpha / self.rank)
            factors[kernel.removeprefix(before)] = scaled, params[f"{kernel}/right"]
        return {self.name: factors}
