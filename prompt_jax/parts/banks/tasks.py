"""Vectors of several tasks, that share most of their numbers."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.errors import UserError
from prompt_jax.parts.bank import Bank, Leaves, check_length
from prompt_jax.parts.init import SampledVocabulary, Vocabulary


@dataclasses.dataclass(frozen=True)
class TaskBank(Bank):
    """One matrix for all tasks, and for each a change of rank one: P_k = P * (u_k v_k^T).

    P [P, H] is shared, u_k [P] and v_k [H] are the task's and start at 1 (MPT, Wang et al. 2023,
    section 3.1): P H + N (P + H) numbers. The vectors of the N tasks lie one after the other, and
    the data layer writes the slots of an example's own task.

    Attributes:
        length: P.
        tasks: names of the N tasks.
        init: of the shared matrix.
        name: of its vectors.
    """

    length: int
    tasks: tuple[str, ...]
    init: Any = SampledVocabulary()
    name: str = "encoder"

    varies: ClassVar = ("init",)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if not self.tasks or len({*self.tasks}) < len(self.tasks):
            raise UserError(f"TASKS = {self.tasks}: the names of one task or more, each once")
        return {
            f"{self.name}_shared": self.init(key, self.length, vocabulary),
            f"{self.name}_rows": jnp.ones((len(self.tasks), self.length)),
            f"{self.name}_columns": jnp.ones((len(self.tasks), vocabulary.width)),
        }

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "K H"]]:
        shared, rows, columns = (
            params[f"{self.name}_{leaf}"] for leaf in ("shared", "rows", "columns")
        )
        each = shared * rows[:, :, None] * columns[:, None, :]
        return {self.name: each.reshape(-1, shared.shape[-1])}
