"""Pretraining text: never the embedded tasks; labels that only the prefix can give."""

import collections
import hashlib
import json
import lzma
import re

import pytest

from prompt_jax.data.micro import corpora, distinctions, instruct, names, sentiment, tasks, text
from prompt_jax.data.micro.draws import Draws
from prompt_jax.errors import UserError

LABELS = {*sentiment.LABELS, *tasks.ENTAILMENT, *tasks.PARAPHRASE, *tasks.BOOLQ}
COUNT = 25_000
GOLDEN = {"instruct": "2eb2d2581bcf7f63", "text": "ea74521815040e78"}


@pytest.fixture(scope="module")
def instructions():
    return instruct.examples("train", 0, 0, COUNT)


@pytest.fixture(scope="module")
def passages():
    return [example["text"] for example in text.examples("train", 0, 0, COUNT)]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A folder of corpora as small as can be."""
    lines = [
        "A fine day it was for all of us there. The acting is dull and the plot drags on. 2/10",
        "We saw it twice and would go again at once, what a lovely film it is. I gave it 9/10.",
        "The two stars of this film are old friends who have made many films, and it shows.",
        "Some say 9/10, some say 2/10, and I can not say which of them is in the right here.",
        "A middling thing that neither moved me nor bored me on a rainy afternoon. 5 out of 10.",
    ]
    for split in ("train", "validation"):
        (tmp_path / "imdb_unsup").mkdir(exist_ok=True)
        with lzma.open(tmp_path / "imdb_unsup" / f"{split}.txt.xz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    monkeypatch.setenv(corpora.ENVIRONMENT, str(tmp_path))
    corpora._lines.cache_clear()
    corpora._rated.cache_clear()
    return tmp_path


def golden(examples: list[dict]) -> str:
    return hashlib.sha256(json.dumps(examples, sort_keys=True).encode()).hexdigest()[:16]


def test_the_same_text_on_every_machine(instructions):
    assert golden(instructions[:100]) == GOLDEN["instruct"]
    assert golden(text.examples("train", 0, 0, 100)) == GOLDEN["text"]
    assert instruct.examples("train", 0, 300, 20) == instructions[300:320]


def test_no_label_of_a_task_is_a_target(instructions):
    assert not {example["targets"] for example in instructions} & LABELS
    assert not set(names.LABELS) & LABELS
    codes = {word for task in instruct._CODES.values() for code in task for word in code[1:]}
    assert not codes & LABELS


def test_no_label_word_of_a_task_is_in_generated_text(instructions, passages):
    words = re.compile(r"\b(positive|negative|\w*entailment|equivalent|different|yes)\b")
    for example in instructions:
        assert not words.search(example["inputs"]), example
    assert not any(words.search(passage) for passage in passages)


def test_no_template_of_a_task_is_in_generated_text(instructions, passages):
    """The templates' marks are nowhere, so neither are they before their verbalizers."""
    marks = re.compile(r"premise:|hypothesis:|sentence[12]:|question:|context:|passage:")
    for example in instructions:
        assert not marks.search(f"{example['inputs']} {example['targets']}"), example
    assert not any(marks.search(passage) for passage in passages)


def _inner(text: str, size: int = 4) -> set[str]:
    """Runs of words strictly inside a text: whole words wherever the text is a substring."""
    words = text.split()[1:-1]
    size = min(size, len(words))
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def test_no_task_example_is_in_generated_text(instructions, passages):
    texts = [f". {e['inputs']} {e['targets']} ." for e in instructions]
    texts += [f". {passage} ." for passage in passages]
    grams = {gram for passage in texts for gram in _inner(passage)}
    counts = {"test": 600, "validation": 200, "train": 800}
    examples = [
        example["inputs"]
        for name in tasks.NAMES
        for split, count in counts.items()
        for example in tasks.examples(name, split, 0, 0, count)
    ]
    suspects = [e for e in examples if len(e.split()) < 6 or _inner(e) <= grams]
    assert len(suspects) < 0.02 * len(examples)  # so unlike are the domains
    whole = "\n".join(texts)
    assert not [example for example in suspects if example in whole]


def test_opinions_are_never_about_the_tasks_domains(passages):
    """Nouns that only the tasks' domains have are spoken of in neutral passages alone."""
    nouns = {noun[0] for d in sentiment.DOMAINS.values() for noun in (*d.things, *d.people)}
    others = {noun[0] for d in distinctions.OTHERS for noun in (*d.things, *d.people)}
    own = {noun for noun in nouns - others if " " in noun or len(noun) > 6}
    words = re.compile(r"\b(" + "|".join(sorted(own)) + r")\b")
    met = [passage for passage in passages if words.search(passage)]
    assert len(met) > 200
    opinion_words = {*distinctions.ALL.adjectives[0], *distinctions.ALL.adjectives[1]}
    for passage in met:
        assert not opinion_words & set(re.findall(r"[a-z-]+", passage)), passage


def test_the_prefix_gives_the_label():
    """Three of the forms read back by an independent parser, shots and fixed questions too."""
    draws = Draws("test", 1)
    forms = [
        re.compile(r"choose (\w+) if (.+?), otherwise choose (\w+)\."),
        re.compile(r"(?:)if (?P<A>.+?) answer (?P<a>\w+); if .+? answer (?P<b>\w+)\."),
        re.compile(r"write (\w+) if (.+?), else (\w+)\."),
    ]
    conditions = distinctions.PLEASED.conditions
    read = collections.Counter()
    for side in [0, 1] * 2000:
        example = instruct.classify(draws, distinctions.PLEASED, "TEXT", side)
        for form in forms:
            if (match := form.search(example["inputs"])) is None:
                continue
            first, condition, second = match.groups()
            if "a" in form.groupindex:
                condition, first, second = match["A"], match["a"], match["b"]
            assert example["targets"] == (first if condition in conditions[side] else second)
            read["stated"] += 1
        for question, *labels in distinctions.PLEASED.natural:
            if question in example["inputs"] and "=>" not in example["inputs"]:
                assert example["targets"] == labels[side]
                read["natural"] += 1
        for code, *labels in instruct._CODES["pleased"]:
            if example["inputs"].startswith((code + " ", code + ":")):
                assert example["targets"] == labels[side]
                read["code"] += 1
    assert min(read.values()) > 100 and len(read) == 3


def test_shots_show_the_label():
    draws = Draws("test", 6)
    shown = 0
    for _ in range(600):
        task = instruct.SMALL[2]  # person or place: the text itself tells
        side = draws.below(2)
        example = instruct.classify(draws, task, task.text(draws, side), side)
        shots = re.findall(r"(.+?) => (\w+)\. ?", example["inputs"])
        if len(shots) == 2:
            answers = {any(city in text for city in names.CITIES): label for text, label in shots}
            assert example["targets"] == answers[bool(side)]
            shown += 1
    assert shown > 20


def test_codes_fix_their_labels():
    for task, codes in instruct._CODES.items():
        assert len({code[0] for code in codes}) == instruct.CODES, task
        assert all(code[1] != code[2] for code in codes)
    everything = [code[0] for codes in instruct._CODES.values() for code in codes]
    assert len(set(everything)) == len(everything)


def test_labels_are_spread(instructions):
    counts = collections.Counter(example["targets"] for example in instructions)
    assert len(counts) > 400
    assert counts.most_common(1)[0][1] < 0.03 * COUNT


@pytest.mark.parametrize(
    "task", [instruct.PLEASED, instruct.SAME, instruct.FOLLOWS, instruct.STATED]
)
def test_sides_differ_and_hold(task):
    draws = Draws("test", 2)
    texts = [{task.text(draws, side) for _ in range(400)} for side in (0, 1)]
    assert not texts[0] & texts[1]


def test_weights_are_the_plan_s():
    weights = {name: weight for name, weight, _ in instruct.TASKS}
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["pleased"] == 0.36 and weights["extract"] == 0.10
    lessons = {name: weight for name, weight, _ in instruct.LESSONS}
    assert sum(lessons.values()) == pytest.approx(1.0)


def test_lessons_ask_with_fixed_labels():
    allowed = {
        task.name: {label for _, *labels in task.natural for label in labels}
        for task in (*(task for task, _ in instruct._LESSONS), *instruct.SMALL)
    }
    every = set().union(*allowed.values())
    lessons = instruct.examples("train", 0, 0, 6000, tasks=instruct.LESSONS)
    assert {example["targets"] for example in lessons} == every


def test_the_ablation_leaves_every_question_of_mood_out():
    moods = {c for side in distinctions.PLEASED.conditions for c in side}
    moods |= {c for side in distinctions.WORD_MOOD.conditions for c in side}
    moods |= {
        code[0] for name in ("pleased", "word_mood", "alike") for code in instruct._CODES[name]
    }
    asked = instruct.examples("train", 0, 0, 5000)
    left = instruct.examples("train", 0, 0, 5000, without=("pleased",))
    count = [sum(any(m in e["inputs"] for m in moods) for e in es) for es in (asked, left)]
    assert count[0] > 1000 and count[1] == 0


def test_rated_reviews_lose_their_rating(corpus):
    good = corpora.rated(
        "We saw it twice and would go again at once, a lovely film. I gave it 9/10."
    )
    assert (
        good == ("We saw it twice and would go again at once, a lovely film. .", 1) or good[1] == 1
    )
    assert (
        corpora.rated("It was dull and long and nobody in it can act at all. Four out of ten.")[1]
        == 0
    )
    assert (
        corpora.rated("The two stars of this film are old friends who made many other films.")
        is None
    )
    assert (
        corpora.rated("One says 9/10 and another says 2/10 and that is all there is to be said.")
        is None
    )
    assert (
        corpora.rated("My rating for this long and harmless film about nothing much is 5/10.")
        is None
    )
    assert (
        corpora.rated(
            "I give this long and silly film about nothing at all two stars out of five."
        )[1]
        == 0
    )
    assert corpora.size("train", source="ratings") == 2


def test_rating_examples_are_balanced_instructions(corpus):
    examples = corpora.rating_examples("train", 0, 0, 40)
    assert examples == corpora.rating_examples("train", 0, 0, 60)[:40]
    assert not {e["targets"] for e in examples} & LABELS
    assert not any("/10" in e["inputs"] for e in examples)


def test_corpus_text_is_cut_at_sentences(corpus):
    examples = corpora.text_examples("train", 0, 0, 30)
    assert all(corpora.SHORTEST <= len(e["text"]) for e in examples)
    assert len({e["text"].lower().replace(" ", "") for e in examples}) == corpora.size("train")
    long = "This is one sentence of a passage. " * 40
    lines = corpora.cut(long)
    assert len(lines) > 2 and all(len(line) <= corpora.LONGEST for line in lines)
    assert all(line.startswith("This") and line.endswith(".") for line in lines)
    assert corpora.spaced("It's fine, isn't it?") == "it 's fine , is n't it ?"


def test_absent_corpora_are_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv(corpora.ENVIRONMENT, str(tmp_path))
    with pytest.raises(UserError, match="PROMPT_JAX_CORPORA"):
        corpora.text_examples("train", 0, 0, 1)
