"""Casting examples into text."""

import numpy as np
import pytest
import tensorflow as tf

from prompt_jax.data import preprocess
from prompt_jax.errors import UserError


def rows_of(dataset):
    return [
        {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
        for row in dataset.as_numpy_iterator()
    ]


def test_verbalize_takes_numbers_and_text():
    words = {0: "bad", 1: "good"}
    for labels in ([1, 0, 1], ["1", "0", "1"], np.array([1, 0, 1], np.int64)):
        dataset = tf.data.Dataset.from_tensor_slices({"label": labels})
        made = rows_of(preprocess.verbalize(dataset, words))
        assert [row["targets"] for row in made] == ["good", "bad", "good"]
    dataset = tf.data.Dataset.from_tensor_slices({"kind": ["entailment"]})
    made = rows_of(preprocess.verbalize(dataset, {"entailment": ""}, key="kind", to="answer"))
    assert made[0]["answer"] == ""  # an empty verbalizer is no missing one


def test_unknown_label_is_named_with_the_nearest():
    dataset = tf.data.Dataset.from_tensor_slices({"label": ["entailment", "entailmet"]})
    dataset = preprocess.verbalize(dataset, {"entailment": "yes", "neutral": "maybe"})
    with pytest.raises(tf.errors.OpError, match="UserError: label 'entailmet' .*'entailment'"):
        list(dataset)


def test_cast_text_fills_templates():
    dataset = tf.data.Dataset.from_tensor_slices({"a": ["x", "y"], "n": [1, 2]})
    made = preprocess.cast_text(dataset, inputs="a: {a} n: {n}.", targets="{{{a}}}")
    assert rows_of(made) == [
        {"a": "x", "n": 1, "inputs": "a: x n: 1.", "targets": "{x}"},
        {"a": "y", "n": 2, "inputs": "a: y n: 2.", "targets": "{y}"},
    ]
    with pytest.raises(UserError, match="'premise'"):
        preprocess.cast_text(
            tf.data.Dataset.from_tensor_slices({"premise": ["x"]}), inputs="{premis}"
        )


def test_read_tsv(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('sentence\tlabel\nsay "hi"\u2028there\t1\n bad\x85 \t0\n', encoding="utf-8")
    assert preprocess.read_tsv(str(path)) == [
        {"sentence": 'say "hi"\u2028there', "label": "1"},
        {"sentence": " bad\x85 ", "label": "0"},
    ]
    path.write_text("sentence\tlabel\ngood\n")
    with pytest.raises(UserError, match="a.tsv:2: 1 columns"):
        preprocess.read_tsv(str(path))
    with pytest.raises(UserError, match="No such file"):
        preprocess.read_tsv(str(tmp_path / "none.tsv"))


def test_dataset_of_keeps_lists_and_scalars():
    rows = [{"a": "x", "n": 1, "l": ["p"]}, {"a": "y", "n": 2, "l": ["q", "r"]}]
    made = list(preprocess.dataset_of(rows))
    assert [row["l"].numpy().tolist() for row in made] == [[b"p"], [b"q", b"r"]]
    assert [row["n"].numpy() for row in made] == [1, 2]


def test_tensorflow_is_kept_off_accelerators(monkeypatch):
    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: calls.append(given))
    preprocess._quiet_tensorflow()
    assert calls == [([], "GPU")]
    assert tf.config.get_visible_devices("GPU") == []
