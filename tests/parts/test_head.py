"""A head of labels: which a target has, its losses and answers, what it trains and refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax import checks, losses
from prompt_jax.data import layout
from prompt_jax.errors import UserError
from prompt_jax.losses import BinaryCrossEntropy, ClassCrossEntropy, ClassHinge, CrossEntropy
from prompt_jax.parts.head import ClassifierHead, LMHead, find_labels, split
from prompt_jax.parts.init import Vocabulary
from prompt_jax.step import jit_train_step
from prompt_jax.testing.batches import examples, lay_out
from prompt_jax.testing.contract import CONFIG, INPUTS, begin, encode, method_of, stirred
from prompt_jax.testing.runs import configure

pytestmark = pytest.mark.xdist_group("head")  # one worker: what is compiled is shared

SEPARATORS = [(), (6,), (6, 7)]
ROWS, LENGTH, WIDE = 12, 26, 4  # of targets; most tokens of a label
WIDTH = 5
VOCABULARY = Vocabulary(WIDTH, lambda ids: np.zeros((len(ids), WIDTH)), encode, 60)


# --- the labels of a target ---


def table(labels):
    rows = np.zeros((len(labels), WIDE), np.float32)
    for row, label in zip(rows, labels, strict=True):
        row[: len(label)] = label
    return jnp.asarray(rows)


@jax.jit
def compiled(tokens, segments, labels, separator):
    return find_labels(tokens, segments, labels, separator)


def found(tokens, segments, labels, separator):
    tables = table(labels), table([separator])[0]
    return np.asarray(compiled(jnp.asarray(tokens), jnp.asarray(segments), *tables))


def twin(tokens, segments, labels, separator):
    """Position by position: the labels among the parts of its example's target."""
    classes = np.zeros((*tokens.shape, len(labels)))
    for row, own in enumerate(segments):
        for place, segment in enumerate(own):
            if segment:
                target = tuple(tokens[row][own == segment].tolist())
                parts = split(target, separator)
                classes[row, place] = [label in parts for label in labels]
    return classes


def joined(labels, separator):
    return (*labels[0], *(t for label in labels[1:] for t in (*separator, *label)), 1)


def in_rows(targets, start=0):
    """Tokens and segments of targets, several a row; `start` rows stay empty."""
    tokens, segments = np.zeros((2, ROWS, LENGTH), np.int32)
    row, at, segment, laid = start, 0, 0, 0
    for target in targets:
        if at + len(target) > LENGTH:
            row, at, segment = row + 1, 0, 0
        if row == ROWS:
            break
        segment, end, laid = segment + 1, at + len(target), laid + 1
        tokens[row, at:end], segments[row, at:end], at = target, segment, end
    return tokens, segments, laid


def drawn(rng, separator):
    """Six labels of which the last three begin, end and lie in the middle of the others."""
    alphabet = [t for t in (2, 3, 4, 6, 7) if len(separator) != 1 or t != separator[0]]
    while True:
        whole = [tuple(rng.choice(alphabet, size).tolist()) for size in (3, 3, 2)]
        labels = [*whole, whole[0][:2], whole[1][1:], whole[0][1:2]]
        pairs = {pair for label in labels for pair in zip(label, label[1:], strict=False)}
        if len({*labels}) == 6 and not (separator == (6, 7) and separator in pairs):
            return labels


@pytest.mark.parametrize("separator", SEPARATORS)
def test_labels_are_the_parts_of_their_target(separator):
    rng = np.random.default_rng(len(separator))
    seen, most, none = np.zeros(6), 0, 0
    for _ in range(12):
        labels = drawn(rng, separator)
        targets = []
        for _ in range(80):
            several = rng.permutation(6)[: rng.integers(1, 4) if separator else 1]
            targets.append(joined([labels[c] for c in several], separator))
            if rng.random() < 0.4:  # tokens that may be no label, or one by chance
                targets[-1] = (*rng.choice([2, 3, 4, 5, 6, 7], rng.integers(0, 7)).tolist(), 1)
        tokens, segments, _ = in_rows(targets, start=1)
        assert segments.max() > 3 and (segments[1:] == 0).any()
        classes = found(tokens, segments, labels, separator)
        expected = twin(tokens, segments, labels, separator)
        np.testing.assert_array_equal(classes, expected)
        counts = expected.sum(-1)[segments > 0]
        seen, most = seen + expected.sum((0, 1)), max(most, counts.max())
        none += (counts == 0).sum()
    assert seen.all() and none and most == (3 if separator else 1)


@pytest.mark.parametrize(
    ("target", "separator", "parts"),
    [
        ((2, 3, 1), (), [(2, 3)]),
        ((1,), (), [()]),
        ((2, 3), (), [(2, 3, 1)]),  # EOS is missing: no label
        ((2, 6, 3, 1), (), [(2, 6, 3)]),
        ((2, 6, 3, 4, 1), (6,), [(2,), (3, 4)]),
        ((2, 6, 3), (6,), [(2,), (3, 1)]),
        ((6, 2, 6, 6, 1), (6,), [(), (2,), (), ()]),
        ((2, 6, 6, 7, 7, 1), (6, 7), [(2, 6), (7,)]),
        ((2, 6, 6, 6, 3, 1), (6, 6), [(2,), (6, 3)]),
    ],
)
def test_a_target_is_split_from_the_left(target, separator, parts):
    assert split(target, separator) == parts


@pytest.mark.parametrize("separator", [(), (6,), (6, 7)])
def test_tokens_within_a_longer_label_are_no_label(separator):
    labels = [(2, 3, 4), (2,), (3,), (4,), (2, 3), (3, 4)]
    targets = [(*label, 1) for label in labels]
    tokens, segments, _ = in_rows(targets)
    first = np.flatnonzero(np.diff(segments[0], prepend=0) > 0)
    classes = found(tokens, segments, labels, separator)
    np.testing.assert_array_equal(classes[0, first], np.eye(6))
    assert not classes[segments == 0].any()


def test_a_label_that_is_cut_off_is_none():
    tokens, segments, _ = in_rows([(2,) * (LENGTH - 3) + (6, 3, 4)])
    classes = found(tokens, segments, [(3,), (3, 4), (4,), (2,)], (6,))
    assert not classes.any()


@pytest.mark.parametrize("separator", SEPARATORS[1:])
def test_the_order_of_the_labels_is_nothing(separator):
    labels = [(2,), (2, 3), (4, 2, 3), (7,)]
    rng = np.random.default_rng(0)
    orders = [rng.permutation(4)[: 1 + n % 4].tolist() for n in range(20)]
    batches = []
    for turn in (1, -1):
        targets = [joined([labels[c] for c in order[::turn]], separator) for order in orders]
        tokens, segments, laid = in_rows(targets)
        assert laid == 20
        batches.append(found(tokens, segments, labels, separator))
    np.testing.assert_array_equal(*batches)
    first = np.diff(segments, axis=1, prepend=0) > 0
    expected = [[c in order for c in range(4)] for order in orders]
    np.testing.assert_array_equal(batches[0][first], expected)


# --- its numbers and its losses, on states and targets made up ---

LABELS = ("a", "b", "ab")  # "ab" begins with a label and ends with one
COUNT = len(LABELS)


def own_leaves(head, seed=0):
    return head.init_params(jax.random.key(seed), VOCABULARY)


def numbers(separator="", seed=0, gain=3.0):
    """(batch, outputs record, [(scores, labels) of each example]) of random packed examples."""
    head, rng = ClassifierHead(LABELS, separator), np.random.default_rng(seed)
    own, examples = own_leaves(head), []
    for _ in range(18):
        several = rng.permutation(COUNT)[: rng.integers(1, COUNT + 1) if separator else 1]
        text = separator.join(LABELS[c] for c in several)
        examples.append(({*several.tolist()}, (*encode(text), 1)))
    tokens, segments, laid = in_rows([target for _, target in examples])
    assert laid == 18
    batch = {"decoder_target_tokens": tokens, "decoder_segment_ids": segments}
    batch = {name: jnp.asarray(leaf) for name, leaf in batch.items()}
    states = gain * rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    main = head(own, jnp.asarray(states), batch, jnp.asarray, 60)
    first = np.argwhere(np.diff(segments, axis=1, prepend=0) > 0)
    weights = np.asarray(own["classifier"], np.float64)
    scores = [weights @ states[row, place].astype(np.float64) for row, place in first]
    labels = [own for own, _ in examples]
    return batch, {"main": main}, list(zip(scores, labels, strict=True))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def one_of(scores, labels):
    logs = scores - np.log(np.exp(scores).sum())
    return -np.mean([logs[c] for c in labels])


def each_of(scores, labels, positive):
    total = 0.0
    for c, score in enumerate(scores):
        total += positive[c] * log_sigmoid(score) if c in labels else log_sigmoid(-score)
    return -total / COUNT


def hinge_of(scores, labels):
    own = np.mean([scores[c] for c in labels])
    return sum(max(0.0, scores[c] - own + 1.5) for c in range(COUNT) if c not in labels)


LOSSES = {
    "one": (ClassCrossEntropy(), one_of),
    "hinge": (ClassHinge(1.5), hinge_of),
    "each": (BinaryCrossEntropy(), functools.partial(each_of, positive=(1, 1, 1))),
    "weighted": (
        BinaryCrossEntropy((4.0, 0.5, 1.0)),
        functools.partial(each_of, positive=(4.0, 0.5, 1.0)),
    ),
}


@pytest.mark.parametrize("separator", ["", ";"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_loop(name, separator):
    term, loop = LOSSES[name]
    batch, outputs, each = numbers(separator)
    expected = sum(loop(scores, labels) for scores, labels in each)
    np.testing.assert_allclose(term.sum(outputs, batch), expected, rtol=1e-5)
    assert float(term.weight(batch)) == len(each)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_add_up_to_its_mean(name):
    (term, loop), (batch, outputs, each) = LOSSES[name], numbers(";")
    whole, total = losses.weights((term,), batch), 0.0
    used = [row for row in range(ROWS) if batch["decoder_segment_ids"][row].any()]
    assert len(used) > 1
    for row in range(ROWS):  # those without an example too
        cut = lambda leaf, row=row: leaf[row : row + 1]  # noqa: E731
        total += losses.total((term,), jax.tree.map(cut, outputs), jax.tree.map(cut, batch), whole)
    expected = np.mean([loop(scores, labels) for scores, labels in each])
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_weights_of_one_are_no_weights():
    batch, outputs, _ = numbers(";")
    plain, ones = BinaryCrossEntropy(), BinaryCrossEntropy((1.0,) * COUNT)
    assert float(plain.sum(outputs, batch)) == float(ones.sum(outputs, batch))


@pytest.mark.parametrize("label", range(COUNT))
def test_a_weight_counts_its_label_where_it_is_right(label):
    batch, outputs, each = numbers(";")
    weights = tuple(3.0 if c == label else 1.0 for c in range(COUNT))
    weighted = BinaryCrossEntropy(weights).sum(outputs, batch)
    more = float(weighted - BinaryCrossEntropy().sum(outputs, batch))
    own = [-log_sigmoid(scores[label]) for scores, labels in each if label in labels]
    assert 0 < len(own) < len(each)
    np.testing.assert_allclose(more, 2.0 * sum(own) / COUNT, rtol=1e-4)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0), (1.0,) * 4])
def test_a_weight_for_each_label_or_none(weights):
    head = ClassifierHead(LABELS, ";")
    said = f"BinaryCrossEntropy.positive has {len(weights)} weights for 3 labels"
    with pytest.raises(UserError, match=said):
        losses.check((BinaryCrossEntropy(weights),), head)
    losses.check((BinaryCrossEntropy((1.0, 2.0, 1.0)), BinaryCrossEntropy()), head)


@pytest.mark.parametrize("separator", ["", ";"])
def test_an_example_counts_once_and_is_right_with_all_its_labels(separator):
    batch, outputs, each = numbers(separator, seed=4)
    right = []
    for scores, labels in each:
        best = {int(np.argmax(scores))}
        right.append(labels == ({c for c in range(COUNT) if scores[c] > 0} if separator else best))
    first = np.diff(np.asarray(batch["decoder_segment_ids"]), axis=1, prepend=0) > 0
    np.testing.assert_array_equal(outputs["main"]["hit"][first], right)
    np.testing.assert_array_equal(outputs["main"]["counted"], first)
    counts = losses.counts(outputs, batch)
    assert (float(counts["correct"]), float(counts["targets"])) == (sum(right), len(each))
    assert 0 < sum(right) < len(each)


# --- answers ---

SCORES = np.array([[0.5, 2.0, -1.0], [-3.0, -0.5, -4.0], [1.0, -2.0, 0.25]], np.float32)


def test_one_label_is_the_highest_and_its_share():
    head = ClassifierHead(LABELS)
    assert np.asarray(head.answers(jnp.asarray(SCORES))).argmax(1).tolist() == [1, 1, 0]
    assert np.asarray(head.answers(jnp.asarray(SCORES))).sum(1).tolist() == [1, 1, 1]
    texts, logs = zip(*head.texts(SCORES), strict=True)
    assert texts == ("b", "b", "a")
    exact = SCORES.astype(np.float64)
    shares = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    np.testing.assert_allclose(logs, np.log(shares.max(1)), rtol=1e-6)


def test_several_labels_are_those_above_zero_or_none():
    head = ClassifierHead(LABELS, "; ")
    expected = [[True, True, False], [False, False, False], [True, False, True]]
    np.testing.assert_array_equal(head.answers(jnp.asarray(SCORES)), expected)
    texts, logs = zip(*head.texts(SCORES), strict=True)
    assert texts == ("a; b", "", "a; ab")
    chances = 1 / (1 + np.exp(-SCORES.astype(np.float64)))
    expected = [sum(np.log(p if p > 0.5 else 1 - p) for p in row) for row in chances]
    np.testing.assert_allclose(logs, expected, rtol=1e-5)


def test_a_score_of_zero_is_not_said():
    head = ClassifierHead(LABELS, ";")
    ((text, log),) = head.texts(np.zeros((1, 3), np.float32))
    assert text == "" and log == pytest.approx(3 * np.log(0.5))


# --- leaves ---


def test_its_leaves_are_small_weights_and_the_labels_tokens():
    leaves = own_leaves(ClassifierHead(LABELS, ";-", most_tokens=3))
    assert leaves.keys() == {"classifier", "classifier_labels", "classifier_separator"}
    (a,), (b,), separator = encode("a"), encode("b"), encode(";-")
    labels = [[a, 0, 0], [b, 0, 0], [a, b, 0]]
    np.testing.assert_array_equal(leaves["classifier_labels"], labels)
    np.testing.assert_array_equal(leaves["classifier_separator"], [*separator, 0])
    many = own_leaves(ClassifierHead(tuple(map(str, range(500)))))
    weights = np.sqrt(WIDTH) * np.asarray(many["classifier"])
    assert weights.shape == (500, WIDTH)
    assert -1 <= weights.min() < -0.99 and 0.99 < weights.max() <= 1
    assert abs(weights.mean()) < 0.05 and abs(weights.std() - 3**-0.5) < 0.02
    assert not many["classifier_separator"].any()


# --- what is refused ---


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "a"), ("a", "b", "a")])
def test_fewer_than_two_labels_and_repeated_ones_are_refused(labels):
    with pytest.raises(UserError, match=r"CLASS_LABELS = \(.*two labels or more, each once"):
        own_leaves(ClassifierHead(labels))


@pytest.mark.parametrize(("labels", "separator"), [(("a", "bcde"), ""), (("a", "b"), ", - ")])
def test_more_tokens_than_there_is_room_for_are_refused(labels, separator):
    own_leaves(ClassifierHead(labels, separator, most_tokens=4))
    with pytest.raises(UserError, match=r"most_tokens = 3: one of .* has 4 tokens"):
        own_leaves(ClassifierHead(labels, separator, most_tokens=3))


@pytest.mark.parametrize(
    ("separator", "target", "good"),
    [
        ("", "ab", True),
        ("", "ba", False),
        ("", "", False),
        ("", "a;b", False),
        (";", "a;b", True),
        (";", "ab;a;b", True),
        (";", "a;;b", False),
        (";", "a;c", False),
        (";", "a,b", False),
    ],
)
def test_targets_that_are_no_labels_are_refused(separator, target, good):
    head, tokens = ClassifierHead(LABELS, separator), encode(target)
    fine = (*encode("a"), 1)
    complete, cut = (*tokens, 1), (*tokens,)
    said = r"is none of CLASS_LABELS = \{'a': .* with EOS after it"
    if good:
        head.check(encode, [fine, complete])
    else:
        with pytest.raises(UserError, match=said):
            head.check(encode, [fine, complete])
    with pytest.raises(UserError, match=said):
        head.check(encode, [fine, cut])


def test_labels_of_the_same_tokens_are_refused():
    with pytest.raises(UserError, match="two of them are the same tokens"):
        ClassifierHead(("a", "A")).check(lambda text: encode(text.lower()), [])


TERMS = (CrossEntropy(), ClassCrossEntropy(), BinaryCrossEntropy())


def test_a_head_and_the_losses_of_another_are_refused():
    lm, labels = LMHead(), ClassifierHead(LABELS)
    losses.check(TERMS[:1], lm)
    losses.check(TERMS[1:], labels)
    for term, head in ((TERMS[0], labels), (TERMS[1], lm), (TERMS[2], lm)):
        said = f"{type(term).__name__} reads .*, {type(head).__name__} gives those of {head.gives}"
        with pytest.raises(UserError, match=said):
            losses.check((term,), head)
    with pytest.raises(UserError, match="CrossEntropy reads numbers of tokens"):
        losses.check((*TERMS[1:], TERMS[0]), labels)


@pytest.mark.parametrize(
    ("method", "term", "said"),
    [
        ("ptec", "CrossEntropy", "CrossEntropy reads numbers of tokens, ClassifierHead"),
        ("prompt_tuning", "ClassCrossEntropy", "reads numbers of classes, LMHead"),
    ],
)
def test_a_run_with_the_losses_of_another_head_is_refused(method, term, said, tmp_path):
    own = {"CLASS_LABELS": "('a', 'b')", "PROMPT_LENGTH": "4"} if method == "ptec" else {}
    checks.check(configure(tmp_path, method, **own).run)
    run = configure(tmp_path, method, **own, Method__losses=f"(@{term}(),)").run
    with pytest.raises(UserError, match=said):
        checks.check(run)


# --- in a model ---

SETTINGS = {
    "PROMPT_LENGTH": 4,
    "PromptBank.init": "@UniformInit()",
    "CLASS_LABELS": "('a', 'b', 'ab')",
}
SEVERAL = {"LABEL_SEPARATOR": "';'", "Method.losses": "(@BinaryCrossEntropy(),)"}


@functools.cache
def begun(several=False):
    ours = begin(method_of("ptec", SETTINGS | (SEVERAL if several else {})))
    return dataclasses.replace(stirred(ours), compiled={**ours.compiled, **passes(ours.model)})


def passes(model):
    main = lambda params, batch: model.outputs(params, batch)["main"]  # noqa: E731
    return {"main": jax.jit(main), "scores": jax.jit(model.class_scores)}


def pairs(count=9, turn=1):
    """Random inputs with one to three labels; `turn` -1 turns their order round."""
    rng = np.random.default_rng(2)
    texts = [[LABELS[c] for c in rng.permutation(3)[: 1 + at % 3]] for at in range(count)]
    texts = [";".join(labels[::turn]) for labels in texts]
    inputs = [given for given, _ in examples(count, CONFIG.vocab_size, longest=INPUTS)]
    return [(x, np.array([*encode(t), 1], np.int32)) for x, t in zip(inputs, texts, strict=True)]


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


@pytest.mark.parametrize("several", [False, True])
def test_the_gradient_reaches_the_prompt_and_the_classifier_alone(several):
    ours = begun(several)
    given, slots = pairs(), ours.method.slots
    batch = lay_out(given, slots, True) if several else ours.batch(packed=True)
    _, grads = ours.gradients(batch)
    assert grads.keys() == {"prompt/encoder", "prompt/classifier"}
    assert np.all(grads["prompt/encoder"])
    main = jax.device_get(ours.compiled["main"](ours.params, batch))
    first = np.diff(batch["decoder_segment_ids"], axis=1, prepend=0) != 0
    first &= batch["decoder_segment_ids"] > 0
    states, classes = (main[name][first].astype(np.float64) for name in ("states", "classes"))
    assert classes.sum() == (18 if several else len(classes))
    scores = states @ np.asarray(ours.params["prompt/classifier"], np.float64).T
    chances = 1 / (1 + np.exp(-scores)) / 3 if several else softmax(scores)
    wrong = chances - classes / (3 if several else 1)
    expected = sum(np.outer(w, h) for w, h in zip(wrong, states, strict=True)) / len(states)
    np.testing.assert_allclose(grads["prompt/classifier"], expected, rtol=1e-4, atol=1e-6)


def test_the_order_of_the_labels_does_not_change_the_gradient():
    ours = begun(True)
    batches = [lay_out(pairs(turn=turn), ours.method.slots, True) for turn in (1, -1)]
    targets = [batch["decoder_target_tokens"] for batch in batches]
    assert (targets[0] != targets[1]).any()
    (loss, grads), (other, others) = (ours.gradients(batch) for batch in batches)
    assert loss == other
    jax.tree.map(np.testing.assert_array_equal, grads, others)


def test_a_rate_of_zero_leaves_the_classifier_to_the_bit():
    ours = begin(method_of("ptec", {**SETTINGS, "HEAD_RATE": 0}))
    before = jax.device_get(ours.state.leaves)
    state = jax.tree.map(jnp.copy, ours.state)
    state, _ = jit_train_step(ours.model, ours.optimizer, 1)(state, ours.frozen, ours.batch())
    moved = {path for path, leaf in state.leaves.items() if np.any(leaf != before[path])}
    assert moved == {"prompt/encoder"}


@pytest.mark.parametrize("packed", [False, True])
def test_scores_are_those_that_training_sees(packed):
    ours = begun()
    given = pairs()
    batch = lay_out(given, ours.method.slots, packed)
    main = jax.device_get(ours.compiled["main"](ours.params, batch))["class_logits"]
    # Asked: one example a row, its input alone, and a row of none.
    asked = lay_out(given, ours.method.slots, False, (24, 1 + 12))
    asked = {name: asked[name] for name in ("encoder_input_tokens", "encoder_segment_ids")}
    asked = {name: np.pad(leaf, ((0, 1), (0, 0))) for name, leaf in asked.items()}
    scores = np.asarray(ours.compiled["scores"](ours.params, asked))
    assert np.isfinite(scores).all() and scores[:9].std(0).min() > 0.01
    assert (len(batch["encoder_segment_ids"]) < 9) == packed
    numbers = {layout.strip_slots(inputs).tobytes(): n for n, (inputs, _) in enumerate(given)}
    seen = []
    for row, segments in enumerate(batch["decoder_segment_ids"]):
        for segment in range(1, segments.max() + 1):
            mine = batch["encoder_segment_ids"][row] == segment
            text = layout.strip_slots(batch["encoder_input_tokens"][row][mine])
            seen.append(numbers[text.tobytes()])
            first = segments.tolist().index(segment)
            np.testing.assert_allclose(main[row, first], scores[seen[-1]], rtol=1e-4, atol=1e-5)
    assert sorted(seen) == list(range(9))
