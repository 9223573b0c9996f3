"""The embedded tasks' texts: balance, no leak between splits, words that train never shows."""

import dataclasses
import hashlib
import itertools
import json
import re
import time

import pytest

from prompt_jax.data.micro import domains, events, lexicon, opinion, records, sentiment, tasks
from prompt_jax.data.micro.draws import Draws, blocks

pytestmark = pytest.mark.xdist_group("micro_tasks")  # one worker: the fixtures are made once

COUNTS = {**tasks.SPLITS, "train": 2000}
WITH_LABELS = [name for name in tasks.NAMES if not name.startswith("micro_qa")]


@pytest.fixture(scope="module")
def splits():
    return {
        name: {split: tasks.examples(name, split, 0, 0, count) for split, count in COUNTS.items()}
        for name in tasks.NAMES
    }


def golden(examples: list[dict]) -> str:
    text = json.dumps(examples, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


GOLDEN = {
    "micro_sentiment": "1654d90e0bbdfc74",
    "micro_sentiment_shift": "6158d3e46f68c2a8",
    "micro_entailment": "5802baf507632269",
    "micro_paraphrase": "06e89b22e5c4a505",
    "micro_paraphrase_shift": "49c8ed46cd38c477",
    "micro_boolq": "ad18cea53725dac1",
    "micro_qa": "b9136cfde22cc078",
    "micro_qa_shift1": "039382bb7708e241",
    "micro_qa_shift2": "1ed91c04c8f95f4c",
    "micro_qa_shift3": "f93a1e65f2ada741",
}


@pytest.mark.parametrize("name", tasks.NAMES)
def test_the_same_text_on_every_machine(name, splits):
    assert golden(splits[name]["test"][:100]) == GOLDEN[name]


def test_sizes_are_the_issue_s():
    assert tasks.SPLITS["train"] >= 4000
    assert tasks.SPLITS["validation"] >= 500 and tasks.SPLITS["test"] >= 1000


@pytest.mark.parametrize("name", tasks.NAMES)
def test_no_text_lies_in_two_splits(name, splits):
    texts = {split: {e["inputs"] for e in examples} for split, examples in splits[name].items()}
    for one, two in itertools.combinations(texts, 2):
        assert not texts[one] & texts[two]
    # Nor does a test text whose train split has another seed.
    again = {e["inputs"] for e in tasks.examples(name, "train", 1, 0, 500)}
    assert not again & texts["test"]
    assert len(texts["test"]) > 0.97 * tasks.SPLITS["test"]  # hardly any repeats


@pytest.mark.parametrize("name", WITH_LABELS)
def test_labels_are_balanced(name, splits):
    for examples in splits[name].values():
        labels = [e["targets"] for e in examples]
        assert len(set(labels)) == 2
        assert labels.count(labels[0]) * 2 == len(labels)


@pytest.mark.parametrize("name", list(sentiment.DOMAINS))
def test_half_of_the_test_holds_no_opinion_word_of_train(name, splits):
    entries = [entry for side in (0, 1) for entry in lexicon.SEEN.every(side)]
    seen = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, entries)) + r")(?![\w-])")
    rest = [entry for side in (0, 1) for entry in lexicon.UNSEEN.every(side)]
    unseen = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, rest)) + r")(?![\w-])")
    test = splits[name]["test"]
    clean = [e for e in test if not seen.search(_singular(e["inputs"]))]
    assert [e for e in test if e["unseen"]] == clean and len(clean) * 2 == len(test)
    labels = [e["targets"] for e in clean]
    assert labels.count("positive") * 2 == len(labels)
    for split in ("train", "validation"):
        assert not any(unseen.search(_singular(e["inputs"])) for e in splits[name][split])


def _singular(text: str) -> str:
    """Idioms agree with a plural subject; the lexicon lists them in the singular."""
    return text + " ; " + text.replace("were ", "was ").replace("are ", "is ")


def test_the_partition_is_disjoint_and_nearly_whole():
    for field in dataclasses.fields(lexicon.Opinions):
        for side in (0, 1):
            seen = set(getattr(lexicon.SEEN, field.name)[side])
            unseen = set(getattr(lexicon.UNSEEN, field.name)[side])
            assert not seen & unseen
            whole = set(getattr(lexicon.ALL, field.name)[side])
            left_out = whole - seen - unseen  # phrases that hold a word of the other part
            assert seen | unseen <= whole and all(" " in entry for entry in left_out)
            assert len(left_out) <= 4
    assert not set(lexicon.ALL.every(0)) & set(lexicon.ALL.every(1))
    assert min(len(lexicon.ALL.every(side)) for side in (0, 1)) > 300


def _entries(side: int) -> re.Pattern:
    """The words and phrases of one polarity, idioms with a plural subject too, longest first."""
    entries = lexicon.ALL.every(side)
    entries += [re.sub(r"^was ", "were ", re.sub(r"^is ", "are ", entry)) for entry in entries]
    entries = sorted(set(entries), key=len, reverse=True)
    return re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, entries)) + r")(?![\w-])")


ENTRIES = [_entries(side) for side in (0, 1)]
FRAMES = re.compile(r"\b(" + "|".join(f.split("{}")[0].strip() for f in opinion._NOT) + r")\b")


def _verdict(said: str) -> int:
    """The polarity of a clause by looking for its words, an independent reading of the grammar."""
    found = {(len(m[0]), side) for side in (0, 1) for m in ENTRIES[side].finditer(said)}
    assert found, said
    side = max(found)[1]  # an idiom may contain a shorter entry
    rest = re.sub(r"\w+-\w+", "", ENTRIES[side].sub("", said))
    return 1 - side if FRAMES.search(rest) else side


@pytest.mark.parametrize("side", [0, 1])
def test_a_clause_says_what_its_polarity_says(side):
    draws = Draws("test", side)
    for _ in range(400):
        said = opinion.clause(draws, domains.HOTEL, lexicon.ALL, side)
        assert _verdict(said) == side, said


@pytest.mark.parametrize("side", [0, 1])
def test_in_a_contrast_the_deciding_clause_comes_last(side):
    draws = Draws("test", side)
    for _ in range(200):
        said = opinion.contrast(draws, domains.RESTAURANT, lexicon.ALL, side)
        last = re.split(r", but |, yet |\. |, and yet |, (?!even)", said)[-1]
        assert _verdict(last) == side, said


def test_answers_stand_in_their_context(splits):
    for name in ("micro_qa", "micro_qa_shift1", "micro_qa_shift2", "micro_qa_shift3"):
        for example in splits[name]["test"]:
            question, context = example["inputs"].split(" context: ")
            assert example["targets"] in re.findall(r"[a-z]+", context)
            assert example["targets"] not in re.findall(r"[a-z]+", question)


def test_yes_is_what_the_passage_states():
    draws = Draws("test", 3)
    for _ in range(200):
        _, facts = records.passage(draws, tasks.families.SHOPS, 3)
        for fact in facts:
            wrong = records.wrong_value(draws, facts, fact)
            assert wrong != fact.value and wrong in fact.relation.values


def test_entailed_sentences_name_nothing_new():
    """Twin of the grammar's claim, on the hypotheses that follow without denial or kinds."""
    kinds = {kind for _, kind in events.HOME.objects}
    synonyms = {verb[2] for verb in events.HOME.verbs}
    free = {"a", "an", "was", "by", "it", "who", "did", "not", *kinds, *synonyms}
    draws = Draws("test", 4)
    for _ in range(300):
        premise, hypothesis = events.follows(draws, events.HOME, True)
        words = set(re.findall(r"[a-z]+", hypothesis)) - free
        assert words <= set(re.findall(r"[a-z]+", premise)), (premise, hypothesis)


def test_blocks_give_any_range_alike():
    whole = tasks.examples("micro_sentiment", "train", 0, 0, 900)
    assert tasks.examples("micro_sentiment", "train", 0, 250, 300) == whole[250:550]
    assert tasks.examples("micro_sentiment", "train", 1, 0, 300) != whole[:300]
    assert blocks("x", "train", 0, 5, 0, lambda draws, index: {"i": index}) == []
    assert blocks("x", "train", 0, 255, 2, lambda d, i: {"i": i}) == [{"i": 255}, {"i": 256}]


def test_draws_are_uniform():
    draws = Draws("test", 5)
    counts = [0] * 6
    for _ in range(6000):
        counts[draws.pick(range(6))] += 1
    assert all(850 < count < 1150 for count in counts)
    assert sorted(draws.shuffled(range(9))) == list(range(9))
    pairs = [draws.two(range(3)) for _ in range(900)]
    assert all(a != b for a, b in pairs) and len(set(pairs)) == 6
    assert draws.other("ab", "a") == "b" and len(set(draws.sample(range(5), 4))) == 4


def test_a_split_is_made_in_a_second():
    start = time.process_time()
    tasks.examples("micro_sentiment", "train", 7, 0, tasks.SPLITS["train"])
    assert time.process_time() - start < 3.0  # 0.1 s on an idle core, without run-time checks
