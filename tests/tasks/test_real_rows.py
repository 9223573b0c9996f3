"""Real rows, where PROMPT_JAX_DATA has them: published counts, every file, waiting for data."""

import collections
import json
import os

import pytest

from prompt_jax.__main__ import main
from prompt_jax.data import task
from prompt_jax.data.source import Grouped, Source
from prompt_jax.errors import UserError

# Of the labelled splits: GLUE's and SuperGLUE's own numbers; SST-2's test is the original set's.
COUNTS = {
    ("sst2", "train"): {"positive": 37569, "negative": 29780},
    ("sst2", "validation"): {"positive": 444, "negative": 428},
    ("rte", "train"): {"entailment": 1249, "not_entailment": 1241},
    ("rte", "validation"): {"entailment": 146, "not_entailment": 131},
    ("mrpc", "train"): {"equivalent": 2474, "not_equivalent": 1194},
    ("mrpc", "validation"): {"equivalent": 279, "not_equivalent": 129},
    ("mrpc", "test"): {"equivalent": 1147, "not_equivalent": 578},
    ("cb", "train"): {"contradiction": 119, "entailment": 115, "neutral": 16},
    ("cb", "validation"): {"contradiction": 28, "entailment": 23, "neutral": 5},
    ("boolq", "validation"): {"True": 2033, "False": 1237},
}


def entry(name):
    """The task, or a skip where its files are not here."""
    found = task.known()[name]
    if not any(found.source.files(split) for split in found.splits):
        pytest.skip(f"PROMPT_JAX_DATA holds no {name}")
    return found


@pytest.mark.parametrize(("name", "split"), COUNTS, ids="-".join)
def test_label_counts_are_the_published_ones(name, split):
    found = collections.Counter(e["targets"] for e in entry(name).examples(split))
    assert found == COUNTS[name, split]


def test_the_test_split_of_sst2_is_whole():
    assert sum(1 for _ in entry("sst2").examples("test")) == 1821


def test_files_are_cast_without_a_word_lost():
    """Every split of every task that is here: text on both sides, and only the task's labels."""
    if not os.environ.get("PROMPT_JAX_DATA"):
        pytest.skip("PROMPT_JAX_DATA is not set")
    seen = 0
    for found in task.known().values():
        if isinstance(found, task.Mixture):
            continue
        for split in found.splits:
            if not isinstance(found.source, Source | Grouped) or not found.source.files(split):
                continue
            rows = list(found.examples(split))
            seen += 1
            assert rows and all(row["inputs"].strip() and row["targets"] for row in rows), found
            assert not found.labels or {row["targets"] for row in rows} <= set(found.labels), found
    assert seen


def test_what_is_not_here_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match="PROMPT_JAX_DATA/quoref/test"):
        list(task.known()["quoref"].examples("test"))


def test_training_hardly_waits_for_data(tmp_path, monkeypatch):
    """SST-2, warm cache: less than 5 % of the time of real steps is waiting."""
    entry("sst2")
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))
    files = ("models/micro_xs.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin")
    bindings = (
        f"MODEL_DIR='{tmp_path / 'run'}'",
        "MIXTURE_OR_TASK_NAME='sst2'",
        "TASK_FEATURE_LENGTHS={'inputs': 128, 'targets': 4}",
        "PROMPT_LENGTH=20",
        "TRAIN_STEPS=100",
        "EVAL_PERIOD=1000",
        "EVAL_STEPS=1",
        "Run.eval_split='validation'",
    )
    flags = [*(f"--gin_file={file}" for file in files), *(f"--gin.{b}" for b in bindings)]
    assert main(["train", *flags]) == 0
    seconds = json.loads((tmp_path / "run" / "record.json").read_text())["seconds"]
    assert seconds["data_wait"] < 0.05 * seconds["train"], seconds
