"""Ensembles of templates and of prompts: averages, votes, and the evaluators on a small model."""

import json

import numpy as np
import pytest

from prompt_jax import evaluate
from prompt_jax.__main__ import main
from prompt_jax.data.micro import sentiment, tasks
from prompt_jax.ensemble import average, majority
from prompt_jax.slots import SLOT0


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
        "--gin.Parallel.data=1",
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


# --- prompts ---


@pytest.mark.parametrize(
    ("texts", "scores", "winner"),
    [
        (["a", "b", "b"], [0.0, -9.0, -9.0], "b"),
        (["a", "b"], [-2.0, -1.0], "b"),
        (["a", "b", "b", "a", "c"], [-1.0, -2.0, -2.0, -4.0, 0.0], "b"),
        (["a", "b", "b", "a", "c"], [-1.0, -2.0, -2.0, -2.0, 0.0], "a"),
        (["a"], [-5.0], "a"),
    ],
)
def test_a_vote_by_hand(texts, scores, winner):
    assert majority(texts, scores) == winner


ASKED = ("maple or copper ?", "maple or copper .", "copper or maple ?")  # six pieces each


@pytest.fixture
def words(few, monkeypatch):
    """Reviews whose labels are words that micro_xs was taught to choose from."""
    monkeypatch.setattr(sentiment, "LABELS", ("copper", "maple"))


def single(tmp_path, number):
    """The metrics of one prompt alone, made of words that the model knows as a question."""
    name = f"single{number}"
    given = ["PromptBank.init=@TextInit()", f"TextInit.text='{ASKED[number]}'"]
    return prompted(tmp_path, name, 6, "(@TaskMetrics(),)", *given)


def prompted(tmp_path, name, length, evaluators, *bindings, devices=1):
    files = ("models/micro_xs.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin")
    given = {
        "MODEL_DIR": f"'{tmp_path / name}'",
        "MIXTURE_OR_TASK_NAME": "'micro_sentiment'",
        "TASK_FEATURE_LENGTHS": "{'inputs': 64, 'targets': 4}",
        "TRAIN_STEPS": "0",
        "PROMPT_LENGTH": str(length),
        "Parallel.data": str(devices),
        "Run.evaluators": evaluators,
    }
    flags = [f"--gin_file={file}" for file in files]
    flags += [f"--gin.{key}={value}" for key, value in given.items()]
    assert main(["train", *flags, *(f"--gin.{binding}" for binding in bindings)]) == 0
    return json.loads((tmp_path / name / "record.json").read_text())["metrics"]["validation"]


def voted(tmp_path, name, numbers, *bindings, devices=1):
    paths = tuple(str(tmp_path / f"single{number}" / "prompt.npy") for number in numbers)
    given = ["PromptBank.init=@Prompts()", f"Prompts.paths={paths}"]
    given += [f"PromptEnsemble.count={len(paths)}", "Run.best_metric='vote/accuracy'", *bindings]
    length = 6 * len(paths)
    return prompted(tmp_path, name, length, "(@PromptEnsemble(),)", *given, devices=devices)


def test_prompts_vote_in_one_batch(words, tmp_path, monkeypatch):
    alone = [single(tmp_path, number)["accuracy"] for number in range(3)]
    assert alone[0] > 0.6 and alone[0] != alone[2]  # else nothing below says anything
    seen = []
    real = evaluate.batches

    def watched(requests, *args):
        for batch, group in real(requests, *args):
            tokens = batch["encoder_input_tokens"]
            starts = [int(row[row >= SLOT0].min()) - SLOT0 for row in tokens if row.any()]
            seen.append((starts, [int(number) for number in group]))
            yield batch, group

    monkeypatch.setattr(evaluate, "batches", watched)
    found = voted(tmp_path, "three", range(3), "PromptEnsemble.batch_size=31", devices=8)
    assert [len(starts) for starts, _ in seen] == [48, 24]  # 24 examples; 31 -> 2 of 3 x 8 devices
    for starts, group in seen:
        assert starts == [0, 6, 12] * (len(starts) // 3)
        assert [number // 3 for number in group[::3]] == [number // 3 for number in group[2::3]]
    assert found["mean/accuracy"] == pytest.approx(np.mean(alone))
    assert found["best/accuracy"] == max(alone)
    assert found["sd/accuracy"] == pytest.approx(np.std(alone, ddof=1))
    assert set(found) == {f"{k}/{n}" for k in MEANS for n in ("accuracy", "invalid")}


MEANS = ("vote", "mean", "best", "sd")


def test_two_copies_outvote_another_prompt(words, tmp_path):
    first, other = single(tmp_path, 0), single(tmp_path, 2)
    found = voted(tmp_path, "two", (0, 2, 0))
    assert found["vote/accuracy"] == first["accuracy"] != other["accuracy"]
    mean = (2 * first["accuracy"] + other["accuracy"]) / 3
    assert found["mean/accuracy"] == pytest.approx(mean)
    found = voted(tmp_path, "same", (0, 0, 0))
    for kind in ("vote", "mean", "best"):
        assert {name: found[f"{kind}/{name}"] for name in first} == pytest.approx(first)
    assert found["sd/accuracy"] == 0


@pytest.mark.parametrize(
    ("length", "count", "message"),
    [
        (15, 3, "shape (4, 64), each of 3 prompts needs (5, 64)"),
        (12, 5, "PromptEnsemble.count = 5: PROMPT_LENGTH = 12 is not that many prompts"),
    ],
)
def test_prompts_that_do_not_fit(few, tmp_path, capsys, length, count, message):
    np.save(tmp_path / "p.npy", np.ones((4, 64), np.float32))
    files = ("models/micro_xs.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin")
    flags = [f"--gin_file={file}" for file in files]
    flags += [f"--gin.MODEL_DIR='{tmp_path / 'c'}'", "--gin.TRAIN_STEPS=0"]
    flags += ["--gin.MIXTURE_OR_TASK_NAME='micro_sentiment'", f"--gin.PROMPT_LENGTH={length}"]
    flags += ["--gin.PromptBank.init=@Prompts()", "--gin.Run.evaluators=(@PromptEnsemble(),)"]
    flags += [f"--gin.Prompts.paths={(str(tmp_path / 'p.npy'),) * 3}"]
    flags += ["--gin.Run.best_metric='vote/accuracy'"]
    assert main(["train", *flags, f"--gin.PromptEnsemble.count={count}"]) == 2
    assert message in capsys.readouterr().err
