"""Metrics against values worked out by hand."""

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
