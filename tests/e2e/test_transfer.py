"""Train on one task, evaluate on others; and the baseline that trains nothing."""

import json

import pytest

import prompt_jax
from prompt_jax.__main__ import main
from prompt_jax.data.micro import tasks

FILES = ["--gin_file=models/micro_xs.gin", "--gin_file=runs/prompt_tune.gin"]


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    for split in tasks.SPLITS:
        monkeypatch.setitem(tasks.SPLITS, split, 40)
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))


def train(tmp_path, method, task, *more):
    flags = [
        f"--gin_file=methods/{method}.gin",
        f"--gin.MODEL_DIR='{tmp_path / 'run'}'",
        f"--gin.MIXTURE_OR_TASK_NAME='{task}'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 96, 'targets': 4}",
        "--gin.Parallel.data=1",
        *more,
    ]
    code = main(["train", *FILES, *flags])
    record = tmp_path / "run" / "record.json"
    return code, json.loads(record.read_text()) if record.exists() else None


def test_the_best_prompt_is_evaluated_on_other_tasks(tmp_path, capsys):
    code, record = train(
        tmp_path,
        "prompt_tuning",
        "micro_sentiment",
        "--gin.PROMPT_LENGTH=4",
        "--gin.TRAIN_STEPS=4",
        "--gin.Run.transfer_tasks=('micro_sentiment_shift', 'micro_boolq')",
    )
    assert code == 0
    names = ("validation", "micro_sentiment_shift/validation", "micro_boolq/validation")
    assert set(record["metrics"]) == set(names)
    assert all(set(record["metrics"][name]) == {"accuracy", "invalid"} for name in names)
    # The same numbers as evaluating the finished run on that task.
    flags = [f"--model_dir={tmp_path / 'run'}", "--mixture_or_task=micro_sentiment_shift"]
    flags += ["--split=validation", f"--json={tmp_path / 'eval.json'}"]
    assert main(["eval", *flags]) == 0
    (found,) = json.loads((tmp_path / "eval.json").read_text())["prompts"].values()
    assert found == record["metrics"]["micro_sentiment_shift/validation"]


def test_a_transfer_task_without_the_split_is_refused_at_once(tmp_path, capsys):
    more = ["--gin.PROMPT_LENGTH=4", "--gin.Run.transfer_tasks=('xquad_de',)"]
    assert train(tmp_path, "prompt_tuning", "micro_sentiment", *more) == (2, None)
    assert "'xquad_de' has no split 'validation'" in capsys.readouterr().err
    more = ["--gin.PROMPT_LENGTH=4", "--gin.Run.transfer_tasks=('micro_sentimental',)"]
    assert train(tmp_path, "prompt_tuning", "micro_sentiment", *more) == (2, None)
    assert "did you mean 'micro_sentiment" in capsys.readouterr().err
    more = ["--gin.PROMPT_LENGTH=4", "--gin.Run.transfer_tasks=('micro_text',)"]
    assert train(tmp_path, "prompt_tuning", "micro_sentiment", *more) == (2, None)
    assert "task 'micro_text' has no `inputs`" in capsys.readouterr().err


def test_a_metric_that_the_task_has_not_is_refused_at_once(tmp_path, capsys):
    assert train(tmp_path, "prompt_tuning", "micro_qa", "--gin.PROMPT_LENGTH=4") == (2, None)
    said = "Run.best_metric = 'accuracy' is not among the metrics of micro_qa: valid: 'em', 'f1'"
    assert said in capsys.readouterr().err


def test_in_context_examples_need_no_training(tmp_path):
    code, record = train(
        tmp_path, "prompt_design", "micro_sentiment_2demos_0", "--gin.TRAIN_STEPS=0"
    )
    assert code == 0 and record["status"] == "ok"
    assert record["trainable_parameters"] == 0 and record["steps"] == 0
    assert record["bytes"] == {"result": 0, "checkpoints": 0}
    assert set(record["metrics"]["validation"]) == {"accuracy", "invalid"}
    assert not list((tmp_path / "run").glob("prompt*")) and not record["prompt_file"]
    assert not (tmp_path / "run" / "backbone").exists()
    (row,) = prompt_jax.load(str(tmp_path / "run")).predict(["the room was lovely . answer:"])
    assert isinstance(row["prediction"], str)


def test_nothing_to_train_is_an_error_where_steps_are_asked_for(tmp_path, capsys):
    code, _ = train(tmp_path, "prompt_design", "micro_sentiment", "--gin.TRAIN_STEPS=3")
    assert code == 2
    assert "leave nothing to train; TRAIN_STEPS=0 evaluates" in capsys.readouterr().err
