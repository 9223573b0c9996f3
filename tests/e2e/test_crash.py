"""Killed, interrupted or out of disk: what a run leaves, and that it goes on to the same bits."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 40
FLAGS = [
    "train",
    "--gin_file=models/micro_xs.gin",
    "--gin_file=methods/prompt_tuning.gin",
    "--gin_file=runs/prompt_tune.gin",
    "--gin.MIXTURE_OR_TASK_NAME='micro_sentiment'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 4}",
    "--gin.Backbone.random_weights=True",
    "--gin.Backbone.vocabulary='prompt_jax:vocabulary/micro.model'",
    "--gin.T5Config.emb_dim=16",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
    "--gin.BATCH_SIZE=8",
    "--gin.PROMPT_LENGTH=4",
    f"--gin.TRAIN_STEPS={STEPS}",
    "--gin.EVAL_PERIOD=20",
    "--gin.EVAL_STEPS=1",
    "--gin.CHECKPOINT_PERIOD=5",
    "--gin.Run.log_period=1",
    "--gin.Parallel.data=1",
]


def start(folder, *more):
    command = [sys.executable, "-m", "prompt_jax", *FLAGS, f"--gin.MODEL_DIR='{folder}'", *more]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def curve(folder):
    path = folder / "curve.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: (row["loss"], row["grad_norm"], row["moved"]) for row in rows}


def saved_steps(folder):
    """The checkpoints that are whole: one being written has a longer name."""
    path = folder / "checkpoints"
    return [int(p.name) for p in path.iterdir() if p.name.isdigit()] if path.exists() else []


def wait_for_step(process, folder, step):
    """Waits until the curve has reached a step."""
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if max(curve(folder), default=0) >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, output = finish(start(folder))
    assert code == 0, output
    return folder


@pytest.mark.slow
def test_sigkill_at_a_random_step_changes_no_bit(uninterrupted, tmp_path):
    step = random.randint(6, STEPS - 12)
    process = start(tmp_path)
    wait_for_step(process, tmp_path, step)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(curve(tmp_path)) < STEPS
    saved = saved_steps(tmp_path)
    code, output = finish(start(tmp_path))
    assert code == 0 and ("continuing at step" in output) == bool(saved), output
    assert not saved or f"continuing at step {max(saved)}" in output, output
    assert curve(tmp_path) == curve(uninterrupted), f"killed after step {step}"
    for name in ("prompt.npy", "prompt_last.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / name), np.load(uninterrupted / name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_saves_and_says_how_to_go_on(uninterrupted, tmp_path, number, code):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 7)
    process.send_signal(number)
    got, output = finish(process)
    assert got == code, output
    saved = max(saved_steps(tmp_path))
    assert f"saved step {saved}" in output and "same command" in output
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "interrupted"
    got, output = finish(start(tmp_path))
    assert got == 0 and f"continuing at step {saved}" in output
    assert curve(tmp_path) == curve(uninterrupted)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted, which needs root")
def test_a_full_disk_names_the_last_good_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets no tmpfs be mounted")
    try:
        folder = disk / "run"
        process = start(folder, "--gin.Run.keep_latest=100")
        code, output = finish(process)
        assert code == 3, output
        whole = [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
        last = max(whole, key=lambda path: int(path.name))
        assert f"last good checkpoint: {last}" in output
        assert not list(folder.rglob("*.part"))
        for path in whole:  # nothing half-written: each has Orbax's mark of a finished save
            assert (path / "_CHECKPOINT_METADATA").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
