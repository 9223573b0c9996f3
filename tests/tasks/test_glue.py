"""SST-2, from made-up files of the published form; and the packing bars on the real rows."""

import itertools
import os

import numpy as np
import pytest

from prompt_jax.data import cache, layout
from prompt_jax.data.loader import Data, Loader
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.errors import UserError

BYTE = load_vocabulary("byte")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "sst2").mkdir()
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    return tmp_path / "sst2"


def test_sst2_from_files(folder, tmp_path):
    (folder / "train.tsv").write_text('sentence\tlabel\na "fine" film\t1\nno wit , none\t0\n')
    made = cache.build("sst2", "train", BYTE, str(tmp_path / "cache"))
    assert [BYTE.decode(made.inputs(i)) for i in range(2)] == [
        'sentence: a "fine" film',
        "sentence: no wit , none",
    ]
    assert [BYTE.decode(made.targets(i)) for i in range(2)] == ["positive", "negative"]
    example = made.example(1)
    assert example["label"] == "0" and example["idx"] == 1
    task = cache.get_task("sst2")
    assert task.target(example) == "negative"
    assert task.metrics(["negative", "positive"], ["negative", "x"]) == {
        "accuracy": 0.5,
        "invalid": 0.5,
    }


def test_sst2_follows_the_files_content(folder, tmp_path):
    keys = set()
    for label in ("1", "0"):
        (folder / "train.tsv").write_text(f"sentence\tlabel\nfine\t{label}\n")
        keys.add(cache.build("sst2", "train", BYTE, str(tmp_path / "cache")).key)
    assert len(keys) == 2


def test_sst2_with_a_strange_label(folder, tmp_path):
    (folder / "test.tsv").write_text("sentence\tlabel\nfine\t-1\n")
    with pytest.raises(
        UserError, match="label '-1' has no verbalizer; valid: negative, positive; the split has no"
    ) as caught:
        cache.build("sst2", "test", BYTE, str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_sst2_nowhere_says_both_ways(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    monkeypatch.setattr(tfds, "load", offline)
    with pytest.raises(
        UserError, match=r"PROMPT_JAX_DATA/sst2/validation\{.*TFDS download glue/sst2.*no network"
    ) as caught:
        cache.build("sst2", "validation", BYTE, str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_sst2_from_tfds(tmp_path, monkeypatch):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    rows = {"sentence": ["fine film", "dull"], "label": [1, 0], "idx": np.array([7, 3], np.int32)}

    def load(name, split):
        assert (name, split) == ("glue/sst2", "validation")
        return tf.data.Dataset.from_tensor_slices(rows)

    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    monkeypatch.setattr(tfds, "load", load)
    made = cache.build("sst2", "validation", BYTE, str(tmp_path / "cache"))
    assert BYTE.decode(made.inputs(0)) == "sentence: fine film" and made.example(0)["idx"] == 0
    assert [BYTE.decode(made.targets(i)) for i in range(2)] == ["positive", "negative"]


def real(name: str) -> str:
    path = os.path.join(os.environ.get("PROMPT_JAX_DATA", ""), "sst2", name)
    if not os.path.isfile(path):
        pytest.skip("PROMPT_JAX_DATA holds no sst2 files")
    return path


def test_packing_bars_on_sst2(tmp_path):
    """P = 20, batch 32, T5's 32k vocabulary where PROMPT_JAX_VOCABULARY names it."""
    from prompt_jax.data.source import read_rows

    vocabulary = os.environ.get("PROMPT_JAX_VOCABULARY", "")
    if not os.path.isfile(vocabulary):
        pytest.skip("PROMPT_JAX_VOCABULARY names no sentencepiece model of T5")
    words = load_vocabulary(vocabulary)
    rows = list(itertools.islice(read_rows(real("train.tsv")), 20000))

    class Rows:
        pairs = [[*words.encode(row["sentence"]), 1] for row in rows]

        def __len__(self):
            return len(self.pairs)

        def inputs(self, index):
            return np.array(self.pairs[index], np.int32)

        def targets(self, index):
            return np.array([5, 1], np.int32)

        def example(self, index):
            return {}

        def lengths(self):
            return np.array([[len(pair), 2] for pair in self.pairs])

    data = Data(task_feature_lengths={"inputs": 256, "targets": 8}, batch_size=32)
    loader = Loader(data, {"sst2": Rows()}, slots=layout.slot_ids(20))
    packed = padded = longest = 0
    for step in range(200):
        batch, account = loader.batch(step)
        packed += batch["encoder_input_tokens"].size
        padded += 32 * 256
        longest += 32 * (20 + max(len(Rows.pairs[i]) for i in account.index))
    assert packed / padded <= 0.16
    assert packed / longest <= 0.6
