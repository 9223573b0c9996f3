"""Tasks made of tasks: few-shot subsets, examples in the context, several templates.

Their names are names like any other. `TASK_16shot_3`: 16 examples a class, drawn with seed 3.
`TASK_4demos_3`: four examples in the input. `TASK_5templates_3`: the mixture of five templates;
`TASK_5unseen_3`: of five whose wrappers are in no training template. `TASK_sentinel`: targets after
a sentinel, as span corruption has them.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.data import templates
from prompt_jax.data.source import Row
from prompt_jax.data.task import Mixture, Task, register, register_mixture
from prompt_jax.data.templates import Template
from prompt_jax.errors import UserError

_KINDS = "shot|demos|templates|unseen"
_SENTINEL = "_sentinel"
_NAME = re.compile(rf"(?P<task>.+)_(?P<count>\d+)(?P<kind>{_KINDS})_(?P<seed>\d+)")


@dataclasses.dataclass(frozen=True)
class FewShot:
    """k rows of each class for training, k others for the dev split, both of the train split.

    The test split is the task's validation split (benchmarks hide the labels of their test splits).

    Attributes:
        task: whose rows they are.
        count: k.
        seed: of the draw. A smaller k draws from the start of the same order.
    """

    task: Task
    count: int
    seed: int

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; `test` only where the task has a validation split."""
        found = "validation" in self.task.splits
        return ("train", "validation", "test") if found else ("train", "validation")

    def files(self, split: str) -> list[str]:
        """The files of the split that is drawn from."""
        return self.task.source.files("validation" if split == "test" else "train")

    def here(self, split: str) -> bool:
        """See `Source.here`."""
        return self.task.source.here("validation" if split == "test" else "train")

    def state(self) -> str:
        """See `Source.state`."""
        return self.task.source.state()

    def rows(self, split: str) -> Iterator[Row]:
        """The drawn rows, classes in turn.

        Raises:
            UserError: a class has fewer than 2k rows.
        """
        if split == "test":
            yield from self.task.source.rows("validation")
            return
        classes: dict[str, list[Row]] = {label: [] for label in self.task.labels}
        for row in self.task.source.rows("train"):
            classes[_target(self.task, row)].append(row)
        first = 0 if split == "train" else self.count
        drawn = []
        for number, (label, rows) in enumerate(classes.items()):
            if len(rows) < 2 * self.count:
                raise UserError(
                    f"{len(rows)} rows of {label!r}: {self.count} for training and as many for "
                    "the dev split are needed"
                )
            order = np.random.default_rng([self.seed, number]).permutation(len(rows))
            drawn.append([rows[at] for at in order[first : first + self.count]])
        for turn in zip(*drawn, strict=True):
            yield from turn


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: its examples are drawn once
class InContext:
    """A cast that writes inputs by a template, after an instruction and examples.

    Attributes:
        task: whose cast it is.
        template: how inputs and answers are written.
        count: examples, drawn from the train split, classes in turn.
        seed: of the draw.
        instruction: text in front.
    """

    task: Task
    template: Template = Template()
    count: int = 0
    seed: int = 0
    instruction: str = ""

    def files(self) -> list[str]:
        """The files that the examples are drawn from."""
        return self.task.source.files("train") if self.count else []

    def __call__(self, row: Row, split: str) -> list[dict]:
        """The task's examples of a row, rewritten."""
        return [
            {**example, "inputs": self._inputs(example["inputs"])}
            for example in self.task.cast(row, split)
        ]

    def _inputs(self, text: str) -> str:
        parts = [*filter(None, [self.instruction]), *_demonstrations(self)]
        return self.template.between.join([*parts, self.template.question(text)])


@functools.lru_cache(maxsize=64)
def _demonstrations(cast: InContext) -> tuple[str, ...]:
    """The examples of a context, written by its template.

    Raises:
        UserError: the train split has too few examples.
    """
    if not cast.count:
        return ()
    examples = list(cast.task.examples("train"))
    order = np.random.default_rng(cast.seed).permutation(len(examples))
    classes: dict[str, list] = {label: [] for label in cast.task.labels or ("",)}
    for at in order:
        classes[examples[at]["targets"] if cast.task.labels else ""].append(examples[at])
    turns = max(map(len, classes.values()))
    drawn = [of[turn] for turn in range(turns) for of in classes.values() if turn < len(of)]
    if len(drawn) < cast.count:
        raise UserError(f"{len(drawn)} examples in the train split, {cast.count} are asked for")
    return tuple(cast.template.example(e["inputs"], e["targets"]) for e in drawn[: cast.count])


ANSWER = Template(output="answer: {}")


def register_in_context(
    name: str,
    task: Task,
    shots: int = 0,
    *,
    seed: int = 0,
    instruction: str = "",
    template: Template = ANSWER,
) -> Task:
    """Prompt design: a hard text prompt and examples in the context; nothing need be trained.

    Use it with `methods/prompt_design.gin` (Brown et al. 2020; Lester et al. 2021, section 2).

    Args:
        name: what MIXTURE_OR_TASK_NAME says.
        task: registered.
        shots: examples in the context.
        seed: of their draw.
        instruction: text in front of everything.
        template: how inputs and answers are written.
    """
    cast = InContext(task, template, shots, seed, instruction)
    return register(dataclasses.replace(task, name=name, cast=cast))


def register_templates(name: str, task: Task, templates: Sequence[Template]) -> Mixture:
    """A task under several templates: `NAME_0`, `NAME_1`, ... and the mixture of them, `NAME`.

    Training on the mixture draws a template for each example, or, with `Data.mixture_period` = K,
    for K steps (PAFT); `evaluate.TemplateEnsemble` averages their answers.

    Args:
        name: of the mixture.
        task: registered.
        templates: at least one.
    """
    parts = []
    for number, template in enumerate(templates):
        parts.append(register_in_context(f"{name}_{number}", task, template=template).name)
    return register_mixture(name, parts, family=task.family)


# The first sentinel of a sentencepiece vocabulary, the one that span corruption begins with.
SENTINEL = "<extra_id_0>"


@dataclasses.dataclass(frozen=True)
class AfterSentinel:
    """A cast whose targets follow a sentinel; answers and targets are read without it.

    A model that knows span corruption alone has never begun an answer otherwise.

    Attributes:
        task: whose cast it is.

    Source: Lester et al. 2021, section 3.2, "span corruption + sentinel".
    """

    task: Task

    def files(self) -> list[str]:
        """The files that the task's own cast reads."""
        return self.task.cast.files() if hasattr(self.task.cast, "files") else []

    def __call__(self, row: Row, split: str) -> list[dict]:
        """The task's examples of a row, a sentinel before each target."""
        examples = self.task.cast(row, split)
        return [{**each, "targets": f"{SENTINEL} {each['targets']}"} for each in examples]

    def answer(self, text: str, example: Mapping) -> Any:
        """What a predicted text means to the metrics."""
        own, example = without_sentinel(text), _own(example)
        return self.task.answer(own, example) if self.task.answer else own

    def target(self, example: Mapping) -> Any:
        """What the metrics compare with."""
        example = _own(example)
        if self.task.target:
            return self.task.target(example)
        return example["targets_pretokenized"]


def without_sentinel(text: str) -> str:
    """A text without the sentinel that it may begin with."""
    return text.strip().removeprefix(SENTINEL).strip()


def _own(example: Mapping) -> dict:
    """An example as the task itself would have made it."""
    text = without_sentinel(example.get("targets_pretokenized", ""))
    return {**example, "targets_pretokenized": text}


def register_after_sentinel(name: str, task: Task) -> Task:
    """A task with a sentinel before its targets, scored as the task itself is.

    Args:
        name: what MIXTURE_OR_TASK_NAME says.
        task: registered.
    """
    cast = AfterSentinel(task)
    labels = tuple(f"{SENTINEL} {label}" for label in task.labels)
    texts = {"answer": cast.answer, "target": cast.target, "labels": labels}
    return register(dataclasses.replace(task, name=name, cast=cast, **texts))


def derive(name: str, find) -> Task | Mixture | None:
    """What a name such as `sst2_16shot_0` or `sst2_sentinel` describes, registered.

    Args:
        name: any name.
        find: name -> what is registered, or None.

    Raises:
        UserError: a few-shot subset of a task without labels; more templates than there are.
    """
    if name.endswith(_SENTINEL):
        task = find(name.removesuffix(_SENTINEL))
        return register_after_sentinel(name, task) if isinstance(task, Task) else None
    parts = _NAME.fullmatch(name)
    task = find(parts["task"]) if parts else None
    if not isinstance(task, Task):
        return None
    kind, count, seed = parts["kind"], int(parts["count"]), int(parts["seed"])
    if kind == "demos":
        return register_in_context(name, task, count, seed=seed)
    if kind in ("templates", "unseen"):
        try:
            return register_templates(name, task, templates.draw(count, seed, kind == "unseen"))
        except ValueError as error:
            raise UserError(f"{name!r}: {error}") from error
    if not task.labels or not count:
        raise UserError(f"{name!r}: few-shot subsets need labels, and at least one example each")
    return register(dataclasses.replace(task, name=name, source=FewShot(task, count, seed)))


def _target(task: Task, row: Row) -> str:
    return next(iter(task.cast(row, "train")))["targets"]
