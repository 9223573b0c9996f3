"""The trie: against all answers written out, on random logits, and under a T5."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax import decode, label_tokens, trie
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.errors import UserError
from prompt_jax.models.t5.network import T5
from prompt_jax.testing.tiny import tiny_batch, tiny_config, tiny_params

VOCAB, ROWS = 8, 64
NODES, CHILDREN = 80, 8  # every trie of these tests is padded to it: one compilation for all
VOCABULARY = "prompt_jax/assets/vocabulary/micro.model"

label_sets = st.lists(
    st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple),
    min_size=4,
    max_size=4,
    unique=True,
)
separators = st.sampled_from([(), (6,), (6, 7), (6, 2), (2,), (3, 3)])


def answers(labels, separator):
    """Every legal answer with its EOS: the slow twin of the trie."""
    most = len(labels) if separator else 1
    chosen = (c for n in range(1, most + 1) for c in itertools.permutations(labels, n))
    return [joined(c, separator) for c in chosen]


def joined(labels, separator):
    return (*labels[0], *(t for label in labels[1:] for t in (*separator, *label)), 1)


def next_tokens(legal):
    """Prefix of an answer -> the tokens that may follow; padding after its end."""
    after = {answer: {0} for answer in legal}
    for answer in legal:
        for n in range(len(answer)):
            after.setdefault(answer[:n], set()).add(answer[n])
    return after


def ambiguous(labels, separator):
    starts = [(*label, *separator) for label in labels]
    pairs = itertools.permutations(starts, 2) if separator else ()
    return any(long[: len(short)] == short for short, long in pairs)


def padded(made):
    more = NODES - len(made.child_tokens)
    wide = (0, more), (0, CHILDREN - made.child_tokens.shape[1])
    return trie.Trie(
        np.pad(made.child_tokens, wide, constant_values=-1),
        np.pad(made.child_nodes, wide),
        np.pad(made.to_eos, ((0, more), (0, 0))),
        np.pad(made.to_separator, ((0, more), (0, 0))),
        np.pad(made.separates, (0, more), constant_values=-1),
        np.pad(made.further, (0, more)),
        made.length,
    )


def step_of(made):
    """`(state, logits [B,V], tokens [B]) -> (logits, state)`, compiled once for all tries."""
    arrays = vars(padded(made))
    return lambda state, logits, tokens: jitted(arrays, state, logits[:, None], tokens[:, None])


@jax.jit
def jitted(arrays, state, logits, tokens):
    mask = trie.logits_mask(trie.Trie(**arrays), len(logits))
    logits, state = mask.function(state, logits, tokens)
    return logits[:, 0], state


def start(made, rows=ROWS):
    state = trie.logits_mask(made, rows).state
    return jax.tree.map(lambda leaf: np.expand_dims(leaf, 1), state)


def allowed_after(made, prefixes):
    """The tokens that the mask allows after each of ROWS prefixes, at each of their places."""
    step, state = step_of(made), start(made)
    longest = max(map(len, prefixes))
    inputs = np.zeros((ROWS, longest + 1), np.int32)
    for row, prefix in zip(inputs, itertools.cycle(prefixes), strict=False):
        row[1 : len(prefix) + 1] = prefix
    found = []
    for column in inputs.T:
        logits, state = step(state, np.zeros((ROWS, VOCAB), np.float32), column)
        assert jnp.isfinite(logits).all() and set(np.unique(logits)) <= {0.0, np.float32(-1e9)}
        found.append([set(np.flatnonzero(row == 0).tolist()) for row in np.asarray(logits)])
    return [list(row) for row in zip(*found, strict=True)][: len(prefixes)]


def roll(made, bias, length, seed=0):
    """Greedy answers on random logits, a row each; 0 after EOS is the mask's own doing."""
    step, state, rows = step_of(made), start(made), []
    rng, tokens = np.random.default_rng(seed), np.zeros(ROWS, np.int32)
    for _ in range(length):
        logits, state = step(state, rng.normal(size=bias.shape).astype(np.float32) + bias, tokens)
        tokens = np.asarray(jnp.argmax(logits, -1), np.int32)
        rows.append(tokens)
    return np.stack(rows, 1)


def split(tokens, labels, separator):
    """The labels that an answer consists of."""
    assert tokens[-1] == 1
    found, rest = [], tuple(tokens[:-1])
    while rest:
        ends = [(*label, *separator) for label in labels]
        fits = [x for x, end in zip(labels, ends, strict=True) if rest[: len(end)] == end]
        label = rest if rest in labels else fits[0]
        found.append(label)
        rest = rest[len(label) + len(separator) :]
    return found


@settings(max_examples=80, deadline=None)
@given(label_sets, separators)
def test_allowed_tokens_are_those_of_all_answers_written_out(labels, separator):
    if ambiguous(labels, separator):
        with pytest.raises(UserError, match="two ways"):
            trie.build(labels, separator)
        return
    legal = answers(labels, separator)
    after = next_tokens(legal)
    found = allowed_after(trie.build(labels, separator), legal)
    for answer, places in zip(legal, found, strict=True):
        padding = [{0}] * (len(places) - len(answer))
        assert places == [after[answer[:n]] for n in range(len(answer))] + padding


@settings(max_examples=25, deadline=None)
@given(label_sets, separators, st.integers(0, 2**32 - 1))
def test_answers_on_random_logits_are_labels_without_repeats(labels, separator, seed):
    if ambiguous(labels, separator):
        return
    legal, made = set(answers(labels, separator)), trie.build(labels, separator)
    bias = np.zeros((ROWS, VOCAB), np.float32)
    bias[: ROWS // 2, 1] = -9  # these rows go on as long as they may
    longest = max(map(len, legal))
    for n, row in enumerate(roll(made, bias, longest + 1, seed)):
        end = row.tolist().index(1) + 1
        assert tuple(row[:end]) in legal and not row[end:].any()
        found = split(row[:end].tolist(), labels, separator)
        assert len(set(found)) == len(found)
        assert not separator or n >= ROWS // 2 or len(found) == 4


def test_thirty_labels_of_a_large_vocabulary():
    """The trie's own size, without padding; what is too long for no limit is cut, not closed."""
    rng = np.random.default_rng(3)
    labels = sorted({tuple(rng.integers(2, 9, rng.integers(1, 5)).tolist()) for _ in range(30)})
    made, vocabulary, length = trie.build(labels, (9, 10)), 300, 40
    mask = trie.logits_mask(made, 8)

    @jax.jit
    def generate(logits):
        def go(carry, now):
            state, tokens = carry
            now, state = mask.function(state, now, tokens)
            tokens = jnp.argmax(now, -1)
            return (state, tokens), tokens

        state = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], 3, 1), mask.state)
        return jax.lax.scan(go, (state, jnp.zeros((8, 3), int)), logits)[1]

    logits = rng.normal(size=(length, 8, 3, vocabulary)).astype(np.float32)
    logits[:, :4, :, 1] -= 9
    rows = np.moveaxis(np.asarray(generate(logits)), 0, -1).reshape(-1, length)
    ended = [split(row[: row.index(1) + 1], labels, (9, 10)) for row in rows.tolist() if 1 in row]
    cut = [row for row in rows.tolist() if 1 not in row]
    # The labels before the last separator.
    cut = [row[: max(n for n in range(length) if row[n : n + 2] == [9, 10])] for row in cut]
    cut = [split([*row, 1], labels, (9, 10)) for row in cut]
    assert len(ended) >= 12 and cut and max(map(len, ended)) > 2
    for found in ended + cut:
        assert len(set(found)) == len(found) and {*found} <= {*labels}


@settings(max_examples=25, deadline=None)
@given(label_sets, separators, st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_every_answer_ends_where_it_must(labels, separator, more, seed):
    if ambiguous(labels, separator):
        return
    length = max(map(len, labels)) + 1 + more
    made = trie.build(labels, separator, length)
    bias = np.zeros((ROWS, VOCAB), np.float32)
    bias[: ROWS // 2, 1] = -9  # these rows go on as long as they may
    legal = set(answers(labels, separator))
    for row in roll(made, bias, length, seed).tolist():
        assert 1 in row and tuple(row[: row.index(1) + 1]) in legal


def test_a_further_label_needs_room_for_the_longest():
    labels, separator = [(2, 3), (4,), (5,)], (6,)
    for length, after in ((4, {1}), (5, {1, 6}), (6, {1, 6})):
        (places,) = allowed_after(trie.build(labels, separator, length), [(4,)])
        assert places[1] == after  # "4 6 2 3 EOS" are five
    (places,) = allowed_after(trie.build(labels, separator, 6), [(4, 6, 5, 1)])
    assert places[3] == {1}


def test_one_label_left_has_only_its_path():
    labels, separator = [(2, 3), (4,), (2, 5, 5)], (6, 7)
    made = trie.build(labels, separator)
    (places,) = allowed_after(made, [(4, 6, 7, 2, 3, 6, 7, 2, 5, 5, 1)])
    assert places == [{2, 4}, {1, 6}, {7}, {2}, {3, 5}, {1, 6}, {7}, {2}, {5}, {5}, {1}, {0}]


def test_a_label_that_begins_another_may_end_and_go_on():
    made = trie.build([(2,), (2, 3), (2, 3, 4)], (6,))
    one, other = allowed_after(made, [(2, 3, 6, 2), (2, 6, 2, 3)])
    assert one == [{2}, {1, 3, 6}, {1, 4, 6}, {2}, {1, 3, 6}]
    assert other == [{2}, {1, 3, 6}, {2}, {3}, {1, 4, 6}]


def test_nodes_of_used_labels_only_are_closed():
    """After (2,3) and (2,4) the token 2 leads nowhere; deleting their ends alone would leave it."""
    made = trie.build([(2, 3), (2, 4), (5,)], (6,))
    (places,) = allowed_after(made, [(2, 3, 6, 2, 4, 6, 5, 1)])
    assert places[3:] == [{2, 5}, {4}, {1, 6}, {5}, {1}, {0}]


def test_without_a_separator_an_answer_is_one_label():
    (places,) = allowed_after(trie.build([(2,), (2, 3)]), [(2, 3, 1)])
    assert places == [{2}, {1, 3}, {1}, {0}]


def test_the_first_input_is_no_step():
    """A decoder may start with any token, a label's too."""
    made = trie.build([(2, 3), (4,)])
    step = step_of(made)
    for token in (0, 2, 4):
        logits, state = step(start(made), np.zeros((ROWS, VOCAB)), np.full(ROWS, token, np.int32))
        assert np.flatnonzero(logits[0] == 0).tolist() == [2, 4]
        assert bool(state.began.all()) and not bool(state.used.any())


def test_eos_is_the_callers():
    (places,) = allowed_after(trie.build([(2, 1), (3,)], eos=7), [(2, 1, 7)])
    assert places == [{2, 3}, {1}, {7}, {0}]


def test_a_larger_vocabulary_needs_no_more_than_its_logits():
    """No table of N nodes by V tokens, here or in the compiled step."""
    labels = [(n % 7 + 2, n % 11 + 2, n + 20, *range(2, 9)) for n in range(100)]
    made, vocabulary = trie.build(labels, (10,)), 250_000
    mask = trie.logits_mask(made, 2)
    state = jax.tree.map(lambda leaf: np.expand_dims(leaf, 1), mask.state)
    shapes = jax.ShapeDtypeStruct((2, 1, vocabulary), jnp.float32)
    tokens = jax.ShapeDtypeStruct((2, 1), jnp.int32)
    used = jax.jit(mask.function).lower(state, shapes, tokens).compile().memory_analysis()
    nodes = len(made.to_eos)
    assert nodes > 1000 and sum(a.nbytes for a in vars(made).values()) < nodes * vocabulary / 100
    assert used.temp_size_in_bytes < 2 * 4 * vocabulary


@pytest.mark.parametrize(
    ("labels", "separator", "said"),
    [
        ([], (), "no labels"),
        ([(2,), ()], (), "label 1 of 2"),
        ([(2, 3), (4,), (2, 3)], (), r"labels 0 and 2 .* \(2, 3\)"),
        ([(2, 1)], (), "EOS"),
        ([(2, 0)], (), "padding"),
        ([(2,)], (1,), "EOS"),
        ([(2,), (2, 6)], (6,), r"\(2, 6\) begins with \(2,\)"),
        ([(2,), (2, 6, 3)], (6,), "two ways"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, separator, said):
    with pytest.raises(UserError, match=said):
        trie.build(labels, separator)


def test_a_label_that_does_not_fit_is_refused():
    assert trie.build([(2, 3), (4,)], (), 3).length == 3
    with pytest.raises(UserError, match=r"label 0 of 2 .* 2 tokens: .* into answers of 2"):
        trie.build([(2, 3), (4,)], (), 2)


def test_a_label_that_begins_another_one_and_separator_is_well_without_separator():
    assert len(trie.build([(2,), (2, 6)]).to_eos[0]) == 2


def spelled(pieces):
    """Encodes by the longest piece first."""

    def encode(text):
        ids = []
        while text:
            piece = max((p for p in pieces if text.startswith(p)), key=len)
            ids.append(pieces.index(piece) + 2)
            text = text[len(piece) :]
        return ids

    return encode


def test_the_separators_tokens_are_those_within_a_target():
    vocabulary = load_vocabulary(VOCABULARY)
    texts = ["good", "not_entailment", "bad"]
    labels, separator = label_tokens.tokens_of(texts, "; ", vocabulary.encode)
    assert labels == [vocabulary.encode(text) for text in texts]
    assert [vocabulary.piece(token) for token in separator] == [";"]
    assert separator != vocabulary.encode("; ")
    target = vocabulary.encode("; ".join(texts))
    assert target == [*labels[0], *separator, *labels[1], *separator, *labels[2]]
    assert label_tokens.tokens_of(texts, "", vocabulary.encode) == (labels, [])


@pytest.mark.parametrize(
    ("pieces", "labels", "separator", "said"),
    [
        (["a", "b", "; ", "b;", " "], ["a", "b"], "; ", "label 'b': 'b; b'"),
        # Only before another label do the tokens change.
        (["a", "b", "c", "-", "a-b"], ["c", "a", "b"], "-", "label 'a': 'a-b'"),
        (["a", "b", "c", "-", "b-c"], ["c", "a", "b"], "-", "label 'b': 'b-c'"),
    ],
)
def test_a_separator_that_grows_into_a_label_is_refused(pieces, labels, separator, said):
    with pytest.raises(UserError, match=said):
        label_tokens.tokens_of(labels, separator, spelled(pieces))


@pytest.mark.parametrize("pair", ["b2b", "a;b", "b;a"])
def test_a_pair_of_other_tokens_is_refused(pair):
    """As many tokens, but those of another separator or of another label."""
    encode = lambda text: [ord(c) for c in (pair if text == "b;b" else text)]  # noqa: E731
    with pytest.raises(UserError, match="label 'b': 'b;b'"):
        label_tokens.tokens_of(["a", "b"], ";", encode)


@pytest.mark.parametrize("separator", [" ", "|"])
def test_a_separator_without_tokens_of_its_own_is_refused(separator):
    with pytest.raises(UserError, match="label 'good'"):
        label_tokens.tokens_of(["good", "bad"], separator, load_vocabulary(VOCABULARY).encode)


@functools.cache
def tiny(vocab_size, seed=3):
    config = tiny_config(vocab_size=vocab_size, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16)
    batch = tiny_batch(config, encoder_lengths=(4, 2, 3), decoder_lengths=(2, 2, 2))
    return T5(config), {"params": tiny_params(config, seed)}, batch


def run(method, network, variables, batch, *args, length, mask):
    def call(variables, batch):
        return method(decode.Decoder(network, variables, length, mask=mask), batch, *args)

    return jax.jit(call)(variables, batch)


def test_a_trie_of_every_sequence_is_unconstrained_greedy():
    network, variables, batch = tiny(6)
    every = [s for n in (1, 2, 3) for s in itertools.product(range(2, 6), repeat=n)]

    def free(first, logits, tokens):
        """Padding is no token, and an answer is not empty."""
        return logits.at[..., 0].set(-1e9).at[..., 1].add(jnp.where(first, -1e9, 0)), first & False

    mask = decode.LogitsMask(free, np.ones(3, bool))
    plain = run(decode.greedy, network, variables, batch, length=3, mask=mask)
    mask = trie.logits_mask(trie.build(every), 3)
    masked = run(decode.greedy, network, variables, batch, length=3, mask=mask)
    np.testing.assert_array_equal(plain.tokens, masked.tokens)
    np.testing.assert_allclose(plain.scores, masked.scores, rtol=1e-6)


@functools.cache
def expected():
    """Every answer, and its log-probability per row over the tokens allowed at each place."""
    labels, separator = [(2,), (2, 3), (4, 5)], (6, 7)
    network, variables, batch = tiny(VOCAB)
    legal = answers(labels, separator)
    after, rows = next_tokens(legal), 3
    targets = np.zeros((len(legal), max(map(len, legal))), np.int32)
    for target, answer in zip(targets, legal, strict=True):
        target[: len(answer)] = answer

    @jax.jit
    def forward(target):
        inputs = jnp.concatenate([jnp.zeros(1, jnp.int32), target[:-1]])
        full = dict(batch, decoder_input_tokens=jnp.tile(inputs, (rows, 1)))
        full["decoder_segment_ids"] = jnp.ones((rows, len(target)), jnp.int32)
        return network.apply(variables, full)["logits"]

    sums, gains = np.zeros((rows, len(legal))), {}
    for n, (target, answer) in enumerate(zip(targets, legal, strict=True)):
        logits = np.asarray(forward(target), np.float64)
        for place, token in enumerate(answer):
            may = sorted(after[answer[:place]])
            own = logits[:, place, may]
            chances = own - np.log(np.exp(own).sum(-1, keepdims=True))
            gains[answer[:place]] = may, chances
            sums[:, n] += chances[:, may.index(token)]
    return trie.build(labels, separator), targets, sums, gains


def test_greedy_takes_the_best_token_of_those_allowed():
    made, targets, _, gains = expected()
    mask = trie.logits_mask(made, 3)
    out = run(decode.greedy, *tiny(VOCAB), length=targets.shape[1] + 2, mask=mask)
    assert len({tuple(row) for row in np.asarray(out.tokens[:, 0]).tolist()}) > 1
    for row in range(3):
        answer, score = (), 0.0
        while answer[-1:] != (1,):
            may, chances = gains[answer]
            answer, score = (*answer, may[chances[row].argmax()]), score + chances[row].max()
        assert out.tokens[row, 0, : len(answer)].tolist() == list(answer)
        assert not out.tokens[row, 0, len(answer) :].any()
        np.testing.assert_allclose(out.scores[row, 0], score, rtol=1e-4)


@pytest.mark.parametrize("style", ["t5x", "hf"])
def test_wide_beams_are_all_answers_best_first(style):
    """More beams than answers: those left over have score -1e9 and never get better."""
    made, targets, sums, _ = expected()
    beam = decode.Beam(20, 0.6, style)
    mask, length = trie.logits_mask(made, 3), targets.shape[1]
    out = run(decode.beam_search, *tiny(VOCAB), beam, length=length, mask=mask)
    scores = sums / np.asarray(beam.penalty((targets > 0).sum(1)))
    for row in range(3):
        best = np.argsort(-scores[row])
        np.testing.assert_array_equal(out.tokens[row, : len(best)], targets[best])
        np.testing.assert_allclose(out.scores[row, : len(best)], scores[row][best], rtol=1e-4)
        assert (np.asarray(out.scores[row, len(best) :]) == -1e9).all()


def test_narrow_beams_are_answers():
    """Beams change places, and the state with them."""
    made, targets, sums, _ = expected()
    mask, length = trie.logits_mask(made, 3), targets.shape[1]
    out = run(decode.beam_search, *tiny(VOCAB), decode.Beam(3, 0.0), length=length, mask=mask)
    known = [row.tolist() for row in targets]
    for row in range(3):
        for tokens, score in zip(out.tokens[row].tolist(), out.scores[row].tolist(), strict=True):
            assert abs(sums[row, known.index(tokens)] - score) < 1e-3
