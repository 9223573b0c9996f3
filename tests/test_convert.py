"""`prompt-jax convert`: whole backbones and prompts, through the front door."""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prompt_jax.__main__ import main
from prompt_jax.ckpt import folder, load, prompt_file, prompts
from prompt_jax.config import resolve
from prompt_jax.testing.tiny import tiny_config, tiny_params

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
T5X, T5V11 = FIXTURES / "t5x" / "zarr", FIXTURES / "t5v11_tiny"
MICRO = "prompt_jax:micro_xs"


def convert(*flags):
    return main(["convert", *map(str, flags)])


def tensors(path):
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize(
    "start", [f"t5x:{T5X}", f"t5x:{FIXTURES / 't5x' / 'bf16'}", *(
        f"hf:{FIXTURES / name}" for name in ("t5v11_tiny", "t5v10_tiny", "mt5_tiny"))],
)  # fmt: skip
def test_round_trips_keep_every_bit(tmp_path, start, capsys):
    """source -> HF -> T5X -> HF: equal files, one fingerprint, no difference in logits."""
    report = tmp_path / "report.json"
    steps = [f"hf:{tmp_path}/one", f"t5x:{tmp_path}/two", f"{tmp_path}/three"]
    found = [load.load_backbone(start).fingerprint]
    for source, target in zip([start, *steps], steps, strict=False):
        assert convert(f"--from={source}", f"--to={target}", "--check", f"--json={report}") == 0
        (said,) = json.loads(report.read_text())
        found += [said["fingerprint"], load.load_backbone(target).fingerprint]
        assert said["largest_logit_difference"] == 0.0
    assert len(set(found)) == 1, found
    one, three = tensors(tmp_path / "one"), tensors(tmp_path / "three")
    assert set(one) == set(three)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["torch_dtype"] == ("bfloat16" if "bf16" in start else "float32")
    for name in one:
        assert one[name].dtype == three[name].dtype
        assert one[name].tobytes() == three[name].tobytes()
    if start.startswith("hf:"):
        theirs = tensors(pathlib.Path(start.removeprefix("hf:")))
        assert {name: array.tobytes() for name, array in theirs.items()} == {
            name: array.tobytes() for name, array in one.items()
        }
    assert "fingerprint" in capsys.readouterr().out


def test_the_check_sees_another_backbone(tmp_path, monkeypatch):
    """--check compares what the two readers give, so a wrong map shows."""
    real = folder.hf.transposed
    square = "encoder/layers_0/attention/query/kernel"
    monkeypatch.setattr(folder.hf, "transposed", lambda name: name != square and real(name))
    folder.save(tmp_path / "wrong", load.load_backbone(T5X).params, tiny_config(), None)
    monkeypatch.undo()
    (tmp_path / "wrong" / folder.RECORD).unlink()
    from prompt_jax.convert import logit_difference

    assert logit_difference(str(T5X), str(tmp_path / "wrong")) > 0.01


def test_the_check_is_of_source_and_result(tmp_path, monkeypatch, capsys):
    real = folder.write

    def other(fresh, tensors, *rest):
        tensors = dict(tensors)
        one, two = (f"encoder/layers_{i}/mlp/wo/kernel" for i in (0, 1))
        tensors[one], tensors[two] = tensors[two], tensors[one]
        return real(fresh, tensors, *rest)

    monkeypatch.setattr(folder, "write", other)
    assert convert(f"--from={T5V11}", f"--to={tmp_path}/out", "--check") == 3
    assert "largest difference of logits is" in capsys.readouterr().err


def test_umt5_keeps_a_bias_per_layer(tmp_path):
    config = tiny_config("umt5")
    folder.save(tmp_path / "one", tiny_params(config), config, None)
    assert convert(f"--from={tmp_path}/one", f"--to=t5x:{tmp_path}/two") == 0
    assert convert(f"--from=t5x:{tmp_path}/two", f"--to={tmp_path}/three") == 0
    one, three = tensors(tmp_path / "one"), tensors(tmp_path / "three")
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in three.items()}
    fields = json.loads((tmp_path / "three" / "config.json").read_text())
    assert fields["model_type"] == "umt5" and not fields["scale_decoder_outputs"]


def test_sizes_become_a_gin_file(tmp_path):
    size = tmp_path / "mine.gin"
    assert convert(f"--from={MICRO}", f"--to={size}") == 0
    files = [str(size), "methods/prompt_tuning.gin", "runs/prompt_tune.gin"]
    bindings = ["MIXTURE_OR_TASK_NAME='micro_sentiment'", "PROMPT_LENGTH=4", "MODEL_DIR='x'"]
    bindings.append("TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}")
    run = resolve(files, bindings).run
    shipped = resolve(["models/micro_xs.gin", *files[1:]], bindings).run
    assert run.backbone == shipped.backbone


def test_a_vocabulary_goes_along(tmp_path, capsys):
    assert convert(f"--from={MICRO}", f"--to={tmp_path}/one") == 0
    assert (tmp_path / "one" / "spiece.model").exists()
    assert convert(f"--from={tmp_path}/one", f"--to=t5x:{tmp_path}/two") == 0
    vocabulary = f"--vocabulary={tmp_path}/one/spiece.model"
    assert convert(f"--from=t5x:{tmp_path}/two", f"--to={tmp_path}/three", vocabulary) == 0
    again = (tmp_path / "three" / "spiece.model").read_bytes()
    assert again == (tmp_path / "one" / "spiece.model").read_bytes()
    assert convert(f"--from=t5x:{T5X}", f"--to={tmp_path}/four", vocabulary) == 2
    assert (
        "vocabulary of 4096 ids does not fit an embedding table of 512" in capsys.readouterr().err
    )
    assert not (tmp_path / "four").exists()


def test_what_is_no_target_is_refused(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "words.txt").write_text("mine")
    for flags, message in (
        ([f"--from={T5V11}", f"--to={tmp_path}/thesis"], "exists and holds other files"),
        ([f"--from={T5V11}", f"--to=t5x:{tmp_path}/thesis"], "exists and holds other files"),
        ([f"--from={T5V11}", f"--from={T5X}", f"--to={tmp_path}/x"], "one backbone at a time"),
        ([f"--to={tmp_path}/x"], "give --from and --to"),
        ([f"--from={tmp_path}/nothing", f"--to={tmp_path}/x"], "no such file"),
        ([f"--from={T5V11}", f"--to=peft:{tmp_path}/x"], "no .npy or .safetensors"),
    ):
        assert convert(*flags) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (tmp_path / "thesis" / "words.txt").read_text() == "mine"
    assert not (tmp_path / "x").exists()


def test_the_target_may_not_touch_the_source(tmp_path, capsys, monkeypatch):
    """Neither be it, hold it nor lie in it, by whatever name; the working directory stays too."""
    source = tmp_path / "models" / "t5"
    assert convert(f"--from={T5V11}", f"--to={source}") == 0
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    whole = {p.name: p.read_bytes() for p in source.iterdir()}
    for target, message in (
        (source, "may not be, hold or lie in the source"),
        (source / "inside", "may not be, hold or lie in the source"),
        (tmp_path / "models", "may not be, hold or lie in the source"),
        (tmp_path / "link", "may not be, hold or lie in the source"),
        (tmp_path / "work", "holds the working directory"),
        (".", "holds the working directory"),
    ):
        for kind in ("", "t5x:"):
            assert convert(f"--from={source}", f"--to={kind}{target}") == 2, target
            assert message in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in source.iterdir()} == whole
    assert {p.name for p in tmp_path.iterdir()} == {"models", "link", "work"}
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["t5"]


def test_a_run_is_no_older_backbone(tmp_path, prompt, capsys):
    """A MODEL_DIR, or a backbone with one more file, is never replaced."""
    assert convert(f"--from={T5V11}", f"--to={tmp_path}/t5") == 0
    (tmp_path / "t5" / "notes.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text("{}")
    for target in ("t5", "run", "t5x:t5", "t5x:run"):
        kind, _, name = target.rpartition(":")
        flag = f"--to={kind}{':' if kind else ''}{tmp_path}/{name}"
        assert convert(f"--from={T5V11}", flag) == 2
        assert "exists and holds other files" in capsys.readouterr().err
    assert (tmp_path / "t5" / "notes.txt").exists() and (tmp_path / "run" / "record.json").exists()


def test_what_t5x_cannot_say_is_refused(tmp_path, capsys):
    """It holds arrays alone: epsilon and the like would be read back as others."""
    config = tiny_config(norm_epsilon=1e-5)
    folder.save(tmp_path / "t5", tiny_params(config), config, None)
    assert convert(f"--from={tmp_path}/t5", f"--to=t5x:{tmp_path}/out") == 2
    assert "T5Config.norm_epsilon = 1e-05: a T5X checkpoint cannot" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["t5"]


def test_an_incomplete_source_is_refused(tmp_path, capsys):
    shutil.copytree(T5V11, tmp_path / "t5")
    found = tensors(tmp_path / "t5")
    found["surplus.weight"] = found.pop("decoder.final_layer_norm.weight")
    save_file(found, tmp_path / "t5" / "model.safetensors")
    for target in ("t5x:", ""):
        assert convert(f"--from={tmp_path}/t5", f"--to={target}{tmp_path}/out") == 2
        error = capsys.readouterr().err
        assert "- decoder.final_layer_norm.weight" in error and "+ surplus.weight" in error
    assert [p.name for p in tmp_path.iterdir()] == ["t5"]


def test_a_damaged_source_leaves_nothing(tmp_path, capsys):
    assert convert(f"--from={T5V11}", f"--to={tmp_path}/one") == 0
    file = tmp_path / "one" / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-5] ^= 4
    file.write_bytes(bytes(whole))
    assert convert(f"--from={tmp_path}/one", f"--to={tmp_path}/two") == 2
    assert "is damaged" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


@pytest.mark.slow
def test_a_killed_conversion_starts_again(tmp_path):
    """SIGKILL in the middle: nothing under the target's name; the same command then finishes."""
    config = tiny_config(vocab_size=60_000, emb_dim=256, num_encoder_layers=4)
    folder.save(tmp_path / "big", tiny_params(config), config, None, shard_bytes=1 << 20)
    command = [sys.executable, "-m", "prompt_jax", "convert"]
    command += [f"--from={tmp_path}/big", f"--to=t5x:{tmp_path}/out"]
    process = subprocess.Popen(command)
    while not list(tmp_path.glob(".out.writing/target*")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command, check=False).returncode == 0
    expected = load.load_backbone(tmp_path / "big").fingerprint
    assert load.load_backbone(tmp_path / "out").fingerprint == expected
    assert not list(tmp_path.glob(".*"))


# --- prompts ---


@pytest.fixture
def prompt(tmp_path):
    """A prompt of the width of micro_xs, as `.npy`."""
    array = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    prompt_file.save_array(str(tmp_path / "a.npy"), array)
    return tmp_path / "a.npy"


def test_ours_names_the_backbone_it_belongs_to(tmp_path, prompt, capsys):
    target = tmp_path / "ours.safetensors"
    assert convert(f"--from={prompt}", f"--to={target}") == 2
    assert "give it, e.g. --backbone=" in capsys.readouterr().err
    assert convert(f"--from={prompt}", f"--to={target}", f"--backbone={MICRO}") == 0
    found = prompts.read(target)
    np.testing.assert_array_equal(found.array, np.load(prompt))
    assert found.file.backbone == load.load_backbone(MICRO).fingerprint
    assert found.file.length == 4


def test_a_prompt_of_another_backbone_needs_force(tmp_path, prompt, capsys):
    ours, other = tmp_path / "ours.safetensors", tmp_path / "other.safetensors"
    assert convert(f"--from={prompt}", f"--to={ours}", f"--backbone={MICRO}") == 0
    vocabulary = "--vocabulary=prompt_jax:vocabulary/micro.model"
    config = tiny_config(vocab_size=4096)
    folder.save(tmp_path / "t5", tiny_params(config), config, None)
    flags = [f"--from={ours}", f"--to={other}", f"--backbone={tmp_path}/t5", vocabulary]
    assert convert(*flags) == 2
    error = capsys.readouterr().err
    fingerprints = [load.load_backbone(path).fingerprint for path in (MICRO, tmp_path / "t5")]
    assert all(fingerprint in error for fingerprint in fingerprints) and not other.exists()
    assert convert(*flags, "--force", f"--json={tmp_path}/report.json") == 0
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert [pair[0] for pair in report["forced"]] == fingerprints
    assert prompts.read(other).file.backbone == fingerprints[1]


def test_a_prompt_of_another_width_is_refused_even_by_force(tmp_path, prompt, capsys):
    flags = [f"--from={prompt}", f"--to={tmp_path}/x.safetensors", "--backbone=prompt_jax:micro_s"]
    assert convert(*flags, "--force") == 2
    assert "width 64" in (error := capsys.readouterr().err) and "128" in error


def test_several_prompts_at_once(tmp_path, prompt, capsys):
    other = tmp_path / "b.npy"
    shutil.copy(prompt, other)
    both = [f"--from={prompt}", f"--from={other}"]
    assert convert(*both, f"--to=peft:{tmp_path}/out/{{name}}", "--base_model=t5") == 0
    for name in ("a", "b"):
        np.testing.assert_array_equal(prompts.read(tmp_path / "out" / name).array, np.load(prompt))
        config = json.loads((tmp_path / "out" / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "t5"
    assert convert(*both, f"--to=peft:{tmp_path}/one") == 2
    assert "{name}" in capsys.readouterr().err
    assert convert(f"--from={prompt}", f"--to={tmp_path}/c") == 2
    assert "FILE.npy" in capsys.readouterr().err


def test_a_run_gives_its_prompt_its_name(tmp_path, prompt):
    for name in ("sst", "rte"):
        (tmp_path / name).mkdir()
        array = prompts.Prompt(np.load(prompt), "memory")
        prompts.write_ours(tmp_path / name / "prompt.safetensors", array, "b", "v")
    runs = [f"--from={tmp_path}/sst", f"--from={tmp_path}/rte/prompt.safetensors"]
    assert convert(*runs, f"--to={tmp_path}/out/{{name}}.npy") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"sst.npy", "rte.npy"}


def test_two_prompts_of_one_name_are_not_written_over_each_other(tmp_path, prompt, capsys):
    (tmp_path / "deeper").mkdir()
    shutil.copy(prompt, tmp_path / "deeper" / "a.npy")
    both = [f"--from={prompt}", f"--from={tmp_path}/deeper/a.npy"]
    assert convert(*both, f"--to={tmp_path}/out/{{name}}.npy") == 2
    assert "a.npy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_recipe_from_t5x_to_peft(tmp_path):
    """README: a T5X checkpoint, a run on it, its prompt as a PEFT adapter."""
    assert convert(f"--from={MICRO}", f"--to=t5x:{tmp_path}/checkpoint_1") == 0
    vocabulary = "prompt_jax:vocabulary/micro.model"
    flags = [f"--from=t5x:{tmp_path}/checkpoint_1", f"--to={tmp_path}/t5"]
    assert convert(*flags, f"--vocabulary={vocabulary}", "--check") == 0
    starts = {"a": f"{tmp_path}/t5", "b": f"t5x:{tmp_path}/checkpoint_1"}
    for run, start in starts.items():
        command = ["train", "--gin_file=models/micro_xs.gin"]
        command += ["--gin_file=methods/prompt_tuning.gin", "--gin_file=runs/prompt_tune.gin"]
        bindings = {
            "INITIAL_CHECKPOINT_PATH": repr(start),
            "Backbone.vocabulary": repr(vocabulary),
            "MIXTURE_OR_TASK_NAME": "'micro_sentiment'",
            "TASK_FEATURE_LENGTHS": "{'inputs': 48, 'targets': 4}",
            "MODEL_DIR": repr(f"{tmp_path}/{run}"),
            "PROMPT_LENGTH": 4,
            "TRAIN_STEPS": 2,
            "BATCH_SIZE": 8,
            "EVAL_STEPS": 1,
            "Parallel.data": 1,
        }
        command += [f"--gin.{name}={value}" for name, value in bindings.items()]
        assert main(command) == 0
    flags = [f"--from={tmp_path}/a", f"--to=peft:{tmp_path}/adapter"]
    assert convert(*flags, f"--base_model={tmp_path}/t5") == 0
    prompt = np.load(tmp_path / "a" / "prompt.npy")
    np.testing.assert_array_equal(prompts.read(tmp_path / "adapter").array, prompt)
    np.testing.assert_array_equal(np.load(tmp_path / "b" / "prompt.npy"), prompt)
    records = [json.loads((tmp_path / run / "record.json").read_text()) for run in starts]
    assert records[0]["backbone"]["fingerprint"] == records[1]["backbone"]["fingerprint"]
