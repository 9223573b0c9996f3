"""Figures and tables of a run, drawn from its record alone."""

import pathlib
from typing import Any


def draw_curve(
    record: dict[str, Any], path: str, baselines: dict[str, float] | None = None
) -> None:
    """Draws loss and evaluation metric over steps.

    Args:
        record: a ledger record.
        path: of the PNG.
        baselines: name -> value, drawn as horizontal lines beside the metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curve = record["curve"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot([row["step"] for row in curve], [row["loss"] for row in curve], color="#1f5fa8")
    left.set(xlabel="step", ylabel="loss (nats per target token)", title="training")
    metric = (record.get("best") or {}).get("metric", "accuracy")
    evaluated = [row for row in curve if f"eval/{metric}" in row]
    right.plot(
        [row["step"] for row in evaluated],
        [row[f"eval/{metric}"] for row in evaluated],
        marker="o",
        color="#1f5fa8",
        label="prompt",
    )
    for i, (name, value) in enumerate((baselines or {}).items()):
        colour = ("#777777", "#b5651d", "#4a8c4a")[i % 3]
        right.axhline(value, linestyle="--", color=colour, label=name)
    right.set(xlabel="step", ylabel=metric, ylim=(0, 1.02), title="validation")
    right.legend(loc="lower right", fontsize=8)
    figure.suptitle(f"{record['method']} on {record['mixture']}", fontsize=10)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def bag_of_words(train: tuple[list[str], list[str]], test: tuple[list[str], list[str]]) -> float:
    """Test accuracy of logistic regression on word counts: what no backbone is needed for.

    Args:
        train: texts and labels.
        test: texts and labels.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = CountVectorizer(ngram_range=(1, 1), token_pattern=r"(?u)\b\w+\b")
    model = LogisticRegression(max_iter=1000).fit(vectorizer.fit_transform(train[0]), train[1])
    return float(model.score(vectorizer.transform(test[0]), test[1]))
