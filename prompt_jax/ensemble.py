"""Ensembles on one task: probabilities averaged over templates, prompts that vote."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_jax import evaluate
from prompt_jax.assemble import Tree
from prompt_jax.data import cache, layout, registry
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
            requests = evaluate.task_requests(context, data.mixture_or_task_name, tokens, count)
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


def majority(texts: Sequence[str], scores: Sequence[float]) -> str:
    """The text that most prompts give; of equals the one with the highest mean score.

    Args:
        texts: one answer per prompt.
        scores: their log-likelihoods.

    Source: Lester et al. 2021, section 6.
    """
    given: dict[str, list[float]] = {}
    for text, score in zip(texts, scores, strict=True):
        given.setdefault(text, []).append(score)
    return max(given, key=lambda text: (len(given[text]), sum(given[text]) / len(given[text])))


@dataclasses.dataclass(frozen=True)
class PromptEnsemble:
    """Several prompts of one task answer every example, all in one batch, and vote.

    The bank holds the prompts one after the other (`parts.init.Prompts`); nothing is trained.

    Attributes:
        count: prompts, N; the bank has N P rows.
        decoding: how answers are read.
        batch_size: rows of a batch: N for each example.
        limit: examples of the split, 0 for all.

    Source: Lester et al. 2021, section 6.
    """

    count: int
    decoding: evaluate.Decoding = evaluate.Decoding()
    batch_size: int = 128
    limit: int = 0

    def metric_names(self, run: Any) -> list[str] | None:
        """What it will compute, as far as that is known before; None: seqio's metrics tell.

        Raises:
            UserError: the bank does not hold `count` prompts.
        """
        self._length(run)
        data = run.data
        names = registry.metric_names(data.mixture_or_task_name, data.mixture_or_task_module)
        if names is None:
            return None
        kinds = ("vote", "mean", "best", "sd")
        return [_named(kind, name) for kind in kinds for name in names]

    def _length(self, run: Any) -> int:
        """P."""
        if self.count < 1 or not run.method.slots or run.method.slots % self.count:
            raise UserError(
                f"PromptEnsemble.count = {self.count}: PROMPT_LENGTH = {run.method.slots} is not "
                "that many prompts"
            )
        return run.method.slots // self.count

    def __call__(self, context: evaluate.Context, params: Tree, split: str) -> dict[str, float]:
        """The task's metrics of the vote, `vote/NAME`, and of the prompts one by one.

        `mean/NAME` and `sd/NAME` (of the sample) are over the prompts; `best/NAME` is that of the
        prompt whose first metric is highest.

        Raises:
            UserError: see `metric_names`.
        """
        data = context.run.data
        length = self._length(context.run)
        prompts = [layout.slot_ids(length, start=i * length) for i in range(self.count)]
        # Whole examples in a batch: requests of one length keep their order.
        shards = math.lcm(self.count, context.shardings.row_shards)
        height = layout.round_up(self.batch_size, shards)
        limit = self.limit or context.run.eval_steps * (height // self.count)
        tasks, _ = cache.get_tasks(data.mixture_or_task_name, data.mixture_or_task_module)
        found = {}
        for name, task in tasks.items():
            tokens = open_tokens(data, name, split, context.opened.vocabulary)
            count = min(limit, len(tokens)) if limit else len(tokens)
            own = evaluate.task_requests(context, name, tokens, count)
            asked = [dataclasses.replace(each, slots=slots) for each in own for slots in prompts]
            answers = evaluate.answers(context, params, asked, self.decoding, height)
            texts = [answer.text for answer in answers]
            votes = [
                majority(
                    texts[at : at + self.count], [a.score for a in answers[at : at + self.count]]
                )
                for at in range(0, len(texts), self.count)
            ]
            examples = [tokens.example(at) for at in range(count)]
            targets = [task.target(example) for example in examples]

            def measure(given, task=task, examples=examples, targets=targets):
                pairs = zip(given, examples, strict=True)
                return task.metrics(targets, [task.postprocess(t, e) for t, e in pairs])

            single = [measure(texts[i :: self.count]) for i in range(self.count)]
            found[name] = _summary(measure(votes), single)
        return evaluate.merge(found)


def _summary(vote: dict[str, float], single: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of a vote, and what those of the single prompts come to."""
    first = next(iter(vote), None)
    best = max(single, key=lambda metrics: metrics[first]) if first else {}
    found = {}
    for name, value in vote.items():
        values = [metrics[name] for metrics in single]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        found |= {f"vote/{name}": value, f"mean/{name}": float(np.mean(values))}
        found |= {f"best/{name}": best[name], f"sd/{name}": spread}
    return found


def _named(kind: str, name: str) -> str:
    """`accuracy` -> `vote/accuracy`; of a mixture's task: `T/accuracy` -> `T/vote/accuracy`."""
    task, slash, metric = name.rpartition("/")
    return f"{task}{slash}{kind}/{metric}"
