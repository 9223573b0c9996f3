"""The similarity of two tasks by their prompts, as an evaluator."""

import numpy as np
import pytest

from prompt_jax.errors import UserError
from prompt_jax.relatedness import TaskSimilarity
from prompt_jax.study.packing import fleet_key


class Kept:
    """What `evaluate.Context.once` does."""

    def __init__(self):
        self.made = {}

    def once(self, key, make):
        return self.made.setdefault(key, make() if key not in self.made else None)


@pytest.fixture
def prompts(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(5, 8)).astype(np.float32) for name in "ab"}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return arrays


def test_it_reads_both_prompts(prompts, tmp_path):
    context = Kept()
    a, b = (str(tmp_path / f"{name}.npy") for name in "ab")
    found = TaskSimilarity(a, b)(context, {}, "test")
    assert list(found) == TaskSimilarity(a, b).metric_names(None)
    unit = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in prompts.items()}
    per_token = np.mean([x @ y for x in unit["a"] for y in unit["b"]])
    assert found["similarity/per_token"] == pytest.approx(per_token, rel=1e-5)
    # Prompts of one context are told apart; the order of the two is not.
    itself = TaskSimilarity(a, a)(context, {}, "test")
    assert itself["similarity/average"] == pytest.approx(1) != found["similarity/average"]
    assert TaskSimilarity(b, a)(context, {}, "test") == pytest.approx(found)


def test_a_missing_prompt_and_fleets(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        TaskSimilarity("nowhere.npy", "x.npy")(Kept(), {}, "test")
    assert fleet_key(TaskSimilarity("a", "b")) == fleet_key(TaskSimilarity("c", "d"))
