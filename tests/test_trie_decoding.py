"""Answers from a trie of labels, and from a head of labels, through the public path."""

import itertools
import json

import jax
import numpy as np
import pytest

from prompt_jax import __main__ as cli
from prompt_jax import train
from prompt_jax.data import metrics, task
from prompt_jax.data.source import Rows
from prompt_jax.errors import UserError
from prompt_jax.evaluate import Decoding, TrieDecoding, label_scores
from prompt_jax.predict import Predictor
from prompt_jax.requests import batches
from prompt_jax.testing.runs import configure

pytestmark = pytest.mark.xdist_group("trie_decoding")  # one worker: the runs are made once

LABELS = ("negative", "positive")
OPENINGS = ("the room was", "we loved", "the staff were", "never again :", "breakfast , and")
ENDINGS = ("lovely .", "awful", "noisy , cold and dirty .", "fine", "great value !")
TEXTS = [" ".join(pair) for pair in itertools.product(OPENINGS, ENDINGS)]
FEW = {"TaskMetrics__limit": "8", "Data__packing": "False"}


@pytest.fixture(scope="module")
def generates(tmp_path_factory):
    """A finished run that generates: its prompt as it starts, on random weights."""
    folder = tmp_path_factory.mktemp("generates")
    train.run(configure(folder, **FEW, TRAIN_STEPS="0"))
    return folder


@pytest.fixture(scope="module")
def classifies(tmp_path_factory):
    """A finished run with a head of labels."""
    folder = tmp_path_factory.mktemp("classifies")
    own = {"PROMPT_LENGTH": "4", "CLASS_LABELS": repr(LABELS), "TRAIN_STEPS": "1"}
    train.run(configure(folder, "ptec", **own, **FEW))
    return folder


@pytest.fixture(scope="module")
def predictor(generates):
    return Predictor.from_run(str(generates))


@pytest.fixture(scope="module")
def vocabulary(predictor):
    return predictor.context.opened.vocabulary


@pytest.fixture(scope="module")
def first(predictor):
    """Log-probabilities of each text's first token, [n, V], from one plain pass."""
    model, params = predictor.context.model, predictor.params
    ((batch, group),) = batches(requests(predictor), len(TEXTS), "prefix")
    start = np.zeros((len(TEXTS), 1), np.int32)
    batch = {**batch, "decoder_input_tokens": start, "decoder_segment_ids": start + 1}

    @jax.jit
    def logits(params, batch):
        variables, (tap, own) = model.variables(params), model.entry(params, batch)
        return model.network.apply(variables, own, tap=tap)["logits"][:, 0]

    own = np.asarray(logits(params, batch), np.float64)
    found = np.zeros_like(own)
    found[group] = own - np.log(np.exp(own).sum(-1, keepdims=True))
    return found


def requests(predictor):
    return [predictor.request(text, "prompt") for text in TEXTS]


def tokens_of(labels, vocabulary):
    """The tokens of labels of one each."""
    encoded = [vocabulary.encode(label) for label in labels]
    assert all(len(tokens) == 1 for tokens in encoded)
    return [tokens[0] for tokens in encoded]


def said(predictor, **decoding):
    """(answers, scores) of the texts."""
    rows = predictor.predict(TEXTS, None, TrieDecoding(**decoding))
    assert [row["inputs"] for row in rows] == TEXTS
    return [row["prediction"] for row in rows], [row["score"] for row in rows]


# --- one label an answer ---


def test_of_labels_of_one_token_the_likeliest_is_said(predictor, vocabulary, first):
    """EOS is all that may follow: the first token decides, and its share is the score."""
    known = {vocabulary.decode([token]) for token in range(100, vocabulary.pieces)}
    known = sorted(word for word in known if word.isalpha() and len(vocabulary.encode(word)) == 1)
    order = np.argsort(first[:, tokens_of(known, vocabulary)].mean(0))
    labels = tuple(known[at] for at in order[len(order) // 2 :][:6])  # all of them likely alike
    own = first[:, tokens_of(labels, vocabulary)]
    best = own.argmax(1)
    assert len({*best}) > 1
    texts, scores = said(predictor, labels=labels)
    assert texts == [labels[at] for at in best]
    shares = own.max(1) - np.log(np.exp(own).sum(1))
    np.testing.assert_allclose(scores, shares, rtol=1e-4)


def test_by_rank_the_same_is_said_where_eos_does_not_turn_it(predictor, vocabulary, first):
    """By rank the model must say EOS of its own: that is in a label's score."""
    labels = ("good", "bad", "fine", "great")
    own = first[:, tokens_of(labels, vocabulary)]
    eos = label_scores(predictor.context, predictor.params, requests(predictor), labels, 128) - own
    assert (eos < 0).all()
    best = own.argmax(1)
    lead, turn = (np.take_along_axis(x, best[:, None], 1) - x for x in (own, eos))
    clear = np.all((lead > np.abs(turn)) | (lead == 0), axis=1)
    assert 0 < clear.sum() < len(TEXTS)
    rows = predictor.predict(TEXTS, None, Decoding(mode="rank", labels=labels))
    ranked = np.array([row["prediction"] for row in rows])
    greedy = np.array(said(predictor, labels=labels)[0])
    assert ranked.tolist() == [labels[at] for at in (own + eos).argmax(1)]
    assert greedy.tolist() == [labels[at] for at in best]
    assert ranked[clear].tolist() == greedy[clear].tolist()


@pytest.mark.parametrize("mode", ["trie", "beam"])
def test_labels_are_said_whole_whatever_the_model_likes(predictor, mode):
    labels = ("not_entailment", "entailment", "not", *LABELS)  # of three tokens, two, and one
    if mode == "trie":
        assert not {row["prediction"] for row in predictor.predict(TEXTS)} & {*labels}
    texts, scores = said(predictor, labels=labels, mode=mode)
    assert {*texts} <= {*labels} and max(scores) <= 0


def test_no_labels_are_refused(predictor):
    with pytest.raises(UserError, match="'trie' chooses among TrieDecoding.labels .--label="):
        said(predictor)


# --- several labels an answer ---


def test_with_a_separator_answers_are_labels_without_repeats(predictor):
    labels, counts = ("good", "bad", "fine"), set()
    longest = 3 + 2 + 1  # the labels, the separators, EOS
    for separator, mode in (("; ", "trie"), (", ", "trie"), ("; ", "sample")):
        asked = {"labels": labels, "separator": separator, "mode": mode}
        texts, scores = said(predictor, **asked, max_length=longest)
        assert max(scores) <= 0
        for own in (text.split(separator) for text in texts):
            assert {*own} <= {*labels} and len({*own}) == len(own)
            counts.add(len(own))
    assert 1 in counts and len(counts) > 1


# --- the command line ---


@pytest.fixture
def use(tmp_path, capsys):
    """`use(verb, folder, *flags)`: what it wrote as JSON, or its complaint."""
    out = tmp_path / "out.json"

    def call(verb, folder, *flags):
        code = cli.main([verb, f"--model_dir={folder}", f"--json={out}", *flags])
        err = capsys.readouterr().err
        if code:
            assert code == 2 and err.count("\n") == 1
            return err
        return json.loads(out.read_text())

    return call


@pytest.fixture
def texts(tmp_path):
    """The flag that has the texts answered."""
    (tmp_path / "texts.tsv").write_text("\n".join(["inputs", *TEXTS]))
    return f"--input={tmp_path / 'texts.tsv'}"


@pytest.fixture
def own_task(monkeypatch, tmp_path):
    """`own_task(name, targets)`: the flags of a task with these answers, in turn, to the texts."""
    task.known()
    monkeypatch.setattr(task, "REGISTRY", dict(task.REGISTRY))  # it is forgotten
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path))

    def make(name, targets):
        pairs = zip(itertools.cycle(TEXTS), targets, strict=False)
        rows = [{"inputs": text, "targets": answer} for text, answer in pairs]
        source = Rows(lambda split: rows, ("validation",))
        task.register(task.Task(name, source, lambda row, split: [row], (metrics.accuracy,)))
        return [f"--mixture_or_task={name}", "--split=validation"]

    return make


@pytest.mark.parametrize(("run", "flags"), [("generates", ["--decode=trie"]), ("classifies", [])])
def test_eval_counts_the_answers_that_predict_gives(run, flags, use, own_task, request):
    """Without --label they are the task's own; each answer is one of them."""
    folder, targets = request.getfixturevalue(run), [LABELS[at % 2] for at in range(25)]
    flags = [*flags, *own_task(f"t_two_labels_{run}", targets)]
    rows = use("predict", folder, *flags)
    assert [row["inputs"] for row in rows] == TEXTS
    answers = [row["prediction"] for row in rows]
    assert {*answers} <= {*LABELS}
    right = np.mean([a == b for a, b in zip(answers, targets, strict=True)])
    assert right > 0
    found = use("eval", folder, *flags)
    assert found["prompts"] == {"prompt": {"accuracy": pytest.approx(right)}}


def test_eval_chooses_from_the_labels_that_are_named(generates, use, own_task):
    """The task's own are nothing then."""
    flags = [*own_task("t_other_labels", ["good"] * 20), "--decode=trie"]
    for label, accuracy in (("good", 1.0), ("bad", 0.0)):
        found = use("eval", generates, *flags, f"--label={label}")
        assert found["prompts"] == {"prompt": {"accuracy": accuracy}}


def test_predict_chooses_several_of_the_labels_that_are_named(generates, use, texts, predictor):
    labels = ("good", "bad", "fine")
    flags = [texts, "--decode=trie", "--max_decode_length=6", "--separator=; "]
    rows = use("predict", generates, *flags, *(f"--label={label}" for label in labels))
    same, _ = said(predictor, labels=labels, separator="; ", max_length=6)
    assert [row["prediction"] for row in rows] == same
    assert any("; " in text for text in same)


def test_the_labels_of_a_task_are_split_at_the_separator(generates, use, texts, own_task):
    answers = ["good; bad", "fine; good", "bad; fine"]
    flags = own_task("t_several_labels", answers)
    flags = [*flags, "--decode=trie", "--max_decode_length=6"]
    rows = use("predict", generates, texts, *flags, "--separator=; ")
    for own in (row["prediction"].split("; ") for row in rows):
        assert {*own} <= {"good", "bad", "fine"} and len({*own}) == len(own)
    rows = use("predict", generates, texts, *flags)
    assert {row["prediction"] for row in rows} <= {*answers}


def test_what_a_trie_cannot_choose_from_is_refused(generates, use, own_task):
    flags = own_task("t_many_answers", [f"answer {at}" for at in range(51)])
    error = use("eval", generates, *flags, "--decode=trie")
    assert "--decode=trie: t_many_answers has 51 different answers" in error
    assert "--label=TEXT" in error
    flags = [*flags, "--decode=trie", "--label=good", "--label=good; bad", "--separator=; "]
    assert "could be read in two ways" in use("eval", generates, *flags)


@pytest.mark.parametrize("mode", ["rank", "trie", "beam"])
def test_a_head_of_labels_refuses_another_decoding(classifies, use, mode):
    error = use("predict" if mode == "beam" else "eval", classifies, f"--decode={mode}")
    assert f"Decoding.mode = {mode!r}: ptec answers by its ClassifierHead" in error


def test_a_head_of_labels_says_labels_alone_and_how_likely(classifies, use, texts):
    rows = use("predict", classifies, texts, "--decode=greedy")
    assert [row["inputs"] for row in rows] == TEXTS
    assert {row["prediction"] for row in rows} <= {*LABELS}
    assert all(np.log(0.5) <= row["score"] < 0 for row in rows)
    assert len({row["score"] for row in rows}) > 1
