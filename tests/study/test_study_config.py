"""Study files: points become runs, and everything that is wrong is said at once."""

import dataclasses
import importlib
import importlib.util
import json
import typing

import pytest

from prompt_jax.config import ConfigurationError
from prompt_jax.errors import UserError
from prompt_jax.study.study import STUDY, Study, resolve_study

HEAD = """
STEPS = 20
Study:
  name = 'toy'
  out_dir = %STUDY_DIR
  gin_files = ('runs/prompt_tune.gin', 'methods/prompt_tuning.gin', 'models/micro_xs.gin')
  settings = {
      'MIXTURE_OR_TASK_NAME': 'micro_sentiment',
      'TRAIN_STEPS': %STEPS,
      'PROMPT_LENGTH': 20,
  }
  grid = @Product()
"""
GRID = """
Product.parts = (@length/Axis(), @init/Axis())
length/Axis:
  name = 'length'
  values = (5, 20)
  setting = 'PROMPT_LENGTH'
init/Axis:
  name = 'init'
  values = {
      'uniform': {'PromptBank.init': '@UniformInit()'},
      'labels': {'PromptBank.init': '@ClassLabels()', 'CLASS_LABELS': ('good', 'bad')},
  }
"""
TRANSFER = """
Product.parts = (@seed/Axis(), @After())
seed/Axis.name = 'RANDOM_SEED'
seed/Axis.values = (0, 1)
After:
  name = 'source'
  grid = @source/Product()
  setting = 'PROMPT_FILE'
  path = 'prompt.npy'
  same = ('RANDOM_SEED',)
  settings = {'PromptBank.init': '@FileInit()'}
source/Product.parts = (@source/Axis(), @seed/Axis())
source/Axis.name = 'source'
source/Axis.values = ('micro_paraphrase', 'micro_sentiment')
source/Axis.setting = 'MIXTURE_OR_TASK_NAME'
"""


@pytest.fixture
def study(tmp_path):
    """Resolves a study of the given text."""

    def resolve(text=GRID, head=HEAD, out=None, checked=False, bindings=()):
        file = tmp_path / "study.gin"
        file.write_text(head + text)
        given = [f"STUDY_DIR='{out or tmp_path}'", *bindings]
        return resolve_study([str(file)], given, checked=checked)

    return resolve


def complaints(call, *args, **kwargs):
    with pytest.raises(ConfigurationError) as caught:
        call(*args, **kwargs)
    return list(caught.value.lines)


def test_points_become_runs(study, tmp_path):
    runs = study()
    members = list(runs.members.values())
    assert [member.point.labels for member in members] == [
        {"length": 5, "init": "uniform"},
        {"length": 5, "init": "labels"},
        {"length": 20, "init": "uniform"},
        {"length": 20, "init": "labels"},
    ]
    assert list(runs.members) == [member.id for member in members]
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in runs.members)
    for member in members:
        run = member.run
        assert run.model_dir == f"{tmp_path}/runs/{member.id}"
        assert run.method.bank.length == member.point.labels["length"]
        assert run.train_steps == 20
        kind = {"uniform": "UniformInit", "labels": "ClassLabels"}[member.point.labels["init"]]
        assert type(run.method.bank.init).__name__ == kind
    origins = members[1].resolved.origins
    assert origins["PROMPT_LENGTH"] == origins["PromptBank.init"] == "Study.grid"
    assert origins["TRAIN_STEPS"] == "Study.settings"
    assert origins["BATCH_SIZE"] == "runs/prompt_tune.gin:14"
    assert members[1].run.method.bank.init.labels == ("good", "bad")


def test_a_run_starts_again_from_its_own_text(study, tmp_path):
    from prompt_jax.config import resolve

    member = list(study().members.values())[1]
    (tmp_path / "config.gin").write_text(member.resolved.text)
    again = resolve([str(tmp_path / "config.gin")])
    assert again.run == member.run and again.hash == member.resolved.hash


def test_flags_of_the_study(study):
    runs = study(bindings=["STEPS=7", "length/Axis.values=(3,)"])
    assert {member.run.train_steps for member in runs.members.values()} == {7}
    assert {member.run.method.bank.length for member in runs.members.values()} == {3}


def test_the_default_folder():
    assert Study("a", StubGrid()).folder == "out/a"
    assert Study("a", StubGrid(), out_dir="x/").folder == "x"


class StubGrid:
    def points(self, so_far):
        return [so_far]


def test_ids_name_what_is_run(study):
    here, there = study(TRANSFER), study(TRANSFER, out="elsewhere/far")
    assert list(here.members) == list(there.members)
    assert here.members != there.members
    longer = study(TRANSFER, bindings=["STEPS=21"])
    assert not set(longer.members) & set(here.members)


def test_needs(study, tmp_path):
    runs = study(TRANSFER)
    by_labels = {json.dumps(m.point.labels): m for m in runs.members.values()}
    assert len(runs.members) == 8
    for seed in (0, 1):
        for task in ("micro_paraphrase", "micro_sentiment"):
            first = by_labels[json.dumps({"source": task, "RANDOM_SEED": seed})]
            then = by_labels[json.dumps({"RANDOM_SEED": seed, "source": task})]
            assert first.needs == () and then.needs == (first.id,)
            assert first.run.data.mixture_or_task_name == task
            assert then.run.method.bank.init.path == f"{tmp_path}/runs/{first.id}/prompt.npy"
    order = list(runs.members)
    for name, member in runs.members.items():
        assert all(order.index(need) < order.index(name) for need in member.needs)


def test_everything_wrong_is_said_at_once(study):
    text = """
Product.parts = (@a/Axis(), @b/Axis())
a/Axis.name = 'a'
a/Axis.values = {
    'fine': {},
    'type': {'PROMPT_LENGTH': 'ten'},
    'macro': {'PROMPT_LENGHT': 5},
    'field': {'PromptBank.lenght': 5},
    'class': {'PromtBank.length': 5},
    'part': {'PromptBank.init': '@UniformInitt()'},
    'file': {'gin_file': 'models/micro_xxs.gin'},
    'unread': {'UniformInit.scale': 0.1},
    'own': {'MODEL_DIR': 'x'},
}
b/Axis.name = 'RANDOM_SEED'
b/Axis.values = (0, 1, 2)
"""
    head = HEAD.replace("'PROMPT_LENGTH': 20", "'Z_LOS': 0.0")
    found = complaints(study, text, head)
    grid = "Study.grid: "
    parts = [
        ("a=type", "PROMPT_LENGTH (read by PromptBank.length) = 'ten' should be a whole number"),
        ("a=macro", f"{grid}this run does not read PROMPT_LENGHT; did you mean 'PROMPT_LENGTH'"),
        ("a=field", f"{grid}PromptBank has no field 'lenght'; did you mean 'length'?"),
        ("a=class", f"{grid}'PromtBank' is no configurable; did you mean 'PromptBank'"),
        ("a=part", f"{grid}@UniformInitt() is no configurable; did you mean 'UniformInit'"),
        ("a=file", "--gin_file: no file 'models/micro_xxs.gin'; did you mean"),
        ("a=unread", f"{grid}this run does not read UniformInit.scale"),
        ("a=own", "MODEL_DIR is the study's own; set STUDY_DIR"),
    ]
    for (labels, message), line in zip(parts, found, strict=False):
        assert line.startswith(f"{labels}, RANDOM_SEED=0: "), line
        assert message in line and line.endswith("(and 2 more points)"), line
    assert found[len(parts) :] == ["Study.settings: no run reads Z_LOS; did you mean 'Z_LOSS'?"]


def test_checks_before_anything_is_opened(study):
    text = """
Product.parts = (@a/Axis(),)
a/Axis.name = 'a'
a/Axis.values = {
    'fine': {},
    'task': {'MIXTURE_OR_TASK_NAME': 'micro_sentimant'},
    'transfer': {'Run.transfer_tasks': ('micro_paraphrasd',)},
    'init': {'SampledVocabulary.first': 3},
    'rules': {'Trainable.rules': (('prompt/.*', 'train'),)},
    'steps': {'TRAIN_STEPS': -1},
    'rows': {'PACKED_LENGTHS': {'inputs': 8, 'targets': 8}},
}
"""
    found = complaints(study, text, checked=True)
    parts = [
        ("task", "did you mean 'micro_sentiment'"),
        ("transfer", "did you mean 'micro_paraphrase'"),
        ("init", "a prompt of 20 needs 20 different pieces"),
        ("rules", "backbone/"),
        ("steps", "TRAIN_STEPS = -1"),
        ("rows", "PACKED_LENGTHS"),
    ]
    assert len(found) == len(parts), found
    for (label, message), line in zip(parts, found, strict=True):
        assert line.startswith(f"a={label}: ") and message in line, line
    study(checked=True)  # and nothing is wrong with the other one


def test_shapes_that_do_not_fit(study, monkeypatch):
    from prompt_jax.parts.bank import PromptBank

    narrow = lambda self, params: params["encoder"][:, :3]  # noqa: E731
    monkeypatch.setattr(PromptBank, "prompts", narrow)
    found = complaints(study, checked=True)
    assert len(found) == 1 and found[0].endswith(" (and 3 more points)")
    assert found[0].startswith("length=5, init=uniform: the shapes of prompt_tuning do not fit")


def test_one_run_by_two_points(study):
    """Labels that do not contradict are joined: two sweeps share their centre."""
    text = """
Product.parts = (@Union(),)
Union.parts = (@length/Axis(), @rate/Axis())
length/Axis.name = 'PROMPT_LENGTH'
length/Axis.values = (5, 20)
rate/Axis.name = 'rate'
rate/Axis.values = (0.1, 0.3)
rate/Axis.setting = 'Adafactor.learning_rate'
"""
    runs = study(text)
    assert [member.point.labels for member in runs.members.values()] == [
        {"PROMPT_LENGTH": 5},
        {"PROMPT_LENGTH": 20, "rate": 0.3},
        {"rate": 0.1},
    ]
    name = list(runs.members)[1]
    assert runs.notes == (f"PROMPT_LENGTH=20 and rate=0.3 are one run, {name}",)


def test_two_labels_of_one_axis_for_one_run_are_refused(study):
    text = """
Product.parts = (@a/Axis(),)
a/Axis.name = 'a'
a/Axis.values = {'x': {'PROMPT_LENGTH': 5}, 'y': {'PromptBank.length': 5}, 'z': {}}
"""
    assert complaints(study, text) == ["a=y: is the same run as a=x; leave one out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("'toy'", "'a/b'"), "Study.name = 'a/b': letters"),
        (("@Product()", "@Axis()"), "Axis.name is required"),
        (("@Product()", "'all'"), "Study.grid: 'all' is no part of a grid"),
        (("name =", "nam ="), "Study has no field 'nam'; did you mean 'name'"),
        (("%STUDY_DIR", "'gs://x'"), "claims need a local or mounted folder"),
    ],
)
def test_the_study_itself_may_be_wrong(study, change, message):
    with pytest.raises(UserError) as caught:
        study(head=HEAD.replace(*change))
    assert message in str(caught.value)


def test_an_empty_grid(study):
    with pytest.raises(UserError, match="study toy: the grid has no points"):
        study("Product.parts = (@Union(),)\n")


@pytest.mark.parametrize("name", STUDY)
def test_registered_classes_are_frozen_and_typed(name):
    module, _, attribute = STUDY[name].partition(":")
    if not importlib.util.find_spec(module):
        pytest.skip(f"{module} is not here yet")
    cls = getattr(importlib.import_module(module), attribute)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    assert set(typing.get_type_hints(cls)) >= {field.name for field in dataclasses.fields(cls)}
