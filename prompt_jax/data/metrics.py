"""Metrics of tasks: functions of (targets, predictions), as seqio calls them; fractions 0 to 1.

What a library knows is left to the library (scikit-learn, SciPy, sacrebleu, rouge-score), which is
imported when it is first used. An answer that is no label is wrong, and counted in `invalid`.
"""

import collections
import functools
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


def invalid(
    targets: Sequence, predictions: Sequence[str], *, labels: Sequence[str]
) -> dict[str, float]:
    """Share of predictions that are none of the labels.

    Args:
        targets: not looked at.
        predictions: one text per example.
        labels: the texts to choose from.

    Returns:
        {"invalid": 0..1}.
    """
    pairs = list(zip(targets, predictions, strict=True))
    return {"invalid": sum(p not in labels for _, p in pairs) / max(len(pairs), 1)}


def f1(targets: Sequence[str], predictions: Sequence[str], *, positive: str) -> dict[str, float]:
    """F1 of one label against the rest (scikit-learn).

    Args:
        targets: one label per example.
        predictions: in the same order.
        positive: the label that counts.

    Returns:
        {"f1": 0..1}.
    """
    from sklearn.metrics import f1_score

    pairs = [(t == positive, p == positive) for t, p in zip(targets, predictions, strict=True)]
    return {"f1": float(f1_score(*zip(*pairs, strict=True), zero_division=0.0)) if pairs else 0.0}


def macro_f1(
    targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]
) -> dict[str, float]:
    """The mean of the labels' F1 (scikit-learn); CB's second metric.

    Args:
        targets: one label per example.
        predictions: in the same order.
        labels: all of them.

    Returns:
        {"macro_f1": 0..1}.

    Source: Wang et al. 2019 (SuperGLUE), section 3.
    """
    from sklearn.metrics import f1_score

    if not len(targets):
        return {"macro_f1": 0.0}
    found = [p if p in labels else "" for p in predictions]
    value = f1_score(targets, found, labels=list(labels), average="macro", zero_division=0.0)
    return {"macro_f1": float(value)}


def matthews(
    targets: Sequence[str], predictions: Sequence[str], *, labels: tuple[str, str]
) -> dict[str, float]:
    """Matthews correlation of two labels (scikit-learn); CoLA's metric.

    Args:
        targets: one label per example.
        predictions: in the same order; one that is no label counts as the wrong one.
        labels: both.

    Returns:
        {"matthews": -1..1}.
    """
    from sklearn.metrics import matthews_corrcoef

    other = dict(zip(labels, reversed(labels), strict=True))
    found = [p if p in labels else other[t] for t, p in zip(targets, predictions, strict=True)]
    if len(set(targets)) < 2:
        return {"matthews": 0.0}  # a constant has no correlation
    return {"matthews": float(matthews_corrcoef(list(targets), found))}


def correlation(targets: Sequence[float], predictions: Sequence[float | None]) -> dict[str, float]:
    """Pearson's and Spearman's correlation of numbers (SciPy); STS-B's metrics.

    Args:
        targets: one number per example.
        predictions: in the same order; None for an answer that is no number: it counts as the
            end of the targets' range that is farther from its target.

    Returns:
        {"pearson": -1..1, "spearman": -1..1, "invalid": 0..1}.
    """
    from scipy import stats

    pairs = list(zip(targets, predictions, strict=True))
    if not pairs:
        return {"pearson": 0.0, "spearman": 0.0, "invalid": 0.0}
    low, high = min(targets), max(targets)
    found = [p if p is not None else low if t - low > high - t else high for t, p in pairs]
    if len(set(targets)) < 2 or len(set(found)) < 2:  # a constant has no correlation
        pearson = spearman = 0.0
    else:
        pearson = float(stats.pearsonr(targets, found).statistic)
        spearman = float(stats.spearmanr(targets, found).statistic)
    wrong = sum(p is None for _, p in pairs) / len(pairs)
    return {"pearson": pearson, "spearman": spearman, "invalid": wrong}


def multirc(targets: Sequence[Mapping[str, Any]], predictions: Sequence[str]) -> dict[str, float]:
    """F1 over all answer options, and the share of questions with every option right.

    Args:
        targets: {"question": its id, "label": "True" or "False"} per option.
        predictions: one text per option.

    Returns:
        {"f1a": 0..1, "em": 0..1}.

    Source: Khashabi et al. 2018, section 4.3.
    """
    labels = [target["label"] for target in targets]
    questions: dict[Any, bool] = {}
    for target, prediction in zip(targets, predictions, strict=True):
        right = questions.get(target["question"], True)
        questions[target["question"]] = right and target["label"] == prediction
    exact = sum(questions.values()) / max(len(questions), 1)
    return {"f1a": f1(labels, predictions, positive="True")["f1"], "em": exact}


def rouge(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L, F-measures with stemming (rouge-score).

    Args:
        targets: the references of each example; the best one counts.
        predictions: one text per example.

    Returns:
        {"rouge1": 0..1, "rouge2": 0..1, "rougeL": 0..1}.

    Source: Lin 2004.
    """
    kinds = ("rouge1", "rouge2", "rougeL")
    sums = dict.fromkeys(kinds, 0.0)
    for references, prediction in zip(targets, predictions, strict=True):
        if not len(references):
            continue
        found = _rouge_scorer(kinds).score_multi(list(references), prediction)
        sums = {kind: sums[kind] + found[kind].fmeasure for kind in kinds}
    return {kind: total / max(len(predictions), 1) for kind, total in sums.items()}


@functools.cache
def _rouge_scorer(kinds: tuple[str, ...]):
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(kinds), use_stemmer=True)


def bleu(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU (sacrebleu, its own tokenisation and smoothing).

    Args:
        targets: the references of each example.
        predictions: one text per example.

    Returns:
        {"bleu": 0..1}.

    Source: Papineni et al. 2002; Post 2018.
    """
    import sacrebleu

    if len(targets) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
    if not len(predictions):
        return {"bleu": 0.0}
    given = [list(references) or [""] for references in targets]
    most = max(map(len, given))
    padded = [[*references, *[None] * (most - len(references))] for references in given]
    streams = [list(stream) for stream in zip(*padded, strict=True)]
    score = sacrebleu.corpus_bleu(list(predictions), streams).score / 100
    return {"bleu": min(max(score, 0.0), 1.0)}  # rounding leaves 1.0000000000000004


def number(text: str) -> float | None:
    """The number that a text says, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
