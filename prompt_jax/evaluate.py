"""Answers of a model, and metrics over exact example counts through the task's own functions."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from prompt_jax import decode, label_tokens, trie
from prompt_jax.assemble import Method, Model, Tree
from prompt_jax.backbone import Opened
from prompt_jax.data import cache, layout, registry
from prompt_jax.data.open import open_tokens
from prompt_jax.errors import UserError, nearest
from prompt_jax.ledger import Clock
from prompt_jax.parallel.mesh import Shardings
from prompt_jax.requests import Request, batches


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How an answer is read.

    Attributes:
        mode: "greedy", "beam", "sample" or "rank" (the likeliest of `labels`).
        max_length: most tokens of an answer, EOS included; 0: TASK_FEATURE_LENGTHS' targets.
        beam_size: beams.
        length_penalty: exponent a of ((5 + len) / 6)^a, or of len^a for the form "hf".
        length_penalty_form: "t5x" or "hf".
        temperature: of sampling.
        top_k: sample among the k likeliest tokens, 0 for all.
        top_p: sample among the tokens that hold this much probability.
        seed: of sampling.
        labels: the answers to choose from, for "rank".
    """

    mode: str = "greedy"
    max_length: int = 0
    beam_size: int = 4
    length_penalty: float = 0.6
    length_penalty_form: str = "t5x"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    labels: tuple[str, ...] = ()

    modes: ClassVar = ("greedy", "beam", "sample", "rank")

    def check(self, method: Method) -> None:
        """Refuses what cannot be decoded, before anything is opened.

        Raises:
            UserError: with the value, and what would do.
        """
        name = type(self).__name__
        if self.mode not in self.modes:
            raise UserError(f"{name}.mode = {self.mode!r}: {nearest(self.mode, self.modes)}")
        if method.head.labels and self.mode != "greedy":
            raise UserError(
                f"{name}.mode = {self.mode!r}: {method.name} answers by its "
                f"{type(method.head).__name__}, which decodes nothing; leave it (--decode) out"
            )
        if self.mode in ("rank", "trie") and not self.labels:
            raise UserError(
                f"{name}.mode = {self.mode!r} chooses among {name}.labels (--label=positive "
                "--label=negative), which are empty"
            )

    def check_labels(self, encode: Callable[[str], list[int]], length: int) -> None:
        """Refuses labels that cannot be said in `length` tokens, EOS included.

        Raises:
            UserError: as `label_tokens.tokens_of` and `trie` do.
        """


@dataclasses.dataclass(frozen=True)
class TrieDecoding(Decoding):
    """Greedy (or as `mode` says), but nothing but `labels` can be said (Buchner et al. 2024).

    Attributes:
        separator: between the labels of an answer that may have several, none twice; "": one.
    """

    mode: str = "trie"
    separator: str = ""

    modes: ClassVar = ("trie", "beam", "sample")

    def check_labels(self, encode: Callable[[str], list[int]], length: int) -> None:
        self.tree(encode, self.max_length or length)

    def tree(self, encode: Callable[[str], list[int]], length: int) -> trie.Trie:
        """The trie of its labels, for answers of at most `length` tokens."""
        return trie.build(*label_tokens.tokens_of(self.labels, self.separator, encode), length)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says to one request.

    Attributes:
        text: decoded, without special tokens.
        score: log-likelihood of the answer, in nats (penalised by length for "beam").
    """

    text: str
    score: float


@dataclasses.dataclass
class Context:
    """What evaluations of one run share; compiled functions are made once.

    Attributes:
        run: the `train.Run`.
        model: assembled functions.
        opened: the backbone.
        shardings: where arrays live.
        frozen: leaves that do not train.
    """

    run: Any
    model: Model
    opened: Opened
    shardings: Shardings
    frozen: Tree
    made: dict = dataclasses.field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned the first time it was asked for under `key`."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def on_task(context: Context, name: str) -> Context:
    """The same model on another task or mixture; compiled functions are shared."""
    data = dataclasses.replace(context.run.data, mixture_or_task_name=name)
    return dataclasses.replace(context, run=dataclasses.replace(context.run, data=data))


def run(context: Context, trainable: Tree, split: str, clock: Clock) -> dict[str, float]:
    """Runs every evaluator of a run on a split.

    Args:
        context: of the run.
        trainable: leaves that train, as they are now.
        split: of the run's task.
        clock: where the seconds go.

    Returns:
        metric name -> value.
    """
    began = time.monotonic()
    params = {**context.frozen, **trainable}
    metrics: dict[str, float] = {}
    for evaluator in context.run.evaluators:
        metrics.update(evaluator(context, params, split))
    clock.add("eval", time.monotonic() - began)
    return metrics


@dataclasses.dataclass(frozen=True)
class TaskMetrics:
    """The task's own metrics on decoded answers, every example counted once.

    Of a mixture, each task's under "TASK/NAME", and the means over tasks under "NAME".

    Attributes:
        decoding: how answers are read.
        batch_size: rows of a batch.
        limit: examples of the split, 0 for all.
    """

    decoding: Decoding = Decoding()
    batch_size: int = 128
    limit: int = 0

    def metric_names(self, run: Any) -> list[str] | None:
        """What it will compute, as far as that is known before; None: seqio's metrics tell."""
        data = run.data
        return registry.metric_names(data.mixture_or_task_name, data.mixture_or_task_module)

    def __call__(self, context: Context, params: Tree, split: str) -> dict[str, float]:
        """metric name -> value on a split."""
        data = context.run.data
        tasks, _ = cache.get_tasks(data.mixture_or_task_name, data.mixture_or_task_module)
        limit = self.limit or context.run.eval_steps * self.batch_size
        found = {}
        for name, task in tasks.items():
            tokens = open_tokens(data, name, split, context.opened.vocabulary)
            count = min(limit, len(tokens)) if limit else len(tokens)
            own = task_requests(context, name, tokens, count)
            texts = [a.text for a in answers(context, params, own, self.decoding, self.batch_size)]
            examples = [tokens.example(i) for i in range(count)]
            found[name] = task.metrics(
                [task.target(example) for example in examples],
                [task.postprocess(t, e) for t, e in zip(texts, examples, strict=True)],
            )
        return merge(found)


def merge(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """One task's metrics as they are; a mixture's under their tasks' names, with means."""
    if len(found) == 1:
        return next(iter(found.values()))
    metrics = {f"{task}/{name}": v for task, own in found.items() for name, v in own.items()}
    for name in sorted({name for own in found.values() for name in own}):
        values = [own[name] for own in found.values() if name in own]
        metrics[name] = float(np.mean(values))
    return metrics


def task_requests(
    context: Context, task: str, tokens: cache.TokenCache, count: int
) -> list[Request]:
    """The first `count` examples of a task's split as requests, truncated as in training.

    Raises:
        UserError: the task is text only, or the method has no vectors for it.
    """
    if count and tokens.inputs(0) is None:
        raise UserError(
            f"task {context.run.data.mixture_or_task_name!r} has no `inputs`: it cannot be "
            "answered; evaluate it by its loss (probes.LossGap)"
        )
    length = context.run.data.task_feature_lengths["inputs"]
    method = context.run.method
    slots = layout.slot_ids(method.slots, method.first_slot(task))
    return [Request(layout.truncate(tokens.inputs(i), length), slots) for i in range(count)]


def answers(
    context: Context,
    params: Tree,
    requests: Sequence[Request],
    decoding: Decoding,
    batch_size: int,
) -> list[Answer]:
    """The model's answers, in the order of the requests; rows may use different prompts.

    Args:
        context: of the run.
        params: frozen and trainable leaves, joined.
        requests: inputs and slots.
        decoding: how answers are read.
        batch_size: rows of a batch.
    """
    decoding.check(context.model.method)
    if not requests:
        return []
    if context.model.method.head.labels:
        return _classify(context, params, requests, batch_size)
    if decoding.mode == "rank":
        return _rank(context, params, requests, decoding, batch_size)
    vocabulary = context.opened.vocabulary
    length = decoding.max_length or context.run.data.task_feature_lengths["targets"]
    generate = context.once(
        ("decode", decoding, length), lambda: _generator(context, decoding, length)
    )
    out: list[Answer] = [None] * len(requests)
    for index, (batch, group) in enumerate(_batches(context, requests, batch_size)):
        tokens, scores = jax.device_get(generate(params, batch, np.int32(index)))
        for row, number in enumerate(group):
            text = vocabulary.decode([int(t) for t in tokens[row]])
            out[number] = Answer(text, float(scores[row]))
    return out


def _batches(context: Context, requests: Sequence[Request], batch_size: int):
    rows = context.shardings.row_shards
    slot_layout = context.run.data.layout
    for batch, group in batches(requests, batch_size, slot_layout, rows):
        yield context.shardings.put_same(batch), group


def _generator(context: Context, decoding: Decoding, length: int):
    """`(params, batch, number) -> (tokens [B, length], scores [B])`, compiled; whole everywhere."""
    model = context.model
    beam = decode.Beam(decoding.beam_size, decoding.length_penalty, decoding.length_penalty_form)
    sampling = decode.Sampling(1, decoding.temperature, decoding.top_k, decoding.top_p)
    tree = None
    if isinstance(decoding, TrieDecoding):
        tree = decoding.tree(context.opened.vocabulary.encode, length)

    def generate(params, batch, number):
        key = jax.random.fold_in(jax.random.key(decoding.seed), number)
        mask = trie.logits_mask(tree, len(batch["encoder_segment_ids"])) if tree else None
        decoder, batch = _decoder(model, params, batch, length, mask)
        if decoding.mode == "beam":
            found = decode.beam_search(decoder, batch, beam)
        elif decoding.mode == "sample":
            found = decode.sample(decoder, batch, key, sampling)
        else:
            found = decode.greedy(decoder, batch)
        return found.tokens[:, 0], found.scores[:, 0]

    return jax.jit(generate, out_shardings=context.shardings.replicated)


def _decoder(
    model: Model, params: Tree, batch: dict, length: int, mask: decode.LogitsMask | None = None
) -> tuple[decode.Decoder, dict]:
    """What decodes, and the batch as it reads it."""
    tap, batch = model.entry(params, batch)
    return decode.Decoder(model.network, model.variables(params), length, tap, mask), batch


def _rank(context, params, requests, decoding, batch_size) -> list[Answer]:
    """The label with the highest log-likelihood, for every request."""
    scores = label_scores(context, params, requests, decoding.labels, batch_size)
    best = scores.argmax(1)
    return [
        Answer(decoding.labels[at], float(row[at])) for at, row in zip(best, scores, strict=True)
    ]


def _classify(context, params, requests, batch_size) -> list[Answer]:
    """What the head's own labels say: one pass, no decoding."""
    head = context.model.method.head
    whole = context.shardings.replicated
    make = lambda: jax.jit(context.model.class_scores, out_shardings=whole)  # noqa: E731
    score = context.once("classes", make)
    out: list[Answer] = [None] * len(requests)
    for batch, group in _batches(context, requests, batch_size):
        found = head.texts(jax.device_get(score(params, batch))[: len(group)])
        for number, (text, log) in zip(group, found, strict=True):
            out[number] = Answer(text, log)
    return out


def label_scores(
    context: Context,
    params: Tree,
    requests: Sequence[Request],
    labels: tuple[str, ...],
    batch_size: int,
    normalise: bool = False,
) -> np.ndarray:
    """The log-likelihood of every label, for every request.

    Args:
        context: of the run.
        params: frozen and trainable leaves, joined.
        requests: inputs and slots.
        labels: C texts.
        batch_size: rows of a batch.
        normalise: divide by the label's number of tokens.

    Returns:
        float32 [n, C], in nats.
    """
    encoded = [context.opened.vocabulary.encode(label) for label in labels]
    targets = np.zeros((len(encoded), max(map(len, encoded)) + 1), np.int32)
    for row, tokens in zip(targets, encoded, strict=True):
        row[: len(tokens) + 1] = [*tokens, layout.EOS]

    def score(params, batch):
        decoder, batch = _decoder(context.model, params, batch, targets.shape[1])
        rows = (len(batch["encoder_segment_ids"]), *targets.shape)
        wanted = jnp.broadcast_to(targets, rows)
        return decode.score_targets(decoder, batch, wanted, normalise=normalise)

    whole = context.shardings.replicated
    make = lambda: jax.jit(score, out_shardings=whole)  # noqa: E731
    scorer = context.once(("rank", labels, normalise), make)
    out = np.zeros((len(requests), len(labels)), np.float32)
    for batch, group in _batches(context, requests, batch_size):
        out[group] = jax.device_get(scorer(params, batch))[: len(group)]
    return out
