"""Rows: from files, from TFDS, from functions; what is said when they are nowhere."""

import numpy as np
import pytest

from prompt_jax.data.source import Files, Grouped, Rows, Source, as_source, plain, read_rows
from prompt_jax.errors import UserError


def test_tsv_has_no_quoting_and_no_other_line_ends(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('sentence\tlabel\nsay "hi"\u2028there\t1\n\n bad\x85 \t0\n', encoding="utf-8")
    assert list(read_rows(str(path))) == [
        {"sentence": 'say "hi"\u2028there', "label": "1"},
        {"sentence": " bad\x85 ", "label": "0"},
    ]


def test_files_of_other_systems(tmp_path):
    """A byte-order mark and carriage returns, as spreadsheets write them."""
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfsentence\tlabel\r\nfine\t1\r\n")
    assert list(read_rows(str(tmp_path / "a.tsv"))) == [{"sentence": "fine", "label": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"sentence\tlabel\ngood\n", "a.tsv:2: 1 columns, the header has 2"),
        ("a.tsv", b"sentence\n\xff\xfe\n", "a.tsv: is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl:2: is not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: is no JSON object"),
        ("a.csv", b"a,b\n", "a.csv: rows are read from .tsv and .jsonl files"),
    ],
)
def test_damaged_files_are_named_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(str(tmp_path / name)))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="none.tsv: No such file"):
        list(read_rows(str(tmp_path / "none.tsv")))


def test_files_come_before_tfds(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    asked = []

    def load(name, split):
        asked.append((name, split))
        return [{"text": b"t", "label": np.int64(1), "few": np.array([b"a", b"b"], object)}]

    monkeypatch.setattr(tfds, "load", load)
    monkeypatch.setattr(tfds, "as_numpy", lambda rows: rows)
    source = Source("mine", "set/config", tfds_splits={"train": "train[:10]"})
    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    assert list(source.rows("train")) == [{"idx": 0, "text": "t", "label": 1, "few": ["a", "b"]}]
    assert asked == [("set/config", "train[:10]")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text('{"text": "f", "idx": 7}\n{"text": "g"}\n')
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    assert list(source.rows("train")) == [{"idx": 0, "text": "f"}, {"idx": 1, "text": "g"}]
    assert source.state() == f"local: {tmp_path / 'mine'} (train)"
    assert len(asked) == 1


def test_what_is_nowhere_says_both_ways(monkeypatch):
    import tensorflow_datasets as tfds

    def load(name, split):
        raise OSError("no network\nat all")

    monkeypatch.setattr(tfds, "load", load)
    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    with pytest.raises(UserError) as error:
        list(Source("mine", "set/config").rows("test"))
    said = str(error.value)
    assert "$PROMPT_JAX_DATA/mine/test{.tsv,.jsonl}" in said and "TFDS download set/config" in said
    assert "no network" in said and "\n" not in said
    with pytest.raises(UserError, match="put it into .PROMPT_JAX_DATA/other/test"):
        list(Source("other").rows("test"))


def test_a_folder_of_files_is_a_source(tmp_path):
    for name in ("validation.tsv", "train.tsv", "extra.jsonl"):
        (tmp_path / name).write_text("text\nx\n" if name.endswith("tsv") else '{"text": "x"}\n')
    (tmp_path / "notes.txt").write_text("")
    source = as_source(str(tmp_path))
    assert source.splits == ("train", "validation", "extra")
    assert [row["text"] for split in source.splits for row in source.rows(split)] == ["x"] * 3
    assert source.files("train") == [str(tmp_path / "train.tsv")]
    with pytest.raises(UserError, match="holds no SPLIT.tsv or SPLIT.jsonl"):
        as_source(str(tmp_path / "nowhere"))
    assert as_source({"dev": tmp_path / "train.tsv"}).splits == ("dev",)
    assert as_source(source) is source and isinstance(source, Files)


def test_a_function_is_a_source(tmp_path):
    source = as_source(lambda split: [{"text": split}, {"text": "b", "idx": 5}])
    assert isinstance(source, Rows)
    assert list(source.rows("dev")) == [{"idx": 0, "text": "dev"}, {"idx": 1, "text": "b"}]


def test_rows_of_one_meaning_are_one_outside_training(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text("mr\tref\na\tone\nb\ttwo\na\tthree\n")
    source = Grouped(Source(f"{tmp_path}/", splits=("train", "test")), "mr", "ref")
    assert [row["ref"] for row in source.rows("train")] == ["one", "two", "three"]
    assert [(row["mr"], row["references"]) for row in source.rows("test")] == [
        ("a", ["one", "three"]),
        ("b", ["two"]),
    ]


def test_values_of_tensorflow_are_plain():
    import tensorflow as tf

    ragged = tf.ragged.constant([["a"], ["b", "c"]])
    value = {"r": ragged, "a": np.array([1, 2]), "s": np.float32(0.5), "b": b"\xc3\xa9", "n": None}
    assert plain(value) == {"r": [["a"], ["b", "c"]], "a": [1, 2], "s": 0.5, "b": "é", "n": None}
