"""Metrics against values worked out by hand."""

import functools
import math

import numpy as np
import pytest

from prompt_jax.data import metrics


def test_accuracy():
    assert metrics.accuracy(["a", "b", "c", "d"], ["a", "b", "x", "d"]) == {"accuracy": 0.75}
    assert metrics.accuracy([], []) == {"accuracy": 0.0}
    with pytest.raises(ValueError):
        metrics.accuracy(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("an  apple, a day", "apple day"),
        ("Theatre", "theatre"),  # articles go as words only
        ("O'Neill", "oneill"),
        ("", ""),
    ],
)
def test_normalize_answer(text, normal):
    assert metrics.normalize_answer(text) == normal


def test_token_f1():
    # common {new, york}: precision 2/3, recall 2/4, F1 = 2 * (1/3) / (7/6) = 4/7
    assert metrics.token_f1("new york city state", "in new york") == pytest.approx(4 / 7)
    # a repeated word counts as often as both have it: P = 1/2, R = 1
    assert metrics.token_f1("yes", "yes yes") == pytest.approx(2 / 3)
    assert metrics.token_f1("cat", "dog") == 0.0
    assert metrics.token_f1("the", "a") == 1.0  # both empty once normalised
    assert metrics.token_f1("cat", "") == 0.0


def test_squad_takes_the_best_answer():
    targets = [["Denver Broncos", "The Broncos"], ["1998"], "gold"]
    predictions = ["broncos.", "in 1998", "silver"]
    # em: yes, no, no; f1: 1, 2 * (1/2 * 1) / (3/2) = 2/3, 0
    result = metrics.squad(targets, predictions)
    assert result["em"] == pytest.approx(1 / 3)
    assert result["f1"] == pytest.approx((1 + 2 / 3) / 3)
    assert metrics.squad([[]], ["x"]) == {"em": 0.0, "f1": 0.0}


# --- answers that are one of a few words ---


def draws(seed=0, count=60, labels=("a", "b", "c"), strange=()):
    rng = np.random.default_rng(seed)
    choose = lambda words: [str(word) for word in rng.choice(words, count)]  # noqa: E731
    return choose(labels), choose((*labels, *strange))


def test_invalid_answers_are_counted_apart():
    found = metrics.invalid(["a"] * 4, ["a", "b", "", "A"], labels=("a", "b"))
    assert found == {"invalid": 0.5}
    assert metrics.invalid([], [], labels=("a",)) == {"invalid": 0.0}


@pytest.mark.parametrize("strange", [(), ("x", "")])
def test_f1_by_hand(strange):
    """An answer that is no label is no positive."""
    targets, predictions = draws(strange=strange)
    hits = sum(t == p == "a" for t, p in zip(targets, predictions, strict=True))
    expected = 2 * hits / (targets.count("a") + predictions.count("a"))
    assert metrics.f1(targets, predictions, positive="a") == {"f1": pytest.approx(expected)}


@pytest.mark.parametrize("strange", [(), ("x", "")])
def test_macro_f1_by_hand(strange):
    targets, predictions = draws(1, strange=strange)
    each = [metrics.f1(targets, predictions, positive=label)["f1"] for label in "abc"]
    found = metrics.macro_f1(targets, predictions, labels=("a", "b", "c"))
    assert found == {"macro_f1": pytest.approx(np.mean(each))}


def test_matthews_by_hand():
    """(TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)); what is no label is the wrong one."""
    targets, predictions = draws(2, labels=("no", "yes"), strange=("x",))
    wrong = {"no": "yes", "yes": "no"}
    read = [wrong[t] if p == "x" else p for t, p in zip(targets, predictions, strict=True)]
    count = lambda t, p: sum(pair == (t, p) for pair in zip(targets, read, strict=True))  # noqa: E731
    tp, tn, fp, fn = (
        count("yes", "yes"),
        count("no", "no"),
        count("no", "yes"),
        count("yes", "no"),
    )
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    found = metrics.matthews(targets, predictions, labels=("no", "yes"))
    assert found == {"matthews": pytest.approx((tp * tn - fp * fn) / below)}
    assert metrics.matthews(["no"], ["no"], labels=("no", "yes")) == {"matthews": 0.0}


def test_multirc_by_hand():
    """Three questions: all options right; one wrong; one that is no label."""
    targets = [
        {"question": q, "label": label}
        for q, label in zip(
            "aabbcc", ("True", "False", "True", "True", "False", "False"), strict=True
        )
    ]
    predictions = ["True", "False", "True", "False", "False", "maybe"]
    found = metrics.multirc(targets, predictions)
    assert found["em"] == pytest.approx(1 / 3)
    assert found["f1a"] == pytest.approx(2 * 2 / (3 + 2))


# --- numbers ---


def test_correlation_by_hand():
    rng = np.random.default_rng(3)
    targets = [float(x) for x in rng.normal(size=30)]
    predictions = [float(x) for x in targets + rng.normal(size=30)]

    def pearson(x, y):
        x, y = np.array(x) - np.mean(x), np.array(y) - np.mean(y)
        return (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())

    ranks = lambda values: [sorted(values).index(v) for v in values]  # noqa: E731
    assert metrics.correlation(targets, predictions) == {
        "pearson": pytest.approx(pearson(targets, predictions)),
        "spearman": pytest.approx(pearson(ranks(targets), ranks(predictions))),
        "invalid": 0.0,
    }


def test_an_answer_that_is_no_number_is_as_wrong_as_can_be():
    good = metrics.correlation([0.0, 1.0, 5.0], [0.0, 1.0, 5.0])
    bad = metrics.correlation([0.0, 1.0, 5.0], [0.0, None, 5.0])
    assert good["pearson"] == pytest.approx(1) and bad["invalid"] == pytest.approx(1 / 3)
    assert bad["pearson"] == metrics.correlation([0.0, 1.0, 5.0], [0.0, 5.0, 5.0])["pearson"] < 1
    assert metrics.correlation([1.0, 2.0], [3.0, 3.0])["pearson"] == 0.0
    assert [metrics.number(t) for t in ("2.5", "-1", "two", "nan", "")] == [
        2.5,
        -1,
        None,
        None,
        None,
    ]


# --- running text ---


def test_rouge_by_hand():
    """One reference of 4 words; 3 words predicted, 3 in common, one pair, two in order."""
    found = metrics.rouge([["the cat sat down"]], ["cat the sat"])
    assert found["rouge1"] == pytest.approx(2 * (3 / 3) * (3 / 4) / (3 / 3 + 3 / 4))
    assert found["rouge2"] == 0.0
    assert found["rougeL"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_rouge_is_the_mean_of_the_best_references():
    references = [["a b c d", "x y"], ["p q"]]
    found = metrics.rouge(references, ["x y", "p z"])
    assert found["rouge1"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["rouge2"] == pytest.approx(0.5)
    assert metrics.rouge([[]], ["a"])["rouge1"] == 0.0
    assert metrics.rouge([], []) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_bleu_by_hand():
    """Clipped n-grams over the closest length of several references, smoothed as sacrebleu does."""
    references = [["the cat sat on the mat", "a cat was on the mat"], ["it rains"]]
    predictions = ["the cat is on the mat", "it rains"]
    assert metrics.bleu(references, ["the cat sat on the mat", "it rains"])[
        "bleu"
    ] == pytest.approx(1)
    # 1-grams 5+2 of 8, 2-grams 3+1 of 6, 3-grams 1+0 of 4, 4-grams 0 of 3 (smoothed: 1/2 of one)
    precisions = (7 / 8, 4 / 6, 1 / 4, 0.5 / 3)
    expected = math.exp(sum(map(math.log, precisions)) / 4)
    assert metrics.bleu(references, predictions)["bleu"] == pytest.approx(expected, rel=1e-6)
    assert metrics.bleu([], []) == metrics.bleu([[]], ["a b"]) == {"bleu": 0.0}


@pytest.mark.parametrize(
    "metric",
    [
        functools.partial(metrics.invalid, labels=("a",)),
        functools.partial(metrics.f1, positive="a"),
        functools.partial(metrics.macro_f1, labels=("a",)),
        functools.partial(metrics.matthews, labels=("a", "b")),
        metrics.correlation,
        metrics.rouge,
        metrics.bleu,
        metrics.multirc,
    ],
    ids=lambda metric: getattr(metric, "__name__", getattr(metric, "func", metric).__name__),
)
def test_every_target_needs_a_prediction(metric):
    targets = {"correlation": [1.0], "rouge": [["a"]], "bleu": [["a"]]}
    name = getattr(metric, "__name__", "")
    given = targets.get(name, [{"question": 1, "label": "True"}] if name == "multirc" else ["a"])
    with pytest.raises(ValueError):
        metric(given, [])
