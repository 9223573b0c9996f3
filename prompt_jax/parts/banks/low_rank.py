"""Fewer numbers than P H: thin matrices whose product is the prompt."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.errors import UserError, nearest
from prompt_jax.parts.bank import Bank, Leaves, check_length
from prompt_jax.parts.init import SampledVocabulary, Vocabulary


@dataclasses.dataclass(frozen=True)
class LowRankBank(Bank):
    """A product of two thin matrices: P = scale A B, A [P, r], B [r, H].

    r (P + H) numbers instead of P H. DPT (Xiao et al. 2023): both factors uniform in +-0.5; LoPT-1
    (Guo et al. 2024) is the same function.

    Attributes:
        length: P.
        rank: r.
        left: A ~ U(-left, left).
        right: B ~ U(-right, right).
        init: instead of both: A B is the best product of rank r for `init(key, P, vocabulary)`,
            from its singular vectors, the singular values shared evenly.
        scale: of the product.
        name: of its vectors.
    """

    length: int
    rank: int
    left: float = 0.5
    right: float = 0.5
    init: Any = None
    scale: float = 1.0
    name: str = "encoder"

    varies: ClassVar = ("left", "right", "init")

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if self.rank < 1:
            raise UserError(f"LowRankBank.rank = {self.rank}: must be at least 1")
        if self.init is not None:
            left, right = self._factors(self.init(key, self.length, vocabulary))
        else:
            keys = jax.random.split(key)
            shapes = (self.length, self.rank), (self.rank, vocabulary.width)
            scales = self.left, self.right
            left, right = (
                jax.random.uniform(k, shape, jnp.float32, -scale, scale)
                for k, shape, scale in zip(keys, shapes, scales, strict=True)
            )
        return {f"{self.name}_left": left, f"{self.name}_right": right}

    def _factors(self, whole: Float[Array, "P H"]) -> tuple[Array, Array]:
        if self.rank > min(whole.shape):
            raise UserError(
                f"LowRankBank.rank = {self.rank}: a start of shape {list(whole.shape)} has no more "
                f"than {min(whole.shape)} singular values; without LowRankBank.init any rank goes"
            )
        left, values, right = jnp.linalg.svd(whole / self.scale, full_matrices=False)
        roots = jnp.sqrt(values[: self.rank])
        return left[:, : self.rank] * roots, roots[:, None] * right[: self.rank]

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "P H"]]:
        left, right = params[f"{self.name}_left"], params[f"{self.name}_right"]
        return {self.name: self.scale * jnp.matmul(left, right, precision="highest")}


@dataclasses.dataclass(frozen=True)
class OffsetBank(Bank):
    """What DePT adds to an input's own tokens: (alpha / sqrt(r)) A B, A [S, r], B [r, H].

    A ~ U(-1, 1) / sqrt(r), B starts at 0: nothing is added at first (Shi and Lipani 2024; alpha is
    that of the released code).

    Attributes:
        length: S, rows: the longest input's tokens.
        rank: r.
        alpha: of the scale.
        name: of its vectors.
    """

    length: int
    rank: int
    alpha: float = 8.0
    name: str = "offset"

    @property
    def _product(self) -> LowRankBank:
        root = math.sqrt(max(1, self.rank))
        sizes = {"left": 1 / root, "right": 0.0, "scale": self.alpha / root}
        return LowRankBank(self.length, self.rank, name=self.name, **sizes)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        return self._product.init_params(key, vocabulary)

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "S H"]]:
        return self._product.prompts(params)


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class BottleneckBank(Bank):
    """A start that stays, mapped through a trained bottleneck: P = f(X U) V (LoPT-2).

    X [P, H] is the start, U [H, r] and V [r, H] are trained: 2 r H numbers, whatever P. X is a
    buffer: rule ("prompt/encoder_start", None). U ~ N(0, 1/H), V ~ N(0, s^2/r), s the standard
    deviation of X's numbers (Guo et al. 2024; the inits are ours).

    Attributes:
        length: P.
        rank: r.
        activation: f, one of ACTIVATIONS.
        init: X: `init(key, length, vocabulary) -> [P, H]`.
        name: of its vectors.
    """

    length: int
    rank: int
    activation: str = "gelu"
    init: Any = SampledVocabulary()
    name: str = "encoder"

    varies: ClassVar = ("init",)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if self.rank < 1:
            raise UserError(f"BottleneckBank.rank = {self.rank}: must be at least 1")
        if self.activation not in ACTIVATIONS:
            said = nearest(self.activation, ACTIVATIONS)
            raise UserError(f"BottleneckBank.activation = {self.activation!r}: {said}")
        start = self.init(key, self.length, vocabulary)
        down, up = jax.random.split(jax.random.fold_in(key, 1))
        width = vocabulary.width
        return {
            f"{self.name}_start": start,
            f"{self.name}_down": jax.random.normal(down, (width, self.rank)) / math.sqrt(width),
            f"{self.name}_up": jax.random.normal(up, (self.rank, width))
            * (jnp.std(start) / math.sqrt(self.rank)),
        }

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "P H"]]:
        start, down, up = (params[f"{self.name}_{leaf}"] for leaf in ("start", "down", "up"))
        hidden = ACTIVATIONS[self.activation](jnp.matmul(start, down, precision="highest"))
        return {self.name: jnp.matmul(hidden, up, precision="highest")}
