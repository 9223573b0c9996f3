"""What a run refuses before it costs anything."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax import checks, train
from prompt_jax.data.task import register_text_task
from prompt_jax.errors import UserError
from prompt_jax.fleet import AtOnce, trim
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.parts.bank import Banks, PromptBank
from prompt_jax.parts.banks.masked import MaskedBank
from prompt_jax.parts.banks.tasks import TaskBank
from prompt_jax.predict import Predictor
from prompt_jax.testing.runs import configure

LABELS = {"CLASS_LABELS": "('good', 'bad')"}
SCORING = "(@Score(), @Gradient())"


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("xprompt", {"TOKENS_OFF": "0.98"}, "a share of 0.98 of 20 tokens leaves none"),
        ("xprompt", {"PIECES_OFF": "-0.1"}, "a share of -0.1 of 16 pieces leaves none"),
        ("xprompt", {"Method__bank": "@PromptBank()", "PromptBank.length": "4"}, "@MaskedBank"),
        ("prompt_tuning", {"Method__phases": SCORING, "Score.steps": "2"}, "it needs .*Masked"),
        ("panda", {"Teach.similarity": "'averag'", "SOURCE_TASK": "'a'"}, "mean 'average'"),
        ("spt", {"RETRIEVED": "60", "MEMORY": "50"}, "count = 60: the memory has 50 rows"),
        ("xprompt", {"TRAIN_STEPS": "4", "SCORE_STEPS": "1"}, "leave phase 'train again' no step"),
        ("prompt_tuning", {"Decoding.mode": "'rnak'"}, "Decoding.mode = 'rnak': .* 'rank'"),
        ("prompt_tuning", {"Decoding.mode": "'trie'"}, "Decoding.mode = 'trie': "),
        ("prompt_tuning", {"Decoding.mode": "'rank'"}, "chooses among Decoding.labels"),
        ("ptec", {"Decoding.mode": "'beam'", **LABELS}, "ptec answers by its ClassifierHead"),
    ],
)
def test_settings_that_would_fail_later(tmp_path, method, given, said):
    if any(name.startswith("Decoding") for name in given):
        given = {**given, "TaskMetrics.decoding": "@Decoding()"}
    with pytest.raises(UserError, match=said):
        train.run(configure(tmp_path, method, **given))
    assert not (tmp_path / "config.gin").exists()


def test_a_start_that_cannot_be_drawn_leaves_the_folder_free(tmp_path):
    with pytest.raises(UserError, match="MaskedBank.pieces = 7 does not divide the width 16"):
        train.run(configure(tmp_path, "xprompt", PIECES="7", SCORE_STEPS="1"))
    assert not (tmp_path / "config.gin").exists()


# --- targets of a head that knows labels ---


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """`reviews(name, train=labels, validation=labels)`: the settings of a run on such a task."""
    from prompt_jax.data import task

    task.known()
    monkeypatch.setattr(task, "REGISTRY", dict(task.REGISTRY))
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))

    def make(name, **splits):
        for split, labels in splits.items():
            lines = [json.dumps({"text": f"text {n}", "label": x}) for n, x in enumerate(labels)]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        register_text_task(
            name, str(tmp_path), "{text}", verbalizers={x: x for x in labels_of(splits)}
        )
        return {"MIXTURE_OR_TASK_NAME": f"'{name}'", **LABELS}

    return make


def labels_of(splits):
    return sorted({label for labels in splits.values() for label in labels})


@pytest.mark.parametrize("method", ["ptec", "bbt"])
def test_a_label_that_only_training_has_is_refused(reviews, tmp_path, method):
    right = ["good", "bad"] * 150
    given = reviews(f"t_checks_odd_{method}", train=[*right, "odd"], validation=right[:4])
    with pytest.raises(UserError, match="is none of CLASS_LABELS"):
        train.run(configure(tmp_path / "run", method, **given))


def test_a_label_that_would_be_cut_is_refused(reviews, tmp_path):
    given = reviews("t_checks_long", train=["good", "bad"], validation=["good", "bad"])
    given |= {"TASK_FEATURE_LENGTHS": "{'inputs': 48, 'targets': 1}"}
    with pytest.raises(UserError, match="a target has . tokens; .* would cut its labels"):
        train.run(configure(tmp_path / "run", "ptec", **given))


def test_a_trie_that_does_not_fit_is_refused(tmp_path):
    given = {"TaskMetrics.decoding": "@TrieDecoding()", "TrieDecoding.max_length": "1"}
    given |= {"TrieDecoding.labels": "('positive', 'negative')"}
    with pytest.raises(UserError, match="does not fit into answers of 1"):
        train.run(configure(tmp_path, **given))
    checks.check(configure(tmp_path, **given).run)  # only the vocabulary tells


# --- several banks, fleets, serving ---


def test_several_banks_have_the_tasks_and_masks_of_their_parts():
    tasks = Banks((TaskBank(3, ("a", "b")), PromptBank(9, name="offset")))
    assert tasks.tasks == ("a", "b") and tasks.first_slot("b") == 3 and not tasks.masks
    with pytest.raises(UserError, match="TASKS has no prompt for task 'c'"):
        tasks.first_slot("c")
    masked = Banks((MaskedBank(3, 2), PromptBank(9, name="offset")))
    assert masked.masks and masked.first_slot("any") == 0
    leaves = {"encoder": jnp.ones((3, 4)), "encoder_tokens_score": jnp.zeros(3)}
    leaves |= {"encoder_pieces_score": jnp.zeros((3, 2))}
    scored = masked.scored(leaves, {"encoder": 2 * jnp.ones((3, 4))})
    np.testing.assert_array_equal(scored["encoder_tokens_score"], [8.0] * 3)


def test_memories_of_unequal_length_are_no_fleet_at_once(tmp_path):
    runs = [configure(tmp_path, "spt", MEMORY=size).run for size in ("50", "60")]
    fleet = AtOnce(2, Shardings(Parallel(data=1).mesh()))
    with pytest.raises(UserError, match=r"banks of \[\(50, 50\), \(50, 60\)\] rows cannot"):
        fleet.length([run.method for run in runs])


def test_a_prompt_that_does_not_train_is_not_trimmed(tmp_path):
    method = configure(tmp_path, "ptec", **LABELS).run.method
    own = {"prompt/classifier": jnp.ones((2, 4))}
    assert trim(method, own) == own


@pytest.mark.slow
def test_inputs_longer_than_an_offset_are_refused_in_serving(tmp_path):
    train.run(configure(tmp_path, "dept", OFFSET_LENGTH="48", RANK="2", TRAIN_STEPS="1"))
    longer = ["TASK_FEATURE_LENGTHS={'inputs': 49, 'targets': 4}"]
    with pytest.raises(UserError, match="OFFSET_LENGTH = 48"):
        Predictor.from_run(str(tmp_path), bindings=longer)


@pytest.mark.slow
def test_prompts_of_tasks_are_not_served_by_another_backbone(tmp_path):
    tasks = {"TASKS": "('micro_boolq', 'micro_sentiment')", "PROMPT_LENGTH": "4"}
    train.run(configure(tmp_path, "multitask_prompt", TRAIN_STEPS="1", **tasks))
    with pytest.raises(UserError, match="backbone"):
        Predictor.from_run(str(tmp_path), bindings=["Backbone.seed=5"])
    served = Predictor.from_run(str(tmp_path), bindings=["Backbone.seed=5"], force=True)
    assert [*served.slots] == ["micro_boolq", "micro_sentiment"]


@pytest.mark.slow
def test_a_run_on_bytes_leaves_its_backbone(tmp_path):
    bytes_of = {"Backbone__vocabulary": "'byte'", "TRAIN_STEPS": "1", "T5Config__vocab_size": "384"}
    record = train.run(configure(tmp_path, "model_tuning", "model_tune", **bytes_of))
    assert record["status"] == "ok"
    assert Predictor.from_run(str(tmp_path)).predict(["a"])[0]["prompt"] == ""
