"""What a phase takes over from prompts of the phases before it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from prompt_jax.errors import UserError, nearest
from prompt_jax.parts.phases import Begin
from prompt_jax.similarity import similarity_average, similarity_per_token

Leaves = dict[str, Array]
LEAF = "prompt/encoder"
SOURCE = "prompt/source"  # the prompt of the source task


SIMILARITIES = {
    "constant": lambda a, b: 1.0,
    "average": similarity_average,
    "per_token": similarity_per_token,
}


@dataclasses.dataclass(frozen=True)
class KeepSource(Begin):
    """The phase goes on with the prompt that is there, and remembers it as the source's."""

    def __call__(self, leaves: Leaves, fresh: Callable[[], Leaves]) -> Leaves:
        del fresh
        return {**leaves, SOURCE: leaves[LEAF]}


@dataclasses.dataclass(frozen=True)
class Teach(Begin):
    """A fresh prompt begins; the one that is there becomes its teacher (PANDA, Zhong et al. 2024).

    The weight of the teacher is max(0, similarity of source prompt and teacher).

    Attributes:
        similarity: one of SIMILARITIES.
    """

    similarity: str = "average"

    def check(self, bank: Any) -> None:
        if self.similarity not in SIMILARITIES:
            said = nearest(self.similarity, SIMILARITIES)
            raise UserError(f"Teach.similarity = {self.similarity!r}: {said}")

    def __call__(self, leaves: Leaves, fresh: Callable[[], Leaves]) -> Leaves:
        pair = (np.asarray(leaves[path]) for path in (SOURCE, LEAF))
        weight = max(0.0, float(SIMILARITIES[self.similarity](*pair)))
        teacher = {"prompt/teacher": leaves[LEAF], "prompt/teacher_weight": jnp.float32(weight)}
        start = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in fresh().items()}
        return {**leaves, **teacher, **start}
