"""`prompt-jax study` from the command line: a dry run, real runs, workers, what fails."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import toy_study as toy

from prompt_jax import __main__ as cli
from prompt_jax.errors import Interrupted, UserError
from prompt_jax.study import command, launch
from prompt_jax.study.table import Table

FIGURE = Table(name="runs", values=("steps",))
ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDY = """
Study:
  name = 'tiny'
  description = 'Tiny runs.'
  out_dir = %STUDY_DIR
  gin_files = ('runs/prompt_tune.gin', 'methods/prompt_tuning.gin', 'models/micro_xs.gin')
  settings = {
      'MIXTURE_OR_TASK_NAME': 'micro_sentiment',
      'TASK_FEATURE_LENGTHS': {'inputs': 48, 'targets': 4},
      'Backbone.random_weights': True,
      'Backbone.vocabulary': 'prompt_jax:vocabulary/micro.model',
      'T5Config.emb_dim': 16,
      'T5Config.num_heads': 2,
      'T5Config.head_dim': 8,
      'T5Config.mlp_dim': 32,
      'T5Config.num_encoder_layers': 1,
      'T5Config.num_decoder_layers': 1,
      'PROMPT_LENGTH': 4,
      'BATCH_SIZE': 8,
      'TRAIN_STEPS': %STEPS,
      'EVAL_PERIOD': 4,
      'EVAL_STEPS': 1,
      'Parallel.data': 1,
  }
  grid = @Product()
STEPS = 4
Product.parts = (@seed/Axis(), @After())
seed/Axis.name = 'RANDOM_SEED'
seed/Axis.values = (0, 1)
After:
  name = 'source'
  grid = @seed/Axis()
  setting = 'PROMPT_FILE'
  path = 'prompt.npy'
  same = ('RANDOM_SEED',)
  settings = {'PromptBank.init': '@FileInit()'}
"""


@pytest.fixture
def flags(tmp_path):
    file = tmp_path / "tiny.gin"
    file.write_text(STUDY)
    return ["study", f"--gin_file={file}", f"--gin.STUDY_DIR='{tmp_path / 'out'}'"]


@pytest.fixture(autouse=True)
def signals():
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture
def toys(monkeypatch, tmp_path):
    train = toy.log_and_train(tmp_path, 0)
    monkeypatch.setattr(launch, "train_fleet", train)
    return tmp_path


def shell(flags):
    return subprocess.run(
        [sys.executable, "-m", "prompt_jax", *flags],
        capture_output=True,
        text=True,
        cwd=flags[1].partition("=")[2].rpartition("/")[0],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=250,
        check=False,
    )


def test_dry_run_writes_nothing(flags, capsys, tmp_path):
    told = tmp_path / "plan.json"
    assert cli.main([*flags, "--dry_run", f"--json={told}"]) == 0
    shown = capsys.readouterr().out
    assert "study tiny: 4 runs" in shown and not (tmp_path / "out").exists()
    plan = json.loads(told.read_text())
    assert [run["status"] for run in plan["runs"]] == ["missing"] * 4
    assert {run["fleet"] for run in plan["runs"]} == {fleet["id"] for fleet in plan["fleets"]}
    for run in plan["runs"]:
        line = next(line for line in shown.splitlines() if line.startswith(run["id"]))
        assert "missing" in line and run["fleet"] in line
        assert all(need in line for need in run["needs"])
        cost = run["forecast"]
        assert (cost["steps"], cost["examples"], cost["trainable"]) == (4, 32, 64)
        assert not cost["measured"] and cost["flops"] > 4 * 4 * 8 * 48 * 16 * 32
    assert "all runs: 4 runs, 16 steps, 128 examples" in shown
    assert "trainable numbers of a run: 64 to 64" in shown


def test_forecasts_go_by_length(flags, tmp_path):
    told = tmp_path / "plan.json"
    grid = "--gin.Product.parts=(@seed/Axis(), @length/Axis())"
    axis = ["--gin.length/Axis.name='PROMPT_LENGTH'", "--gin.length/Axis.values=(2, 20)"]
    assert cli.main([*flags, grid, *axis, "--dry_run", f"--json={told}"]) == 0
    costs = [run["forecast"] for run in json.loads(told.read_text())["runs"]]
    assert [cost["trainable"] for cost in costs] == [2 * 16, 20 * 16] * 2
    assert costs[1]["flops"] > costs[0]["flops"] and costs[1]["kept"] == 10 * costs[0]["kept"]


def test_the_forecast_learns_from_what_ended(flags, tmp_path, monkeypatch, capsys):
    def train(members, folder, how):
        return [toy.record(each, steps=4) for each in members]

    clock = iter(np.arange(0.0, 10_000.0, 10.0).tolist())  # each look at it is 10 s later
    monkeypatch.setattr(launch, "train_fleet", train)
    monkeypatch.setattr(launch, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    assert cli.main(flags) == 0
    monkeypatch.undo()
    told = tmp_path / "plan.json"
    assert cli.main([*flags, "--dry_run", f"--json={told}"]) == 0
    for run in json.loads(told.read_text())["runs"]:
        # Two runs a fleet.
        assert run["forecast"]["measured"] and run["forecast"]["seconds"] == pytest.approx(5)
    assert "left: 0 runs" in capsys.readouterr().out


def test_launch_and_report(flags, toys, monkeypatch, capsys):
    drawn = []
    page = types.ModuleType("prompt_jax.study.page")
    page.write_report = lambda *args: drawn.append(args)
    monkeypatch.setitem(sys.modules, "prompt_jax.study.page", page)
    monkeypatch.setattr("prompt_jax.study.page", page, raising=False)
    assert cli.main([*flags, "--part=1/4"]) == 0 and not drawn
    assert "ok       2\n  failed   0\n  missing  2\n" in capsys.readouterr().out
    assert cli.main(flags) == 0 and not drawn  # it has no report
    assert cli.main([*flags, "--report"]) == 0
    (name, description, report, records, out) = drawn[0]
    assert (name, description, report, out) == ("tiny", "Tiny runs.", (), str(toys / "out/report"))
    assert [record["point"] for record in records] == [
        {"RANDOM_SEED": 0},
        {"RANDOM_SEED": 0, "source": 0},
        {"RANDOM_SEED": 1},
        {"RANDOM_SEED": 1, "source": 1},
    ]
    ran = sorted(name for name, _, _ in toy.trained(toys))
    assert ran == sorted(record["run"] for record in records)
    drawn.clear()
    real = command.resolve_study

    def with_report(*args, **more):
        runs = real(*args, **more)
        study = dataclasses.replace(runs.study, report=(FIGURE,))
        return dataclasses.replace(runs, study=study)

    monkeypatch.setattr(command, "resolve_study", with_report)
    assert cli.main(flags) == 0 and drawn[0][2] == (FIGURE,)


def test_a_failed_run_is_exit_3(flags, toys, monkeypatch, capsys):
    def train(members, folder, how):
        return [toy.record(each, "failed", reason="no luck") for each in members]

    monkeypatch.setattr(launch, "train_fleet", train)
    assert cli.main(flags) == 3
    assert "4 of 4 runs failed: " in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(launch, "train_fleet", toy.log_and_train(toys, 0))
    assert cli.main(flags) == 3 and not toy.trained(toys)
    assert cli.main([*flags, "--retry"]) == 0 and len(toy.trained(toys)) == 4


def test_an_interrupt_stops_the_study(flags, toys, monkeypatch, capsys):
    def train(members, folder, how):
        raise Interrupted(signal.SIGTERM, "saved step 2; the same command goes on")

    monkeypatch.setattr(launch, "train_fleet", train)
    assert cli.main(flags) == 143
    assert "saved step 2" in capsys.readouterr().err
    assert not (toys / "out" / "ledger").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--part=0/2", "--part=0/2: write i/n"),
        ("--part=3/2", "--part=3/2: write i/n"),
        ("--workers=0", "'0'"),
        ("--launcher=rya", "'rya'"),
        ("--gin.STEPS=-1", "TRAIN_STEPS = -1"),
        ("--gin.STEP=1", "did you mean 'STEPS'"),
    ],
)
def test_bad_input_is_exit_2(flags, toys, capsys, flag, message):
    assert cli.main([*flags, flag]) == 2
    assert message in capsys.readouterr().err
    assert not (toys / "out").exists() and not toy.trained(toys)


def test_workers_get_the_same_command(flags, toys, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "spawn", lambda command, count: seen.append((command, count)))
    assert cli.main([*flags, "--workers=3", "--gin.STEPS=5", "--gin_search_paths=a,b"]) == 0
    command_, count = seen[0]
    assert count == 3
    args = cli.parse(command_)
    assert args.gin == [flags[2].removeprefix("--gin."), "STEPS=5"]
    assert (args.gin_file, args.gin_search_paths) == ([flags[1].partition("=")[2]], ["a", "b"])
    assert (args.of_workers, args.part, args.workers) == (3, "1/1", 1)


def test_spawn_tells_how_workers_end(monkeypatch):
    monkeypatch.setattr(launch, "visible_devices", lambda: [])
    with pytest.raises(UserError, match="worker 1 of 2 ended with exit code 2"):
        launch.spawn(["nonsense"], 2)


@pytest.mark.slow
def test_real_runs_by_two_workers(flags, tmp_path):
    """Two processes share four real runs; a run starts from the prompt of the one it needs."""
    done = shell([*flags, "--workers=2"])
    assert done.returncode == 0, done.stderr
    assert "ok       4\n  failed   0\n  missing  0\n" in done.stdout
    records = [json.loads(p.read_text()) for p in (tmp_path / "out" / "ledger").iterdir()]
    assert len(records) == 4
    for record in records:
        assert record["status"] == "ok" and record["steps"] == 4
        start = np.load(tmp_path / "out" / "runs" / record["id"] / "prompt_init.npy")
        file = record["config"].get("FileInit.path")
        assert (file is not None) == ("source" in record["point"])
        if file:
            assert np.array_equal(start, np.load(file))
    told = tmp_path / "plan.json"
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "out", moved)
    flags[2] = f"--gin.STUDY_DIR='{moved}'"
    again = shell([*flags, "--dry_run", f"--json={told}"])
    assert again.returncode == 0, again.stderr
    assert {run["status"] for run in json.loads(told.read_text())["runs"]} == {"ok"}
