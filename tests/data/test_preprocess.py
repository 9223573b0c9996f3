"""Rows of Python into TensorFlow, and how TensorFlow is kept quiet."""

import tensorflow as tf

from prompt_jax.data import preprocess


def test_dataset_of_keeps_lists_and_scalars():
    rows = [{"a": "x", "n": 1, "l": ["p"]}, {"a": "y", "n": 2, "l": ["q", "r"]}]
    made = list(preprocess.dataset_of(rows))
    assert [row["l"].numpy().tolist() for row in made] == [[b"p"], [b"q", b"r"]]
    assert [row["n"].numpy() for row in made] == [1, 2]


def test_rows_are_read_as_they_are_asked_for(monkeypatch):
    """Chunk by chunk; the last one is short, and nothing is lost between them."""
    monkeypatch.setattr(preprocess, "_CHUNK", 4)
    read = []

    def rows():
        for n in range(11):
            read.append(n)
            yield {"n": n, "text": f"é{n}", "few": ["x"] * (n % 3)}

    dataset = preprocess.dataset_of(rows())
    assert read == [0]
    made = list(dataset)
    assert [row["n"].numpy() for row in made] == list(range(11)) == read
    assert [row["text"].numpy().decode() for row in made] == [f"é{n}" for n in range(11)]
    assert [len(row["few"].numpy()) for row in made] == [n % 3 for n in range(11)]


def test_tensorflow_is_kept_off_accelerators(monkeypatch):
    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: calls.append(given))
    preprocess._quiet_tensorflow()
    assert calls == [([], "GPU")]
    assert tf.config.get_visible_devices("GPU") == []
