"""What `prompt-jax bench` and `tools/bench_peft.py` time: a run's own objects on made-up examples.

Random weights, and examples of given lengths whose tokens are drawn by their number: neither task
files nor a network. What is timed is what a run does: its loader, its placed batches, its compiled
step, its answers, its store, its start as a process.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_jax import evaluate, flops, ledger, train
from prompt_jax.assemble import assemble
from prompt_jax.backbone import Opened, open_backbone
from prompt_jax.ckpt.prompt_file import ENCODER
from prompt_jax.ckpt.store import Store
from prompt_jax.config import resolve
from prompt_jax.data import layout
from prompt_jax.data.loader import Data, Loader
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.errors import RunFailed
from prompt_jax.fleet import Fleet
from prompt_jax.member import Members
from prompt_jax.parallel.mesh import Shardings
from prompt_jax.requests import Request
from prompt_jax.stages import stages_of
from prompt_jax.step import jit_train_step, loss_and_grads

SST2 = pathlib.Path(__file__).parent / "assets" / "sst2_lengths.json"
VOCABULARY = SST2.parent / "vocabulary" / "micro.model"
BYTE_ROWS = 512  # smaller tables are ByT5's
SST2_LIMITS = {"inputs": 128, "targets": 4}
MIXED_PROMPT = 20  # P of each prompt in a mixed batch


# --- examples and runs ---


@dataclasses.dataclass(frozen=True)
class Made:
    """Examples of given lengths; the tokens of each are drawn by its number. A loader's source.

    Attributes:
        own: tokens of inputs and targets of each example, EOS included, int [n, 2].
        vocab_size: V.
    """

    own: np.ndarray
    vocab_size: int

    def __len__(self) -> int:
        return len(self.own)

    def _draw(self, index: int, column: int) -> np.ndarray:
        rng = np.random.default_rng([index, column])
        text = rng.integers(2, self.vocab_size, self.own[index, column] - 1)
        return np.append(text, layout.EOS).astype(np.int32)

    def inputs(self, index: int) -> np.ndarray:
        """Tokens of the inputs."""
        return self._draw(index, 0)

    def targets(self, index: int) -> np.ndarray:
        """Tokens of the targets."""
        return self._draw(index, 1)

    def example(self, index: int) -> dict:
        """There is no text."""
        return {}

    def lengths(self) -> np.ndarray:
        """int [n, 2]."""
        return self.own


def equal_lengths(inputs: int, targets: int, vocab_size: int) -> Made:
    """Examples that are all as long."""
    return Made(np.tile([inputs, targets], (4096, 1)), vocab_size)


def sst2_lengths(vocab_size: int) -> Made:
    """As many examples as SST-2's train split has, of just their lengths in T5's vocabulary."""
    counts = np.array(json.loads(SST2.read_text())["counts"])
    return Made(np.repeat(counts[:, :2], counts[:, 2], axis=0), vocab_size)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A run's backbone in memory; the cases vary prompt and data.

    Attributes:
        run: as gin configures it.
        opened: the backbone.
        shardings: where arrays live.
        rss_before_mb: memory held before the backbone was opened.
    """

    run: train.Run
    opened: Opened
    shardings: Shardings
    rss_before_mb: float

    @property
    def config(self):
        """The backbone's sizes."""
        return self.run.backbone.config

    @classmethod
    def open(cls, model: str, bindings: Sequence[str] = ()) -> "Bench":
        """Opens the backbone of a model file.

        Args:
            model: NAME of models/NAME.gin.
            bindings: "NAME=VALUE" on top of the run's defaults here: random weights, no dropout.

        Raises:
            UserError: no such model, a wrong binding.
        """
        run = resolve(files(model), defaults(bindings)).run
        before = rss_mb()
        shardings = Shardings(run.parallel.mesh(), run.parallel.shard_frozen_over_data)
        assembled = assemble(run.backbone.config, run.method, shardings.fetch_layer)
        with tempfile.TemporaryDirectory() as folder:
            backbone = run.backbone
            if not (backbone.vocabulary or backbone.checkpoint):
                vocabulary = vocabulary_file(folder, backbone.config.vocab_size)
                backbone = dataclasses.replace(backbone, vocabulary=vocabulary)
            opened = open_backbone(backbone, assembled, shardings)
        jax.block_until_ready(opened.params)
        return cls(run, opened, shardings, before)

    def with_prompt(self, length: int) -> train.Run:
        """The run with a prompt of another length."""
        method = self.run.method
        bank = dataclasses.replace(method.bank, length=length)
        return dataclasses.replace(self.run, method=dataclasses.replace(method, bank=bank))


def files(model: str) -> list[str]:
    """The gin files of a run that tunes a prompt for a model."""
    return [f"models/{model}.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin"]


def defaults(bindings: Sequence[str]) -> list[str]:
    """The bindings, after those of a run that needs no files which they do not name."""
    ours = {
        "MIXTURE_OR_TASK_NAME": "'micro_sentiment'",
        "MODEL_DIR": "'out/bench'",
        "INITIAL_CHECKPOINT_PATH": "None",
        "Backbone.random_weights": "True",
        "DROPOUT_RATE": "0.0",
    }
    given = {binding.partition("=")[0].strip() for binding in bindings}
    return [*(f"{k}={v}" for k, v in ours.items() if k not in given), *bindings]


def vocabulary_file(folder: str, rows: int) -> str:
    """A vocabulary that fits an embedding table of `rows`: ours, filled up with made-up pieces.

    T5's own is not in the package, and no number here depends on text.

    Returns:
        A model file in `folder`, or `byte`.
    """
    from sentencepiece import sentencepiece_model_pb2

    if rows < BYTE_ROWS:
        return "byte"
    model = sentencepiece_model_pb2.ModelProto.FromString(VOCABULARY.read_bytes())
    missing = rows - load_vocabulary(str(VOCABULARY)).size
    for number in range(missing):
        model.pieces.add(piece=f"▁made{number}", score=-100.0)
    path = os.path.join(folder, "made.model")
    pathlib.Path(path).write_bytes(model.SerializeToString())
    return path


# --- training steps ---


@dataclasses.dataclass(frozen=True)
class Shape:
    """The unpadded batch: examples, their own input tokens, prompt, targets."""

    batch: int = 16
    inputs: int = 128
    prompt: int = 100
    targets: int = 8


class Steps:
    """The training steps of one case, through what a run uses."""

    def __init__(self, bench: Bench, source: Made, data: Data, prompt_length: int):
        """Makes the loader and the state.

        Args:
            bench: the backbone.
            source: the examples.
            data: how they lie in batches.
            prompt_length: P.
        """
        self.bench, self.source, self.prompt_length = bench, source, prompt_length
        self.run = run = bench.with_prompt(prompt_length)
        self.model = assemble(bench.config, run.method, bench.shardings.fetch_layer)
        blocks = bench.shardings.own_blocks, bench.shardings.row_shards
        rows = bench.shardings.row_shards * run.num_microbatches
        slots = layout.slot_ids(prompt_length)
        self.loader = Loader(data, {"bench": source}, slots=slots, blocks=blocks, row_multiple=rows)
        made = train.init(run, self.model, bench.opened, bench.shardings)
        self.optimizer, self.state, self.frozen, _ = made
        self._step = jit_train_step(self.model, self.optimizer, run.num_microbatches)

    def set_prompt(self, array: np.ndarray) -> None:
        """Starts from other vectors, float32 [P, H]."""
        place = self.bench.shardings.replicated
        self.state = dataclasses.replace(
            self.state, trainable={ENCODER: jax.device_put(jnp.asarray(array), place)}
        )

    def first(self) -> dict[str, float]:
        """Loss and gradient norm of the first batch without dropout."""
        batch = self.bench.shardings.put_batch(self.loader.batch(0)[0])
        if not self.bench.config.dropout_rate:  # the step itself: nothing else is compiled
            self.state, numbers = self._step(self.state, self.frozen, batch)
            return {name: float(numbers[name]) for name in ("loss", "grad_norm")}
        ask = jax.jit(lambda t, f, b: loss_and_grads(self.model, t, f, b, None)[:2])
        loss, grads = ask(self.state.trainable, self.frozen, batch)
        norm = math.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)))
        return {"loss": float(loss), "grad_norm": norm}

    def block(self, count: int) -> float:
        """Seconds of the first `count` batches of the data, batches made and placed included.

        As in a run, a step is dispatched before the numbers of the one before are read.
        """
        began, pending = time.perf_counter(), None
        with self.loader.iterate(0) as batches:
            for _ in range(count):
                batch, _ = next(batches)
                placed = self.bench.shardings.put_batch(batch)
                self.state, numbers = self._step(self.state, self.frozen, placed)
                jax.device_get(pending)
                pending = numbers
            jax.block_until_ready(self.state)
            seconds = time.perf_counter() - began
        if not math.isfinite(float(pending["loss"])):
            raise RunFailed(f"bench: the loss is {float(pending['loss'])}")
        return seconds

    def work(self, count: int) -> dict[str, Any]:
        """What the first `count` batches hold.

        Returns:
            {"examples", "positions" (text and slots), "computed" (padding too), "rows" of each
            batch, "row" [T, U], "flops" of a training step summed: padding and neighbours are no
            work}.
        """
        batches = [self.loader.batch(step) for step in range(count)]
        lengths = [
            (t + self.prompt_length, u)
            for _, accounting in batches
            for t, u in self.source.own[accounting.index].tolist()
        ]
        shapes = [batch["encoder_input_tokens"].shape for batch, _ in batches]
        return {
            "examples": len(lengths),
            "positions": sum(t for t, _ in lengths),
            "computed": sum(rows * wide for rows, wide in shapes),
            "rows": [rows for rows, _ in shapes],
            "row": list(self.loader.shapes.capacity),
            "flops": flops.training(self.bench.config, flops.examples(lengths)),
        }


def unpadded(bench: Bench, shape: Shape) -> Steps:
    """Batches without a padded position, one example a row."""
    wide = shape.inputs + shape.prompt
    data = Data(
        task_feature_lengths={"inputs": shape.inputs, "targets": shape.targets},
        packed_lengths={"inputs": wide, "targets": shape.targets},
        batch_size=shape.batch,
    )
    source = equal_lengths(shape.inputs, shape.targets, bench.config.vocab_size)
    return Steps(bench, source, data, shape.prompt)


def sst2(bench: Bench, prompt_length: int, batch_size: int = 32, row: int = 0) -> Steps:
    """SST-2's lengths, packed; `row`: capacity of a row, 0: as the loader chooses."""
    source, packed = sst2_lengths(bench.config.vocab_size), None
    if row:  # targets for as many of the shortest examples as fit
        shortest, targets = source.own.min(axis=0).tolist()
        deep = layout.round_up(row // (prompt_length + shortest) * targets, 8)
        packed = {"inputs": row, "targets": deep}
    data = Data(task_feature_lengths=SST2_LIMITS, packed_lengths=packed, batch_size=batch_size)
    return Steps(bench, source, data, prompt_length)


# --- mixed prompts ---


class Mixed:
    """A batch of requests answered greedily, with K different prompts among its rows."""

    def __init__(self, bench: Bench, prompts: int, batch_size: int = 256):
        """Makes the requests, of SST-2's lengths, and a bank that holds the K prompts alone."""
        run = bench.with_prompt(MIXED_PROMPT)
        run = dataclasses.replace(run, data=Data(task_feature_lengths=SST2_LIMITS))
        model = assemble(bench.config, run.method, bench.shardings.fetch_layer)
        params = bench.opened.params
        self.context = evaluate.Context(run, model, bench.opened, bench.shardings, params)
        rng = np.random.default_rng(0)
        bank = rng.uniform(-0.5, 0.5, (prompts * MIXED_PROMPT, bench.config.emb_dim))
        bank = jax.device_put(jnp.asarray(bank, jnp.float32), bench.shardings.replicated)
        self.params = {**params, ENCODER: bank}
        source = sst2_lengths(bench.config.vocab_size)
        self.inputs = [source.inputs(int(i)) for i in rng.permutation(len(source))[:batch_size]]
        slots = [layout.slot_ids(MIXED_PROMPT, k * MIXED_PROMPT) for k in range(prompts)]
        self.requests = [Request(ids, slots[i % prompts]) for i, ids in enumerate(self.inputs)]

    def block(self) -> float:
        """Seconds of one batch."""
        began = time.perf_counter()
        decoding, size = evaluate.Decoding(), len(self.requests)
        evaluate.answers(self.context, self.params, self.requests, decoding, size)
        return time.perf_counter() - began


# --- start, memory, checkpoints ---


def first_step_seconds(model: str, bindings: Sequence[str], rows: int, caches: str) -> float:
    """Seconds from the start of `prompt-jax train` to the log line of its first step.

    The process is ended there; what it would do next is no part of the measure.

    Args:
        model: NAME of models/NAME.gin.
        bindings: of the run.
        rows: of the embedding table, for a vocabulary that fits; 0: the run has its own.
        caches: folder of the compiled programs and the tokenised task; an empty one is cold.

    Raises:
        RunFailed: it ended before; with its last line.
    """
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "JAX_COMPILATION_CACHE_DIR": os.path.join(caches, "jax"),
        "PROMPT_JAX_CACHE": os.path.join(caches, "tokens"),
    }
    with tempfile.TemporaryDirectory() as folder:
        own = [f"MODEL_DIR='{folder}/run'", "TRAIN_STEPS=1000", "Run.log_period=1"]
        own += [f"Backbone.vocabulary='{vocabulary_file(folder, rows)}'"] if rows else []
        flags = [f"--gin_file={file}" for file in files(model)]
        flags += [f"--gin.{binding}" for binding in defaults([*bindings, *own])]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "prompt_jax", "train", *flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        line = "it said nothing"
        try:
            for line in process.stderr:
                if line.startswith("step 1/"):
                    return time.perf_counter() - began
            raise RunFailed(
                f"bench: `prompt-jax train` ended before its first step: {line.strip()}"
            )
        finally:
            process.kill()
            process.communicate()


def start_bindings(shape: Shape) -> list[str]:
    """A run on an embedded task whose rows are as wide as the unpadded batch's.

    With a prompt of 100 its short examples cannot share such a row: just as many rows, too.
    """
    wide = shape.inputs + shape.prompt
    return [
        f"TASK_FEATURE_LENGTHS={{'inputs': {shape.inputs}, 'targets': {shape.targets}}}",
        f"PROMPT_LENGTH={shape.prompt}",
        f"BATCH_SIZE={shape.batch}",
        f"PACKED_LENGTHS={{'inputs': {wide}, 'targets': {shape.targets}}}",
    ]


def rss_mb() -> float:
    """Memory that this process holds now, in MB."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return ledger.peak_rss_mb()
    (line,) = (each for each in status.read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def memory(bench: Bench) -> dict[str, float]:
    """The most this process has held so far, loading and compiling included, in MB."""
    found = {"before_model_mb": bench.rss_before_mb, "peak_mb": ledger.peak_rss_mb()}
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        found["device_peak_mb"] = stats["peak_bytes_in_use"] / 2**20
    return {name: round(value, 1) for name, value in found.items()}


def checkpoint(steps: Steps, repeat: int) -> dict[str, Any]:
    """Bytes and seconds of a run's checkpoint: started, and waited for until it is on disk.

    The first save, which also starts Orbax, is not counted.
    """
    alone = Members(Fleet(1, steps.bench.shardings), [], str)
    stage = stages_of(steps.run.method.phases, max(1, steps.run.train_steps))[0]
    said = train.extra(steps.bench.opened, stage, ledger.Clock(), alone)
    with tempfile.TemporaryDirectory() as folder:
        store, seconds = Store(f"{folder}/checkpoints"), []
        for step in range(repeat + 1):
            began = time.perf_counter()
            store.save(step, steps.state, said, {0: float(step)})
            store.wait()
            seconds.append(time.perf_counter() - began)
        size = ledger.folder_bytes(pathlib.Path(folder) / "checkpoints" / str(repeat))
        store.close()
    return {"bytes": size, "seconds": seconds[1:]}
