"""Tasks made of tasks: few-shot subsets, and the baselines that train nothing.

`TASK_16shot_3` is a name like any other: 16 examples a class, drawn with seed 3. `TASK_4demos_3`
puts four examples into the input, `TASK_0demos_0` none.
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from prompt_jax.data.source import Row
from prompt_jax.data.task import Task, register
from prompt_jax.errors import UserError

_NAME = re.compile(r"(?P<task>.+)_(?P<count>\d+)(?P<kind>shot|demos)_(?P<seed>\d+)")


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
    splits = ("train", "validation", "test")

    def files(self, split: str) -> list[str]:
        """The files of the split that is drawn from."""
        return self.task.source.files("validation" if split == "test" else "train")

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


@dataclasses.dataclass(frozen=True)
class InContext:
    """A cast that puts an instruction and examples before the input.

    `INSTRUCTION input answer: target input answer: target ... input answer:`

    Attributes:
        task: whose cast it is.
        count: examples, drawn from the train split, classes in turn.
        seed: of the draw.
        instruction: text in front.
        answer: what stands between an input and its target.
    """

    task: Task
    count: int = 0
    seed: int = 0
    instruction: str = ""
    answer: str = " answer:"

    def context(self) -> str:
        """What stands before every input.

        Raises:
            UserError: the train split has too few examples.
        """
        if "context" not in self._held:
            self._held["context"] = " ".join([*filter(None, [self.instruction]), *self._examples()])
        return self._held["context"]

    def _examples(self) -> list[str]:
        if not self.count:
            return []
        examples = list(self.task.examples("train"))
        order = np.random.default_rng(self.seed).permutation(len(examples))
        by_target: dict[str, list] = {label: [] for label in self.task.labels or ("",)}
        for at in order:
            example = examples[at]
            by_target[example["targets"] if self.task.labels else ""].append(example)
        turns = max(map(len, by_target.values()))
        drawn = [of[turn] for turn in range(turns) for of in by_target.values() if turn < len(of)]
        if len(drawn) < self.count:
            raise UserError(f"{len(drawn)} examples in the train split, {self.count} are asked for")
        return [f"{e['inputs']}{self.answer} {e['targets']}" for e in drawn[: self.count]]

    @property
    def _held(self) -> dict:
        return self.__dict__.setdefault("_cached", {})

    def __call__(self, row: Row, split: str) -> list[dict]:
        """The task's examples of a row, with the context before their inputs."""
        context = self.context()
        before = f"{context} " if context else ""
        return [
            {**example, "inputs": f"{before}{example['inputs']}{self.answer}"}
            for example in self.task.cast(row, split)
        ]


def register_in_context(
    name: str,
    task: Task,
    shots: int = 0,
    *,
    seed: int = 0,
    instruction: str = "",
    answer: str = " answer:",
) -> Task:
    """Prompt design: a hard text prompt and examples in the context; nothing is trained.

    Use it with `methods/prompt_design.gin` (Brown et al. 2020; Lester et al. 2021, section 2).

    Args:
        name: what MIXTURE_OR_TASK_NAME says.
        task: registered.
        shots: examples in the context.
        seed: of their draw.
        instruction: text in front of everything.
        answer: what stands between an input and its target.
    """
    cast = InContext(task, shots, seed, instruction, answer)
    return register(dataclasses.replace(task, name=name, cast=cast))


def derive(name: str, find) -> Task | None:
    """The task that a name such as `sst2_16shot_0` or `sst2_4demos_0` describes, registered.

    Args:
        name: any name.
        find: name -> registered task, or None.

    Raises:
        UserError: a few-shot subset of a task without labels.
    """
    parts = _NAME.fullmatch(name)
    task = find(parts["task"]) if parts else None
    if not isinstance(task, Task):
        return None
    count, seed = int(parts["count"]), int(parts["seed"])
    if parts["kind"] == "demos":
        return register_in_context(name, task, count, seed=seed)
    if not task.labels or not count:
        raise UserError(f"{name!r}: few-shot subsets need labels, and at least one example each")
    return register(dataclasses.replace(task, name=name, source=FewShot(task, count, seed)))


def _target(task: Task, row: Row) -> str:
    return next(iter(task.cast(row, "train")))["targets"]
