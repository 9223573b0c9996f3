"""A study that is killed in the middle of a fleet goes on, to the same bits."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PERIOD, STEPS = 5, 30
STUDY = f"""
Study:
  name = 'crash'
  out_dir = %STUDY_DIR
  gin_files = ('runs/prompt_tune.gin', 'methods/prompt_tuning.gin', 'models/micro_xs.gin')
  settings = {{
    'MIXTURE_OR_TASK_NAME': 'micro_sentiment',
    'TASK_FEATURE_LENGTHS': {{'inputs': 48, 'targets': 4}},
    'Backbone.random_weights': True,
    'Backbone.vocabulary': 'prompt_jax:vocabulary/micro.model',
    'T5Config.emb_dim': 16,
    'T5Config.num_encoder_layers': 1,
    'T5Config.num_decoder_layers': 1,
    'PROMPT_LENGTH': 4,
    'BATCH_SIZE': 8,
    'TRAIN_STEPS': {STEPS},
    'EVAL_PERIOD': 10,
    'EVAL_STEPS': 1,
    'CHECKPOINT_PERIOD': {PERIOD},
    'Run.log_period': 1,
    'Data.packing': False,
    'Parallel.data': 1,
  }}
  grid = @Product()
Product.parts = (@seed/Axis(), @rate/Axis())
seed/Axis.name = 'RANDOM_SEED'
seed/Axis.values = (0, 1)
rate/Axis.name = 'Adafactor.learning_rate'
rate/Axis.values = (0.1, 0.3)
"""


def start(folder):
    (folder / "study.gin").write_text(STUDY)
    out = f"--gin.STUDY_DIR='{folder}/out'"
    command = [sys.executable, "-m", "prompt_jax", "study", f"--gin_file={folder}/study.gin", out]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def steps(folder):
    """The last step of each run's curve."""
    curves = (folder / "out" / "runs").glob("*/curve.jsonl")
    return [path.read_text().count("\n") for path in curves]


def prompts(folder):
    runs = sorted((folder / "out" / "runs").iterdir())
    return {run.name: np.load(run / "prompt_last.npy") for run in runs}


@pytest.mark.slow
def test_sigkill_in_a_fleet_loses_the_steps_since_the_last_checkpoint(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    process = start(whole)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output

    process, until = start(killed), time.monotonic() + 240
    while max(steps(killed), default=0) < 12 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = max(steps(killed))
    assert reached < STEPS and not list((killed / "out").glob("ledger/*.json"))

    process = start(killed)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (began,) = re.findall(r"continuing at step (\d+) of", output)
    # The save of the last period may have been on its way.
    assert int(began) > reached - 2 * PERIOD
    records = [json.loads(path.read_text()) for path in (killed / "out/ledger").iterdir()]
    assert [record["status"] for record in records] == ["ok"] * 4
    assert all(record["fleet"]["size"] == 4 for record in records)
    assert not list((killed / "out/fleets").iterdir())
    expected, found = prompts(whole), prompts(killed)
    assert expected.keys() == found.keys() and len(found) == 4
    for name, prompt in found.items():
        np.testing.assert_array_equal(prompt, expected[name])

    process = start(killed)  # everything is there
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "continuing" not in output and "step " not in output
