"""A teacher: what a phase takes over, and the distance of two prompts' logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.assemble import Model
from prompt_jax.errors import UserError
from prompt_jax.likelihood import mean_square
from prompt_jax.losses import CrossEntropy, Distillation
from prompt_jax.parts.transfer import KeepSource, Teach
from prompt_jax.similarity import similarity_average
from prompt_jax.step import loss_and_grads
from prompt_jax.testing.contract import CONFIG, begin, method_of

SETTINGS = {"PROMPT_LENGTH": 5, "PromptBank.init": "@UniformInit()", "SOURCE_TASK": "'micro_boolq'"}


@pytest.fixture(scope="module")
def ours():
    return begin(method_of("panda", SETTINGS))


def taught(ours, teacher, strength=1.0, weight=0.5, config=None):
    """Loss and gradient in the last phase."""
    phase = ours.method.phases[-1]
    terms = (CrossEntropy(), Distillation(strength))
    method = dataclasses.replace(ours.method.during(phase), losses=terms)
    model = Model(ours.model.network, method)
    still = {"prompt/teacher": teacher, "prompt/teacher_weight": jnp.float32(weight)}

    def loss(trainable, batch):
        return loss_and_grads(model, trainable, {**ours.frozen, **still}, batch, None)[:2]

    return loss


def test_a_student_like_its_teacher_learns_nothing_from_it(ours):
    batch = ours.batch()
    alone, grads = ours.gradients(batch)
    own = ours.state.trainable
    loss, found = jax.jit(taught(ours, own["prompt/encoder"]))(own, batch)
    np.testing.assert_allclose(loss, alone, rtol=1e-6)
    np.testing.assert_allclose(
        found["prompt/encoder"], grads["prompt/encoder"], rtol=1e-5, atol=1e-7
    )
    assert found.keys() == own.keys()


def test_the_distance_is_that_of_the_logits(ours):
    batch, own = ours.batch(), ours.state.trainable
    teacher = own["prompt/encoder"] + 0.5
    loss, _ = jax.jit(taught(ours, teacher, 2.0, 0.25))(own, batch)
    mine = np.asarray(ours.logits(batch), np.float64)
    theirs = np.asarray(ours.logits(batch, {**ours.params, "prompt/encoder": teacher}), np.float64)
    weights = batch["decoder_loss_weights"]
    expected, count = 0.0, 0
    for row, place in zip(*np.nonzero(weights), strict=True):
        expected += np.mean((mine[row, place] - theirs[row, place]) ** 2)
        count += 1
    alone, _ = ours.gradients(batch)
    np.testing.assert_allclose(loss - alone, 2.0 * 0.25 * expected / count, rtol=1e-4)


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"weight": 0.0}])
def test_a_teacher_without_weight_is_none(ours, off):
    batch, own = ours.batch(), ours.state.trainable
    alone, grads = ours.gradients(batch)
    loss, found = jax.jit(taught(ours, own["prompt/encoder"] + 1.0, **off))(own, batch)
    np.testing.assert_array_equal(loss, alone)
    np.testing.assert_allclose(
        found["prompt/encoder"], grads["prompt/encoder"], rtol=1e-6, atol=1e-9
    )


def test_chunks_change_nothing():
    rng = np.random.default_rng(0)
    states, head = (rng.normal(size=s).astype(np.float32) for s in ((3, 4, 6), (6, 50)))
    whole = mean_square(lambda x: x @ head, jnp.asarray(states), 50)
    parts = mean_square(lambda x: x @ head, jnp.asarray(states), 50, limit_mb=3 * 50 / 2**18)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(whole, np.mean((states @ head) ** 2, -1), rtol=1e-5)


def leaves(*seeds):
    draw = lambda seed: jnp.asarray(np.random.default_rng(seed).normal(size=(5, 16)), jnp.float32)  # noqa: E731
    names = ("prompt/encoder", "prompt/source")
    return {name: draw(seed) for name, seed in zip(names, seeds, strict=False)}


def test_what_each_phase_takes_over():
    source = leaves(0)
    kept = KeepSource()(source, dict)
    np.testing.assert_array_equal(kept["prompt/source"], source["prompt/encoder"])
    np.testing.assert_array_equal(kept["prompt/encoder"], source["prompt/encoder"])
    tuned = leaves(1, 0)
    after = Teach("average")(tuned, lambda: leaves(2))
    np.testing.assert_array_equal(after["prompt/teacher"], tuned["prompt/encoder"])
    np.testing.assert_array_equal(after["prompt/encoder"], leaves(2)["prompt/encoder"])
    pair = (np.asarray(tuned[path]) for path in ("prompt/source", "prompt/encoder"))
    assert float(after["prompt/teacher_weight"]) == pytest.approx(max(0, similarity_average(*pair)))


def test_weights_are_never_negative_and_1_for_the_same():
    same = leaves(3, 3)
    assert float(Teach("average")(same, dict)["prompt/teacher_weight"]) == pytest.approx(1.0)
    against = {**same, "prompt/source": -same["prompt/source"]}
    assert float(Teach("average")(against, dict)["prompt/teacher_weight"]) == 0.0
    assert float(Teach("constant")(against, dict)["prompt/teacher_weight"]) == 1.0
    with pytest.raises(UserError, match="did you mean 'per_token'"):
        Teach("per_tokens").check(None)


def test_the_phases_are_three_and_the_last_has_the_teacher(ours):
    source, teacher, student = ours.method.phases
    assert source.task == "micro_boolq" and not teacher.task and not student.task
    assert [type(term).__name__ for term in student.losses] == ["CrossEntropy", "Distillation"]
    assert ours.method.during(teacher).losses == ours.method.losses
    assert CONFIG.dropout_rate == 0.0
