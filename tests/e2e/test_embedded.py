"""What a prompt can ask of the embedded backbones, as their card says."""

import pytest

from prompt_jax import ledger
from prompt_jax.__main__ import main

TASK = [
    "--gin_file=methods/prompt_tuning.gin",
    "--gin_file=runs/prompt_tune.gin",
    "--gin_file=models/micro_xs.gin",
    "--gin.MIXTURE_OR_TASK_NAME='micro_entailment'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 8}",
    "--gin.PROMPT_LENGTH=20",
    "--gin.Adafactor.learning_rate=0.3",
    "--gin.DROPOUT_RATE=0.0",
    "--gin.TRAIN_STEPS=300",
    "--gin.EVAL_PERIOD=100",
    "--gin.Run.final_splits=('test',)",
    "--gin.Run.evaluators=(@TaskMetrics(),)",
    "--gin.TaskMetrics.decoding=@TrieDecoding()",
    "--gin.TrieDecoding.labels=('entailment', 'not_entailment')",
]


def accuracy(backbone: str, folder) -> float:
    paths = [f"--gin.INITIAL_CHECKPOINT_PATH='{backbone}'", f"--gin.MODEL_DIR='{folder}'"]
    assert main(["train", *TASK, *paths]) == 0
    return ledger.read(f"{folder}/record.json")["metrics"]["test"]["accuracy"]


@pytest.mark.slow
def test_a_backbone_that_was_taught_to_compare_can_be_asked_to(tmp_path):
    """Two classes, 1,000 examples: chance is 0.5 with a standard error of 0.016."""
    assert accuracy("prompt_jax:micro_xs", tmp_path / "untaught") < 0.55
    assert accuracy("prompt_jax:micro_xs_pairs", tmp_path / "taught") > 0.56
