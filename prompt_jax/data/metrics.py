"""Metrics of tasks: pure Python, fractions from 0 to 1, called as seqio calls them."""

import collections
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Share of predictions that equal their target.

    Args:
        targets: one per example.
        predictions: in the same order.

    Returns:
        {"accuracy": 0..1}.

    Raises:
        ValueError: not one prediction per target.
    """
    pairs = list(zip(targets, predictions, strict=True))
    hits = sum(target == prediction for target, prediction in pairs)
    return {"accuracy": hits / len(pairs) if pairs else 0.0}


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    text = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.split())


def token_f1(answer: str, prediction: str) -> float:
    """F1 = 2 PR / (P + R) of two normalised texts as bags of words.

    Returns:
        0..1; two empty texts agree.
    """
    answer_words = normalize_answer(answer).split()
    words = normalize_answer(prediction).split()
    if not answer_words or not words:
        return float(answer_words == words)
    common = sum((collections.Counter(answer_words) & collections.Counter(words)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(answer_words)
    return 2 * precision * recall / (precision + recall)


def squad(targets: Sequence[Sequence[str] | str], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 against the best of several answers.

    Args:
        targets: the answers of each example (a list, or one text).
        predictions: one text per example.

    Returns:
        {"em": 0..1, "f1": 0..1}.

    Raises:
        ValueError: not one prediction per target.

    Source: Rajpurkar et al. 2016, section 6.1.
    """
    exact, overlap, count = 0.0, 0.0, 0
    for answers, prediction in zip(targets, predictions, strict=True):
        answers = [answers] if isinstance(answers, str) else list(answers)
        found = normalize_answer(prediction)
        exact += any(normalize_answer(answer) == found for answer in answers)
        overlap += max((token_f1(answer, prediction) for answer in answers), default=0.0)
        count += 1
    return {"em": exact / max(count, 1), "f1": overlap / max(count, 1)}
