"""Pretrains an embedded backbone stage by stage and packs it as bfloat16.

    PROMPT_JAX_CORPORA=FOLDER python tools/make_backbones.py micro_s --out out/backbones

Starting it again goes on where it stopped: each stage is a `prompt-jax train`. At the end it prints
the stages' table of the model card from their records. `--pack FOLDER` only packs a finished
backbone folder into `prompt_jax/assets/NAME`; `--table` only prints.
"""

import argparse
import dataclasses
import pathlib
import sys

from prompt_jax.__main__ import main as prompt_jax_main
from prompt_jax.ckpt import folder, load
from prompt_jax.ledger import read

ASSETS = pathlib.Path(__file__).resolve().parent.parent / "prompt_jax" / "assets"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of pretraining: its mixture, steps of `batch` examples and peak rate.

    embeddings: rate of the embedding table and the position biases, in kernels' rates.
    steady: the rate stays, instead of falling to a tenth. inputs: length of an example. probe: the
    task that a short prompt is tried on.
    """

    name: str
    mixture: str
    steps: int
    batch: int
    rate: float
    embeddings: float = 10.0
    steady: bool = False
    inputs: int = 64
    run: str = "instruct"
    targets: int = 16
    probe: str = "micro_sentiment"

    def bindings(self) -> list[str]:
        """Gin bindings over the run file's."""
        return [
            f"MIXTURE_OR_TASK_NAME='{self.mixture}'",
            f"TRAIN_STEPS={self.steps}",
            f"BATCH_SIZE={self.batch}",
            f"LEARNING_RATE={self.rate}",
            f"EMBEDDING_RATE={self.embeddings * self.rate:.3g}",
            f"AdamW.end_rate={1.0 if self.steady else 0.1}",
            f"TASK_FEATURE_LENGTHS={{'inputs': {self.inputs}, 'targets': {self.targets}}}",
            f"WARMUP_STEPS={min(200, self.steps // 4) if self.run == 'pretrain' else 50}",
            f"PromptProbe.task='{self.probe}'",
            "EVAL_PERIOD=1000",
            "CHECKPOINT_PERIOD=500",
        ]


def _language(steps: int, rate: float = 2e-3, embeddings: float = 10.0) -> Stage:
    run = {"run": "pretrain", "targets": 40, "embeddings": embeddings}
    return Stage("language", "micro_language", steps, 128, rate, **run)


def _cues(steps: int, rate: float = 1e-3, embeddings: float = 10.0) -> Stage:
    rates = {"rate": rate, "embeddings": embeddings, "steady": True}
    return Stage("cues", "micro_cues", steps, 64, inputs=16, **rates)


# A wider model wants smaller rates for its kernels: at micro_xs' rates micro_m's attention
# saturates during the language stage, and it learns no cue afterwards.
RECIPES = {
    "micro_xs": (
        _language(600),
        _cues(1200),
        Stage("words", "micro_words", 200, 256, 1e-3),
        Stage("labels", "micro_labels", 1000, 128, 1.5e-3),
        Stage("moods", "micro_moods", 3000, 128, 1.5e-3),
    ),
    "micro_s": (
        _language(600),
        Stage("questions", "micro_first_lessons", 1200, 256, 2e-3),
        _cues(1200),
        Stage("labels", "micro_labels", 1000, 128, 1.5e-3),
        Stage("instructions", "micro_mixture", 3000, 128, 1.5e-3),
        Stage("moods", "micro_moods", 2500, 128, 1.5e-3),
    ),
    "micro_m": (
        _language(600, 6e-4, 30.0),
        _cues(1200, 4e-4, 20.0),
        Stage("words", "micro_words", 200, 256, 4e-4, 20.0),
        Stage("labels", "micro_labels", 1000, 128, 5e-4, 20.0),
        Stage("moods", "micro_moods", 3000, 128, 5e-4, 20.0),
    ),
    "micro_xs_pairs": (
        Stage("follow", "micro_follow", 1000, 128, 1.5e-3, probe="micro_entailment"),
        Stage("pairs", "micro_pairs", 9500, 128, 1.5e-3, probe="micro_entailment"),
    ),
}
AFTER = {"micro_xs_pairs": "micro_xs"}  # the packed backbone, of the same size, that goes on


def train(model: str, out: pathlib.Path) -> pathlib.Path:
    """Runs every stage that is not done; the folder of the last backbone."""
    size, backbone = model, None
    if model in AFTER:
        size, backbone = AFTER[model], f"prompt_jax:{AFTER[model]}"
    for stage in RECIPES[model]:
        folder = out / model / stage.name
        files = [f"models/{size}.gin", "methods/pretraining.gin", f"runs/{stage.run}.gin"]
        bindings = [f"MODEL_DIR='{folder}'", *stage.bindings()]
        bindings += [f"INITIAL_CHECKPOINT_PATH='{backbone}'"] if backbone else []
        flags = [*(f"--gin_file={file}" for file in files), *(f"--gin.{b}" for b in bindings)]
        if not (folder / "backbone").exists():
            code = prompt_jax_main(["train", *flags])
            if code:
                sys.exit(code)
        backbone = folder / "backbone"
    return backbone


def table(model: str, out: pathlib.Path) -> None:
    """Prints a line of the model card for each stage, from its record."""
    print("| stage | data | steps | examples | minutes | loss | with another's input | probe |")
    print("|---|---|---|---|---|---|---|---|")
    for stage in RECIPES[model]:
        record = read(f"{out / model / stage.name}/record.json")
        found = record["metrics"]["validation"]
        minutes = record["seconds"]["total"] / 60
        print(
            f"| {stage.name} | `{stage.mixture}` | {record['steps']:,} x {stage.batch} "
            f"| {record['examples']:,} | {minutes:.0f} | {found['loss']:.2f} "
            f"| {found['shuffled_loss']:.2f} | {found[f'probe/{stage.probe}']:.2f} |"
        )


def pack(backbone: pathlib.Path, model: str) -> None:
    """Writes the backbone in bfloat16 to the package's assets."""
    config = dataclasses.replace(load.open_source(backbone).config, param_dtype="bfloat16")
    params = load.load_backbone(backbone, config).params
    folder.save(ASSETS / model, params, config, backbone / "spiece.model")
    print(f"wrote {ASSETS / model}")


def main() -> None:
    """Parses, trains, packs, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=tuple(RECIPES))
    parser.add_argument("--out", default="out/backbones", type=pathlib.Path)
    parser.add_argument("--pack", type=pathlib.Path, help="a finished backbone folder")
    parser.add_argument("--table", action="store_true", help="only print the stages' table")
    args = parser.parse_args()
    if not args.table:
        pack(args.pack or train(args.model, args.out), args.model)
    if not args.pack:
        table(args.model, args.out)


if __name__ == "__main__":
    main()
