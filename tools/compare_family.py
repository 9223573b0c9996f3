"""Prompt and model tuning of the embedded family, over tasks and seeds: one table from records.

    python tools/compare_family.py --out out/family

A cell is the mean over seeds, on the test split, of accuracy (F1 for questions with an extracted
answer); the last column is the mean over tasks with its spread over seeds. Started again, it does
only the runs that are missing; `--rows 2,3` does some of the rows, `--table` none.
"""

import argparse
import pathlib
import statistics
import sys

from prompt_jax.__main__ import main as prompt_jax_main
from prompt_jax.ledger import read

ROWS = (
    ("micro_m", "model_tuning", "model_tune"),
    ("micro_m", "prompt_tuning", "prompt_tune"),
    ("micro_s", "prompt_tuning", "prompt_tune"),
    ("micro_xs", "prompt_tuning", "prompt_tune"),
)
TASKS = {
    "micro_sentiment": "accuracy",
    "micro_entailment": "accuracy",
    "micro_paraphrase": "accuracy",
    "micro_boolq": "accuracy",
    "micro_qa": "f1",
}


def result(args: argparse.Namespace, row: tuple[str, str, str], task: str, seed: int) -> float:
    """The metric of one run, trained if its record is missing."""
    model, method, run = row
    folder = args.out / f"{model}-{method}-{task}-{seed}"
    bindings = [
        f"MODEL_DIR='{folder}'",
        f"MIXTURE_OR_TASK_NAME='{task}'",
        "TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 8}",
        f"Run.best_metric='{TASKS[task]}'",
        f"TRAIN_STEPS={args.steps}",
        f"EVAL_PERIOD={args.steps // 4}",
        f"CHECKPOINT_PERIOD={args.steps}",
        f"RANDOM_SEED={seed}",
        "DROPOUT_RATE=0.0",
        "Run.final_splits=('test',)",
    ]
    bindings += ["PROMPT_LENGTH=20"] if method == "prompt_tuning" else []
    files = [f"models/{model}.gin", f"methods/{method}.gin", f"runs/{run}.gin"]
    flags = [*(f"--gin_file={file}" for file in files), *(f"--gin.{b}" for b in bindings)]
    if not (folder / "record.json").exists():
        code = 2 if args.table else prompt_jax_main(["train", *flags])
        if code:
            sys.exit(code)
    return read(str(folder / "record.json"))["metrics"]["test"][TASKS[task]]


def main() -> None:
    """Trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/family", type=pathlib.Path)
    parser.add_argument("--steps", default=400, type=int)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--rows", default="0,1,2,3")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    lines = []
    for row in (ROWS[int(i)] for i in args.rows.split(",")):
        found = {task: [result(args, row, task, s) for s in range(args.seeds)] for task in TASKS}
        means = [statistics.mean(each) for each in zip(*found.values(), strict=True)]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        cells = [f"{statistics.mean(values):.3f}" for values in found.values()]
        cells.append(f"{statistics.mean(means):.3f} ± {spread:.3f}")
        lines.append(f"| {row[0]} | {row[1]} | {' | '.join(cells)} |")
    heads = [f"{task} ({metric})" for task, metric in TASKS.items()]
    print("\n| model | method | " + " | ".join(heads) + " | mean |")
    print("|---" * (3 + len(TASKS)) + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
