"""Fleets: who is with whom, how many fit, and a plan that stays what it was."""

import json
import types

import pytest
import toy_study as toy

from prompt_jax.errors import UserError
from prompt_jax.study import claims, packing
from prompt_jax.study.finished import Finished
from prompt_jax.study.packing import Fleets, Machine

CPU = Machine("cpu", 1000)


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(packing, "bytes_of", toy.measure)


def pack(runs, machine=CPU):
    return packing.pack(runs.members, list(runs.members), runs.study.fleets, machine)


def groups(fleets):
    return [fleet.members for fleet in fleets]


def test_runs_with_one_program_are_together(measured, tmp_path):
    kinds = "abab"
    members = [toy.member(tmp_path, f"r{n}", kind) for n, kind in enumerate(kinds)]
    fleets = pack(toy.study(tmp_path, members))
    assert groups(fleets) == [("r0", "r2"), ("r1", "r3")]
    assert fleets[0].key != fleets[1].key and fleets[0].id != fleets[1].id


def test_runs_wait_for_their_own_needs_alone(measured, tmp_path):
    members = [
        toy.member(tmp_path, "r0"),
        toy.member(tmp_path, "r1"),
        toy.member(tmp_path, "r2", needs=("r0",)),
        toy.member(tmp_path, "r3", needs=("r0", "r1")),
        toy.member(tmp_path, "r4", needs=("r2",)),
        toy.member(tmp_path, "r5"),
    ]
    assert groups(pack(toy.study(tmp_path, members))) == [("r0", "r1", "r5"), ("r2", "r3"), ("r4",)]


@pytest.mark.parametrize(
    ("fleets", "machine", "sizes"),
    [
        ({"size": 3}, CPU, [2, 3, 2, 3]),  # nearly equal
        ({"limit": 6}, CPU, [5, 5]),
        # 0.8 x 325 - (100 + 50) = 110 bytes for runs of 30
        ({}, Machine("cpu", 325), [2, 3, 2, 3]),
        # 0.8 x 325 - 100 = 160 bytes for runs of 30 + 50
        ({}, Machine("gpu", 325), [2, 2, 2, 2, 2]),
        ({"map": "vmap"}, Machine("cpu", 325), [2, 2, 2, 2, 2]),
        ({"map": "loop"}, Machine("gpu", 325), [2, 3, 2, 3]),
        ({}, Machine("cpu", 10), [1] * 10),  # at least one
        ({}, Machine("cpu", 10**6, workers=3), [3, 3, 4]),  # no worker is idle
    ],
)
def test_sizes(measured, tmp_path, fleets, machine, sizes):
    members = [toy.member(tmp_path, f"r{n}") for n in range(10)]
    found = pack(toy.study(tmp_path, members, **fleets), machine)
    assert [len(fleet.members) for fleet in found] == sizes
    assert [name for fleet in found for name in fleet.members] == [f"r{n}" for n in range(10)]
    how = fleets.get("map", "loop" if machine.platform == "cpu" else "vmap")
    assert {fleet.map for fleet in found} == {how}


@pytest.mark.parametrize(("slots", "size"), [([0] * 20, 5), ([10] * 20, 4), ([0, 50] * 10, 2)])
def test_longer_prompts_take_more_room(measured, tmp_path, slots, size):
    """0.8 x 400 - (100 + 50) = 170 bytes: 5 runs of 30, 4 of 30 + 10; 2 where one is of 30 + 50."""
    members = [toy.member(tmp_path, f"r{n}", slots=each) for n, each in enumerate(slots)]
    found = pack(toy.study(tmp_path, members, map="loop"), Machine("cpu", 400))
    assert [len(fleet.members) for fleet in found] == [size] * (20 // size)


def test_refuses_a_negative_size():
    with pytest.raises(UserError, match="size = -1"):
        Fleets(size=-1)


def test_bytes():
    """Adafactor unfactored: v beside x, and counters; the backbone in float32."""
    from prompt_jax.config import resolve

    files = ["models/micro_xs.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin"]
    given = ["MIXTURE_OR_TASK_NAME='micro_sentiment'", "MODEL_DIR='x'", "PROMPT_LENGTH=10"]
    given += ["TASK_FEATURE_LENGTHS={'inputs': 22, 'targets': 8}", "BATCH_SIZE=4"]
    found = packing.bytes_of(resolve(files, given).run)
    assert found.frozen == 820_224 * 4
    assert found.gradients == 10 * 64 * 4
    assert 2 * found.gradients <= found.state < 2 * found.gradients + 200
    assert found.batch == 4 * 4 * (2 * 32 + 4 * 8)
    assert found.activations > 4 * 32 * 64 * 4
    assert found.runs("loop", 10**9) > found.runs("vmap", 10**9) > 1


def test_memory_of_the_host(monkeypatch):
    free = packing.host_memory()
    assert 2**26 < free < 2**45
    monkeypatch.setattr(packing, "host_memory", lambda: 1000)
    assert packing.this_machine(workers=4) == Machine("cpu", 250, 4)


def test_memory_of_a_device(monkeypatch):
    import jax

    stats = {"bytes_limit": 1000, "bytes_in_use": 100}
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert packing.this_machine(workers=4) == Machine("gpu", 900, 4)
    assert packing.this_machine(devices=False).platform == "cpu"


# --- the plan on disk ---


class Plans:
    """A study in a folder whose runs are planned again and again."""

    def __init__(self, folder):
        self.folder, self.finished = folder, Finished(str(folder))

    def __call__(self, count, free=325, retry=False, **fleets):
        members = [toy.member(self.folder, f"r{n}") for n in range(count)]
        runs = toy.study(self.folder, members, **fleets)
        machine = lambda: Machine("cpu", free)  # noqa: E731
        packing.ensure_plan(runs, self.finished, machine, retry)
        plan = packing.read_plan(str(self.folder))
        return {f.id: own for f in plan if (own := packing.own_members(f, plan, runs.members))}

    def end(self, name, status="ok"):
        self.finished.add(name, {"status": status})


@pytest.fixture
def plans(measured, tmp_path):
    return Plans(tmp_path)


def test_a_plan_stays(plans):
    first = plans(4)
    assert list(first.values()) == [("r0", "r1"), ("r2", "r3")]
    assert plans(4, free=10**6) == plans(4, free=1, size=1) == first


def test_new_runs_are_appended(plans):
    first = plans(4)
    plans.end("r0")
    grown = plans(6)
    assert list(grown.items())[:2] == list(first.items())
    assert list(grown.values())[2:] == [("r4", "r5")]


def test_what_is_left_of_a_torn_fleet_is_planned_anew(plans):
    first = plans(4)
    assert list(plans(3).values()) == [("r0", "r1"), ("r2",)]
    assert not set(plans(3)) == set(first)
    assert list(plans(4).values()) == [("r0", "r1"), ("r2",), ("r3",)]


def test_a_torn_fleet_that_somebody_trains_stays(plans):
    name = list(plans(4))[1]
    with claims.take(plans.folder / "claims", name):
        assert list(plans(3)) == list(plans(4))
        assert list(plans(3).values())[1] == ("r2",)


def test_a_torn_fleet_that_is_done_stays(plans):
    first = plans(4)
    for name in ("r2", "r3"):
        plans.end(name)
    assert list(plans(3)) == list(first)


def test_retry(plans):
    first = plans(4)
    for name, status in (("r0", "ok"), ("r1", "failed"), ("r2", "failed")):
        plans.end(name, status)
    again = plans(4, retry=True)
    assert plans.finished.status() == {"r0": "ok"}
    assert (plans.folder / "failed" / "r1.json").exists()
    # r3 had no record, and its fleet is torn: it is planned anew with the others.
    assert list(again.values()) == [("r0",), ("r1", "r2", "r3")]
    assert list(again)[0] == list(first)[0] and list(first)[1] not in again
    assert plans(4) == again  # and that is stable


def test_runs_that_ended_need_no_plan(plans):
    plans.end("r0")
    assert list(plans(2).values()) == [("r1",)]


def test_a_damaged_plan(plans):
    plans(2)
    (plans.folder / "plan.json").write_text(json.dumps({"fleets": [{"id": 1}]}))
    with pytest.raises(UserError, match="plan.json is damaged"):
        plans(2)
