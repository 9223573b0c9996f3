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
LENGTHS = "{'inputs': 64, 'targets': 16}"
# (name, run file, mixture, steps, further bindings)
STAGES = (
    ("language", "pretrain", "micro_language", 600, ()),
    (
        "lessons",
        "instruct",
        "micro_first_lessons",
        1200,
        ("WARMUP_STEPS=50", f"TASK_FEATURE_LENGTHS={LENGTHS}"),
    ),
)


def train(model: str, out: pathlib.Path) -> pathlib.Path:
    """Runs every stage; the folder of the last backbone."""
    backbone = None
    for name, run, mixture, steps, more in STAGES:
        folder = out / model / name
        bindings = [f"MODEL_DIR='{folder}'", f"MIXTURE_OR_TASK_NAME='{mixture}'"]
        bindings += [f"TRAIN_STEPS={steps}", *more]
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
    parser.add_argument("--pack", type=pathlib.Path, help="a finished backbone folder")
    args = parser.parse_args()
    pack(args.pack or train(args.model, args.out), args.model)


if __name__ == "__main__":
    main()
