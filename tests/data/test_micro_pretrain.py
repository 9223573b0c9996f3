"""Pretraining text: never the embedded tasks; labels that only the prefix can give."""

import collections
import hashlib
import json
import lzma
import re

import pytest

from prompt_jax.data.micro import corpora, distinctions, instruct, names, sentiment, tasks, text
from prompt_jax.data.micro.draws import Draws
from prompt_jax.data.micro.lexicon import ALL
from prompt_jax.errors import UserError

pytestmark = pytest.mark.xdist_group("micro_pretrain")  # one worker: the fixtures are made once

LABELS = {*sentiment.LABELS, *tasks.ENTAILMENT, *tasks.PARAPHRASE, *tasks.BOOLQ}
# Texts of a lesson: few every day; what is rarer shows in the many.
COUNTS = [4_000, pytest.param(25_000, marks=pytest.mark.slow)]
GOLDEN = {
    "QUESTIONS": "0e7dc1d6daa443ef",
    "CUES": "39f977b01d0c75a5",
    "WORDS": "c8478856f335123b",
    "LABELS": "6005ef61b0f9edd1",
    "MOODS": "18c31f50e0e277d9",
    "FOLLOW": "478ecc3948a7d12d",
    "PAIRS": "c8f084463eb87c73",
    "MIXTURE": "e3c6e864353cc3dd",
    "text": "ea74521815040e78",
}


TABLES = ("QUESTIONS", "CUES", "WORDS", "LABELS", "MOODS", "FOLLOW", "PAIRS", "MIXTURE")
LABELLED = (instruct.PLEASED, instruct.WORD_MOOD, instruct.SAME, instruct.FOLLOWS, instruct.STATED)


@pytest.fixture(scope="module", params=COUNTS)
def count(request):
    return request.param


@pytest.fixture(scope="module")
def instructions(count):
    """Examples of every lesson."""
    return [
        example
        for table in TABLES
        for example in instruct.examples("train", 0, 0, count, tasks=getattr(instruct, table))
    ]


@pytest.fixture(scope="module")
def passages(count):
    return [example["text"] for example in text.examples("train", 0, 0, count)]


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


def test_the_same_text_on_every_machine(instructions, count):
    for place, table in enumerate(TABLES):
        first = instructions[place * count :][:count]
        assert golden(first[:100]) == GOLDEN[table]
        lesson = getattr(instruct, table)
        assert instruct.examples("train", 0, 300, 20, tasks=lesson) == first[300:320]
    assert golden(text.examples("train", 0, 0, 100)) == GOLDEN["text"]


def test_no_label_of_a_task_is_a_target(instructions):
    assert not {example["targets"] for example in instructions} & LABELS
    assert not {*instruct.label_words(), *names.LABELS} & LABELS


def test_label_words_have_no_opinion():
    opinions = {entry for side in (0, 1) for entry in ALL.every(side)}
    words = instruct.label_words()
    assert len(words) == len(set(words)) > 2500
    assert not opinions & set(words)


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


def test_opinions_are_never_about_the_tasks_domains(passages, count):
    """Nouns that only the tasks' domains have are spoken of in neutral passages alone."""
    nouns = {noun[0] for d in sentiment.DOMAINS.values() for noun in (*d.things, *d.people)}
    others = {noun[0] for d in distinctions.OTHERS for noun in (*d.things, *d.people)}
    own = {noun for noun in nouns - others if " " in noun or len(noun) > 6}
    words = re.compile(r"\b(" + "|".join(sorted(own)) + r")\b")
    met = [passage for passage in passages if words.search(passage)]
    assert len(met) > count // 125
    opinion_words = {*distinctions.ALL.adjectives[0], *distinctions.ALL.adjectives[1]}
    for passage in met:
        assert not opinion_words & set(re.findall(r"[a-z-]+", passage)), passage


def test_the_prefix_gives_the_label():
    """Read back by an independent parser: side 1's label comes first, side 0's second."""
    draws = Draws("test", 1)
    for task in LABELLED:
        for side in [0, 1] * 200:
            example = instruct.told(draws, task, "TEXT", side)
            words = re.findall(r"[a-z]+", example["inputs"].split("TEXT")[0])
            opening = max(
                (o for o in task.openings if example["inputs"].startswith(o + " ")),
                key=len,
                default="",
            )
            words = [word for word in words[len(re.findall("[a-z]+", opening)) :] if word != "or"]
            assert example["targets"] == words[1 - side], example
            example = instruct.plainly_told(draws, task, "TEXT", side)
            first, second = re.fullmatch(r"(\w+) or (\w+) \? TEXT", example["inputs"]).groups()
            assert example["targets"] == (first if side else second)


def test_labels_of_several_pieces_are_told_like_others():
    draws = Draws("test", 7)
    drawn = [instruct.any_labels(draws) for _ in range(2000)]
    assert all(first != second for first, second in drawn)
    whole = sum({*pair} <= {*instruct.label_words()} for pair in drawn)
    denied = sum(f"not_{a}" == b or f"not_{b}" == a for a, b in drawn)
    assert 900 < whole < 1100 and 500 < denied < 700
    pair = ("not_red-hot", "ice")
    for side in [0, 1] * 20:
        example = instruct.told(draws, instruct.FOLLOWS, "TEXT", side, lambda _: pair)
        assert example["targets"] == pair[side]
        assert 0 < example["inputs"].index("ice") < example["inputs"].index("not_red-hot")


def test_a_question_has_labels_of_its_own():
    draws = Draws("test", 6)
    for task in (*LABELLED, *instruct.SMALL):
        for side in [0, 1] * 50:
            example = instruct.asked(draws, task, "TEXT", side)
            allowed = {
                labels[side] for question, *labels in task.natural if question in example["inputs"]
            }
            assert example["targets"] in allowed
            question, *labels = task.natural[0]
            plain = instruct.asked_plainly(draws, task, "TEXT", side)
            assert plain == {"inputs": f"{question}? TEXT", "targets": labels[side]}


def test_a_cue_chooses_one_of_two_words():
    for example in instruct.examples("train", 0, 0, 500, tasks=instruct.CUES):
        if example["inputs"].startswith("say "):
            assert example["targets"] == example["inputs"].removeprefix("say ")
        else:
            first, second, cue = re.fullmatch(
                r"(\w+) or (\w+) \? (good|bad)", example["inputs"]
            ).groups()
            assert example["targets"] == (first if cue == "good" else second)


def test_labels_are_spread():
    mixture = instruct.examples("train", 0, 0, 25_000)
    counts = collections.Counter(example["targets"] for example in mixture)
    assert len(counts) > 2000
    assert counts.most_common(1)[0][1] < 0.03 * 25_000


@pytest.mark.parametrize(
    "task", [instruct.PLEASED, instruct.SAME, instruct.FOLLOWS, instruct.STATED]
)
def test_sides_differ_and_hold(task):
    draws = Draws("test", 2)
    texts = [{task.text(draws, side) for _ in range(400)} for side in (0, 1)]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("table", TABLES)
def test_weights_are_whole_hundredths(table):
    weights = [weight for _, weight, _ in getattr(instruct, table)]
    assert sum(weights) == pytest.approx(1.0)
    assert all(100 * weight == pytest.approx(round(100 * weight)) for weight in weights)


def test_questions_have_fixed_labels():
    allowed = {
        label
        for task in (*LABELLED, *instruct.SMALL)
        for _, *labels in task.natural
        for label in labels
    }
    lessons = instruct.examples("train", 0, 0, 6000, tasks=instruct.QUESTIONS)
    assert {example["targets"] for example in lessons} == allowed


def test_the_ablation_leaves_every_question_of_mood_out():
    moods = {question for task in LABELLED[:2] for question, *_ in task.natural}
    openings = {f"{o} " for task in LABELLED[:2] for o in task.openings if o}
    openings -= {"is it ", "say ", "answer "}  # openings of other tasks too
    asked = instruct.examples("train", 0, 0, 5000)
    left = instruct.examples("train", 0, 0, 5000, without=instruct.SENTIMENT)
    count = [
        sum(
            any(m in e["inputs"] for m in moods) or e["inputs"].startswith(tuple(openings))
            for e in es
        )
        for es in (asked, left)
    ]
    assert count[0] > 1500 and count[1] == 0


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
