"""Templates: the space of the paper, what is unseen, and the schedule that training follows."""

import collections
import functools

import numpy as np
import pytest

from prompt_jax.data import registry, task, templates, variants
from prompt_jax.data.loader import Data
from prompt_jax.data.open import open_loader
from prompt_jax.data.templates import Template
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.errors import UserError

BYTE = load_vocabulary("byte")


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """What a test registers is forgotten."""
    task.known()
    monkeypatch.setattr(task, "REGISTRY", dict(task.REGISTRY))


def rows(split):
    return [{"text": f"{split} {n}", "label": str(n % 2)} for n in range(40)]


def base(name):
    words = {"0": "no", "1": "yes"}
    return task.register_text_task(name, rows, "{text}", verbalizers=words)


def test_the_spaces_have_the_papers_sizes():
    for kind, size in (("sentiment", 240), ("topic", 192)):
        found = templates.space(kind)
        assert len(found) == len(set(found)) == size
    assert len(set(templates.pool())) == len(set(templates.pool(unseen=True))) == 8


@pytest.mark.parametrize(
    ("template", "question", "example"),
    [
        (Template(), "Q", "Q yes"),
        (Template("text: {}", "label: {}", "\n"), "text: Q\nlabel:", "text: Q\nlabel: yes"),
        (Template("{}", "A {} one."), "Q A", "Q A yes one."),
    ],
)
def test_questions_and_examples(template, question, example):
    assert template.question("Q") == question
    assert template.example("Q", "yes") == example
    assert template.question("{}") == question.replace("Q", "{}")


def test_unseen_wrappers_are_in_no_training_template():
    seen, unseen = templates.draw(8, 0), templates.draw(8, 1, unseen=True)
    assert not {t.input for t in seen} & {t.input for t in unseen}
    assert not {t.output for t in seen} & {t.output for t in unseen}
    assert templates.draw(3, 5) == templates.draw(8, 5)[:3] != templates.draw(3, 6)


def test_names_of_mixtures_of_templates():
    base("t_tpl")
    mixture = registry.find("t_tpl_3templates_1")
    assert list(mixture.rates) == [f"t_tpl_3templates_1_{n}" for n in range(3)]
    drawn = templates.draw(3, 1)
    for name, template in zip(mixture.rates, drawn, strict=True):
        (first, *_) = registry.find(name).examples("test")
        assert first["inputs"] == template.question("test 0") and first["targets"] == "no"
    with pytest.raises(UserError, match="9 templates are asked for, there are 8"):
        registry.find("t_tpl_9unseen_0")


def loader(name, tmp_path, period, batch_size=4):
    lengths = {"inputs": 40, "targets": 6}
    data = Data(
        name, None, "train", lengths, batch_size, cache_dir=str(tmp_path), mixture_period=period
    )
    return open_loader(data, BYTE, slots=2)


def test_a_template_stays_for_k_steps_and_is_a_function_of_the_step(tmp_path):
    base("t_period")
    made = loader("t_period_4templates_0", tmp_path, 4)
    chosen = [set(made.batch(step)[1].source.tolist()) for step in range(4000)]
    assert all(len(sources) == 1 for sources in chosen)
    drawn = [next(iter(sources)) for sources in chosen]
    assert all(len(set(drawn[at : at + 4])) == 1 for at in range(0, 4000, 4))
    again = loader("t_period_4templates_0", tmp_path, 4)
    np.testing.assert_array_equal(
        again.batch(2)[0]["encoder_input_tokens"], made.batch(2)[0]["encoder_input_tokens"]
    )
    counts = collections.Counter(drawn[::4])  # 1,000 draws of 4: within 3 sd of uniform
    assert all(abs(count - 250) < 3 * (1000 * 0.25 * 0.75) ** 0.5 for count in counts.values())


def test_without_a_period_examples_draw_their_templates(tmp_path):
    base("t_each")
    made = loader("t_each_4templates_0", tmp_path, 0, batch_size=16)
    assert len(set(made.batch(0)[1].source.tolist())) > 1
    with pytest.raises(UserError, match="mixture_period is -1"):
        loader("t_each_4templates_0", tmp_path, -1)


def test_a_pool_of_one_is_training_with_that_template(tmp_path):
    one = base("t_single")
    variants.register_templates("t_pool", one, [Template("text: {}")])
    variants.register_in_context("t_alone", one, template=Template("text: {}"))
    batches = [
        [made.batch(step)[0] for step in range(5)]
        for made in (loader("t_pool", tmp_path, 4), loader("t_alone", tmp_path, 0))
    ]
    for pool, alone in zip(*batches, strict=True):
        for name in pool:
            np.testing.assert_array_equal(pool[name], alone[name])


def test_examples_in_the_context_are_written_by_the_template():
    template = Template("text: {}", "label: {}", "\n", "\n\n")
    made = variants.register_in_context("t_ctx", base("t_ctx_base"), 2, template=template)
    (first, *_) = made.examples("test")
    *demos, query = first["inputs"].split("\n\n")
    assert query == "text: test 0\nlabel:"
    assert [demo.split("\nlabel: ")[1] for demo in demos] in (["no", "yes"], ["yes", "no"])
    assert functools.reduce(lambda a, b: a and b.startswith("text: train "), demos, True)
