"""Every shipped study: its runs resolve, cost what its size may, and give what its report draws."""

import functools
import random

import pytest

from prompt_jax.alike import common
from prompt_jax.config import gin_folder
from prompt_jax.study import forecast, study
from prompt_jax.study import records as ledger
from prompt_jax.study.study import resolve_study

NAMES = sorted(path.stem for path in gin_folder().glob("studies/*.gin"))
MICRO = [name for name in NAMES if name.endswith("_micro")]
# The published sizes take seconds each: their shapes are followed through 24 layers.
ALL = [pytest.param(name, marks=[] if name in MICRO else pytest.mark.slow) for name in NAMES]
pytestmark = pytest.mark.xdist_group("shipped")  # each study is resolved once
CORES = 2
# Sweeps of sixteen methods, two of which search.
MINUTES = {"methods_micro": 150, "methods_taught_micro": 60}
# A seed says all that three do, and resolves in a third of the time.
FEWER = {
    "ensemble": ["SEEDS=(0, 1)"],
    "ensemble_micro": [],
    "few_shot": [],
    "few_shot_micro": [],
    "methods": ["SEEDS=(0,)", "PROMPT_RATES=(0.3,)"],
    "methods_micro": ["SEEDS=(0,)", "PROMPT_RATES=(0.3,)"],
    "methods_taught_micro": ["SEEDS=(0,)", "PROMPT_RATES=(0.3,)"],
    "transfer_micro": [],
}


followed = {}  # methods whose shapes were followed through a step


@functools.cache
def resolved(name):
    """Some of its runs; of the micro studies a method's shapes are followed once for all."""
    given = [f"studies/{name}.gin"], ["STUDY_DIR='out'", *FEWER.get(name, ["SEEDS=(0,)"])]
    if name not in MICRO:
        return resolve_study(*given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "check_shapes", follow_once)
        return resolve_study(*given)


def follow_once(run, check=study.check_shapes):
    known = repr(common(run.method))
    if known not in followed:
        followed[known] = check(run)


def made_up(member, number):
    """A record with every metric that the run's evaluators will give, as far as is known."""
    run, noise = member.run, random.Random(number)
    metrics = {}
    tasks = [(run.data, split, "") for split in (run.eval_split, *run.final_splits)]
    for task in run.transfer_tasks:
        data = type(run.data)(task, run.data.mixture_or_task_module)
        tasks.append((data, run.eval_split, f"{task}/"))
    for data, split, place in tasks:
        there = type(run)(run.backbone, run.method, data, "", 0)
        told = [e.metric_names(there) for e in run.evaluators if hasattr(e, "metric_names")]
        names = [name for found in told for name in found]
        metrics[f"{place}{split}"] = {name: noise.random() for name in names}
    losses = [{"step": step, "loss": noise.random()} for step in (10, 20)]
    evals = {f"eval/{name}": value for name, value in metrics[run.eval_split].items()}
    return {
        "id": member.id,
        "status": "ok",
        "point": member.point.labels,
        "method": run.method.name,
        "trainable_parameters": 10,
        "steps": run.train_steps,
        "seconds": {"train": 1.0, "eval": 1.0},
        "metrics": metrics,
        "curve": [losses[0], {**losses[1], **evals}],
    }


@pytest.mark.parametrize("name", ALL)
def test_its_runs_resolve_and_its_header_says_how_to_start_it(name):
    runs = resolved(name)
    assert runs.study.name == name and runs.members and not runs.notes
    text = (gin_folder() / f"studies/{name}.gin").read_text()
    assert f"prompt-jax study --gin_file=studies/{name}.gin" in text
    if name not in MICRO:
        assert f"--gin_file=studies/{name}.gin --dry_run" in text and f"{name}_micro" in NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_resolves_whole_and_a_micro_one_is_for_two_cores(name):
    """By its training steps at the nominal rate of a core, with a worker for each."""
    members = resolve_study([f"studies/{name}.gin"], ["STUDY_DIR='out'"]).members
    assert len(members) >= len(resolved(name).members)
    if name in MICRO:
        found = forecast.forecasts(members, {}).values()
        minutes = sum(each.flops for each in found) / (CORES * forecast.NOMINAL) / 60
        assert 0 < minutes <= MINUTES.get(name, 45), f"{minutes:.1f} min"


@pytest.mark.parametrize("name", ALL)
def test_its_runs_give_what_its_report_draws(name):
    report = resolved(name).study.report
    records = [made_up(m, at) for at, m in enumerate(resolved(name).members.values())]
    assert report
    for part in report:
        ledger.check_columns(records, [*part.columns(), *part.where], part.who)
        rows = part.rows(part.differences(part.select(records)))
        assert rows
        empty = [row for row in rows if row.get("n") == 0 or row.get("mean", 0) is None]
        assert not empty, (part.name, empty)


def test_what_a_run_needs_lies_in_the_folder_of_another():
    """A tuple of files, and a backbone of a backbone."""
    runs = resolved("ensemble_micro").members
    voting = next(m for m in runs.values() if m.point.labels["stage"] == "ensemble")
    paths = voting.run.method.bank.init.paths
    assert (
        paths == tuple(f"out/runs/{need}/prompt.npy" for need in voting.needs) and len(paths) == 5
    )
    alone = [runs[need] for need in voting.needs]
    assert [m.run.random_seed for m in alone] == [0, 1, 2, 3, 4]
    assert {m.run.backbone.checkpoint for m in alone} == {voting.run.backbone.checkpoint}
    runs = resolved("pretraining_micro").members
    adapted = [m for m in runs.values() if m.point.labels.get("backbone") == "LM adaptation"]
    (span,) = adapted[0].needs
    assert adapted[0].run.backbone.checkpoint == f"out/runs/{span}/backbone"
    assert not runs[span].needs and not runs[span].run.backbone.random_weights


def test_transfer_is_every_source_by_every_target():
    members = resolved("transfer_micro").members
    moved = [m for m in members.values() if m.point.labels["stage"] == "transfer"]
    assert len(moved) == 5 * 4 * 3
    for member in moved:
        labels, (_, similarity) = member.point.labels, member.run.evaluators
        start, *tasks = (members[need] for need in member.needs)
        assert member.run.method.bank.init.path == f"out/runs/{start.id}/prompt.npy"
        for axis in ("source", "RANDOM_SEED"):
            assert start.point.labels[axis] == labels[axis]
        assert [similarity.source, similarity.target] == [
            f"out/runs/{each.id}/prompt_last.npy" for each in tasks
        ]
        source, target = tasks
        assert source.point.labels["source"] == labels["source"]
        assert target.run.data.mixture_or_task_name == member.run.data.mixture_or_task_name
        assert {each.run.random_seed for each in tasks} == {0}
