"""The evaluator that puts the similarity of two tasks into a run's record."""

import dataclasses
from typing import Any, ClassVar

from prompt_jax.ckpt import prompts
from prompt_jax.similarity import similarity_average, similarity_per_token


@dataclasses.dataclass(frozen=True)
class TaskSimilarity:
    """How alike the prompts of two tasks are: the prompts stand for the tasks.

    They are comparable where backbone, init, seed and number of steps are the same.

    Attributes:
        source: path of a prompt that was trained on one task for a short while.
        target: of one that was trained on the other.

    Source: Vu et al. 2022 (SPoT), section 4.1, prompts as task embeddings.
    """

    source: str
    target: str

    varies: ClassVar = ("source", "target")

    def metric_names(self, run: Any) -> list[str]:
        """What it will compute."""
        del run
        return ["similarity/average", "similarity/per_token"]

    def __call__(self, context: Any, params: Any, split: str) -> dict[str, float]:
        """The two similarities, whatever the split.

        Raises:
            UserError: no prompt there.
        """
        del params, split
        return context.once((self.source, self.target), self._similarities)

    def _similarities(self) -> dict[str, float]:
        source, target = (prompts.read(path).array for path in (self.source, self.target))
        return {
            "similarity/average": similarity_average(source, target),
            "similarity/per_token": similarity_per_token(source, target),
        }
