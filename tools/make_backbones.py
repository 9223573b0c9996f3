"""Pretrains an embedded backbone stage by stage and packs it as bfloat16.

    PROMPT_JAX_CORPORA=FOLDER python tools/make_backbones.py micro_s --out out/backbones

Starting it again goes on where it stopped: each stage is a `prompt-jax train`. `--pack FOLDER` only
packs a finished backbone folder into `prompt_jax/assets/NAME`.
"""

import argparse
import dataclasses
import pathlib
import sys

from prompt_jax.__main__ import main as prompt_jax_main
from prompt_jax.ckpt import load

ASSETS = pathlib.Path(__file__).resolve().parent.parent / "prompt_jax" / "assets"
RATES = ("LEARNING_RATE=1.5e-3", "EMBEDDING_RATE=1.5e-2", "WARMUP_STEPS=50")
STEADY = ("LEARNING_RATE=1e-3", "EMBEDDING_RATE=1e-2", "AdamW.end_rate=1.0")
LENGTHS = "TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}"
SHORT = "TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}"
PERIODS = ("EVAL_PERIOD=1000", "CHECKPOINT_PERIOD=500")
# (name, run file, mixture, steps, further bindings)
STAGES = (
    ("language", "pretrain", "micro_language", 600, ()),
    ("questions", "instruct", "micro_first_lessons", 1200, ("WARMUP_STEPS=50", LENGTHS)),
    ("cues", "instruct", "micro_cues", 1200, (*STEADY, SHORT, "BATCH_SIZE=64")),
    ("labels", "instruct", "micro_labels", 1000, (*RATES, LENGTHS, "BATCH_SIZE=128")),
    ("instructions", "instruct", "micro_mixture", 4000, (*RATES, LENGTHS, "BATCH_SIZE=128")),
)


def train(model: str, out: pathlib.Path, budget: float) -> pathlib.Path:
    """Runs every stage with a share of its steps; the folder of the last backbone."""
    backbone = None
    for name, run, mixture, steps, more in STAGES:
        folder = out / model / name
        bindings = [f"MODEL_DIR='{folder}'", f"MIXTURE_OR_TASK_NAME='{mixture}'"]
        bindings += [f"TRAIN_STEPS={round(budget * steps)}", *PERIODS, *more]
        if backbone:
            bindings.append(f"INITIAL_CHECKPOINT_PATH='{backbone}'")
        files = [f"models/{model}.gin", "methods/pretraining.gin", f"runs/{run}.gin"]
        flags = [*(f"--gin_file={file}" for file in files), *(f"--gin.{b}" for b in bindings)]
        if not (folder / "backbone").exists():
            code = prompt_jax_main(["train", *flags])
            if code:
                sys.exit(code)
        backbone = folder / "backbone"
    return backbone


def pack(backbone: pathlib.Path, model: str) -> None:
    """Writes the backbone in bfloat16 to the package's assets."""
    config = dataclasses.replace(load.read_config(backbone), param_dtype="bfloat16")
    params = load.load_backbone(backbone, config)
    load.save_backbone(ASSETS / model, params, config, str(backbone / "spiece.model"))
    print(f"wrote {ASSETS / model}")


def main() -> None:
    """Parses, trains, packs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("micro_xs", "micro_s", "micro_m"))
    parser.add_argument("--out", default="out/backbones", type=pathlib.Path)
    parser.add_argument("--budget", default=1.0, type=float, help="share of every stage's steps")
    parser.add_argument("--pack", type=pathlib.Path, help="a finished backbone folder")
    args = parser.parse_args()
    pack(args.pack or train(args.model, args.out, args.budget), args.model)


if __name__ == "__main__":
    main()
