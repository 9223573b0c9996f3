"""Caches of stock seqio tasks: content, keys, damage, and every way a task can be wrong."""

import functools
import os

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_jax.data import cache, preprocess, task
from prompt_jax.data.source import as_source
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.errors import UserError
from prompt_jax.slots import SLOT0

BYTES = seqio.ByteVocabulary()
ROWS = [
    {"inputs": "good film", "targets": "yes", "label": 1, "answers": ["yes", "yep"]},
    {"inputs": "a dull, very dull plot", "targets": "no", "label": 0, "answers": ["no"]},
    {"inputs": "", "targets": "yes", "label": 1, "answers": ["yes", "y", "si"]},
]
PREPROCESSORS = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]


def register(name, rows=ROWS, preprocessors=PREPROCESSORS, features=None, **kwargs):
    """A stock seqio task; a second registration takes the place of the first."""
    seqio.TaskRegistry.remove(name)
    features = features or {k: seqio.Feature(BYTES, add_eos=True) for k in ("inputs", "targets")}

    def dataset_fn(split, shuffle_files=False, seed=None):
        return preprocess.dataset_of(rows)

    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset_fn, splits=["train", "validation"]),
        preprocessors=preprocessors,
        output_features=features,
        **kwargs,
    )


def framed(dataset, template):
    before, after = template.split("{inputs}")
    return dataset.map(lambda row: row | {"inputs": before + row["inputs"] + after})


@pytest.fixture
def words(spm_path):
    return load_vocabulary(spm_path)


@pytest.fixture
def build(words, tmp_path):
    return functools.partial(cache.build, vocabulary=words, cache_dir=str(tmp_path))


def refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_content_is_the_examples_in_the_backbones_vocabulary(build, words):
    register("t_content")
    made = build("t_content", "train")
    assert len(made) == 3
    for number, row in enumerate(ROWS):
        assert made.inputs(number).tolist() == [*words.encode(row["inputs"]), 1]
        assert made.targets(number).tolist() == [*words.encode(row["targets"]), 1]
        assert made.inputs(number).dtype == np.int32
        example = made.example(number)
        assert example["answers"] == row["answers"] and example["label"] == row["label"]
        assert example["targets_pretokenized"] == row["targets"]
        assert "inputs" not in example
    counted = [[len(made.inputs(i)), len(made.targets(i))] for i in range(3)]
    assert made.lengths().tolist() == counted
    assert not made.slot_counts().any()


def test_eos_is_there_once_whatever_the_task_does(build, words):
    tokenize = seqio.preprocessors.tokenize
    for number, steps in enumerate(
        (
            [tokenize],
            [tokenize, seqio.preprocessors.append_eos_after_trim],
            [seqio.preprocessors.tokenize_and_append_eos],
        )
    ):
        register(f"t_eos{number}", preprocessors=steps)
        made = build(f"t_eos{number}", "train")
        assert made.inputs(1).tolist() == [*words.encode(ROWS[1]["inputs"]), 1]
    features = {
        "inputs": seqio.Feature(BYTES, add_eos=False),
        "targets": seqio.Feature(BYTES, add_eos=True),
    }
    register("t_eos_off", features=features)
    assert 1 not in build("t_eos_off", "train").inputs(0)


def test_nothing_is_truncated(build, words):
    register("t_long", rows=[{"inputs": "good film " * 300, "targets": "yes"}])
    made = build("t_long", "train", lengths={"inputs": 8, "targets": 2})
    assert len(made.inputs(0)) == len(words.encode("good film " * 300)) + 1


def test_a_preprocessor_that_asks_for_lengths_gets_them(build, words):
    def cut(dataset, sequence_length):
        keep = sequence_length["inputs"]
        return dataset.map(lambda ex: ex | {"inputs": ex["inputs"][:keep]})

    tokenize, append = PREPROCESSORS
    register("t_cut", preprocessors=[tokenize, cut, append])
    short = build("t_cut", "train", lengths={"inputs": 3, "targets": 1})
    long = build("t_cut", "train", lengths={"inputs": 5, "targets": 1})
    assert short.targets(1).tolist() == [*words.encode("no"), 1] and len(short.targets(1)) > 2
    assert len(short.inputs(1)) == 4 and len(long.inputs(1)) == 6 and short.key != long.key


def test_second_time_it_is_opened_not_made(build, monkeypatch):
    register("t_twice")
    first = build("t_twice", "train")
    monkeypatch.setattr(cache, "_write", lambda *a: pytest.fail("made again"))
    second = build("t_twice", "train")
    assert second.key == first.key and second.inputs(1).tolist() == first.inputs(1).tolist()


def test_key_follows_all_that_the_cache_is_made_from(build, tmp_path):
    keys = []
    register("t_key")
    keys.append(build("t_key", "train").key)
    keys.append(build("t_key", "validation").key)
    keys.append(build("t_key", "train", vocabulary=load_vocabulary("byte")).key)
    register("t_key", rows=ROWS[:2])
    keys.append(build("t_key", "train").key)
    for word in ("Q: {inputs}", "T: {inputs}"):
        step = functools.partial(framed, template=word)
        register("t_key", preprocessors=[step, *PREPROCESSORS])
        keys.append(build("t_key", "train").key)
    assert len(set(keys)) == len(keys)
    register("t_key")
    assert build("t_key", "train").key == keys[0]


def test_key_follows_the_content_of_files(build, tmp_path):
    path = tmp_path / "rows.txt"

    def made(text):
        path.write_text(text)
        seqio.TaskRegistry.remove("t_file")
        seqio.TaskRegistry.add(
            "t_file",
            source=seqio.TextLineDataSource({"train": str(tmp_path / "row*.txt")}),
            preprocessors=[
                lambda lines: lines.map(lambda line: {"inputs": line, "targets": line}),
                *PREPROCESSORS,
            ],
            output_features={k: seqio.Feature(BYTES) for k in ("inputs", "targets")},
        )
        return build("t_file", "train")

    one, two = made("good\n"), made("bad\n")
    assert one.key != two.key and one.inputs(0).tolist() != two.inputs(0).tolist()
    assert made("good\n").key == one.key


def test_damaged_or_half_written_caches_are_made_again(build, tmp_path):
    register("t_damage")
    made = build("t_damage", "train")
    expected = made.inputs(1).tolist()
    for name in ("inputs.npy", "examples.jsonl", "meta.json"):
        with open(os.path.join(made.folder, name), "r+b") as file:
            file.truncate(os.path.getsize(os.path.join(made.folder, name)) - 8)
        again = build("t_damage", "train")
        assert again.inputs(1).tolist() == expected and again.example(2)["label"] == 1
    os.remove(os.path.join(made.folder, "targets.npy"))
    assert build("t_damage", "train").inputs(1).tolist() == expected
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".making")]


def test_text_only_tasks_have_no_inputs(build, words):
    features = {"targets": seqio.Feature(BYTES, add_eos=True)}
    register("t_text", rows=[{"targets": "good film"}], features=features)
    made = build("t_text", "train")
    assert made.text_only and made.inputs(0) is None and made.lengths() is None
    assert made.targets(0).tolist() == [*words.encode("good film"), 1]


def test_tasks_may_write_slots(build):
    def slotted(dataset):
        ids = tf.range(SLOT0, SLOT0 + 2)
        return dataset.map(lambda ex: ex | {"inputs": tf.concat([ids, ex["inputs"]], 0)})

    register("t_slots", preprocessors=[PREPROCESSORS[0], slotted, PREPROCESSORS[1]])
    made = build("t_slots", "train")
    assert made.slot_counts().tolist() == [2, 2, 2]
    assert made.inputs(0)[:2].tolist() == [SLOT0, SLOT0 + 1]


def test_mixtures_give_rates_and_separate_tasks():
    register("t_mix_a")
    register("t_mix_b")
    seqio.MixtureRegistry.remove("t_mix")
    seqio.MixtureRegistry.add("t_mix", [("t_mix_a", 3.0), ("t_mix_b", 1.0)])
    tasks, rate = cache.get_tasks("t_mix")
    assert sorted(tasks) == ["t_mix_a", "t_mix_b"]
    assert (rate("t_mix_a", 10), rate("t_mix_b", 10)) == (3.0, 1.0)
    refused(lambda: cache.get_task("t_mix"), "t_mix_a")


def test_metrics_and_postprocessing_are_the_tasks_own():
    def hits(targets, predictions):
        return {"hits": sum(t == p for t, p in zip(targets, predictions, strict=True))}

    def mean_score(targets, scores):
        return {"mean_score": seqio.metrics.Scalar(np.mean(scores)), "all": np.array(scores)}

    def best(text, example, is_target):
        return example["answers"] if is_target else [text.strip()]

    register("t_metrics", metric_fns=[hits, mean_score], postprocess_fn=best)
    task = cache.get_task("t_metrics")
    example = {"answers": ["no", "nope"], "targets_pretokenized": "no"}
    assert task.target(example) == ["no", "nope"]
    assert task.postprocess(" no ", example) == ["no"]
    assert task.metrics([["no"]], [["no"]]) == {"hits": 1.0}
    found = task.metrics([["no"]], scores=[-2.0])
    assert found == {"mean_score": -2.0}


def test_bad_tasks_are_one_line(build):
    register("t_sentiment")
    refused(lambda: build("t_sentimnet", "train"), "t_sentiment", "tasks/*.py")
    refused(lambda: build("t_sentiment", "trian"), "trian", "train")
    register("t_empty", rows=[])
    register("t_empty", rows=ROWS, preprocessors=[lambda ds: ds.take(0), *PREPROCESSORS])
    refused(lambda: build("t_empty", "train"), "t_empty", "no examples")
    register("t_no_targets", rows=[{"inputs": "a"}])
    refused(lambda: build("t_no_targets", "train"), "lack 'targets'")
    register("t_no_inputs", rows=[{"targets": "a"}])
    refused(lambda: build("t_no_inputs", "train"), "lack 'inputs'")
    register("t_inputs_only", features={"inputs": seqio.Feature(BYTES)})
    refused(lambda: build("t_inputs_only", "train"), "lack 'targets'")
    register("t_raw", preprocessors=[])
    refused(lambda: build("t_raw", "train"), "t_raw", "inputs")
    register("t_broken", preprocessors=[lambda ds: ds.map(lambda ex: ex["txt"])])
    refused(lambda: build("t_broken", "train"), "t_broken", "KeyError: 'txt'")
    choose = task.Choose("{inputs}", {"0": "bad"})
    task.register(task.Task("t_label", as_source(lambda split: ROWS), choose))
    refused(lambda: build("t_label", "train"), "t_label", "label '1' has no verbalizer; valid: 0")
    assert not [n for n in os.listdir(build.keywords["cache_dir"]) if n.startswith(".making")]


def test_cache_folder_that_cannot_be_written_is_one_line(words, tmp_path):
    register("t_place")
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "below")
    refused(lambda: cache.build("t_place", "train", words, place), place)


def test_user_module_by_path_and_by_name(build, tmp_path, monkeypatch):
    path = tmp_path / "my_tasks.py"
    path.write_text(
        "from prompt_jax.data.task import register_text_task\n"
        "def read(split):\n"
        "    return [{'text': 'good', 'label': 1}]\n"
        "name = 't_of_{}'.format(__name__.split('_')[0])\n"
        "register_text_task(name, read, '{text}', verbalizers={'no': 'no', 'yes': 'yes'})\n"
    )
    assert len(build("t_of_prompt", "train", module=str(path))) == 1
    monkeypatch.chdir(tmp_path)
    assert len(build("t_of_my", "train", module="my_tasks")) == 1
    refused(lambda: build("t_of_me", "train", module="my_tasks"), "t_of_my", "my_tasks")
    refused(lambda: cache.get_task("x", "my_taskz"), "my_taskz")
    refused(lambda: cache.get_task("x", "nowhere.py"), "nowhere.py")
    (tmp_path / "bad_tasks.py").write_text("1 / 0\n")
    refused(lambda: cache.get_task("x", "bad_tasks"), "ZeroDivisionError")
