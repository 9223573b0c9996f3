"""`make demo`: a prompt for the embedded backbone, next to what needs no prompt.

Thin: every number comes from `prompt-jax train` and its record. Another task or size:

    python tools/demo.py --out out/sst2 --model micro_m --gin.MIXTURE_OR_TASK_NAME="'sst2'" ...
"""

import argparse
import collections
import json
import pathlib
import sys

import prompt_jax
from prompt_jax.__main__ import main as prompt_jax_main
from prompt_jax.data import cache
from prompt_jax.ledger import read
from prompt_jax.predict import Predictor
from prompt_jax.report import bag_of_words, draw_curve

FLAGS = [
    "train",
    "--gin_file=methods/prompt_tuning.gin",
    "--gin_file=runs/demo.gin",
    "--gin.PROMPT_LENGTH=20",
]


def train(model_dir: pathlib.Path, given: list[str], *bindings: str) -> dict:
    """One `prompt-jax train` with the `given` flags; its record."""
    flags = [*FLAGS, *given, f"--gin.MODEL_DIR='{model_dir}'"]
    flags += [f"--gin.{binding}" for binding in bindings]
    print("\n$ prompt-jax", " ".join(flags), flush=True)
    code = prompt_jax_main(flags)
    if code:
        sys.exit(code)
    return read(f"{model_dir}/record.json")


def texts_and_labels(predictor: Predictor, split: str):
    """The examples of a split of the demo's task, as text."""
    data = predictor.context.run.data
    vocabulary = predictor.context.opened.vocabulary
    tokens = cache.build(data.mixture_or_task_name, split, vocabulary, data.cache_dir)
    rows = [tokens.example(i) for i in range(len(tokens))]
    return tuple([row[f"{name}_pretokenized"] for row in rows] for name in ("inputs", "targets"))


def main() -> None:
    """Trains, compares, predicts, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/demo")
    parser.add_argument("--control", action="store_true", help="also on random weights")
    parser.add_argument("--model", default="micro_s")
    args, given = parser.parse_known_args()
    out = pathlib.Path(args.out)
    given = [f"--gin_file=models/{args.model}.gin", *given]

    others = [flag for flag in given if not flag.startswith("--gin.TRAIN_STEPS=")]
    untrained = train(out / "untrained", others, "TRAIN_STEPS=0")
    record = train(out, given)
    split = list(record["metrics"])[-1]  # the last that the run evaluates
    predictor = prompt_jax.load(str(out))
    train_split, test = (texts_and_labels(predictor, name) for name in ("train", split))
    majority = collections.Counter(test[1]).most_common(1)[0][1] / len(test[1])
    rows = {
        "majority class": majority,
        "bag of words (logistic regression)": bag_of_words(train_split, test),
        "untrained prompt": untrained["metrics"][split]["accuracy"],
        "trained prompt": record["metrics"][split]["accuracy"],
    }
    if args.control:
        control = train(out / "control", given, "Backbone.random_weights=True")
        rows["trained prompt, backbone of random weights"] = control["metrics"][split]["accuracy"]

    print(f"\n{record['mixture']}, {split} split of {len(test[0])}: accuracy")
    for name, value in rows.items():
        print(f"  {name:<44} {value:.3f}")
    print("\nten predictions")
    shown = range(0, len(test[0]), len(test[0]) // 10)
    answers = predictor.predict([test[0][i] for i in shown])
    for i, row in zip(shown, answers, strict=True):
        mark = "ok " if row["prediction"] == test[1][i] else "BAD"
        print(f"  {mark} {row['prediction']:<9} {row['inputs'][:84]}")
    draw_curve(record, f"{out}/curve.png", {k: rows[k] for k in list(rows)[:3]})
    (out / "table.json").write_text(json.dumps(rows, indent=1))
    print("\nwrote")
    for name in ("record.json", "curve.png", "table.json", "prompt.npy", "prompt.safetensors"):
        print(f"  {out / name}")


if __name__ == "__main__":
    main()
