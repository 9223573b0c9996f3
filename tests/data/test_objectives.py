"""Objectives: their inputs and targets put the text back together, in the right shares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.data.objectives import Mixed, PrefixLM, SpanCorruption, noise_mask, window

VOCABULARY = 600
SETTINGS = settings(max_examples=80, deadline=None)
texts = st.integers(0, 150).map(lambda n: np.arange(10, 10 + n, dtype=np.int32))
seeds = st.integers(0, 10**6)


def rng(seed):
    return np.random.default_rng(seed)


def restore(inputs, targets):
    """The text, by filling each sentinel of the inputs with what follows it in the targets."""
    spans, text = {}, []
    for token in targets:
        if token > 400:
            current = spans.setdefault(int(token), [])
        else:
            current.append(int(token))
    for token in inputs:
        text += spans.pop(int(token)) if token > 400 else [int(token)]
    assert not spans
    return text


@SETTINGS
@given(texts, seeds, st.sampled_from([(0.15, 3.0), (0.5, 8.0), (0.3, 1.0)]))
def test_span_corruption_loses_nothing(text, seed, kind):
    objective = SpanCorruption(*kind, length=200)
    inputs, targets = objective(text, rng(seed), VOCABULARY)
    assert inputs[-1] == targets[-1] == 1
    assert inputs.dtype == targets.dtype == np.int32
    assert restore(inputs[:-1], targets[:-1]) == text.tolist()
    sentinels = [t for t in inputs if t > 400]
    assert sentinels == [VOCABULARY - 1 - k for k in range(len(sentinels))]
    if len(text) > 1:
        hidden = len(targets) - 1 - len(sentinels)
        assert hidden == np.clip(round(len(text) * kind[0]), 1, len(text) - 1)


@SETTINGS
@given(st.integers(2, 300), st.floats(0.05, 0.8), st.floats(1, 10), seeds)
def test_noise_mask_has_the_asked_share(length, density, mean, seed):
    mask = noise_mask(length, density, mean, rng(seed))
    noise = int(np.clip(round(length * density), 1, length - 1))
    assert mask.sum() == noise and len(mask) == length
    assert not mask[0] and mask[-1]  # text and noise in turn, text first
    spans = int((np.diff(np.concatenate([[0], mask.astype(int)])) == 1).sum())
    assert spans == np.clip(round(noise / mean), 1, min(noise, length - noise))


def test_spans_lie_everywhere():
    share = np.mean([noise_mask(40, 0.25, 2.0, rng(s)) for s in range(2000)], axis=0)
    assert share[5:-5].min() > 0.18 and share[5:-5].max() < 0.32


@SETTINGS
@given(texts, seeds)
def test_prefix_lm_splits_the_text(text, seed):
    inputs, targets = PrefixLM(length=200)(text, rng(seed), VOCABULARY)
    assert inputs[-1] == targets[-1] == 1
    assert [*inputs[:-1], *targets[:-1]] == text.tolist()
    if len(text) > 1:
        assert len(inputs) > 1 and len(targets) > 1


def test_prefix_lm_splits_uniformly():
    text = np.arange(10, 20, dtype=np.int32)
    splits = [len(PrefixLM(20)(text, rng(s), VOCABULARY)[0]) - 1 for s in range(3000)]
    counts = np.bincount(splits, minlength=10)[1:10]
    assert counts.sum() == 3000 and counts.min() > 260 and counts.max() < 410


def test_a_window_that_stops_early_does_not_say_so_with_eos():
    text = np.arange(10, 400, dtype=np.int32)
    ended = 0
    for seed in range(200):
        inputs, targets = PrefixLM(length=8)(text, rng(seed), VOCABULARY)
        body = [*inputs[:-1], *targets[targets > 1]]
        assert len(body) == 8 and np.all(np.diff(body) == 1)
        assert (targets[-1] == 1) == (body[-1] == 399)
        ended += targets[-1] == 1
    assert ended < 10


@SETTINGS
@given(texts, st.integers(1, 60), seeds)
def test_window(text, length, seed):
    part, ends = window(text, length, rng(seed))
    assert len(part) == min(length, len(text))
    assert not len(part) or np.all(np.diff(part) == 1)
    assert ends == (not len(text) or part[-1] == text[-1])


def test_windows_start_anywhere():
    text = np.arange(10, dtype=np.int32)
    starts = [int(window(text, 8, rng(seed))[0][0]) for seed in range(600)]
    assert sorted(set(starts)) == [0, 1, 2] and min(np.bincount(starts)) > 150


def test_mixed_follows_its_weights():
    text = np.arange(10, 30, dtype=np.int32)
    mixed = Mixed(((SpanCorruption(), 1.0), (PrefixLM(), 3.0)))
    spans = sum(mixed(text, rng(s), VOCABULARY)[1][0] > 400 for s in range(2000))
    assert spans == pytest.approx(500, abs=70)
