"""Registering tasks: casts, labels, equal and unequal registrations."""

import functools
import json
import linecache
import pathlib
import re

import pytest

from prompt_jax.data import cache, fingerprint, metrics, preprocess, registry, task
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.errors import UserError

BYTE = load_vocabulary("byte")
ROWS = [{"text": "good", "label": "1"}, {"text": "bad", "label": "0"}]


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """What a test registers is forgotten."""
    task.known()
    monkeypatch.setattr(task, "REGISTRY", dict(task.REGISTRY))


def rows(split):
    return ROWS


def other_rows(split):
    return ROWS[:1]


def test_a_text_task_end_to_end(tmp_path):
    made = task.register_text_task(
        "t_words", rows, "review: {text}", verbalizers={"0": "no", "1": "yes"}
    )
    assert made.labels == ("no", "yes") and made.metric_names == ["accuracy", "invalid"]
    tokens = cache.build("t_words", "train", BYTE, str(tmp_path))
    assert [BYTE.decode(tokens.inputs(i)) for i in range(2)] == ["review: good", "review: bad"]
    assert [BYTE.decode(tokens.targets(i)) for i in range(2)] == ["yes", "no"]
    handle = cache.get_task("t_words")
    targets = [handle.target(tokens.example(i)) for i in range(2)]
    assert handle.metrics(targets, ["yes", "maybe"]) == {"accuracy": 0.5, "invalid": 0.5}


def test_generation_and_extraction(tmp_path):
    data = [{"doc": "a b", "sum": "b", "answers": ["b", "the b"], "question": "q", "context": "c"}]
    source = {"train": str(tmp_path / "train.jsonl")}
    (tmp_path / "train.jsonl").write_text(json.dumps(data[0]) + "\n")
    task.register_generation_task("t_gen", source, "{doc}", "{sum}", metrics=(metrics.bleu,))
    task.register_extraction_task("t_ext", source)
    for name, inputs, references in (
        ("t_gen", "a b", ["b"]),
        ("t_ext", "question: q context: c", ["b", "the b"]),
    ):
        tokens = cache.build(name, "train", BYTE, str(tmp_path / "cache"))
        assert BYTE.decode(tokens.inputs(0)) == inputs
        assert BYTE.decode(tokens.targets(0)) == "b"
        assert cache.get_task(name).target(tokens.example(0)) == references
    assert cache.get_task("t_ext").metrics([["b", "the b"]], ["The B."]) == {"em": 1.0, "f1": 1.0}


def test_equal_content_may_be_registered_again():
    words = {"0": "no", "1": "yes"}
    register = functools.partial(task.register_text_task, "t_twice", rows, verbalizers=words)
    first = register("{text}")
    assert register("{text}") is first
    for change in (
        lambda: register("text: {text}"),
        lambda: task.register_text_task("t_twice", other_rows, "{text}", verbalizers=words),
        lambda: task.register_text_task("t_twice", rows, "{text}", verbalizers={"0": "no"}),
        lambda: task.register_mixture("t_twice", ["sst2"]),
    ):
        with pytest.raises(UserError, match="'t_twice' is registered already with other content"):
            change()


@pytest.mark.parametrize(
    ("verbalizers", "label", "word"),
    [
        ({"no": "n", "yes": "y"}, "yes", "y"),
        ({"no": "n", "yes": "y"}, 1, "y"),
        ({"no": "n", "yes": "y"}, "0", "n"),
        ({"1": "bad", "2": "good"}, "2", "good"),
        ({"1": "bad", "2": "good"}, 1, "bad"),
        ({"yes": ""}, "yes", ""),
    ],
)
def test_labels_by_name_and_by_number(verbalizers, label, word):
    choose = task.Choose("{text}", verbalizers)
    assert choose({"text": "x", "label": label, "idx": 0}, "train")[0]["targets"] == word


@pytest.mark.parametrize(
    ("verbalizers", "label", "message"),
    [
        ({"no": "n", "yes": "y"}, 2, "label '2' has no verbalizer; valid: no, yes"),
        ({"1": "bad", "2": "good"}, 0, "label '0' has no verbalizer"),
        ({"no": "n"}, -1, "the split has no labels"),
    ],
)
def test_labels_without_a_word(verbalizers, label, message):
    with pytest.raises(UserError, match=message):
        task.Choose("{text}", verbalizers).word({"label": label})


def test_a_wrong_column_is_named():
    choose = task.Choose("{text}", {"no": "n"}, label="stars")
    with pytest.raises(UserError, match="label: the rows have no column 'stars'"):
        choose({"text": "x", "star": "no", "idx": 0}, "train")


def test_one_answer_needs_no_list_and_nothing_is_null():
    made = task.register_extraction_task("t_one", lambda split: [], "{question}")
    (example,) = made.cast({"question": "q", "answers": "Paris", "idx": 0}, "train")
    assert (example["targets"], example["references"]) == ("Paris", ["Paris"])
    with pytest.raises(UserError, match="row 3: no answers; the split has no labels"):
        made.cast({"question": "q", "answers": [], "idx": 3}, "test")
    with pytest.raises(UserError, match="column 'question' of row 3 is null"):
        made.cast({"question": None, "answers": ["a"], "idx": 3}, "test")


def test_a_metric_that_needs_examples_tells_no_names():
    def rate(targets, predictions):
        return {"rate": 1 / len(targets)}

    made = task.register_generation_task("t_rate", rows, "{text}", "{label}", metrics=(rate,))
    assert made.metric_names is None and registry.metric_names("t_rate") is None


EDITED = """
from prompt_jax.data.task import register_text_task
register_text_task("t_edited", {"train": "TRAIN"}, "review: {text}",
                   verbalizers={"0": "no", "1": "yes"})
"""


def test_an_edited_task_is_tokenised_again(tmp_path):
    """Whatever is edited: template, verbalizer, a function of the module, a file it reads."""
    (tmp_path / "train.tsv").write_text("text\tlabel\nfine\t1\n")
    edited = EDITED.replace("TRAIN", str(tmp_path / "train.tsv"))
    function = edited.splitlines()[1] + "\n\n\ndef ask(row):\n    return 'I say ' + row['text']\n"
    function += "\n".join(edited.splitlines()[2:]).replace('"review: {text}"', "ask")
    seen = []
    for code in (
        edited,
        edited.replace("review", "Sentence"),
        edited.replace('"yes"', '"indeed"'),
        function,
        function.replace("I say", "I think"),
        edited,
    ):
        (tmp_path / "mine.py").write_text(code)
        seen.append(found(tmp_path, "t_edited", "train"))
    assert seen == [
        "['review: fine', 'yes']",
        "['Sentence: fine', 'yes']",
        "['review: fine', 'indeed']",
        "['I say fine', 'yes']",
        "['I think fine', 'yes']",
        "['review: fine', 'yes']",
    ]
    (tmp_path / "train.tsv").write_text("text\tlabel\npoor\t0\n")
    assert found(tmp_path, "t_edited", "train") == "['review: poor', 'no']"


def test_examples_in_the_context_follow_their_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        EDITED.replace('"TRAIN"}', f'"{tmp_path}/train.tsv", "test": "{tmp_path}/b.tsv"}}')
    )
    (tmp_path / "b.tsv").write_text("text\tlabel\nnew\t1\n")
    for word in ("fine", "good"):
        (tmp_path / "train.tsv").write_text(f"text\tlabel\n{word}\t1\n")
        inputs = f"review: {word} answer: yes review: new answer:"
        assert found(tmp_path, "t_edited_1demos_0", "test") == f"['{inputs}', 'yes']"


def found(folder, name, split):
    """The first example of a task as a new process would see it."""
    seqio = registry.load_seqio()
    for known in [n for n in task.REGISTRY if n.startswith("t_edited")]:
        del task.REGISTRY[known]
        seqio.TaskRegistry.remove(known)
    for cached in (registry._import_user, fingerprint.code_hash, fingerprint._origin):
        cached.cache_clear()
    linecache.clearcache()
    made = cache.build(name, split, BYTE, str(folder / "c"), module=str(folder / "mine.py"))
    return str([BYTE.decode(made.inputs(0)), BYTE.decode(made.targets(0))])


def test_templates():
    assert task.fill("{{{a}}} of {b}", {"a": 1, "b": "{a}"}) == "{1} of {a}"
    assert task.fill(lambda row: row["a"], {"a": "x"}) == "x"
    with pytest.raises(UserError, match=r"no column 'premis': did you mean 'premise'\?"):
        task.fill("{premis}", {"premise": "x"})


def test_rates_are_equal_given_or_by_size():
    task.register_text_task("t_a", rows, "{text}", verbalizers={"0": "n", "1": "y"})
    task.register_text_task("t_b", rows, "{text}", verbalizers={"0": "n", "1": "y"})
    task.register_mixture("t_equal", ["t_a", "t_b"])
    task.register_mixture("t_given", {"t_a": 0.25, "t_b": 3})
    task.register_mixture("t_sized", ["t_a", "t_b"], cap=100)
    for name, expected in (
        ("t_equal", [1, 1]),
        ("t_given", [0.25, 3]),
        ("t_sized", [7, 100]),
    ):
        tasks, rate = registry.get_tasks(name)
        assert list(tasks) == ["t_a", "t_b"]
        assert [rate("t_a", 7), rate("t_b", 1000)] == expected
    with pytest.raises(UserError, match="give rates or a cap"):
        task.register_mixture("t_both", {"t_a": 1.0}, cap=3)


def test_the_mixture_of_sizes_is_drawn_by_size(tmp_path):
    from prompt_jax.data.loader import Data
    from prompt_jax.data.open import open_loader

    for name, count in (("t_few", 10), ("t_many", 30), ("t_lots", 600)):
        made = functools.partial(_numbered, count=count, word=name[-3:])
        task.register_text_task(name, made, "{text}", verbalizers={"0": "n"})
    task.register_mixture("t_by_size", ["t_few", "t_many", "t_lots"], cap=60)
    data = Data("t_by_size", batch_size=50, cache_dir=str(tmp_path))
    loader = open_loader(data, BYTE, slots=0)
    counts = dict.fromkeys(("few", "any", "ots"), 0)
    for step in range(40):
        batch, _ = loader.batch(step)
        text = bytes(t - 3 for t in batch["encoder_input_tokens"].ravel() if t > 2).decode()
        for word in counts:
            counts[word] += text.count(word)
    assert sum(counts.values()) == 2000
    assert [round(counts[word] / 2000, 2) for word in counts] == [0.1, 0.3, 0.6]


def _numbered(split, count, word):
    return [{"text": word, "label": "0"} for _ in range(count)]


def nothing(split, shuffle_files=False, seed=None):
    return preprocess.dataset_of([])


def test_seqio_may_know_another_task_of_that_name():
    seqio = registry.load_seqio()
    task.register_text_task("t_theirs", rows, "{text}", verbalizers={"0": "n", "1": "y"})
    entry = task.REGISTRY["t_theirs"]
    feature = seqio.Feature(seqio.ByteVocabulary())
    seqio.TaskRegistry.add(
        "t_theirs",
        source=seqio.FunctionDataSource(nothing, splits=["train"]),
        preprocessors=[],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[],
    )
    assert entry.splits == ("train", "validation", "test")
    with pytest.raises(UserError, match="'t_theirs' is registered with seqio already"):
        registry.get_tasks("t_theirs")


def test_the_recipe_of_the_readme(tmp_path, monkeypatch):
    """README: train on your own TSV, in a file of at most 25 lines."""
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    code = re.search(r"```python\n(# my_tasks.py\n.*?)```", readme, re.S)[1]
    assert len(code.splitlines()) <= 25
    (tmp_path / "my_tasks.py").write_text(code)
    (tmp_path / "data" / "reviews").mkdir(parents=True)
    for split in ("train", "validation"):
        rows = "text\tlabel\nfine\t1\npoor\t0\n"
        (tmp_path / "data" / "reviews" / f"{split}.tsv").write_text(rows)
    monkeypatch.chdir(tmp_path)
    tokens = cache.build("my_reviews", "train", BYTE, str(tmp_path / "c"), module="my_tasks.py")
    assert [BYTE.decode(tokens.inputs(i)) for i in range(2)] == ["review: fine", "review: poor"]
    assert [BYTE.decode(tokens.targets(i)) for i in range(2)] == ["positive", "negative"]
    assert registry.find("my_reviews").splits == ("train", "validation")
