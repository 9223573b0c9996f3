"""Class probabilities averaged over several templates of one task."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_jax import evaluate
from prompt_jax.assemble import Tree
from prompt_jax.data import registry
from prompt_jax.data.loader import Data
from prompt_jax.data.open import open_tokens
from prompt_jax.errors import UserError


def average(scores: Float[np.ndarray, "N B C"]) -> Float[np.ndarray, "B C"]:
    """p(c | x) = 1/N sum_t softmax_c(scores of template t).

    A plain mean of probabilities: a second softmax would flatten them.

    Args:
        scores: log-likelihoods of C labels under N templates.

    Source: Voronov et al. 2024, section 5.
    """
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return (shifted / shifted.sum(-1, keepdims=True)).mean(0)


@dataclasses.dataclass(frozen=True)
class TemplateEnsemble:
    """Evaluates a classification under every template of a mixture, and their ensemble.

    The task is the one that is evaluated, be it the run's or a transfer task. Labels are scored by
    the mean log-likelihood of their tokens.

    Attributes:
        count: templates, drawn as `TASK_5unseen_0` is (see `data/variants.py`).
        seed: of the draw.
        unseen: of those whose wrappers no training template has.
        batch_size: rows of a batch.
        limit: examples of the split, 0 for all.
    """

    count: int = 5
    seed: int = 0
    unseen: bool = True
    batch_size: int = 128
    limit: int = 0

    def metric_names(self, run: Any) -> list[str]:
        """What it will compute.

        Raises:
            UserError: the run's task has no labels, or more templates are asked for than there are.
        """
        self._find(run.data)
        return [f"templates/{name}" for name in ("ensemble", "mean", "sd", "min", "max")]

    def _find(self, data: Data) -> tuple[list[str], tuple[str, ...]]:
        """(the task under each template, its labels)."""
        name, module = data.mixture_or_task_name, data.mixture_or_task_module
        labels = getattr(registry.find(name, module), "labels", ())
        if not labels:
            raise UserError(f"TemplateEnsemble: {name!r} is no task with labels")
        kind = "unseen" if self.unseen else "templates"
        mixture = registry.find(f"{name}_{self.count}{kind}_{self.seed}", module)
        return list(mixture.rates), labels

    def __call__(self, context: evaluate.Context, params: Tree, split: str) -> dict[str, float]:
        """`templates/ensemble`, and `mean`, `sd`, `min`, `max` of the single templates' accuracies.

        Raises:
            UserError: see `metric_names`.
        """
        data = context.run.data
        names, labels = self._find(data)
        scores, targets = [], []
        for name in names:
            tokens = open_tokens(data, name, split, context.opened.vocabulary)
            limit = self.limit or context.run.eval_steps * self.batch_size
            count = min(limit, len(tokens)) if limit else len(tokens)
            requests = evaluate.task_requests(context, tokens, count)
            targets = [tokens.example(at)["targets_pretokenized"] for at in range(count)]
            scores.append(
                evaluate.label_scores(
                    context, params, requests, labels, self.batch_size, normalise=True
                )
            )
        found = np.array(scores)
        right = np.array([labels.index(target) for target in targets])
        single = (found.argmax(-1) == right).mean(-1)
        return {
            "templates/ensemble": float((average(found).argmax(-1) == right).mean()),
            "templates/mean": float(single.mean()),
            "templates/sd": float(single.std()),
            "templates/min": float(single.min()),
            "templates/max": float(single.max()),
        }
