"""Several local processes of two fake devices each: one run, started, interrupted, killed, resumed.

The real `prompt-jax train`, as `tools/launch/` starts it.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from prompt_jax.ckpt import prompt_file
from prompt_jax.parallel.mesh import Parallel

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 12
VALUES = {
    "MIXTURE_OR_TASK_NAME": "'micro_sentiment'",
    "TASK_FEATURE_LENGTHS": "{'inputs': 48, 'targets': 4}",
    "Backbone.random_weights": "True",
    "Backbone.vocabulary": "'prompt_jax:vocabulary/micro.model'",
    "T5Config.emb_dim": "16",
    "T5Config.num_encoder_layers": "1",
    "T5Config.num_decoder_layers": "1",
    "DROPOUT_RATE": "0.0",
    "BATCH_SIZE": "16",
    "PROMPT_LENGTH": "4",
    "TRAIN_STEPS": str(STEPS),
    "EVAL_PERIOD": "6",
    "CHECKPOINT_PERIOD": "4",
    "Run.log_period": "1",
    "Run.evaluators": "(@TaskMetrics(),)",
    "TaskMetrics.limit": "16",
}
LONG = {"TRAIN_STEPS": "100000", "EVAL_PERIOD": "100000"}
METHOD = "prompt_tuning"


def devices_flag(count):
    """The session's flags, with another number of devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={count}")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def command(folder, values):
    gin = {**VALUES, "MODEL_DIR": f"'{folder}'", **values}
    method = gin.pop("method", METHOD)
    files = ("models/micro_xs", f"methods/{method}", "runs/prompt_tune")
    flags = [f"--gin_file={name}.gin" for name in files]
    flags += [f"--gin.{name}={value}" for name, value in gin.items()]
    return [sys.executable, "-m", "prompt_jax", "train", *flags]


def start(folder, count, come=None, cwd=None, values=None, own=None, devices=2):
    """Starts the processes of a run; `own`: index -> further values of one of them."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = devices_flag(devices)
    started = []
    for index in range(count) if come is None else come:
        place = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
        place += [f"--process_id={index}"]
        line = command(folder, {**(values or {}), **(own or {}).get(index, {})})
        started.append(
            subprocess.Popen(
                [*line, *(place if count > 1 else [])],
                cwd=cwd[index] if cwd else ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started, timeout=240):
    """[(exit code, output)], none left running."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, out) for process, out in zip(started, outputs, strict=True)]


def run(*args, **kwargs):
    """The output of the first process; all must end well."""
    done = finish(start(*args, **kwargs))
    for code, output in done:
        assert code == 0, output
    return done[0][1]


def curve(folder):
    path = folder / "curve.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: (row["loss"], row["grad_norm"], row["moved"]) for row in rows}


def saved_steps(folder):
    path = folder / "checkpoints"
    return [int(p.name) for p in path.iterdir() if p.name.isdigit()] if path.exists() else []


def wait_for(started, condition):
    until = time.monotonic() + 200
    while time.monotonic() < until and all(process.poll() is None for process in started):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"this did not come: {[out for _, out in finish(started, 5)]}")


def wait_for_step(started, folder, step):
    wait_for(started, lambda: max(curve(folder), default=0) >= step)


def same_curve(one, other, rtol=1e-4):
    assert sorted(one) == sorted(other)
    for step, numbers in one.items():
        np.testing.assert_allclose(numbers, other[step], rtol=rtol, err_msg=f"step {step}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, 1, devices=1)
    return folder


# --- ends before a device is opened ----------------------------------------------------------


@pytest.mark.slow
def test_a_missing_process_ends_the_job_with_its_index(tmp_path):
    values = {"Run.distributed": "@Distributed()", "Distributed.join_timeout": "15.0"}
    began = time.monotonic()
    done = finish(start(tmp_path / "run", 3, come=[0, 2], values=values))
    assert time.monotonic() - began < 40
    said = "process 1 of 3 did not come within 15 s\n"
    assert done == [(3, said), (3, f"process 2: {said}")]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_value_on_one_process_is_named(tmp_path):
    done = finish(start(tmp_path / "run", 2, own={1: {"BATCH_SIZE": "8"}}))
    said = "process 1 runs something else: Data.batch_size: 8 there, 16 on process 0\n"
    assert done == [(2, said), (2, f"process 1: {said}")]
    assert not (tmp_path / "run").exists()


# --- whole runs ------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(alone, tmp_path):
    output = run(tmp_path, 2)
    assert "2 process(es), 4 cpu device(s), mesh 1 slice x 4 data x 1 model" in output
    same_curve(curve(tmp_path), curve(alone))
    one, two = (json.loads((folder / "record.json").read_text()) for folder in (alone, tmp_path))
    assert (one["devices"]["processes"], two["devices"]["processes"]) == (1, 2)
    assert (one["devices"]["count"], two["devices"]["count"]) == (1, 4)
    for name in ("examples", "steps", "status", "metrics", "best", "trainable_parameters"):
        assert one[name] == two[name], name
    assert one["tokens"]["real"] == two["tokens"]["real"]
    assert two["examples"] == 16 * STEPS
    for name in ("prompt.npy", "prompt_last.npy"):
        ours, theirs = np.load(tmp_path / name), np.load(alone / name)
        assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


@pytest.mark.slow
def test_states_are_measured_by_all_processes(tmp_path):
    """BBTv2 draws its subspaces by the size of the backbone's states."""
    few = {"method": "bbtv2", "DIMENSION": "6", "POPULATION": "4", "TRAIN_STEPS": "2"}
    run(tmp_path, 2, values={**few, "CLASS_LABELS": "('negative', 'positive')"})
    leaves = prompt_file.load(str(tmp_path / "prompt.safetensors")).own
    assert (leaves["prompt/encoder_layers_scale"] > 0).all()


@pytest.mark.slow
def test_sigterm_to_one_saves_on_all_and_other_counts_of_devices_go_on(alone, tmp_path):
    """2 x 2 devices -> one process with one device -> 2 x 2 again: the curve of one run."""
    started = start(tmp_path, 2)
    wait_for_step(started, tmp_path, 2)
    started[1].send_signal(signal.SIGTERM)
    done = finish(started)
    assert [code for code, _ in done] == [143, 143], done
    saved = max(saved_steps(tmp_path))
    assert all(f"saved step {saved}; the same command goes on" in out for _, out in done), done
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "interrupted"
    assert saved < 8
    output = run(tmp_path, 1, values={"TRAIN_STEPS": "8"}, devices=1)
    assert f"continuing at step {saved} of 8" in output
    output = run(tmp_path, 2)
    assert f"continuing at step 8 of {STEPS}" in output
    same_curve(curve(tmp_path), curve(alone))
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["examples"] == 16 * STEPS and record["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_its_index(tmp_path, victim):
    started = start(tmp_path, 2, values=LONG)
    wait_for_step(started, tmp_path, 5)
    wait_for(started, lambda: saved_steps(tmp_path))
    started[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    code, output = finish(started)[1 - victim]
    assert time.monotonic() - began < 10
    assert code == 3, output
    last = [line for line in output.splitlines() if line.startswith(f"process {victim}")]
    assert f"process {victim} ended without a word (killed?); process {1 - victim} ends" in last[-1]
    assert f"last good checkpoint: {tmp_path}/checkpoints/" in last[-1]


@pytest.mark.slow
def test_a_folder_that_processes_do_not_share_is_refused(tmp_path):
    cwd = [tmp_path / "host0", tmp_path / "host1"]
    for folder in cwd:
        folder.mkdir()
    done = finish(start("run", 2, cwd=cwd))
    assert [code for code, _ in done] == [2, 2], done
    for _, output in done:
        assert "MODEL_DIR run is not shared: process 1 cannot read what process 0 wrote" in output


# --- gradients -------------------------------------------------------------------------------

MESHES = {
    "8 data": Parallel(),
    "2 data x 4 model": Parallel(model=4),
    "1 data x 8 model": Parallel(model=8),
    "4 data x 2 model, weights over both": Parallel(model=2, shard_frozen_over_data=True),
    "2 slices x 2 data x 2 model": Parallel(model=2, shard_frozen_over_data=True, num_slices=2),
}


def gradients(meshes):
    """{mesh: [loss, gradient, example ids of two batches]} of a prompt on tiny random weights."""
    import jax
    from flax import traverse_util

    from prompt_jax.assemble import Method, assemble
    from prompt_jax.data.layout import slot_ids
    from prompt_jax.data.loader import Data, Loader
    from prompt_jax.parallel.mesh import Shardings
    from prompt_jax.parts.bank import PromptBank
    from prompt_jax.parts.inject import EncoderSlots
    from prompt_jax.step import loss_and_grads
    from prompt_jax.testing.tiny import tiny_config, tiny_params

    class Texts:
        def __init__(self):
            rng = np.random.default_rng(0)
            draw = lambda: rng.integers(3, 60, rng.integers(3, 12)).astype(np.int32)  # noqa: E731
            self.pairs = [(draw(), draw()) for _ in range(64)]

        def __len__(self):
            return len(self.pairs)

        def inputs(self, index):
            return self.pairs[index][0]

        def targets(self, index):
            return self.pairs[index][1]

        def example(self, index):
            return {}

    config = tiny_config(vocab_size=64, num_heads=8, head_dim=4, mlp_dim=64, dropout_rate=0.0)
    data = Data("texts", task_feature_lengths={"inputs": 12, "targets": 12}, batch_size=16)
    method = Method("prompt_tuning", bank=PromptBank(4), inject=EncoderSlots())
    flat = traverse_util.flatten_dict(tiny_params(config), sep="/")
    found = {}
    for name, parallel in meshes.items():
        shardings = Shardings(parallel.mesh(), parallel.shard_frozen_over_data)
        model = assemble(config, method, shardings.fetch_layer)
        frozen = {
            path: jax.make_array_from_callback(
                leaf.shape, shardings.frozen(path, leaf.shape), np.asarray(leaf).__getitem__
            )
            for path, leaf in ((f"backbone/{path}", leaf) for path, leaf in flat.items())
        }
        prompt = np.random.default_rng(1).normal(size=(4, config.emb_dim)).astype(np.float32)
        prompt = shardings.put_whole({"prompt/encoder": prompt})
        blocks = shardings.own_blocks, shardings.row_shards
        loader = Loader(data, {"a": Texts()}, slots=slot_ids(4), blocks=blocks)
        whole = shardings.replicated
        step = jax.jit(
            lambda p, f, b, m=model: loss_and_grads(m, p, f, b, None)[:2], out_shardings=whole
        )
        loss, grads = step(prompt, frozen, shardings.put_batch(loader.batch(0)[0]))
        ids = [np.sort(loader.batch(n)[1].index).tolist() for n in range(2)]
        gradient = np.asarray(grads["prompt/encoder"], np.float64)
        found[name] = [float(loss), gradient.tolist(), ids]
    return found


@pytest.mark.slow
def test_gradients_of_four_processes_are_those_of_one():
    """Every mesh of 4 x 2 devices, those too where `model` or the slices span processes."""
    loss, gradient, ids = gradients({"one": Parallel(data=1)})["one"]
    gradient = np.array(gradient)
    port = free_port()
    code = f"""
import json, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from prompt_jax.errors import RunFailed
from prompt_jax.parallel.multihost import Distributed, joined, same_on_all
index = int(sys.argv[1])
with joined(Distributed("127.0.0.1:{port}", 4, index), {{}}):
    from test_multihost import MESHES, gradients
    same_on_all({{"backbone": "b", "data": "d"}})
    try:
        same_on_all({{"backbone": "b", "data": "e" if index == 2 else "d"}})
    except RunFailed as error:
        print("ODD", error)
    print("FOUND" + json.dumps(gradients(MESHES)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = devices_flag(2)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(index)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(4)
    ]
    for status, output in finish(started):
        assert status == 0, output
        assert "ODD process 2 has another data than process 0" in output
        line = next(line for line in output.splitlines() if "FOUND" in line)
        there = json.loads(line.partition("FOUND")[2])
        assert set(there) == set(MESHES)
        for name, (other, theirs, their_ids) in there.items():
            assert their_ids == ids, name
            np.testing.assert_allclose(other, loss, rtol=1e-5, err_msg=name)
            error = np.linalg.norm(np.array(theirs) - gradient) / np.linalg.norm(gradient)
            assert error < 1e-5, (name, error)


# --- the scripts -----------------------------------------------------------------------------

LAUNCH = ROOT / "tools" / "launch"


def test_every_launch_script_starts_the_same_command():
    scripts = sorted(path.name for path in LAUNCH.iterdir())
    assert scripts == ["jobset.yaml", "slurm.sh", "tpu_pod.sh"]
    for name in scripts:
        path = LAUNCH / name
        assert "prompt-jax train" in path.read_text(), name
        if name.endswith(".sh"):
            subprocess.run(["bash", "-n", str(path)], check=True)
            assert os.access(path, os.X_OK), name


def test_the_jobset_restarts_on_preemption_and_not_on_bad_input():
    import yaml

    manifest = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert manifest["kind"] == "JobSet"
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert {r["action"] for r in policy["rules"]} == {"FailJobSet"}
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
