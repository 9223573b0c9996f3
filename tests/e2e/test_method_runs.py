"""Every method as a run: it resumes to the bit, and what it leaves answers as it did."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prompt_jax import train
from prompt_jax.__main__ import main
from prompt_jax.assemble import assemble
from prompt_jax.ckpt import prompt_file, prompts
from prompt_jax.config import resolve
from prompt_jax.data import layout
from prompt_jax.errors import Interrupted, UserError
from prompt_jax.evaluate import Decoding, label_scores
from prompt_jax.predict import Predictor
from prompt_jax.testing.runs import configure, sigterm_at

pytestmark = pytest.mark.slow

INPUTS = 48  # of `testing.runs`
LABELS = {"CLASS_LABELS": "('negative', 'positive')"}
METHODS = {
    "prompt_tuning": {},
    "low_rank_prompt": {"PROMPT_LENGTH": "4", "RANK": "2"},
    "bottleneck_prompt": {"PROMPT_LENGTH": "4", "RANK": "2"},
    "multitask_prompt": {"PROMPT_LENGTH": "4", "TASKS": "('micro_boolq', 'micro_sentiment')"},
    "xprompt": {"PROMPT_LENGTH": "4", "PIECES": "4", "SCORE_STEPS": "1"},
    "panda": {"PROMPT_LENGTH": "4", "SOURCE_TASK": "'micro_boolq'"},
    "dept": {"PROMPT_LENGTH": "4", "OFFSET_LENGTH": str(INPUTS), "RANK": "2"},
    "spt": {"PROMPT_LENGTH": "4", "RETRIEVED": "2", "MEMORY": "50"},
    "deep_prompts": {"PROMPT_LENGTH": "4"},
    "iapt": {"PROMPT_LENGTH": "4", "HIDDEN": "8"},
    "prefix_tuning": {"PROMPT_LENGTH": "4"},
    "lora": {"RANK": "2"},
    "residual_prompt": {"PROMPT_LENGTH": "4", "HIDDEN": "6"},
    "bbt": {"PROMPT_LENGTH": "4", **LABELS, "DIMENSION": "6", "POPULATION": "4"},
    "bbtv2": {"PROMPT_LENGTH": "4", **LABELS, "DIMENSION": "6", "POPULATION": "4"},
    "ptec": {"PROMPT_LENGTH": "4", **LABELS},
}
FOLDING = {
    "prompt_tuning",
    "residual_prompt",
    "bbt",
    "low_rank_prompt",
    "bottleneck_prompt",
    "xprompt",
    "panda",
}


def run(folder, name, **more):
    settings = {**METHODS[name], "EVAL_STEPS": "0", "TaskMetrics__limit": "24", **more}
    return train.run(configure(folder, method=name, **settings))


@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumes_and_serves(name, tmp_path):
    whole = run(tmp_path / "whole", name, TRAIN_STEPS="8")
    with sigterm_at(5), pytest.raises(Interrupted, match="saved step 5"):
        run(tmp_path / "twice", name, TRAIN_STEPS="8")
    record = run(tmp_path / "twice", name, TRAIN_STEPS="8")
    assert record["status"] == "ok" and record["method"] == name
    left = [prompt_file.load(str(tmp_path / d / "prompt.safetensors")) for d in ("whole", "twice")]
    assert left[0].own.keys() == left[1].own.keys()
    # The best step is the last for both, or the same earlier one.
    assert record["best"]["step"] == whole["best"]["step"]
    for path, leaf in left[0].own.items():
        np.testing.assert_array_equal(leaf, left[1].own[path])
    assert record["trainable_parameters"] == whole["trainable_parameters"] > 0

    predictor = Predictor.from_run(str(tmp_path / "twice"))
    found = predictor.metrics("micro_sentiment", "validation", Decoding(), 128)
    assert {*found} == ({"micro_boolq", "micro_sentiment"} if "multi" in name else {"prompt"})
    (row,) = predictor.predict(["the room was lovely . answer:"], list(found)[-1])
    assert isinstance(row["prediction"], str)


@pytest.mark.parametrize("name", sorted(FOLDING))
def test_what_folds_is_exported(name, tmp_path):
    run(tmp_path / "run", name, TRAIN_STEPS="8", EVAL_PERIOD="8")
    vectors = np.load(tmp_path / "run" / "prompt.npy")
    assert vectors.shape == (4, 16)
    for to in (f"peft:{tmp_path / 'adapter'}", str(tmp_path / "out.npy")):
        assert main(["convert", f"--from={tmp_path / 'run'}", f"--to={to}"]) == 0
        np.testing.assert_array_equal(prompts.read(to.removeprefix("peft:")).array, vectors)


def test_what_was_removed_is_not_served(tmp_path):
    removed = {"TOKENS_OFF": "0.5", "Method__select": "@Remaining()"}
    run(tmp_path / "run", "xprompt", TRAIN_STEPS="8", EVAL_PERIOD="8", **removed)
    stored = prompt_file.load(str(tmp_path / "run" / "prompt.safetensors"))
    on = stored.leaves["prompt/encoder_tokens_mask"] > 0
    assert on.sum() == stored.length == 2
    pieces = np.repeat(stored.leaves["prompt/encoder_pieces_mask"], 4, axis=1)
    expected = (stored.leaves["prompt/encoder"] * pieces)[on]
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "prompt.npy"), expected)
    # The two vectors that serve, and the four of which two are off, say the same.
    predictor = Predictor.from_run(str(tmp_path / "run"))
    request = predictor.request("the room was lovely . answer:", "prompt")
    assert len(request.slots) == 2
    labels = ("negative", "positive")
    served = label_scores(predictor.context, predictor.params, [request], labels, 8)
    resolved = resolve([str(tmp_path / "run" / "config.gin")]).run
    model = assemble(resolved.backbone.config, resolved.method)
    trained = dataclasses.replace(predictor.context, run=resolved, model=model, made={})
    leaves = {**predictor.context.opened.params, **stored.own}
    request = dataclasses.replace(request, slots=layout.slot_ids(4))
    found = label_scores(trained, leaves, [request], labels, 8)
    np.testing.assert_allclose(found, served, rtol=1e-5)


@pytest.mark.parametrize("name", sorted({*METHODS} - FOLDING))
def test_what_is_more_than_input_vectors_says_so(name, tmp_path):
    run(tmp_path, name, TRAIN_STEPS="1")
    with pytest.raises(UserError, match="more than input vectors|holds the prompts of 2 tasks"):
        prompts.read(tmp_path)
    arrays = sorted(path.name for path in tmp_path.glob("*.npy"))
    tasks = ["prompt.micro_boolq.npy", "prompt.micro_sentiment.npy"]
    assert arrays == (tasks if name == "multitask_prompt" else [])
    if arrays:
        assert np.load(tmp_path / arrays[0]).shape == (4, 16)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_change_of_kernels_becomes_a_backbone(dtype, tmp_path):
    run(tmp_path / "lora", "lora", TRAIN_STEPS="4", T5Config__param_dtype=f"'{dtype}'")
    merged = tmp_path / "merged"
    assert main(["convert", f"--from={tmp_path / 'lora'}", f"--to={merged}"]) == 0
    config = Predictor.from_run(str(tmp_path / "lora"))
    texts = ["the room was lovely . answer:", "it rained all day . answer:"]
    method = "prompt_design"  # the backbone as it is
    plain = configure(
        tmp_path / "plain",
        method=method,
        TRAIN_STEPS="0",
        Backbone__random_weights="False",
        INITIAL_CHECKPOINT_PATH=f"'{merged}'",
    )
    train.run(plain)
    served = Predictor.from_run(str(tmp_path / "plain"))
    labels = Decoding(mode="rank", labels=("negative", "positive"))
    for mine, theirs in zip(
        config.predict(texts, None, labels), served.predict(texts, None, labels), strict=True
    ):
        assert mine["prediction"] == theirs["prediction"]
        assert abs(mine["score"] - theirs["score"]) < 1e-4


def test_a_boundary_between_phases_that_moved_is_named(tmp_path):
    with sigterm_at(5), pytest.raises(Interrupted):
        run(tmp_path, "panda", TRAIN_STEPS="8")
    with pytest.raises(UserError, match="stopped in phase 'teacher'.* in phase 'source': go on"):
        run(tmp_path, "panda", TRAIN_STEPS="16")


@pytest.mark.parametrize("name", sorted({*METHODS} - {"prompt_tuning"}))
def test_a_fleet_is_the_single_runs(name, tmp_path):
    settings = {**METHODS[name], "TRAIN_STEPS": "5", "EVAL_PERIOD": "5", "Data__packing": "False"}
    runs = [
        configure(tmp_path / f"{seed}", method=name, **settings, RANDOM_SEED=str(seed))
        for seed in (0, 1)
    ]
    train.run_fleet(runs, str(tmp_path / "fleet"))
    alone = configure(tmp_path / "alone", method=name, **settings, RANDOM_SEED="1")
    train.run(alone)
    mine, theirs = (
        prompt_file.load(str(tmp_path / d / "prompt.safetensors")).own for d in ("1", "alone")
    )
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert json.loads((tmp_path / "1" / "record.json").read_text())["fleet"]["size"] == 2
