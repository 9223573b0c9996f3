"""seqio tasks -> tokenised, memory-mapped caches.

Here (and in `registry.py`) training meets seqio and TensorFlow, inside the functions. A cache is a
folder of flat int32 tokens with int64 offsets, and the examples' other features as JSON lines;
its name holds a hash of everything it was made from, so a stale one is never found.
"""

import array
import functools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prompt_jax import environment
from prompt_jax.data.fingerprint import describe, file_hash, fingerprint
from prompt_jax.data.registry import TaskHandle, get_task, get_tasks, load_seqio
from prompt_jax.data.source import plain
from prompt_jax.data.vocabulary import Vocabulary
from prompt_jax.errors import UserError, nearest
from prompt_jax.slots import SLOT0

__all__ = ["TaskHandle", "TokenCache", "build", "cache_root", "get_task", "get_tasks"]

FORMAT = 1
_FEATURES = ("inputs", "targets")
_LENGTH_FREE = ("append_eos_after_trim",)  # takes sequence_length, works without


# -- caches ----------------------------------------------------------------------------------


class TokenCache:
    """A tokenised split of a task, memory-mapped.

    text_only: the task has `targets` alone. key: hash of all that it was made from.
    """

    def __init__(self, folder: str):
        self.folder = folder
        with open(os.path.join(folder, "meta.json"), encoding="utf-8") as file:
            meta = json.load(file)
        self.key, self.text_only = meta["key"], meta["text_only"]
        self._tokens, self._offsets = {}, {}
        for name in _FEATURES[1:] if self.text_only else _FEATURES:
            self._tokens[name] = self._map(f"{name}.npy")
            self._offsets[name] = self._map(f"{name}_offsets.npy")
            if self._offsets[name][-1] != len(self._tokens[name]):
                raise ValueError(f"{folder}: {name} is cut short")
        self._lines = self._map("examples_offsets.npy")
        self._json = os.open(os.path.join(folder, "examples.jsonl"), os.O_RDONLY)
        if os.fstat(self._json).st_size != self._lines[-1]:
            raise ValueError(f"{folder}: examples.jsonl is cut short")

    def __del__(self):
        if hasattr(self, "_json"):
            os.close(self._json)

    def _map(self, name: str) -> np.ndarray:
        # A plain array view of the mapping: slicing numpy.memmap itself costs 5 times more.
        return np.asarray(np.load(os.path.join(self.folder, name), mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._lines) - 1

    def _slice(self, name: str, at: int) -> np.ndarray:
        start, stop = self._offsets[name][at : at + 2]
        return self._tokens[name][start:stop]

    def inputs(self, at: int) -> np.ndarray | None:
        """int32 tokens of the inputs, EOS included; None where the task is text only."""
        return None if self.text_only else self._slice("inputs", at)

    def targets(self, at: int) -> np.ndarray:
        """int32 tokens of the targets, EOS included."""
        return self._slice("targets", at)

    def example(self, at: int) -> dict:
        """The example's other features: label, answers, `targets_pretokenized`, ..."""
        start, stop = self._lines[at : at + 2]
        return json.loads(os.pread(self._json, stop - start, start))

    def lengths(self) -> np.ndarray | None:
        """int64 [n, 2]: tokens of inputs and targets; None where the task is text only."""
        if self.text_only:
            return None
        return np.stack([np.diff(self._offsets[name]) for name in _FEATURES], axis=1)

    def slot_counts(self) -> np.ndarray:
        """int64 [n]: prompt slots that the task itself wrote into the inputs."""
        before = np.concatenate([[0], np.cumsum(self._tokens["inputs"] >= SLOT0)])
        return np.diff(before[self._offsets["inputs"]])


def cache_root(cache_dir: str | None = None) -> str:
    """Where caches lie: the argument, else PROMPT_JAX_CACHE, else ~/.cache/prompt_jax."""
    return os.path.abspath(os.path.expanduser(cache_dir or environment.cache_root()))


def build(
    name: str,
    split: str,
    vocabulary: Vocabulary,
    cache_dir: str | None = None,
    *,
    module: str | None = None,
    lengths: Mapping[str, int] | None = None,
) -> TokenCache:
    """The tokenised split of a task: opened if it is there, else made.

    Args:
        name: the task.
        split: one of its splits.
        vocabulary: the backbone's; it takes the place of the task's own.
        cache_dir: see `cache_root`.
        module: MIXTURE_OR_TASK_MODULE.
        lengths: TASK_FEATURE_LENGTHS, for a task whose preprocessors ask for them; nothing is
            truncated here.

    Raises:
        UserError: unknown task or split, no examples, examples without `targets`.
    """
    task = get_task(name, module)
    if not _has_split(task, split):
        raise UserError(f"task {name!r} has no split {split!r}: {nearest(split, task.splits)}")
    seqio_task = _with_vocabulary(task, vocabulary)
    lengths = dict(lengths) if lengths and _wants_lengths(seqio_task) else None
    key = _key(seqio_task, split, vocabulary, lengths)
    root = cache_root(cache_dir)
    folder = os.path.join(root, f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name + '-' + split)}-{key[:20]}")
    if os.path.isdir(folder):
        try:
            return TokenCache(folder)
        except (OSError, EOFError, ValueError, KeyError):
            logging.warning("cache %s is damaged and is made again", folder)
            shutil.rmtree(folder, ignore_errors=True)
    temporary = None
    try:
        os.makedirs(root, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".making-", dir=root)
        _write(seqio_task, split, lengths, temporary, key)
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was first; its content is the same
            if not os.path.isdir(folder):
                raise
    except OSError as error:
        raise UserError(f"cache folder {root!r}: {error.strerror or error}") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return TokenCache(folder)


def _has_split(task: TaskHandle, split: str) -> bool:
    """Whether the task has the split; TFDS also takes slices such as `train[:10]`."""
    try:
        return split.partition("[")[0] in task.splits
    except Exception as error:  # TFDS raises whatever its downloader met
        raise _as_user_error(task.name, split, error) from error


def _with_vocabulary(task: TaskHandle, vocabulary: Vocabulary) -> Any:
    """The seqio task with the backbone's vocabulary in place of its own."""
    import dataclasses

    features = task._task.output_features
    if "targets" not in features:
        raise UserError(
            f"task {task.name!r}: its examples lack 'targets' (it has {list(features)})"
        )
    replaced = {
        key: dataclasses.replace(features[key], vocabulary=vocabulary.seqio())
        for key in features
        if key in _FEATURES
    }
    return task._task.replace(output_features=replaced)


def _wants_lengths(task: Any) -> bool:
    """Whether a preprocessor asks for sequence lengths (a packing or splitting one)."""
    import inspect

    for step in task.preprocessors:
        inner = step.func if isinstance(step, functools.partial) else step
        if getattr(inner, "__name__", "") in _LENGTH_FREE or not callable(inner):
            continue
        if "sequence_length" in inspect.signature(inner).parameters:
            return True
    return False


def _key(task: Any, split: str, vocabulary: Vocabulary, lengths: dict | None) -> str:
    """Hash of all that the cache of a split depends on."""
    source = task.source
    function = getattr(source, "_dataset_fn", None)
    reads: Callable | None = getattr(function, "files", None)
    files = list(reads(split)) if reads else []
    if load_seqio().FileDataSource in type(source).__mro__:
        files += [str(path) for path in source.list_shards(split)]
    return fingerprint(
        {
            "format": FORMAT,
            "task": task.name,
            "split": split,
            "cast": describe(getattr(function, "task", None)),
            "source": [str(source) if "0x" not in str(source) else "", describe(source)],
            "files": [[p, file_hash(p)] if os.path.isfile(p) else [p, ""] for p in files],
            "preprocessors": [describe(step) for step in task.preprocessors],
            "features": {
                key: [str(feature.dtype), feature.add_eos, feature.required]
                for key, feature in task.output_features.items()
            },
            "vocabulary": vocabulary.fingerprint,
            "lengths": lengths,
        }
    )


def _as_user_error(name: str, split: str, error: Exception) -> UserError:
    """One line out of what seqio or TensorFlow raised; our own message where there is one."""
    text = str(error)
    if found := re.search(r"UserError: (.*)", text):
        said = found.group(1)
        return UserError(
            said if said.startswith("task ") else f"task {name!r} split {split!r}: {said}"
        )
    if found := re.search(r"missing expected output feature after preprocessing: (\w+)", text):
        return UserError(
            f"task {name!r} split {split!r}: its examples lack {found.group(1)!r} after its "
            "preprocessors"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    # TensorFlow puts what happened in user code at the end of a traceback of its own.
    line = lines[-1] if lines[0] == "in user code:" else f"{type(error).__name__}: {lines[0]}"
    return UserError(f"task {name!r} split {split!r}: {line[:300]}")


class _Writer:
    """Appends arrays of unequal length; saves them as flat data and offsets."""

    def __init__(self, typecode: str):
        self.data, self.offsets = array.array(typecode), array.array("q", [0])

    def add(self, values: np.ndarray) -> None:
        self.data.frombytes(values.tobytes())
        self.offsets.append(len(self.data))


def _write(task: Any, split: str, lengths: dict | None, folder: str, key: str) -> None:
    """Runs the task's preprocessors over a split and writes the cache's files."""
    features = task.output_features
    writers: dict[str, _Writer] = {}
    lines = array.array("q", [0])
    with open(os.path.join(folder, "examples.jsonl"), "wb") as file:
        for example in _examples(task, split, lengths):
            if not writers:  # an optional feature (`inputs` of running text) may be absent
                present = [k for k, f in features.items() if f.required or k in example]
                writers = {name: _Writer("i") for name in present}
            for name, writer in writers.items():
                tokens = np.asarray(example.pop(name))
                if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
                    raise UserError(
                        f"task {task.name!r}: {name!r} is no list of token ids; its preprocessors "
                        "must end with seqio.preprocessors.tokenize and append_eos"
                    )
                ended = len(tokens) and tokens[-1] == 1
                if features[name].add_eos and not ended:
                    tokens = np.append(tokens, 1)
                writer.add(tokens.astype(np.int32))
            file.write(json.dumps(plain(example), ensure_ascii=False).encode() + b"\n")
            lines.append(file.tell())
    if len(lines) == 1:
        raise UserError(f"task {task.name!r} split {split!r} has no examples")
    for name, writer in writers.items():
        np.save(os.path.join(folder, f"{name}.npy"), np.array(writer.data, np.int32))
        np.save(os.path.join(folder, f"{name}_offsets.npy"), np.array(writer.offsets, np.int64))
    np.save(os.path.join(folder, "examples_offsets.npy"), np.array(lines, np.int64))
    meta = {"key": key, "format": FORMAT, "task": task.name, "split": split}
    meta |= {"examples": len(lines) - 1, "text_only": "inputs" not in writers}
    with open(os.path.join(folder, "meta.json"), "w", encoding="utf-8") as file:
        json.dump(meta, file)


def _examples(task: Any, split: str, lengths: dict | None):
    """The preprocessed examples of a split, untruncated and in order."""
    try:
        dataset = task.get_dataset(
            lengths,
            split,
            shuffle=False,
            seed=0,
            trim_output_features=False,
            try_in_mem_cache=False,
        )
        # One step of TensorFlow's iterator costs as much as tokenising 20 sentences.
        for batch in dataset.ragged_batch(256).as_numpy_iterator():
            rows = {key: _rows(value, key in task.output_features) for key, value in batch.items()}
            for values in zip(*rows.values(), strict=True):
                yield dict(zip(rows, values, strict=True))
    except UserError:
        raise
    except Exception as error:  # seqio and TensorFlow raise many kinds; all mean a bad task
        raise _as_user_error(task.name, split, error) from error


def _rows(value: Any, tokens: bool) -> list:
    """The examples' values of one feature out of a ragged batch."""
    splits = getattr(value, "row_splits", None)
    if tokens and splits is not None:
        return np.split(np.asarray(value.values), splits[1:-1])
    if isinstance(value, Mapping):
        parts = {key: _rows(part, False) for key, part in value.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    if tokens:
        return list(value)
    return value.to_list() if hasattr(value, "to_list") else value.tolist()
