"""Decoding with a cache: greedy, beam search, sampling; and scoring of given targets.

All functions are pure: make the `Decoder` and call them inside a jitted function. Loops stop as
soon as every row is done.
Rows hold one example each (no packing). Several hypotheses of an example share its encoded input:
they are a mapped axis of the step, so a tap sees the B rows it was made for.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_jax.likelihood import token_numbers
from prompt_jax.models.t5.network import T5, identity_tap

EOS = 1
_NEVER = -1.0e9


class Decoded(NamedTuple):
    """What decoding returns, best first.

    Attributes:
        tokens: [B,K,U] generated tokens, EOS included, 0 after it; no start token.
        scores: [B,K] float32; log-probabilities, divided by the length penalty in beam search.
    """

    tokens: Array
    scores: Array


@dataclasses.dataclass(frozen=True)
class LogitsMask:
    """Restricts what may be generated, with a state carried along each hypothesis.

    Attributes:
        function: `(state, logits [B,K,V], tokens [B,K]) -> (logits, state)`; `tokens` are the
            inputs of this step (the token generated last, or the start token).
        state: pytree of [B,...] at the start; leaves are [B,K,...] in the function.
    """

    function: Callable
    state: Any = ()


@dataclasses.dataclass(frozen=True)
class Beam:
    """How beams are scored.

    Attributes:
        beams: K, hypotheses kept, all of them returned.
        alpha: exponent of the length penalty.
        style: "t5x": penalty `((5 + length) / 6)^alpha` (Wu et al. 2016), only finished
            hypotheses are returned if there are any; "hf": penalty `length^alpha`, what is
            unfinished at the last position counts as finished.
    """

    beams: int = 4
    alpha: float = 0.6
    style: str = "t5x"

    def __post_init__(self):
        if self.style not in ("t5x", "hf") or self.beams < 1:
            raise ValueError(f"Beam(style={self.style!r}, beams={self.beams}): 't5x' or 'hf', >= 1")

    def penalty(self, length: Any) -> Any:
        """What a sum of log-probabilities is divided by.

        Args:
            length: generated tokens, EOS included.

        Returns:
            The penalty.
        """
        if self.style == "hf":
            return jnp.asarray(length, jnp.float32) ** self.alpha
        return ((5.0 + length) / 6.0) ** self.alpha


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        samples: K, sequences per example.
        temperature: logits are divided by it; 0 is greedy.
        top_k: only the k most probable tokens; 0 for all.
        top_p: only the smallest set of tokens with this probability together; 1 for all.
    """

    samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A T5 with everything that stays the same from call to call.

    Attributes:
        network: the T5.
        variables: its variables, `{"params": ...}`.
        length: U, most tokens generated.
        tap: called at every site of both stacks.
        mask: restricts what is generated.
        start: [B,S] decoder inputs that come before the first generated token (slots, start
            token); a start token by default.
        eos: id of the end of a sequence.
    """

    network: T5
    variables: dict
    length: int
    tap: Callable = identity_tap
    mask: LogitsMask | None = None
    start: Any = None
    eos: int = EOS


class _Rows(NamedTuple):
    """The state of K hypotheses for each of B examples between two steps."""

    tokens: Array  # [B,K] the next inputs
    keys: Array  # [L,B,K,U,N,D]
    values: Array
    index: Array
    mask: Any  # [B,K,...]


def greedy(decoder: Decoder, batch: dict) -> Decoded:
    """The most probable token at each position.

    Args:
        decoder: model and limits.
        batch: `encoder_input_tokens`, `encoder_segment_ids` [B,T].

    Returns:
        One sequence per example; scores are sums of log-probabilities.
    """

    return _generate(decoder, batch, 1, lambda _, scores: jnp.argmax(scores, -1))


def sample(decoder: Decoder, batch: dict, key: Array, sampling: Sampling = Sampling()) -> Decoded:
    """Draws sequences; a row's draws do not depend on the other rows.

    Args:
        decoder: model and limits.
        batch: `encoder_input_tokens`, `encoder_segment_ids` [B,T].
        key: of `jax.random`.
        sampling: how.

    Returns:
        Sequences, best first; scores are sums of the model's own log-probabilities, before
        temperature, top-k and top-p.

    Source: Holtzman et al. 2020 (top-p).
    """
    if sampling.temperature == 0:
        return greedy(decoder, batch)
    rows = len(batch["encoder_input_tokens"]) * sampling.samples
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))

    def choose(step, scores):
        logits = _restrict(scores / sampling.temperature, sampling)
        flat = logits.reshape(rows, -1)
        draw = lambda k, row: jax.random.categorical(jax.random.fold_in(k, step), row)  # noqa: E731
        return jax.vmap(draw)(keys, flat).reshape(scores.shape[:2])

    drawn = _generate(decoder, batch, sampling.samples, choose)
    order = jnp.argsort(-drawn.scores, axis=1)
    tokens = jnp.take_along_axis(drawn.tokens, order[..., None], 1)
    return Decoded(tokens, jnp.take_along_axis(drawn.scores, order, 1))


def _restrict(logits: Array, sampling: Sampling) -> Array:
    if sampling.top_k:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, _NEVER, logits)
    if sampling.top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        chances = jax.nn.softmax(ordered)
        # A token stays while those before it do not reach top_p; the first always stays.
        stays = jnp.cumsum(chances, -1) - chances < sampling.top_p
        least = jnp.min(jnp.where(stays, ordered, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < least, _NEVER, logits)
    return logits


def _generate(decoder: Decoder, batch: dict, copies: int, choose: Callable) -> Decoded:
    """The loop of greedy decoding and sampling: hypotheses never change places."""
    step, rows = _prepare(decoder, batch, copies)
    shape = rows.tokens.shape
    tokens = jnp.zeros((*shape, decoder.length), jnp.int32)
    state = (jnp.zeros((), jnp.int32), rows, tokens, jnp.zeros(shape), jnp.zeros(shape, bool))

    def go_on(state):
        return (state[0] < decoder.length) & ~jnp.all(state[4])

    def body(state):
        i, rows, tokens, scores, done = state
        log_probs, rows = step(rows)
        chosen = jnp.where(done, 0, choose(i, log_probs)).astype(jnp.int32)
        gain = jnp.take_along_axis(log_probs, chosen[..., None], -1)[..., 0]
        scores = scores + jnp.where(done, 0.0, gain)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, chosen, i, 2)
        rows = rows._replace(tokens=chosen)
        return i + 1, rows, tokens, scores, done | (chosen == decoder.eos)

    _, _, tokens, scores, _ = jax.lax.while_loop(go_on, body, state)
    return Decoded(tokens, scores)


class _Search(NamedTuple):
    """State of beam search; live and finished hypotheses are sorted, best first."""

    i: Array
    rows: _Rows
    live: Array  # [B,K,U]
    live_scores: Array  # [B,K] sums of log-probabilities
    finished: Array  # [B,K,U]
    finished_scores: Array  # [B,K] with penalty; _NEVER where nothing finished yet
    open: Array  # [B] can still improve


def beam_search(decoder: Decoder, batch: dict, beam: Beam = Beam()) -> Decoded:
    """Beam search.

    Args:
        decoder: model and limits.
        batch: `encoder_input_tokens`, `encoder_segment_ids` [B,T].
        beam: number of beams and length penalty.

    Returns:
        All beams, best first; scores with the length penalty. Where fewer than K hypotheses
        finished ("t5x"), the rest has score -1e9.

    Source: Wu et al. 2016, section 7.
    """
    step, rows = _prepare(decoder, batch, beam.beams)
    count, k = rows.tokens.shape
    sequences = jnp.zeros((count, k, decoder.length), jnp.int32)
    nothing = jnp.full((count, k), _NEVER)
    # All beams are equal at the start, so only the first one may be continued.
    first = nothing.at[:, 0].set(0.0)
    state = _Search(
        jnp.zeros((), jnp.int32), rows, sequences, first, sequences, nothing, jnp.ones(count, bool)
    )

    def go_on(state):
        return (state.i < decoder.length) & jnp.any(state.open)

    advance = lambda state: _advance(state, *step(state.rows), decoder, beam)  # noqa: E731
    state = jax.lax.while_loop(go_on, advance, state)
    if beam.style == "hf":
        return Decoded(state.finished, state.finished_scores)
    some = jnp.any(state.finished_scores > _NEVER / 2, axis=1)
    return Decoded(
        jnp.where(some[:, None, None], state.finished, state.live),
        jnp.where(some[:, None], state.finished_scores, state.live_scores),
    )


def _advance(
    state: _Search, log_probs: Array, rows: _Rows, decoder: Decoder, beam: Beam
) -> _Search:
    """One step: 2K candidates, of which K go on and the finished compete with the finished."""
    count, k, vocab = log_probs.shape
    totals = (state.live_scores[..., None] + log_probs).reshape(count, k * vocab)
    scores, chosen = jax.lax.top_k(totals, 2 * k)
    parents, tokens = chosen // vocab, (chosen % vocab).astype(jnp.int32)
    sequences = jnp.take_along_axis(state.live, parents[..., None], 1)
    sequences = jax.lax.dynamic_update_index_in_dim(sequences, tokens, state.i, 2)
    length = state.i + 1
    ends = tokens == decoder.eos
    if beam.style == "hf":
        # The last position ends everything; and only the K best candidates may finish.
        ends |= length == decoder.length
        may_finish = ends & (jnp.arange(2 * k) < k) & state.open[:, None]
    else:
        may_finish = ends
    live_scores, at = jax.lax.top_k(jnp.where(ends, _NEVER, scores), k)
    live = jnp.take_along_axis(sequences, at[..., None], 1)
    parents = jnp.take_along_axis(parents, at, 1)
    rows = _reorder(rows, parents)._replace(tokens=jnp.take_along_axis(tokens, at, 1))
    ended = jnp.where(may_finish & (scores > _NEVER / 2), scores / beam.penalty(length), _NEVER)
    all_scores = jnp.concatenate([state.finished_scores, ended], 1)
    finished_scores, at = jax.lax.top_k(all_scores, k)
    pool = jnp.concatenate([state.finished, sequences], 1)
    finished = jnp.take_along_axis(pool, at[..., None], 1)
    # T5X asks what the best live beam could still reach, transformers what it is worth now.
    reach = beam.penalty(length if beam.style == "hf" else decoder.length + 1)
    can_win = live_scores[:, 0] / reach > finished_scores[:, -1]
    still = can_win if beam.style == "t5x" else state.open & can_win
    return _Search(length, rows, live, live_scores, finished, finished_scores, still)


def score_targets(
    decoder: Decoder,
    batch: dict,
    targets: Int[Array, "B C U"],
    *,
    normalise: bool = False,
) -> Float[Array, "B C"]:
    """Log-likelihood of given targets: rank classification takes the best of C.

    Args:
        decoder: the model; its `length`, `mask` and `eos` are not used.
        batch: `encoder_input_tokens`, `encoder_segment_ids` [B,T].
        targets: candidate targets, EOS included, 0 after it.
        normalise: divide by the number of tokens.

    Returns:
        Sums (or means) of log-probabilities; 0 for an empty candidate.

    Source: Brown et al. 2020, section 2.4.
    """
    segments = jnp.asarray(batch["encoder_segment_ids"])
    apply = functools.partial(decoder.network.apply, decoder.variables)
    encoded = apply(batch["encoder_input_tokens"], segments, tap=decoder.tap, method="encode")
    start = _start_tokens(decoder, len(segments))
    ahead = start.shape[1] - 1

    def states_of(target):
        real = target > 0
        inputs = jnp.concatenate([start, jnp.where(real, target, 0)[:, :-1]], 1)
        own = jnp.concatenate([jnp.ones_like(start), real[:, :-1]], 1).astype(jnp.int32)
        return apply(encoded, segments, inputs, own, tap=decoder.tap, method="decode")[:, ahead:]

    rows, candidates, length = targets.shape
    states = jax.vmap(states_of, 1, 1)(targets).reshape(rows, candidates * length, -1)
    numbers = token_numbers(
        functools.partial(apply, method="logits"),
        states,
        targets.reshape(rows, -1),
        decoder.network.config.vocab_size,
    )
    gains = (numbers["target_logit"] - numbers["log_z"]).reshape(targets.shape)
    total = jnp.sum(jnp.where(targets > 0, gains, 0.0), 2)
    return total / jnp.maximum((targets > 0).sum(2), 1) if normalise else total


def _start_tokens(decoder: Decoder, count: int) -> Array:
    if decoder.start is None:
        return jnp.zeros((count, 1), jnp.int32)
    return jnp.asarray(decoder.start, jnp.int32)


def _prepare(decoder: Decoder, batch: dict, copies: int) -> tuple[Callable, _Rows]:
    """Encodes, feeds the start tokens, and returns `step(rows) -> (log_probs [B,K,V], rows)`."""
    apply = functools.partial(decoder.network.apply, decoder.variables)
    tokens, segments = batch["encoder_input_tokens"], jnp.asarray(batch["encoder_segment_ids"])
    encoded = apply(tokens, segments, tap=decoder.tap, method="encode")
    start = _start_tokens(decoder, len(segments))
    room = start.shape[1] - 1 + decoder.length
    cache = apply(encoded, segments, room, method="start_cache")

    def feed(cache, column):
        return apply(cache, column, tap=decoder.tap, method="decode_step")[1], None

    cache, _ = jax.lax.scan(feed, cache, start[:, :-1].T)

    spread = lambda x, axis: jnp.repeat(jnp.expand_dims(x, axis), copies, axis)  # noqa: E731
    mask_state = decoder.mask.state if decoder.mask else ()
    rows = _Rows(
        spread(start[:, -1], 1),
        spread(cache.keys, 2),
        spread(cache.values, 2),
        cache.index,
        jax.tree.map(lambda leaf: spread(leaf, 1), mask_state),
    )

    def one(tokens, keys, values, index):
        own = cache.replace(keys=keys, values=values, index=index)
        states, own = apply(own, tokens, tap=decoder.tap, method="decode_step")
        return states, own.keys, own.values

    mapped = jax.vmap(one, in_axes=(1, 2, 2, None), out_axes=(1, 2, 2))

    def step(rows):
        states, keys, values = mapped(rows.tokens, rows.keys, rows.values, rows.index)
        logits, mask = apply(states, method="logits"), rows.mask
        if decoder.mask:
            logits, mask = decoder.mask.function(mask, logits, rows.tokens)
        rows = _Rows(rows.tokens, keys, values, rows.index + 1, mask)
        return jax.nn.log_softmax(logits), rows

    return step, rows


def _reorder(rows: _Rows, parents: Int[Array, "B K"]) -> _Rows:
    def pick(leaf, axis):
        shape = [1] * leaf.ndim
        shape[axis - 1 : axis + 1] = parents.shape
        return jnp.take_along_axis(leaf, parents.reshape(shape), axis)

    return rows._replace(
        keys=pick(rows.keys, 2),
        values=pick(rows.values, 2),
        mask=jax.tree.map(lambda leaf: pick(leaf, 1), rows.mask),
    )
