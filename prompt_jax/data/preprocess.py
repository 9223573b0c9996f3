"""seqio preprocessors and `text_task`, with which a data set becomes a task in a few lines.

Importing this module hides accelerators from TensorFlow before its first operation.
"""

import os
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from prompt_jax.data import metrics
from prompt_jax.data.quiet import quiet_start
from prompt_jax.errors import UserError, nearest

with quiet_start():
    import seqio
    import tensorflow as tf


def _quiet_tensorflow() -> None:
    """No accelerator and few threads for TensorFlow, unless the program has used it already."""
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(2)
        tf.config.threading.set_inter_op_parallelism_threads(2)
    except RuntimeError:
        pass


_quiet_tensorflow()

Dataset = tf.data.Dataset
Rows = Iterable[Mapping[str, object]]


def verbalize(dataset: Dataset, words: Mapping, key: str = "label", to: str = "targets") -> Dataset:
    """Writes a label's words: `example[to] = words[example[key]]`.

    Args:
        dataset: examples with the feature `key` (text or integer).
        words: label -> text; each label's verbalizer.
        key: the feature that holds the label.
        to: the feature to write.

    Raises:
        UserError: (while the data is read) a label that has no words.
    """
    words = {str(label): text for label, text in words.items()}
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(list(words), list(words.values())), default_value=""
    )
    known = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(list(words), [1] * len(words)), default_value=0
    )

    def refuse(value):
        raise UserError(
            f"label {value.decode()!r} of feature {key!r} has no verbalizer; "
            + nearest(value.decode(), words)
        )

    def write(example):
        label = example[key]
        label = label if label.dtype == tf.string else tf.as_string(label)
        text = tf.cond(
            known.lookup(label) > 0,
            lambda: table.lookup(label),
            lambda: tf.ensure_shape(tf.numpy_function(refuse, [label], tf.string), []),
        )
        return {**example, to: text}

    return dataset.map(write, num_parallel_calls=2)


def cast_text(dataset: Dataset, **templates: str) -> Dataset:
    """Casts features into text: `cast_text(inputs="premise: {premise} question: {question}")`.

    Args:
        dataset: examples whose named features are text or numbers.
        templates: new feature -> template; {name} stands for the feature's text.

    Raises:
        UserError: a template names a feature that the examples lack.
    """
    spec = dataset.element_spec

    def fill(example, template):
        parts = []
        for literal, name, _, _ in string.Formatter().parse(template):
            parts.append(tf.constant(literal))
            if name is not None:
                if name not in spec:
                    raise UserError(
                        f"template {template!r}: feature {name!r}: " + nearest(name, spec)
                    )
                value = example[name]
                parts.append(value if value.dtype == tf.string else tf.as_string(value))
        return tf.strings.join(parts)

    return dataset.map(
        lambda example: example | {to: fill(example, text) for to, text in templates.items()},
        num_parallel_calls=2,
    )


def read_tsv(path: str) -> list[dict[str, str]]:
    """Rows of a TSV file with a header line, no quoting.

    Raises:
        UserError: no such file, or a row with too few or too many columns.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    header = lines[0].split("\t")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise UserError(f"{path}:{number}: {len(fields)} columns, the header has {len(header)}")
        rows.append(dict(zip(header, fields, strict=True)))
    return rows


def dataset_of(rows: Rows) -> Dataset:
    """A tf.data.Dataset of equal-keyed rows: text, numbers, or lists of either."""
    rows = list(rows)
    if not rows:
        return tf.data.Dataset.from_tensor_slices({"inputs": tf.constant([], tf.string)})
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return tf.data.Dataset.from_tensor_slices(
        {
            key: tf.ragged.constant(column) if isinstance(column[0], list) else column
            for key, column in columns.items()
        }
    )


def text_task(
    name: str,
    read: Callable[[str], Rows],
    *,
    splits: Sequence[str] = ("train", "validation", "test"),
    preprocessors: Sequence[Callable] = (),
    postprocess_fn: Callable | None = None,
    metric_fns: Sequence[Callable] = (metrics.accuracy,),
    files: Callable[[str], Sequence[str]] | None = None,
    text_only: bool = False,
) -> seqio.Task:
    """Registers a task: rows, then preprocessors, then tokens with EOS.

    Args:
        name: the task's name.
        read: split -> rows (dicts); called when the task is first tokenised.
        splits: names that `read` takes.
        preprocessors: they must leave the text features `inputs` and `targets`.
        postprocess_fn, metric_fns: as in seqio.
        files: split -> local files that `read` opens, so that the cache follows their content.
        text_only: the examples have `targets` alone (pretraining text).

    Returns:
        The registered task; any backbone's vocabulary takes the place of its own.
    """

    def dataset_fn(split, shuffle_files=False, seed=None):
        del shuffle_files, seed
        return dataset_of(read(split))

    dataset_fn.files = files
    vocabulary = seqio.ByteVocabulary()
    # Optional, not absent: a mixture's tasks must have the same features.
    inputs = seqio.Feature(vocabulary, add_eos=True, required=not text_only)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset_fn=dataset_fn, splits=list(splits)),
        preprocessors=[
            *preprocessors,
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features={"inputs": inputs, "targets": seqio.Feature(vocabulary, add_eos=True)},
        postprocess_fn=postprocess_fn,
        metric_fns=list(metric_fns),
    )
