"""Prompt tuning and model tuning of the embedded family, over seeds: one table from records.

    python tools/compare_family.py --out out/family

Each row is a model and a method, trained on the mixture of all embedded tasks; numbers are means
over its tasks and the spread over seeds. Started again, it does only the runs that are missing.
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
METRICS = ("accuracy", "f1")


def train(out: pathlib.Path, row: tuple[str, str, str], seed: int, args) -> dict:
    """One run; its record."""
    model, method, run = row
    folder = out / f"{model}-{method}-{seed}"
    bindings = [
        f"MODEL_DIR='{folder}'",
        f"MIXTURE_OR_TASK_NAME='{args.task}'",
        "TASK_FEATURE_LENGTHS={'inputs': 96, 'targets': 8}",
        f"TRAIN_STEPS={args.steps}",
        f"EVAL_PERIOD={args.steps}",
        f"CHECKPOINT_PERIOD={args.steps}",
        f"RANDOM_SEED={seed}",
        "DROPOUT_RATE=0.0",
        "Run.final_splits=('test',)",
    ]
    bindings += ["PROMPT_LENGTH=20"] if method == "prompt_tuning" else []
    files = [f"models/{model}.gin", f"methods/{method}.gin", f"runs/{run}.gin"]
    flags = [*(f"--gin_file={file}" for file in files), *(f"--gin.{b}" for b in bindings)]
    if not (folder / "record.json").exists():
        code = prompt_jax_main(["train", *flags])
        if code:
            sys.exit(code)
    return read(str(folder / "record.json"))


def main() -> None:
    """Trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/family", type=pathlib.Path)
    parser.add_argument("--task", default="micro_all")
    parser.add_argument("--steps", default=400, type=int)
    parser.add_argument("--seeds", default=3, type=int)
    args = parser.parse_args()
    found = {
        row: [train(args.out, row, seed, args)["metrics"]["test"] for seed in range(args.seeds)]
        for row in ROWS
    }
    names = [name for name in METRICS if name in next(iter(found.values()))[0]]
    print("\n| model | method | " + " | ".join(f"mean {name}" for name in names) + " |")
    print("|---" * (2 + len(names)) + "|")
    for (model, method, _), runs in found.items():
        cells = []
        for name in names:
            values = [run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        print(f"| {model} | {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
