"""Pretraining objectives: (inputs, targets) out of text-only examples. NumPy only.

An objective is called with the tokens of a text (no EOS), a random generator folded from (seed,
epoch, index), and the vocabulary size; inputs always end with EOS, as a task's inputs do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

EOS = 1

Tokens = Int32[np.ndarray, "_"]
Objective = Callable[[Tokens, np.random.Generator, int], tuple[Tokens, Tokens]]


def window(
    tokens: Tokens, length: int, rng: np.random.Generator
) -> tuple[Int32[np.ndarray, "_"], bool]:
    """A random stretch of a long text.

    Args:
        tokens: int32 [n].
        length: at most so many tokens.
        rng: decides where the stretch starts.

    Returns:
        (the stretch, whether it reaches the end of the text).
    """
    if len(tokens) <= length:
        return tokens, True
    start = int(rng.integers(0, len(tokens) - length + 1))
    return tokens[start : start + length], start + length == len(tokens)


def _partition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` items in `parts` non-empty stretches, all ways equally likely."""
    cuts = np.sort(rng.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def noise_mask(
    length: int, density: float, mean_span: float, rng: np.random.Generator
) -> Bool[np.ndarray, "_"]:
    """Which tokens are hidden: spans of noise and of text in turn, text first.

    round(length * density) tokens are noise, in round(noise / mean_span) spans; span lengths are
    a uniform random partition.

    Args:
        length: tokens of the text, at least 1.
        density: share of tokens that is noise.
        mean_span: mean length of a noise span.
        rng: decides where the spans lie.

    Returns:
        bool [length]; a text of one token is all noise.

    Source: Raffel et al. 2020, section 3.1.4 and 3.3.4.
    """
    if length < 2:
        return np.ones(length, bool)
    noise = int(np.clip(round(length * density), 1, length - 1))
    spans = int(np.clip(round(noise / mean_span), 1, min(noise, length - noise)))
    stretches = np.stack(
        [_partition(length - noise, spans, rng), _partition(noise, spans, rng)], axis=1
    )
    return np.repeat(np.tile([False, True], spans), stretches.reshape(-1))


def _replace_spans(tokens: np.ndarray, mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """Each maximal masked span becomes one sentinel: vocab_size - 1, vocab_size - 2, ..."""
    first = mask & ~np.concatenate([[False], mask[:-1]])
    sentinels = vocab_size - np.cumsum(first)
    replaced = np.where(first, sentinels, tokens)
    return replaced[~mask | first].astype(np.int32)


@dataclass(frozen=True)
class SpanCorruption:
    """Spans of the text are hidden; the targets are the spans, each after its sentinel.

    noise_density: share of tokens hidden. mean_span: mean length of a hidden span. length: tokens
    of the text that are used; longer texts give a random window.

    Source: Raffel et al. 2020, section 3.3.4.
    """

    noise_density: float = 0.15
    mean_span: float = 3.0
    length: int = 128

    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocab_size: int
    ) -> tuple[Int32[np.ndarray, "_"], Int32[np.ndarray, "_"]]:
        """Inputs `a b <0> e f EOS` and targets `<0> c d EOS` of the text `a b c d e f`."""
        tokens, _ = window(tokens, self.length, rng)
        mask = noise_mask(len(tokens), self.noise_density, self.mean_span, rng)
        inputs = _replace_spans(tokens, mask, vocab_size)
        targets = _replace_spans(tokens, ~mask, vocab_size)
        if len(mask) and mask[0]:  # a text of one token: no text before the span to stand for
            targets = np.concatenate([[vocab_size - 1], targets])
        return _end(inputs), _end(targets)


@dataclass(frozen=True)
class PrefixLM:
    """The text continues: a uniformly split prefix is the inputs, the rest the targets.

    length: tokens of the text that are used; longer texts give a random window. The targets end
    with EOS where the text itself ends.

    Source: Raffel et al. 2020, section 3.2.3; Lester et al. 2021, section 3.2 (LM adaptation).
    """

    length: int = 128

    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocab_size: int
    ) -> tuple[Int32[np.ndarray, "_"], Int32[np.ndarray, "_"]]:
        """Inputs `a b EOS` and targets `c d e f EOS` of the text `a b c d e f`."""
        tokens, ends = window(tokens, self.length, rng)
        if len(tokens) < 2:
            return _end(tokens[:0]), _end(tokens)
        split = int(rng.integers(1, len(tokens)))
        rest = tokens[split:].astype(np.int32)
        return _end(tokens[:split]), _end(rest) if ends else rest


@dataclass(frozen=True)
class Mixed:
    """Each example gets one of several objectives at random.

    parts: ((objective, weight), ...); weights need not sum to 1.
    """

    parts: tuple[tuple[Objective, float], ...]

    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocab_size: int
    ) -> tuple[Int32[np.ndarray, "_"], Int32[np.ndarray, "_"]]:
        """What the chosen objective returns."""
        weights = np.cumsum([weight for _, weight in self.parts])
        chosen = int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
        return self.parts[chosen][0](tokens, rng, vocab_size)


def _end(tokens: np.ndarray) -> np.ndarray:
    """The tokens with EOS, as int32."""
    return np.append(tokens, EOS).astype(np.int32)
