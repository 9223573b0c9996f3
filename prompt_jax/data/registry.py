"""Tasks by name: seqio's registry, the shipped tasks, the user's module; and a task's metrics."""

import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.data import index
from prompt_jax.errors import UserError, nearest


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

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the task's metric functions."""
        functions = self._task.metric_fns
        return tuple(getattr(fn, "__name__", type(fn).__name__) for fn in functions)

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


def get_tasks(
    name: str, module: str | None = None
) -> tuple[dict[str, TaskHandle], dict[str, float]]:
    """The tasks of a mixture, or the one task of that name.

    Args:
        name: a task or mixture: one of the project's, or registered by `module`.
        module: MIXTURE_OR_TASK_MODULE, imported first.

    Returns:
        (name -> task, name -> mixing rate).

    Raises:
        UserError: nothing of that name; the message has the nearest ones and where it looked.
    """
    seqio = load_seqio()
    if module:
        _import_user(str(module))
    known = set(seqio.TaskRegistry.names()) | set(seqio.MixtureRegistry.names())
    if name not in known and name in index.TASKS:
        importlib.import_module(f"prompt_jax.tasks.{index.TASKS[name].module}")
    if name in seqio.MixtureRegistry.names():
        mixture = seqio.MixtureRegistry.get(name)
        tasks = {task.name: TaskHandle(task) for task in mixture.tasks}
        return tasks, {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
    if name in seqio.TaskRegistry.names():
        return {name: TaskHandle(seqio.TaskRegistry.get(name))}, {name: 1.0}
    files = sorted({f"tasks/{entry.module}.py" for entry in index.TASKS.values()})
    looked = ", ".join([*files, *([str(module)] if module else [])])
    raise UserError(
        f"no task or mixture {name!r}: {nearest(name, known | set(index.TASKS))} "
        f"(looked in {looked}; other tasks need MIXTURE_OR_TASK_MODULE)"
    )


def get_task(name: str, module: str | None = None) -> TaskHandle:
    """One task.

    Raises:
        UserError: no such task, or a mixture (see `get_tasks`).
    """
    tasks, _ = get_tasks(name, module)
    if name not in tasks:
        raise UserError(f"{name!r} is a mixture; a task is needed here: {', '.join(tasks)}")
    return tasks[name]
