"""A trained prompt on int8 weights: the logits and the answers of the weights it was trained on."""

import numpy as np
import pytest

from prompt_jax import __main__ as cli
from prompt_jax.data.cache import build
from prompt_jax.evaluate import label_scores
from prompt_jax.predict import Predictor
from prompt_jax.requests import Request


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A prompt on the frozen `micro_s`, part of the demo's way."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    flags = ["train", "--gin_file=models/micro_s.gin", "--gin_file=methods/prompt_tuning.gin"]
    flags += ["--gin_file=runs/demo.gin", "--gin.PROMPT_LENGTH=20", "--gin.TRAIN_STEPS=150"]
    flags += ["--gin.EVAL_PERIOD=150", "--gin.Parallel.data=1", "--gin.Run.final_splits=()"]
    assert cli.main([*flags, f"--gin.MODEL_DIR='{folder}'"]) == 0
    return folder


def scores(folder, **kinds):
    """Log-likelihoods of the labels on the test split, [n, 2], and accuracy by rank."""
    bindings = [f"T5Config.{name}='{value}'" for name, value in kinds.items()]
    predictor = Predictor.from_run(str(folder), bindings=bindings)
    context, data = predictor.context, predictor.context.run.data
    vocabulary = context.opened.vocabulary
    tokens = build(data.mixture_or_task_name, "test", vocabulary, data.cache_dir)
    (slots,) = predictor.slots.values()
    requests = [Request(tokens.inputs(i), slots) for i in range(len(tokens))]
    answers = [tokens.example(i)["targets_pretokenized"] for i in range(len(tokens))]
    labels = tuple(sorted(set(answers)))
    found = label_scores(context, predictor.params, requests, labels, 128)
    right = [labels[at] == answer for at, answer in zip(found.argmax(1), answers, strict=True)]
    return found, float(np.mean(right))


@pytest.mark.slow
def test_answers_by_rank_are_those_of_float32(trained):
    """Within half a point of accuracy, over 1,000 examples."""
    exact, accuracy = scores(trained, param_dtype="float32")
    int8, low = scores(trained, param_dtype="int8")
    assert len(exact) == 1000 and accuracy > 0.6
    assert abs(low - accuracy) <= 0.005, (low, accuracy)
    assert not np.array_equal(int8, exact)
