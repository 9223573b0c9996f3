"""A fleet against the same runs as processes of their own, one after the other.

    python tools/bench_fleet.py --json=out/fleet.json

Both sides are whole commands, start-up included: one `prompt-jax study` of RUNS runs (seeds x
rates), then a `prompt-jax train` for each run, by the configuration that the study left. The
prompts of both sides are compared bit by bit.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from prompt_jax import ledger

RATES = (0.1, 0.3, 0.5, 1.0)
STUDY = """
Study:
  name = 'bench'
  out_dir = %STUDY_DIR
  gin_files = ('models/{model}.gin', 'methods/prompt_tuning.gin', 'runs/prompt_tune.gin')
  settings = {{
    'MIXTURE_OR_TASK_NAME': 'micro_sentiment',
    'TASK_FEATURE_LENGTHS': {{'inputs': 64, 'targets': 4}},
    'PROMPT_LENGTH': {length},
    'TRAIN_STEPS': {steps},
    'EVAL_PERIOD': {steps},
    'CHECKPOINT_PERIOD': 100,
    'DROPOUT_RATE': 0.0,
    'Run.log_period': 50,
  }}
  grid = @Product()
  fleets = @Fleets()
Fleets.map = '{map}'
Product.parts = (@seed/Axis(), @rate/Axis())
seed/Axis.name = 'RANDOM_SEED'
seed/Axis.values = {seeds}
rate/Axis.name = 'rate'
rate/Axis.setting = 'Adafactor.learning_rate'
rate/Axis.values = {rates}
"""


def command(*flags: str) -> float:
    """Seconds of a `prompt-jax` command."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "prompt_jax", *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(
            f"prompt-jax {' '.join(flags)}: exit code {done.returncode}\n{done.stderr[-2000:]}"
        )
    return time.perf_counter() - began


def step_ms(records: list[dict]) -> float:
    """Milliseconds of a run's step, compilation aside; of a fleet's run, its share."""
    rows = [row for record in records for row in record["curve"][1:]]
    return (
        1000
        * statistics.median(record_batch(records[0]) / row["examples_per_second"] for row in rows)
        / len({record["fleet"]["index"] for record in records})
    )


def record_batch(record: dict) -> int:
    """Examples of a step."""
    return record["config"]["Data.batch_size"]


def main() -> None:
    """Times both sides, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=16, help="a multiple of 4")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", default="micro_xs")
    parser.add_argument("--prompt_length", type=int, default=20)
    parser.add_argument("--map", default="auto", choices=("auto", "loop", "vmap"))
    parser.add_argument("--workers", default="", help="of the study; default: its own choice")
    parser.add_argument("--alone", type=int, default=0, help="single runs to time; 0: all")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        study = ["study", f"--gin_file={out}/bench.gin"]
        study += [f"--workers={args.workers}"] if args.workers else []
        # Neither side is the first to compile or to tokenise on this machine.
        for steps, name in ((2, "warm"), (args.steps, "study")):
            text = STUDY.format(
                model=args.model, length=args.prompt_length, steps=steps, map=args.map,
                seeds=tuple(range(args.runs // len(RATES))), rates=RATES,
            )  # fmt: skip
            (out / "bench.gin").write_text(text)
            together = command(*study, f"--gin.STUDY_DIR='{out}/{name}'")
        runs = sorted((out / "study" / "runs").iterdir())
        alone = []
        for run in runs[: args.alone or None]:
            folder = f"--gin.MODEL_DIR='{out}/alone/{run.name}'"
            alone.append(command("train", f"--gin_file={run}/config.gin", folder))
        same = [
            np.array_equal(
                *(
                    np.load(f / name / "prompt_last.npy")
                    for f in (out / "study/runs", out / "alone")
                )
            )
            for name in os.listdir(out / "alone")
        ]
        ours = [ledger.read(f"{run}/record.json") for run in runs]
        theirs = [ledger.read(str(path)) for path in (out / "alone").glob("*/record.json")]
        each = statistics.mean(alone)
        found = {
            "model": args.model,
            "runs": len(runs),
            "steps": args.steps,
            "map": ours[0]["fleet"]["map"],
            "fleet_seconds": together,
            "alone_seconds": alone,
            "ratio": each * len(runs) / together,
            "fleet_step_ms": step_ms(ours),
            "alone_step_ms": statistics.median(step_ms([record]) for record in theirs),
            "same_bits": f"{sum(same)} of {len(same)}",
            "devices": ours[0]["devices"],
            "code_version": ours[0]["code_version"],
            "written": ours[0]["written"],
        }
    print(
        f"{found['runs']} runs of {args.model}, {args.steps} steps: fleet ({found['map']}) "
        f"{together:.1f} s; alone {each:.1f} s each, {each * len(runs):.1f} s in all: "
        f"{found['ratio']:.2f} times as fast\n"
        f"a run's step: {found['fleet_step_ms']:.1f} ms in the fleet, "
        f"{found['alone_step_ms']:.1f} ms alone; prompts equal to the bit: {found['same_bits']}"
    )
    if args.json:
        pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(args.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
