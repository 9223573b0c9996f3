"""Figures: of a run, from its record alone; of prompts' similarities; of tasks' lengths."""

import io
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


def draw_similarities(similarities: dict[str, Any]) -> bytes:
    """Two heat maps side by side, each with its own scale.

    Args:
        similarities: `prompts` (names) and the square matrices `sim_avg` and `sim_pertoken`.

    Returns:
        A PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = similarities["prompts"]
    side = 2.4 + 0.35 * len(names)
    figure, axes = plt.subplots(1, 2, figsize=(2 * side + 1, side), layout="constrained")
    for ax, kind in zip(axes, ("sim_avg", "sim_pertoken"), strict=True):
        matrix = similarities[kind]
        image = ax.imshow(matrix, cmap="viridis")
        figure.colorbar(image, ax=ax, shrink=0.8)
        ax.set_title(kind, fontsize=10)
        ticks = {"labels": names, "fontsize": 7, "parse_math": False}
        ax.set_xticks(range(len(names)), rotation=90, **ticks)
        ax.set_yticks(range(len(names)), **ticks)
        if len(names) > 12:
            continue  # cells too small for numbers
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                dark = image.norm(value) < 0.6
                colour = "white" if dark else "black"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    plt.close(figure)
    return png.getvalue()


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


def draw_lengths(title: str, histogram: dict[str, list[list[int]]]) -> bytes:
    """Histograms of the lengths of a task's examples.

    Args:
        title: the task and split.
        histogram: feature -> (edges, counts), in own tokens.

    Returns:
        A PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shape = {"figsize": (4.5 * len(histogram), 3.4), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(histogram), **shape)
    for ax, (name, (edges, counts)) in zip(axes[0], histogram.items(), strict=True):
        ax.stairs(counts, edges, fill=True, color="#1f5fa8")
        ax.set(xlabel="own tokens (EOS included)", ylabel="examples", title=name)
    figure.suptitle(title, fontsize=10)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    plt.close(figure)
    return png.getvalue()
