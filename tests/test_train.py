"""Whole runs through the front door, on a tiny random backbone and an embedded task."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from prompt_jax import train
from prompt_jax.ckpt import prompt_file, prompts
from prompt_jax.config import resolve
from prompt_jax.errors import RunFailed, UserError
from prompt_jax.ledger import read
from prompt_jax.predict import Predictor
from prompt_jax.testing.runs import configure

pytestmark = pytest.mark.xdist_group("train")  # one worker: the fixtures are made once


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run that the tests below only read."""
    folder = tmp_path_factory.mktemp("run")
    record = train.run(configure(folder, PROFILE_STEPS="(3, 2)"))
    return folder, record


def losses(folder):
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows}


def test_a_run_writes_what_it_promises(finished):
    folder, record = finished
    assert record == read(f"{folder}/record.json")
    assert record["status"] == "ok"
    assert record["steps"] == 12 and record["examples"] == 96
    assert record["trainable_parameters"] == 4 * 16
    assert set(record["metrics"]) == {"validation"}
    assert 0 <= record["metrics"]["validation"]["accuracy"] <= 1
    assert record["best"]["metric"] == "accuracy"
    assert [row["step"] for row in record["curve"]] == list(range(1, 13))
    assert record["tokens"]["real"] > 96 * 8
    assert set(record["seconds"]) == {"total", "compile", "train", "eval", "data_wait"}
    assert np.load(folder / "prompt.npy").shape == (4, 16)
    assert list((folder / "tensorboard").iterdir())
    assert record["devices"]["processes"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Parallel__model": "5"},
            "Parallel.model = 5 divides none of num_heads = 2, mlp_dim = 32",
        ),
        ({"Parallel__data": "8", "BATCH_SIZE": "4"}, "BATCH_SIZE = 4 gives some of 8 devices"),
        ({"NUM_MICROBATCHES": "9"}, "NUM_MICROBATCHES = 9 of BATCH_SIZE = 8"),
        ({"PROFILE_STEPS": "(0, 1)"}, r"PROFILE_STEPS = \(0, 1\): \(first, count\)"),
        ({"Parallel__num_slices": "3"}, "1 x 1 on 8 devices do not divide into 3 slices"),
    ],
)
def test_what_does_not_divide_is_refused_before_anything_is_opened(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.run(configure(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_profiler_traces_the_steps_asked_for(finished):
    folder, _ = finished
    (trace,) = (folder / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_a_prompt_that_is_not_the_record_s_is_refused(finished, tmp_path):
    folder, record = finished
    names = {"prompt.npy", "prompt_last.npy", "prompt_init.npy", "prompt.safetensors"}
    assert set(record["files"]) == names
    shutil.copytree(folder, tmp_path / "copy")
    for name in names:
        file = tmp_path / "copy" / name
        prompts.read(file)
        whole = bytearray(file.read_bytes())
        whole[-1] ^= 1
        file.write_bytes(bytes(whole))
        with pytest.raises(UserError, match=f"{name}: is "):
            prompts.read(file)
    shutil.move(tmp_path / "copy" / "prompt.npy", tmp_path / "mine.npy")
    prompts.read(tmp_path / "mine.npy")


def test_only_the_prompt_is_on_disk(finished):
    folder, record = finished
    trainable = 4 * record["trainable_parameters"]
    for step in (folder / "checkpoints").iterdir():
        size = sum(f.stat().st_size for f in step.rglob("*") if f.is_file())
        assert size <= 4 * trainable + 64_000


def test_the_prompt_file_names_its_backbone(finished):
    folder, record = finished
    prompt = prompt_file.load(f"{folder}/prompt.safetensors")
    assert prompt.backbone == record["backbone"]["fingerprint"]
    assert prompt.length == 4
    np.testing.assert_array_equal(prompt.leaves["prompt/encoder"], np.load(folder / "prompt.npy"))
    with pytest.raises(UserError, match=f"{prompt.backbone}.*other"):
        prompt_file.check("p", prompt, "other", prompt.vocabulary)


def test_config_gin_alone_is_the_run(finished):
    folder, record = finished
    again = resolve([str(folder / "config.gin")])
    assert again.hash == record["config_hash"]


def test_an_interrupted_run_goes_on_to_the_same_bits(finished, tmp_path):
    folder, _ = finished
    train.run(configure(tmp_path, TRAIN_STEPS="5"))
    train.run(configure(tmp_path))
    assert losses(tmp_path) == losses(folder)
    np.testing.assert_array_equal(
        np.load(tmp_path / "prompt_last.npy"), np.load(folder / "prompt_last.npy")
    )


def test_another_config_in_the_same_folder_is_refused(finished):
    folder, _ = finished
    with pytest.raises(UserError, match="Adafactor.learning_rate: 0.3 there, 0.1 here"):
        train.run(configure(folder, Adafactor__learning_rate="0.1"))


def test_a_relative_model_dir_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = train.run(configure("out/run", TRAIN_STEPS="1", CHECKPOINT_PERIOD="1"))
    assert record["prompt_file"] == "out/run/prompt.safetensors"
    assert (tmp_path / "out/run/checkpoints/1").is_dir()


def test_a_start_that_fails_leaves_model_dir_free(tmp_path):
    with pytest.raises(UserError, match="micro_sentimnt"):
        train.run(configure(tmp_path, MIXTURE_OR_TASK_NAME="'micro_sentimnt'"))
    assert not list(tmp_path.iterdir())


def test_no_steps_evaluate_the_start(tmp_path):
    record = train.run(configure(tmp_path, TRAIN_STEPS="0", PromptBank__init="@UniformInit()"))
    assert record["steps"] == 0 and "accuracy" in record["metrics"]["validation"]
    np.testing.assert_array_equal(
        np.load(tmp_path / "prompt.npy"), np.load(tmp_path / "prompt_last.npy")
    )
    assert np.abs(np.load(tmp_path / "prompt.npy")).max() <= 0.5


def test_early_stopping_counts_evaluations_without_a_better_metric(tmp_path):
    record = train.run(
        configure(tmp_path, TRAIN_STEPS="12", EVAL_PERIOD="2", Run__patience="2",
                  Adafactor__learning_rate="0.0", Adafactor__weight_decay="0.0")
    )  # fmt: skip
    assert record["steps"] == 6  # the first evaluation is the best, two more are not better


def test_model_tuning_ends_with_a_backbone_folder(tmp_path):
    record = train.run(
        configure(tmp_path, "model_tuning", "model_tune", TRAIN_STEPS="3", EVAL_PERIOD="3")
    )
    assert record["trainable_parameters"] == record["backbone"]["parameters"]
    assert pathlib.Path(record["prompt_file"]) == tmp_path / "backbone"
    predictor = Predictor.from_run(str(tmp_path))
    assert predictor.context.opened.fingerprint != record["backbone"]["fingerprint"]
    assert predictor.predict(["the room was lovely."])[0]["inputs"] == "the room was lovely."


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(RunFailed, match="not finite at step 1; try .*; there is no earlier"):
        train.run(configure(tmp_path, Adafactor__learning_rate="1e39"))
    record = read(f"{tmp_path}/record.json")
    assert record["status"] == "failed" and "step 1" in record["reason"]


def test_rows_of_one_batch_use_different_prompts(finished, tmp_path):
    folder, record = finished
    mine = prompt_file.load(f"{folder}/prompt.safetensors")
    files = [f"{folder}/prompt.safetensors"]
    for seed in range(2):
        vectors = np.random.default_rng(seed).normal(size=(3 + seed, 16)).astype(np.float32)
        files.append(str(tmp_path / f"{seed}.safetensors"))
        leaves = {"prompt/encoder": vectors}
        other = dataclasses.replace(mine, leaves=leaves, length=len(vectors))
        prompt_file.save(files[-1], other)
    texts = ["the room was lovely.", "we hated the noisy lift", "fine"]
    together = Predictor.from_run(str(folder), files).predict(texts)
    assert [row["prompt"] for row in together[:3]] == files
    for file in files:
        alone = Predictor.from_run(str(folder), [file]).predict(texts)
        mixed = [row for row in together if row["prompt"] == file]
        assert [row["prediction"] for row in mixed] == [row["prediction"] for row in alone]
        np.testing.assert_allclose(
            [row["score"] for row in mixed], [row["score"] for row in alone], atol=1e-5
        )


def test_loading_onto_another_backbone_shows_both_fingerprints(finished, tmp_path):
    folder, record = finished
    prompt = f"{folder}/prompt.safetensors"
    other = train.run(configure(tmp_path / "a", TRAIN_STEPS="0", Backbone__seed="7"))
    assert other["backbone"]["fingerprint"] != record["backbone"]["fingerprint"]
    with pytest.raises(UserError) as error:
        Predictor.from_run(str(tmp_path / "a"), [prompt])
    for each in (record, other):
        assert each["backbone"]["fingerprint"] in str(error.value)
    forced = Predictor.from_run(str(tmp_path / "a"), [prompt], force=True)
    assert forced.forced == {"prompt": str(error.value)}
    assert not Predictor.from_run(str(folder)).forced

    # The same for a run that starts from it; what was forced is in its record.
    start = {"TRAIN_STEPS": "0", "Backbone__seed": "7", "PROMPT_FILE": repr(prompt)}
    start["PromptBank__init"] = "@FileInit()"
    with pytest.raises(UserError) as again:
        train.run(configure(tmp_path / "b", **start))
    assert str(again.value) == str(error.value)
    allowed = train.run(configure(tmp_path / "c", FileInit__force="True", **start))
    assert allowed["config"]["FileInit.force"] is True
    np.testing.assert_array_equal(
        np.load(tmp_path / "c" / "prompt.npy"), np.load(folder / "prompt.npy")
    )


@pytest.mark.slow
def test_eight_devices_train_to_the_same_first_loss(finished, tmp_path):
    folder, _ = finished
    assert jax.device_count() == 8
    record = train.run(
        configure(tmp_path, TRAIN_STEPS="1", Parallel__data="4", Parallel__model="2")
    )
    first = losses(folder)[1][0]
    np.testing.assert_allclose(record["curve"][0]["loss"], first, rtol=1e-5)
