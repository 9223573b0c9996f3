"""Generation restricted to a list of labels: a trie over their tokens, as arrays.

An answer is "label" or, with a separator, "label<separator>label...", no label twice. Each label
lies in the trie twice, ended by EOS and by the separator (Buchner et al. 2024, Trie Search). There
a label that is finished is deleted from a copy of the trie; here a hypothesis carries the set of
its labels, and what leads to no other label is closed. So is a further label where the longest one
would find no place: every answer ends in EOS.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.decode import EOS, LogitsMask
from prompt_jax.errors import UserError

PAD = 0
_ROOT = 0
_NEVER = -1.0e9
ANY_LENGTH = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Trie:
    """N nodes of at most D children over C labels; node 0 is the root.

    Attributes:
        child_tokens: the tokens that lead on, -1 where there are fewer than D.
        child_nodes: where they lead; 0 where there are fewer.
        to_eos: whether a label with EOS after it passes the node.
        to_separator: whether a label with the separator after it passes the node.
        separates: the label whose separator ends at the node, -1 for none.
        further: tokens that a node needs after it for the separator, a label and EOS, at most.
        length: most tokens of an answer, EOS included.
    """

    child_tokens: Int[Array | np.ndarray, "N D"]
    child_nodes: Int[Array | np.ndarray, "N D"]
    to_eos: Bool[Array | np.ndarray, "N C"]
    to_separator: Bool[Array | np.ndarray, "N C"]
    separates: Int[Array | np.ndarray, "N"]
    further: Int[Array | np.ndarray, "N"]
    length: Int[Array | np.ndarray, ""]


class State(NamedTuple):
    """Where hypotheses are; [B, ...] at the start, [B, K, ...] while they are decoded."""

    node: Any
    used: Any  # [..., C] labels that a separator has ended
    began: Any  # whether a step has been taken: the first input is the start token
    left: Any  # tokens that still fit


def build(
    labels: Sequence[Sequence[int]],
    separator: Sequence[int] = (),
    length: int = ANY_LENGTH,
    eos: int = EOS,
) -> Trie:
    """The trie of labels.

    Args:
        labels: their tokens, without EOS.
        separator: tokens between two labels; without any an answer is one label.
        length: most tokens of an answer, EOS included.
        eos: id of the end of a sequence.

    Returns:
        NumPy arrays.

    Raises:
        UserError: no label, one without tokens, two of the same tokens, EOS or padding within, one
            that does not fit; or a label that begins with another one and the separator, so that
            an answer could be read in two ways.
    """
    labels = [tuple(map(int, label)) for label in labels]
    separator = tuple(map(int, separator))
    _check(labels, separator, length, eos)
    children: list[dict[int, int]] = [{}]

    def insert(tokens: tuple[int, ...]) -> list[int]:
        nodes = [_ROOT]
        for token in tokens:
            below = children[nodes[-1]]
            if token not in below:
                below[token] = len(children)
                children.append({})
            nodes.append(below[token])
        return nodes

    ended = [insert((*label, eos)) for label in labels]
    separated = [insert((*label, *separator)) for label in labels] if separator else []
    for label, nodes in zip(labels, separated, strict=False):
        if children[nodes[-1]]:
            raise _ambiguous(label, labels, separator)
    for nodes in ended:
        children[nodes[-1]][PAD] = nodes[-1]  # what is decoded after the end stays there
    shape = len(children), max(map(len, children))
    trie = Trie(
        np.full(shape, -1, np.int32),
        np.zeros(shape, np.int32),
        np.zeros((len(children), len(labels)), bool),
        np.zeros((len(children), len(labels)), bool),
        np.full(len(children), -1, np.int32),
        np.zeros(len(children), np.int32),
        np.array(length, np.int32),
    )
    longest = max(map(len, labels)) + 1
    for node, below in enumerate(children):
        trie.child_tokens[node, : len(below)] = list(below)
        trie.child_nodes[node, : len(below)] = list(below.values())
    for label, nodes in enumerate(ended):
        trie.to_eos[nodes, label] = True
    for label, nodes in enumerate(separated):
        trie.to_separator[nodes, label] = True
        needs = np.arange(len(nodes))[::-1] + longest
        trie.further[nodes] = np.maximum(trie.further[nodes], needs)
        trie.separates[nodes[-1]] = label
    return trie


def _ambiguous(
    label: tuple[int, ...], labels: list[tuple[int, ...]], separator: tuple[int, ...]
) -> UserError:
    start = (*label, *separator)
    beyond = [x for x in labels if x != label and (*x, *separator)[: len(start)] == start]
    return UserError(
        f"the label of tokens {beyond[0]} begins with {label} and the separator {separator}: an "
        "answer could be read in two ways"
    )


def _check(
    labels: list[tuple[int, ...]], separator: tuple[int, ...], length: int, eos: int
) -> None:
    if not labels:
        raise UserError("a trie of no labels: nothing could be generated")
    seen: dict[tuple[int, ...], int] = {}
    for number, label in enumerate(labels):
        if not label:
            raise UserError(f"label {number} of {len(labels)} (from 0) has no tokens")
        if label in seen:
            both = f"{seen[label]} and {number}"
            raise UserError(f"labels {both} (from 0) have the same tokens {label}")
        if len(label) >= length:
            raise UserError(
                f"label {number} of {len(labels)} (from 0) has {len(label)} tokens: with EOS it "
                f"does not fit into answers of {length}"
            )
        seen[label] = number
    for tokens in (*labels, separator):
        if eos in tokens or min(tokens, default=1) <= PAD:
            raise UserError(f"tokens {tokens}: EOS ({eos}) and padding ({PAD}) end an answer")


def logits_mask(trie: Trie, rows: int) -> LogitsMask:
    """The restriction of what is generated, for `decode`.

    Args:
        trie: of the labels.
        rows: B, examples decoded together.

    Returns:
        The mask, with `State` as its state.
    """
    used = np.zeros((rows, trie.to_eos.shape[1]), bool)
    left = jnp.full(rows, trie.length, jnp.int32)
    state = State(np.zeros(rows, np.int32), used, np.zeros(rows, bool), left)
    return LogitsMask(functools.partial(_restrict, trie), state)


def _restrict(
    trie: Trie, state: State, logits: Float[Array, "B K V"], tokens: Int[Array, "B K"]
) -> tuple[Float[Array, "B K V"], State]:
    """Moves on by the tokens, then leaves what is open: with U the labels not used yet, a token to
    node n with U & to_eos[n], or with U & to_separator[n], |U| > 1 and further[n] tokens left.

    The set of labels changes at separators only, and a node needs a token less than the one before
    it, so an open node always has an open child.
    """
    child_tokens, child_nodes = jnp.asarray(trie.child_tokens), jnp.asarray(trie.child_nodes)
    taken = (child_tokens[state.node] == tokens[..., None]) & state.began[..., None]
    # What is no child leads to the root: beam search carries such hypotheses, with score -1e9.
    node = jnp.max(jnp.where(taken, child_nodes[state.node], _ROOT), axis=-1)
    ended = jnp.asarray(trie.separates)[node]
    used = state.used | (ended[..., None] == jnp.arange(trie.to_eos.shape[1]))
    node = jnp.where(ended < 0, node, _ROOT)

    more = jnp.sum(~used, axis=-1, keepdims=True) > 1
    # For all nodes at once: [B, K, N]. Of the children only it would be [B, K, D, C].
    fits = jnp.asarray(trie.further) < state.left[..., None]  # one of those left leads there
    lead = _any(~used, trie.to_eos) | (_any(~used, trie.to_separator) & more & fits)
    own = child_tokens[node]
    leads = jnp.take_along_axis(lead, child_nodes[node], axis=-1) & (own >= 0)
    batch, copies, vocabulary = logits.shape
    at = jnp.arange(batch)[:, None, None], jnp.arange(copies)[:, None]
    # Beyond the vocabulary is nowhere; -1 would be its last token.
    at = *at, jnp.where(leads, own, vocabulary)
    allowed = jnp.zeros(logits.shape, bool).at[at].set(True, mode="drop")
    new = State(node, used, jnp.ones_like(state.began), state.left - 1)
    return jnp.where(allowed, logits, _NEVER), new


def _any(
    labels: Bool[Array, "B K C"], table: Bool[Array | np.ndarray, "N C"]
) -> Bool[Array, "B K N"]:
    """Whether a node has one of the labels; counts below 2^24 are exact in float32."""
    return jnp.matmul(labels.astype(jnp.float32), jnp.asarray(table, jnp.float32).T) > 0.5
