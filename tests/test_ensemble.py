"""Ensembles of templates: the average, and the evaluator on a tiny model."""

import json

import numpy as np
import pytest

from prompt_jax.__main__ import main
from prompt_jax.data.micro import tasks
from prompt_jax.ensemble import average


def scores(seed, templates=5, examples=7, labels=3):
    return np.random.default_rng(seed).normal(size=(templates, examples, labels)) * 3


def test_the_average_by_hand():
    given = scores(0)
    expected = np.zeros((7, 3))
    for template in given:
        for row, values in enumerate(template):
            total = sum(np.exp(value) for value in values)
            expected[row] += [np.exp(value) / total / 5 for value in values]
    np.testing.assert_allclose(average(given), expected, rtol=1e-6)
    np.testing.assert_allclose(average(given).sum(-1), 1, rtol=1e-6)


def test_order_and_copies_of_templates_do_not_matter():
    given = scores(1)
    for other in (given[::-1], np.concatenate([given, given])):
        np.testing.assert_allclose(average(other), average(given), rtol=1e-6)


def test_one_template_decides_alone():
    given = scores(2, templates=1)
    np.testing.assert_array_equal(average(given).argmax(-1), given[0].argmax(-1))


def test_scores_far_below_zero_are_no_nan():
    assert np.isfinite(average(scores(3) - 1e5)).all()


@pytest.fixture
def few(monkeypatch, tmp_path):
    for split in tasks.SPLITS:
        monkeypatch.setitem(tasks.SPLITS, split, 24)
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))


def run(tmp_path, name, *more):
    files = ("models/micro_xs.gin", "methods/prompt_design.gin", "runs/prompt_tune.gin")
    flags = [
        *(f"--gin_file={file}" for file in files),
        f"--gin.MODEL_DIR='{tmp_path / name}'",
        "--gin.MIXTURE_OR_TASK_NAME='micro_sentiment'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 4}",
        "--gin.TRAIN_STEPS=0",
        "--gin.Run.evaluators=(@TaskMetrics(), @TemplateEnsemble())",
        *more,
    ]
    assert main(["train", *flags]) == 0
    return json.loads((tmp_path / name / "record.json").read_text())["metrics"]["validation"]


def test_an_ensemble_beside_the_tasks_metrics(few, tmp_path):
    transfer = "--gin.Run.transfer_tasks=('micro_boolq',)"
    found = run(tmp_path, "a", "--gin.TemplateEnsemble.count=3", transfer)
    assert {"accuracy", "templates/ensemble"} <= set(found)
    low, mean, high = (found[f"templates/{name}"] for name in ("min", "mean", "max"))
    assert 0 <= low <= mean <= high <= 1
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    there = record["metrics"]["micro_boolq/validation"]
    assert {"accuracy", "templates/ensemble"} <= set(there)
    one = run(tmp_path, "b", "--gin.TemplateEnsemble.count=1")
    assert one["templates/ensemble"] == one["templates/mean"] and one["templates/sd"] == 0


def test_a_task_without_labels_has_no_ensemble(few, tmp_path, capsys):
    files = ("models/micro_xs.gin", "methods/prompt_design.gin", "runs/prompt_tune.gin")
    flags = [f"--gin_file={file}" for file in files]
    flags += [f"--gin.MODEL_DIR='{tmp_path / 'c'}'", "--gin.TRAIN_STEPS=0"]
    flags += ["--gin.Run.evaluators=(@TemplateEnsemble(),)"]
    assert main(["train", *flags, "--gin.MIXTURE_OR_TASK_NAME='micro_qa'"]) == 2
    assert "'micro_qa' is no task with labels" in capsys.readouterr().err
    assert main(["train", *flags, "--gin.MIXTURE_OR_TASK_NAME='micro_boolq'"]) == 2
    assert "valid: 'templates/ensemble'" in capsys.readouterr().err
