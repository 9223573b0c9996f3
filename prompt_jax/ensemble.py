"""Class probabilities averaged over several templates of one task."""

import dataclasses

import numpy as np
from jaxtyping import Float

from prompt_jax import evaluate
from prompt_jax.assemble import Tree
from prompt_jax.data import cache, registry
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

    Labels are scored by the mean log-likelihood of their tokens.

    Attributes:
        mixture: of the templates, e.g. `sst2_5unseen_0` (see `data/variants.py`).
        batch_size: rows of a batch.
        limit: examples of the split, 0 for all.
    """

    mixture: str
    batch_size: int = 128
    limit: int = 0

    def __call__(self, context: evaluate.Context, params: Tree, split: str) -> dict[str, float]:
        """`templates/ensemble`, and `mean`, `sd`, `min`, `max` of the single templates' accuracies.

        Raises:
            UserError: no such mixture, or a task without labels.
        """
        data = context.run.data
        tasks, _ = cache.get_tasks(self.mixture, data.mixture_or_task_module)
        entry = registry.find(next(iter(tasks)), data.mixture_or_task_module)
        labels = getattr(entry, "labels", ())
        if not labels:
            raise UserError(f"TemplateEnsemble.mixture {self.mixture!r}: its tasks have no labels")
        scores, targets = [], []
        for name in tasks:
            tokens = cache.build(
                name,
                split,
                context.opened.vocabulary,
                data.cache_dir,
                module=data.mixture_or_task_module,
                lengths=data.task_feature_lengths,
            )
            count = min(self.limit, len(tokens)) if self.limit else len(tokens)
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
