"""Tasks as seqio has them. Importing this module keeps TensorFlow off the accelerators."""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from prompt_jax.data.quiet import quiet_start
from prompt_jax.data.task import REGISTRY, Mixture, Task, known
from prompt_jax.errors import UserError

with quiet_start():
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds


def _quiet_tensorflow() -> None:
    """No accelerator for TensorFlow, unless the program has used it already."""
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        pass


_quiet_tensorflow()

Dataset = tf.data.Dataset
__all__ = ["seqio", "tf", "tfds", "to_seqio", "into_seqio", "dataset_of"]
_MADE: dict[str, tuple[Task, seqio.Task]] = {}
_CHUNK = 1024  # rows that pass into TensorFlow at once


def to_seqio(task: Task) -> seqio.Task:
    """The seqio task: cast rows, then tokens with EOS; registered the first time.

    Any backbone's vocabulary takes the place of its own (bytes).

    Args:
        task: see `task.Task`.

    Raises:
        UserError: seqio knows another task of that name.
    """

    def dataset_fn(split, shuffle_files=False, seed=None):
        del shuffle_files, seed
        return dataset_of(task.examples(split))

    def postprocess(text, example=None, is_target=False, **_):
        if is_target:
            return task.target(example) if task.target else text
        return task.answer(text, example) if task.answer else text

    dataset_fn.files = lambda split: [*task.source.files(split), *_also_read(task)]
    dataset_fn.task = [task.source, task.cast, task.text_only]  # what the cache depends on
    vocabulary = seqio.ByteVocabulary()
    # Optional, not absent: a mixture's tasks must have the same features.
    inputs = seqio.Feature(vocabulary, add_eos=True, required=not task.text_only)
    if task.name in _MADE and _MADE[task.name][0] is task:
        return _MADE[task.name][1]
    if task.name in seqio.TaskRegistry.names():
        raise UserError(f"task {task.name!r} is registered with seqio already; choose another name")
    made = seqio.TaskRegistry.add(
        task.name,
        source=seqio.FunctionDataSource(dataset_fn=dataset_fn, splits=list(task.splits)),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"inputs": inputs, "targets": seqio.Feature(vocabulary, add_eos=True)},
        postprocess_fn=postprocess,
        metric_fns=list(task.metrics),
    )
    _MADE[task.name] = task, made
    return made


def _also_read(task: Task) -> list[str]:
    """Files that the cast itself reads, whatever the split (examples in the context)."""
    return task.cast.files() if hasattr(task.cast, "files") else []


def into_seqio() -> None:
    """Registers every task and mixture of ours with seqio, for programs that ask seqio for them."""
    for entry in known().values():
        if isinstance(entry, Task):
            to_seqio(entry)
    for entry in list(REGISTRY.values()):
        if isinstance(entry, Mixture) and entry.name not in seqio.MixtureRegistry.names():
            rate = functools.partial(_rate, mixture=entry)
            seqio.MixtureRegistry.add(entry.name, [(part, rate) for part in entry.rates])


def _rate(task: seqio.Task, mixture: Mixture) -> float:
    """A task's mixing rate; by size, its rows are counted."""
    size = 0
    if mixture.rates[task.name] is None:
        size = sum(1 for _ in REGISTRY[task.name].examples("train"))
    return mixture.rate(task.name, size)


def dataset_of(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """A tf.data.Dataset of equal-keyed rows, read as they are asked for.

    Args:
        rows: text, numbers, or lists of either.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))
    if not first:
        return Dataset.from_tensor_slices({"inputs": tf.constant([], tf.string)})
    signature = {key: _spec(value) for key, value in first[0].items()}

    def chunks() -> Iterator[dict]:
        every = itertools.chain(first, rows)
        while chunk := list(itertools.islice(every, _CHUNK)):
            yield {key: _column([row[key] for row in chunk], signature[key]) for key in signature}

    made = Dataset.from_generator(chunks, output_signature=signature)
    return made.flat_map(Dataset.from_tensor_slices)


def _spec(value: Any) -> tf.TypeSpec:
    """What a column of such values is to TensorFlow."""
    if isinstance(value, list | tuple):
        dtype = tf.constant(value[0]).dtype if value else tf.string
        return tf.RaggedTensorSpec([None, None], dtype)
    return tf.TensorSpec([None], tf.constant(value).dtype)


def _column(values: list, spec: tf.TypeSpec):
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.ragged.constant(values, spec.dtype, ragged_rank=1)
    return tf.constant(values, spec.dtype)
