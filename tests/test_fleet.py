"""Runs trained as one program are the runs that they would be alone."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_jax import fleet, train
from prompt_jax.alike import common, difference
from prompt_jax.assemble import Method, assemble
from prompt_jax.errors import Interrupted, RunFailed, UserError
from prompt_jax.ledger import read
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.init import UniformInit, Vocabulary
from prompt_jax.parts.inject import EncoderSlots
from prompt_jax.parts.trainable import Adafactor, AdamW
from prompt_jax.predict import Predictor
from prompt_jax.step import init_state, loss_and_grads, train_step_at_once
from prompt_jax.testing.batches import examples, lay_out
from prompt_jax.testing.runs import configure, sigterm_at
from prompt_jax.testing.tiny import tiny_config

pytestmark = pytest.mark.xdist_group("fleet")  # one worker: the fixtures are made once

SLOW_VMAP = ["loop", pytest.param("vmap", marks=pytest.mark.slow)]
# Seeds, rates and inits differ; dropout is on.
RUNS = (
    {},
    {"RANDOM_SEED": "1", "Adafactor__learning_rate": "0.1"},
    {"RANDOM_SEED": "2", "PromptBank__init": "@UniformInit()"},
)


def configurations(folder, runs, **changes):
    """One row count, so that little is compiled."""
    few = {"Data__packing": "False", **changes}
    return [configure(folder / f"{i}", **{**run, **few}) for i, run in enumerate(runs)]


def together(folder, runs=RUNS, how="loop", **changes):
    configs = configurations(folder, runs, **changes)
    return train.run_fleet(configs, str(folder / "fleet"), how)


def prompts(folder, count, name="prompt_last.npy"):
    return [np.load(folder / f"{i}" / name) for i in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same runs one by one: (folder, records)."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, [train.run(config) for config in configurations(folder, RUNS)]


@pytest.fixture(scope="module")
def looped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looped")
    return folder, together(folder)


def test_a_loop_is_the_single_runs_to_the_bit(alone, looped):
    for name in ("prompt_init.npy", "prompt.npy", "prompt_last.npy"):
        theirs, mine = prompts(alone[0], 3, name), prompts(looped[0], 3, name)
        for one, other in zip(theirs, mine, strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(mine[0], mine[1])


def test_each_run_leaves_what_it_leaves_alone(alone, looped):
    folder, records = looped
    for i, (single, mine) in enumerate(zip(alone[1], records, strict=True)):
        assert mine == read(f"{folder}/{i}/record.json")
        for name in ("status", "metrics", "best", "examples", "tokens", "config_hash", "data"):
            assert mine[name] == single[name], name
        assert mine["trainable_parameters"] == 64
        assert mine["fleet"] == {"size": 3, "index": i, "map": "loop"}
        assert mine["files"]["prompt.npy"] == single["files"]["prompt.npy"]
        assert mine["bytes"]["result"] > 256 and mine["bytes"]["checkpoints"] > 0
        for own, other in zip(mine["curve"], single["curve"], strict=True):
            for name in ("step", "loss", "grad_norm", "token_accuracy", "moved"):
                assert own[name] == other[name]
    answers = Predictor.from_run(f"{folder}/1").predict(["the room was lovely ."])
    assert answers[0]["inputs"] == "the room was lovely ."


def test_the_seconds_of_a_fleet_are_shared_out(looped):
    folder, records = looped
    shares = [record["seconds"]["total"] for record in records]
    assert shares[0] == shares[1] == shares[2] > 0


def test_gradients_at_once_are_those_of_single_runs():
    """Plain descent at rate 1: what a step takes away is the gradient."""
    config = tiny_config(dropout_rate=0.0)
    method = Method("p", bank=PromptBank(5, UniformInit()), inject=EncoderSlots())
    model = assemble(config, method)
    frozen = model.init_backbone(jax.random.key(0))
    vocabulary = Vocabulary(config.emb_dim, lambda ids: None, lambda text: [], 60)
    optimizer = optax.sgd(1.0)
    starts = [model.init_prompt(jax.random.key(i), vocabulary) for i in range(3)]
    batches = [
        lay_out(examples(6, config.vocab_size, seed=i), 5, False, capacity=(40, 12))
        for i in range(3)
    ]
    state = jax.tree.map(lambda *x: jnp.stack(x), *[init_state(s, optimizer, 0) for s in starts])
    batch = {name: jnp.stack([each[name] for each in batches]) for name in batches[0]}
    step = jax.jit(functools.partial(train_step_at_once, model, optimizer, 1))
    new, numbers = step(state, frozen, batch, jnp.array([True, False, True]))
    alone = jax.jit(lambda start, rows: loss_and_grads(model, start, frozen, rows, None)[:2])
    for i, (start, rows) in enumerate(zip(starts, batches, strict=True)):
        taken = np.asarray(start["prompt/encoder"] - new.trainable["prompt/encoder"][i])
        if i == 1:  # rests
            assert not taken.any() and new.step[i] == 0
            continue
        loss, grads = alone(start, jax.device_put(rows))
        expected = np.asarray(grads["prompt/encoder"])
        assert np.linalg.norm(taken - expected) < 1e-5 * np.linalg.norm(expected)
        np.testing.assert_allclose(numbers["loss"][i], loss, rtol=1e-5)


def test_at_once_ends_near_the_single_runs(alone, tmp_path):
    together(tmp_path, how="vmap")
    for one, other in zip(prompts(alone[0], 3), prompts(tmp_path, 3), strict=True):
        assert np.linalg.norm(one - other) < 0.01 * np.linalg.norm(one)


@pytest.mark.parametrize("how", SLOW_VMAP)
def test_prompts_of_unequal_length_share_a_fleet(tmp_path, how):
    """In the same rows as alone (given by hand), the numbers differ by rounding alone."""
    lengths, rows = (1, 4, 7), {"PACKED_LENGTHS": "{'inputs': 96, 'targets': 16}"}
    runs = [{"PROMPT_LENGTH": str(length), "DROPOUT_RATE": "0.0"} for length in lengths]
    few = {"TRAIN_STEPS": "3", "EVAL_PERIOD": "3", "Data__packing": "True", **rows}
    records = together(tmp_path, runs, how, **few)
    assert [record["trainable_parameters"] for record in records] == [16, 64, 112]
    configs = configurations(tmp_path / "alone", runs, **few)
    for i, (length, config) in enumerate(zip(lengths, configs, strict=True)):
        train.run(config)
        folders = (tmp_path, tmp_path / "alone")
        mine, single = (np.load(folder / f"{i}" / "prompt_last.npy") for folder in folders)
        assert mine.shape == single.shape == (length, 16)
        start = np.load(tmp_path / f"alone/{i}/prompt_init.npy")
        np.testing.assert_array_equal(np.load(tmp_path / f"{i}/prompt_init.npy"), start)
        off = np.linalg.norm(mine - single) / np.linalg.norm(single - start)
        assert off == 0 if how == "loop" else off < 1e-3


@pytest.mark.parametrize("optimizer", [Adafactor(), AdamW(learning_rate=0.1, clip_norm=0.5)])
def test_an_optimizer_does_not_see_rows_without_a_gradient(optimizer):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(3, 8)), 5 * rng.normal(size=(4, 3, 8))
    fill = lambda x: np.concatenate([x, np.zeros((6, 8))])  # noqa: E731

    def last(leaf, grads, live):
        transform, params = optimizer.build(live), {"prompt/encoder": jnp.asarray(leaf)}
        state = transform.init(params)
        for grad in grads:
            updates, state = transform.update({"prompt/encoder": jnp.asarray(grad)}, state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params["prompt/encoder"])

    padded = last(fill(start), [fill(grad) for grad in grads], 3 / 9)
    assert not padded[3:].any()
    np.testing.assert_allclose(padded[:3], last(start, grads, 1.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", SLOW_VMAP)
def test_tasks_share_a_fleet(tmp_path, how):
    tasks = ("micro_sentiment", "micro_paraphrase")
    runs = [{"MIXTURE_OR_TASK_NAME": f"'{task}'"} for task in tasks]
    records = together(tmp_path, runs, how, TRAIN_STEPS="2", EVAL_PERIOD="2")
    assert [record["mixture"] for record in records] == list(tasks)
    assert records[0]["data"] != records[1]["data"]
    assert all(record["status"] == "ok" for record in records)


def test_a_run_that_fails_is_a_record_and_the_others_go_on(alone, tmp_path):
    runs = [RUNS[0], {**RUNS[1], "Adafactor__learning_rate": "1e39"}, RUNS[2]]
    records = together(tmp_path, runs)
    assert [record["status"] for record in records] == ["ok", "failed", "ok"]
    assert "not finite at step 1" in read(f"{tmp_path}/1/record.json")["reason"]
    assert not (tmp_path / "1" / "prompt.npy").exists()
    for i in (0, 2):
        one, other = (np.load(folder / f"{i}/prompt_last.npy") for folder in (alone[0], tmp_path))
        np.testing.assert_array_equal(one, other)


def test_a_fleet_of_failures_has_failed(tmp_path):
    with pytest.raises(RunFailed, match="not finite at step 1"):
        together(tmp_path, RUNS[:2], Adafactor__learning_rate="1e39")
    assert [read(f"{tmp_path}/{i}/record.json")["status"] for i in range(2)] == ["failed"] * 2


def test_a_run_out_of_patience_rests(tmp_path):
    """A rate of 0 never gets better; a run rests after two evaluations that are not better."""
    runs = [{"Adafactor__learning_rate": rate} for rate in ("0.0", "0.01", "0.003")]
    changes = {"EVAL_PERIOD": "2", "Run__patience": "2", "Run__best_metric": "'negative_loss'"}
    changes |= {"Adafactor__weight_decay": "0.0", "Run__evaluators": "(@LossGap(),)"}
    records = together(tmp_path, runs, LossGap__batches="1", **changes)
    for record in records:
        best, stale, steps = -np.inf, 0, 0
        for row in record["curve"]:
            value, steps = row.get("eval/negative_loss"), row["step"]
            if value is not None:
                best, stale = (value, 0) if value > best else (best, stale + 1)
        assert record["steps"] == steps and record["examples"] == 8 * steps
        assert stale == 2 or steps == 12
    assert records[0]["steps"] == 6 and records[1]["steps"] == 12


def test_a_resting_run_takes_no_step(monkeypatch):
    monkeypatch.setattr(fleet, "jit_train_step", lambda *_: lambda state, *_: (state + 1, {}))
    loop = fleet.make_fleet(2, "loop", Shardings(Parallel(data=1).mesh()))
    model = assemble(tiny_config(), Method("p"))
    step = loop.step(model, None, 1, lambda function: function, "gradient")
    states, numbers = step((0, 0), [{}, {}], [{}, {}], np.array([True, False]))
    assert states == (1, 0) and numbers[1] is None


def test_an_interrupted_fleet_goes_on_to_the_same_bits(looped, tmp_path):
    with sigterm_at(5), pytest.raises(Interrupted, match="saved step 5"):
        together(tmp_path)
    assert read(f"{tmp_path}/2/record.json")["status"] == "interrupted"
    records = together(tmp_path)
    for one, other in zip(prompts(looped[0], 3), prompts(tmp_path, 3), strict=True):
        np.testing.assert_array_equal(one, other)
    for mine, whole in zip(records, looped[1], strict=True):
        assert mine["examples"] == whole["examples"] and mine["best"] == whole["best"]


@pytest.mark.parametrize("how", SLOW_VMAP)
def test_devices_share_the_runs(looped, tmp_path, how):
    """Three runs on two devices: one of them, or one place, is left over."""
    together(tmp_path, how=how, Parallel__data="2")
    for one, other in zip(prompts(looped[0], 3), prompts(tmp_path, 3), strict=True):
        if how == "loop":
            np.testing.assert_array_equal(one, other)
        assert np.linalg.norm(one - other) < 0.01 * np.linalg.norm(one)


@pytest.mark.slow
def test_model_tuning_in_a_fleet_is_the_single_runs(tmp_path):
    runs = [{"RANDOM_SEED": str(seed)} for seed in range(2)]
    few = {"method": "model_tuning", "run": "model_tune", "TRAIN_STEPS": "2", "EVAL_PERIOD": "2"}
    together(tmp_path, runs, **few)
    train.run(configurations(tmp_path / "alone", runs, **few)[1])
    mine, single = (
        (tmp_path / folder / "backbone" / "model.safetensors").read_bytes()
        for folder in ("1", "alone/1")
    )
    assert mine == single


@pytest.mark.parametrize(
    ("runs", "changes", "message"),
    [
        (({}, {"BATCH_SIZE": "9"}), {}, "differ in Data.batch_size: 8 and 9"),
        (({}, {"DROPOUT_RATE": "0.2"}), {}, "differ in T5Config.dropout_rate: 0.1 and 0.2"),
        (({}, {"Trainable__optimizer": "@AdamW()"}), {}, "differ in Trainable.optimizer"),
        (
            ({}, {"PROMPT_LENGTH": "5"}),
            {"Adafactor__factored": "True"},
            "prompts of 4 and 5 vectors cannot be trained at once",
        ),
        (
            RUNS,
            {"Parallel__data": "2", "Parallel__shard_frozen_over_data": "True"},
            "shard_frozen_over_data with a fleet of 3 runs",
        ),
    ],
)
def test_runs_that_do_not_go_together_are_refused(tmp_path, runs, changes, message):
    with pytest.raises(UserError, match=message):
        together(tmp_path, runs, how="vmap", **changes)
    assert not any(pathlib.Path(tmp_path).iterdir())
    with pytest.raises(UserError, match="Fleets.map = 'loops'.*loop"):
        together(tmp_path, how="loops")


def test_what_runs_have_in_common(tmp_path):
    first, other = (configure(tmp_path / f"{i}", **run).run for i, run in enumerate(RUNS[:2]))
    assert first != other and common(first) == common(other)
    wide = dataclasses.replace(first, data=dataclasses.replace(first.data, batch_size=9))
    assert difference(common(first), common(wide)) == ("Data.batch_size", 8, 9)
    assert json.dumps(common(first), default=str)
