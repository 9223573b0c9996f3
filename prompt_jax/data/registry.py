"""Tasks by name: ours, the user's module, seqio's registry; and how a task is evaluated."""

import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.data import task as tasks_of
from prompt_jax.data import variants
from prompt_jax.errors import UserError, nearest

Rate = Callable[[str, int], float]


class TaskHandle:
    """A seqio task as evaluation needs it, without seqio in sight.

    name: of the task. splits: names of its splits.
    """

    def __init__(self, task: Any):
        self._task = task
        self.name: str = task.name

    @functools.cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the task's splits (a TFDS task may ask the network)."""
        return tuple(self._task.splits)

    def postprocess(self, text: str, example: Mapping, is_target: bool = False) -> Any:
        """A model's text, or the target's, in the form that the metrics compare.

        Args:
            text: decoded output, or the example's target text.
            example: `cache.example(i)`.
            is_target: whether `text` is the target.
        """
        return self._task.postprocess_fn(text, example=example, is_target=is_target)

    def target(self, example: Mapping) -> Any:
        """The example's target in the form that the metrics compare."""
        return self.postprocess(example.get("targets_pretokenized", ""), example, True)

    def metrics(
        self, targets: Sequence, predictions: Sequence | None = None, scores: Sequence | None = None
    ) -> dict[str, float]:
        """All metrics of the task that the given outputs allow.

        Args:
            targets: postprocessed, one per example.
            predictions: postprocessed outputs, for the metrics on (targets, predictions).
            scores: log-likelihoods of the targets, for those on (targets, scores).

        Returns:
            name -> value, as the task's functions define it.
        """
        found: dict[str, float] = {}
        for outputs, functions in (
            (predictions, self._task.predict_metric_fns),
            (scores, self._task.score_metric_fns),
        ):
            for function in functions if outputs is not None else ():
                for name, value in function(targets, outputs).items():
                    value = getattr(value, "value", value)
                    if np.ndim(value) == 0:
                        found[name] = float(value)
        return found


def load_seqio():
    """seqio, after TensorFlow has been kept off the accelerators."""
    from prompt_jax.data import preprocess

    return preprocess.seqio


@functools.lru_cache(maxsize=32)
def _import_user(module: str) -> None:
    """Imports MIXTURE_OR_TASK_MODULE: a dotted name or a .py file. It is a program: it runs."""
    try:
        if module.endswith(".py"):
            path = os.path.abspath(module)
            if not os.path.isfile(path):
                raise UserError(f"MIXTURE_OR_TASK_MODULE: no file {module!r}")
            name = "prompt_jax_user_" + re.sub(r"\W", "_", path)
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
            return
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a console script does not look where it was started
        importlib.import_module(module)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"MIXTURE_OR_TASK_MODULE {module!r}: {error}") from error
    except Exception as error:
        raise UserError(
            f"MIXTURE_OR_TASK_MODULE {module!r} failed: {type(error).__name__}: {error}"
        ) from error


def find(name: str, module: str | None = None) -> tasks_of.Task | tasks_of.Mixture | None:
    """A task or mixture that was registered with us; None where only seqio knows it, if any.

    Args:
        name: what MIXTURE_OR_TASK_NAME says.
        module: MIXTURE_OR_TASK_MODULE, imported first.
    """
    if module:
        _import_user(str(module))
    if name not in tasks_of.REGISTRY:
        tasks_of.known()
    return tasks_of.REGISTRY.get(name) or variants.derive(name, find)


def metric_names(name: str, module: str | None = None) -> list[str] | None:
    """Names of the numbers that evaluating a task or mixture gives; None where seqio knows more.

    A mixture has "TASK/NAME" of each task beside the mean "NAME" over tasks.

    Args:
        name: what MIXTURE_OR_TASK_NAME says.
        module: MIXTURE_OR_TASK_MODULE.
    """
    entry = find(name, module)
    if isinstance(entry, tasks_of.Task):
        return entry.metric_names
    parts = [find(part) for part in entry.rates] if entry else [None]
    if None in parts or None in [part.metric_names for part in parts]:
        return None
    own = [f"{part.name}/{name}" for part in parts for name in part.metric_names]
    return [*own, *dict.fromkeys(name for part in parts for name in part.metric_names)]


def unknown(name: str, known: Iterable[str], module: str | None) -> UserError:
    """What to say of a name that nobody registered."""
    looked = "tasks/*.py" + (f", {module}" if module else "")
    return UserError(
        f"no task or mixture {name!r}: {nearest(name, known)} "
        f"(looked in {looked}; other tasks need MIXTURE_OR_TASK_MODULE)"
    )


def get_tasks(name: str, module: str | None = None) -> tuple[dict[str, TaskHandle], Rate]:
    """The tasks of a mixture, or the one task of that name.

    Args:
        name: a task or mixture: one of the project's, or registered by `module`.
        module: MIXTURE_OR_TASK_MODULE, imported first.

    Returns:
        (name -> task, (name, examples) -> mixing rate).

    Raises:
        UserError: nothing of that name; the message has the nearest ones and where it looked.
    """
    seqio = load_seqio()
    entry = find(name, module)
    if isinstance(entry, tasks_of.Mixture):
        return {part: get_task(part) for part in entry.rates}, entry.rate
    if entry is not None:
        from prompt_jax.data import preprocess

        return {name: TaskHandle(preprocess.to_seqio(entry))}, _alone
    if name in seqio.MixtureRegistry.names():
        mixture = seqio.MixtureRegistry.get(name)
        rates = {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
        return {task.name: TaskHandle(task) for task in mixture.tasks}, lambda part, _: rates[part]
    if name in seqio.TaskRegistry.names():
        return {name: TaskHandle(seqio.TaskRegistry.get(name))}, _alone
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names(), *tasks_of.REGISTRY}
    raise unknown(name, known, module)


def _alone(task: str, size: int) -> float:
    return 1.0


def get_task(name: str, module: str | None = None) -> TaskHandle:
    """One task.

    Raises:
        UserError: no such task, or a mixture (see `get_tasks`).
    """
    tasks, _ = get_tasks(name, module)
    if name not in tasks:
        raise UserError(f"{name!r} is a mixture; a task is needed here: {', '.join(tasks)}")
    return tasks[name]
