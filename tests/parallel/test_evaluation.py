"""Every example is answered once, in order, on any number of devices and processes."""

import json
import os
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from flax import traverse_util

from prompt_jax import evaluate
from prompt_jax.assemble import Method, assemble
from prompt_jax.backbone import Opened
from prompt_jax.data.layout import slot_ids
from prompt_jax.data.loader import Data
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.requests import Request
from prompt_jax.testing.tiny import tiny_config, tiny_params

BATCH = 8
COUNTS = (1, 7, 8, 9, 3 * BATCH + 1)


def answer_all(parallel):
    """{"MODE COUNT": [[text, score], ...]} by greedy decoding and by rank, random weights."""
    config = tiny_config(vocab_size=384)
    shardings = Shardings(parallel.mesh())
    model = assemble(config, Method("none"), shardings.fetch_layer)
    flat = traverse_util.flatten_dict(tiny_params(config), sep="/")
    params = {
        f"backbone/{name}": jax.device_put(
            np.asarray(leaf), shardings.frozen(f"backbone/{name}", leaf.shape)
        )
        for name, leaf in flat.items()
    }
    data = Data("none", task_feature_lengths={"inputs": 16, "targets": 6}, batch_size=BATCH)
    run = types.SimpleNamespace(data=data)
    opened = Opened(params, "", load_vocabulary("byte"), "random")
    context = evaluate.Context(run, model, opened, shardings, params)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(3, 259, rng.integers(2, 15)).astype(np.int32) for _ in range(25)]
    found = {}
    for mode in ("greedy", "rank"):
        decoding = evaluate.Decoding(mode, labels=("yes", "no", "maybe"))
        for count in COUNTS:
            requests = [Request(tokens, slot_ids(0)) for tokens in inputs[:count]]
            answers = evaluate.answers(context, params, requests, decoding, BATCH)
            found[f"{mode} {count}"] = [[answer.text, answer.score] for answer in answers]
    return found


@pytest.fixture(scope="module")
def alone():
    return answer_all(Parallel(data=1))


def check(found, alone):
    for mode in ("greedy", "rank"):
        texts, scores = zip(*alone[f"{mode} {COUNTS[-1]}"], strict=True)
        for count in COUNTS:
            there = found[f"{mode} {count}"]
            assert [text for text, _ in there] == list(texts[:count])
            np.testing.assert_allclose([score for _, score in there], scores[:count], rtol=1e-4)


def test_any_count_on_one_device(alone):
    check(alone, alone)
    assert len({text for text, _ in alone[f"greedy {COUNTS[-1]}"]}) > 3


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_any_count_on_eight_devices(alone, shape):
    check(answer_all(Parallel(data=shape[0], model=shape[1])), alone)


@pytest.mark.slow
def test_any_count_on_two_processes(alone):
    """Two processes of two devices; each ends up with all answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""
import json, sys
import jax
jax.distributed.initialize("127.0.0.1:{port}", num_processes=2, process_id=int(sys.argv[1]))
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_evaluation import Parallel, answer_all
assert jax.device_count() == 4 and jax.local_device_count() == 2
print("FOUND" + json.dumps(answer_all(Parallel(data=4))))
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("count=8", "count=2")
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(
            [*command, str(number)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    for output in outputs:
        line = next(line for line in output.splitlines() if line.startswith("FOUND"))
        check(json.loads(line.removeprefix("FOUND")), alone)
