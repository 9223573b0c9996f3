"""The local launcher with a toy trainer: alone, and beside others that race, fail or are killed."""

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import toy_study as toy

from prompt_jax.errors import Interrupted, RunFailed, UserError
from prompt_jax.study import claims, launch, packing
from prompt_jax.study.finished import Finished
from prompt_jax.study.launch import Share

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "bytes_of", toy.measure)
    monkeypatch.setattr(launch, "train_fleet", toy.log_and_train(tmp_path, 0))
    monkeypatch.setattr(launch, "POLL", 0.05)
    return tmp_path


def members(out, count):
    return [toy.member(out, f"r{n}") for n in range(count)]


def go(runs, share=None, **more):
    finished = Finished(runs.folder)
    launch.launch(runs, share or Share(), finished, **more)
    return {name: record["status"] for name, record in sorted(finished.records().items())}


def fleets_trained(out):
    """Fleet -> its runs, in the order of the log."""
    found = {}
    for name, _, fleet in toy.trained(out):
        found.setdefault(fleet, []).append(name)
    return list(found.values())


def test_every_run_leaves_a_record(out, caplog):
    caplog.set_level(logging.INFO, "prompt_jax")
    runs = toy.study(out, members(out, 5), size=2)
    (out / "fleets").mkdir()
    assert go(runs) == dict.fromkeys(["r0", "r1", "r2", "r3", "r4"], "ok")
    assert fleets_trained(out) == [["r0"], ["r1", "r2"], ["r3", "r4"]]
    record = json.loads((out / "ledger" / "r2.json").read_text())
    plan = json.loads((out / "plan.json").read_text())["fleets"]
    seconds = record["fleet"].pop("seconds")
    assert seconds >= 0
    assert record == {
        **toy.record(runs.members["r2"]),
        "id": "r2",
        "study": "toy",
        "point": {"seed": 2},
        "fleet": {"id": plan[1]["id"], "size": 2, "index": 1, "map": "loop"},
        "origins": {"Run.kind": "default"},
    }
    assert not list((out / "claims").glob("[!p]*"))
    lines = [line for line in caplog.messages if line.startswith("fleet ")]
    assert "2 runs: 2 ok; 2 of 5 runs left, about " in lines[1]
    assert lines[2].endswith("2 runs: 2 ok; 0 of 5 runs left")


def test_what_is_done_is_not_done_again(out):
    runs = toy.study(out, members(out, 4), size=2)
    go(runs)
    go(runs)
    go(toy.study(out, members(out, 6), size=2))
    assert fleets_trained(out) == [["r0", "r1"], ["r2", "r3"], ["r4", "r5"]]


def test_checkpoints_of_a_fleet_go_when_its_records_are_there(out, monkeypatch):
    def train(fleet, folder, how):
        pathlib.Path(folder, "checkpoints").mkdir(parents=True)
        if len(toy.trained(out)) == 1:
            raise Interrupted(signal.SIGTERM, "saved step 3")
        return toy.log_and_train(out, 0)(fleet, folder, how)

    monkeypatch.setattr(launch, "train_fleet", train)
    runs = toy.study(out, members(out, 2), size=1)
    with pytest.raises(Interrupted, match="saved step 3"):
        go(runs)
    plan = packing.read_plan(str(out))
    assert [path.name for path in (out / "fleets").iterdir()] == [plan[1].id]
    assert sorted(path.stem for path in (out / "ledger").iterdir()) == ["r0"]
    assert claims.holder(out / "claims", plan[1].id) is None


def test_a_fleet_that_breaks_leaves_failed_records(out, monkeypatch):
    def train(fleet, folder, how):
        if fleet[0].id == "r0":
            raise RunFailed("the loss is not finite at step 3")
        if fleet[0].id == "r2":
            raise ValueError("a bug\nin two lines")
        return [toy.record(fleet[0]), toy.record(fleet[1], "failed", reason="not finite")]

    monkeypatch.setattr(launch, "train_fleet", train)
    runs = toy.study(out, members(out, 6), size=2)
    kept = out / "runs" / "r1"
    kept.mkdir(parents=True)
    (kept / "record.json").write_text(json.dumps({"config_hash": "hash", "curve": [1]}))
    (kept.parent / "r0").mkdir()
    (kept.parent / "r0" / "record.json").write_text(json.dumps({"config_hash": "x", "curve": [1]}))
    status = go(runs)
    assert [status[f"r{n}"] for n in range(6)] == ["failed"] * 4 + ["ok", "failed"]
    records = Finished(str(out)).records()
    assert records["r0"]["reason"] == "the loss is not finite at step 3"
    assert records["r2"]["reason"] == "ValueError: a bug\nin two lines"
    assert records["r1"]["curve"] == [1] and records["r0"]["curve"] == []
    assert records["r0"]["config"] == {"Run.kind": "a"} and records["r0"]["fleet"]["index"] == 0


def test_finish_names_what_failed(out, monkeypatch, capsys):
    def train(fleet, folder, how):
        return [toy.record(each, "failed", reason="no\nluck") for each in fleet]

    monkeypatch.setattr(launch, "train_fleet", train)
    runs = toy.study(out, members(out, 2), size=1)
    go(runs, Share((1, 2)))
    with pytest.raises(RunFailed, match="1 of 2 runs failed: r0; .*--retry"):
        launch.finish(runs, Finished(runs.folder))
    shown = capsys.readouterr().out
    assert "ok       0\n  failed   1\n  missing  1\n  r0 (seed=0): no luck\n" in shown
    monkeypatch.setattr(launch, "train_fleet", toy.log_and_train(out, 0))
    assert go(runs) == {"r0": "failed", "r1": "ok"}
    assert go(runs, retry=True) == {"r0": "ok", "r1": "ok"}
    assert fleets_trained(out) == [["r1"], ["r0"]]
    launch.finish(runs, Finished(runs.folder))


def test_needs_come_first_and_their_failure_is_told(out, monkeypatch):
    runs = toy.study(
        out,
        [
            *members(out, 2),
            toy.member(out, "r2", needs=("r0",)),
            toy.member(out, "r3", needs=("r1",)),
            toy.member(out, "r4", needs=("r2",)),
        ],
    )
    seen = []

    def train(fleet, folder, how):
        seen.append([each.id for each in fleet])
        return [toy.record(each, "failed" if each.id == "r0" else "ok") for each in fleet]

    monkeypatch.setattr(launch, "train_fleet", train)
    assert go(runs) == {"r0": "failed", "r1": "ok", "r2": "failed", "r3": "ok", "r4": "failed"}
    assert seen == [["r0", "r1"], ["r3"]]
    records = Finished(str(out)).records()
    assert records["r2"]["reason"] == "needs run r0 (seed=0), which failed"
    assert records["r4"]["reason"] == "needs run r2 (seed=2), which failed"
    monkeypatch.setattr(launch, "train_fleet", toy.log_and_train(out, 0))
    assert set(go(runs, retry=True).values()) == {"ok"}
    assert fleets_trained(out) == [["r0"], ["r2"], ["r4"]]


def test_parts_share_the_fleets(out):
    runs = toy.study(out, members(out, 5), size=1)
    go(runs, Share((2, 2)))
    assert fleets_trained(out) == [["r1"], ["r3"]]
    go(runs, Share((1, 2)))
    assert fleets_trained(out)[2:] == [["r0"], ["r2"], ["r4"]]


def test_a_part_ends_when_it_needs_one_that_nobody_trains(out, caplog):
    caplog.set_level(logging.INFO, "prompt_jax")
    runs = toy.study(out, [toy.member(out, "r0"), toy.member(out, "r1", needs=("r0",))])
    assert go(runs, Share((2, 2))) == {}
    assert "1 fleets need runs of another part; start it, then this again" in caplog.messages


def test_waits_for_others_only_if_it_needs_them(out, caplog):
    caplog.set_level(logging.INFO, "prompt_jax")
    runs = toy.study(out, [toy.member(out, "r0"), toy.member(out, "r1", needs=("r0",))])
    packing.ensure_plan(runs, Finished(str(out)), lambda: packing.Machine("cpu", 10**6))
    claim = claims.take(out / "claims", packing.read_plan(str(out))[0].id)
    alone = toy.study(out, [toy.member(out, "r0")])
    assert go(alone) == {}
    assert "1 fleets are with other launchers" in caplog.messages

    def other(_):
        Finished(str(out)).add("r0", toy.record(runs.members["r0"]))
        claim.release(for_good=True)

    launch.time.sleep, kept = other, launch.time.sleep
    try:
        assert go(runs) == {"r0": "ok", "r1": "ok"}
    finally:
        launch.time.sleep = kept
    assert fleets_trained(out) == [["r1"]]


def test_a_fleet_that_was_taken_over_publishes_nothing(out, monkeypatch):
    runs = toy.study(out, members(out, 1))

    def train(fleet, folder, how):
        file = next((out / "claims").glob("[!p]*"))
        file.rename(file.with_name(file.name.replace(".0.", ".1.")))
        return [toy.record(fleet[0])]

    monkeypatch.setattr(launch, "train_fleet", train)
    assert go(runs) == {}


# --- real processes ---


def start(out, count, size, mode):
    process = subprocess.Popen(
        [sys.executable, str(pathlib.Path(toy.__file__)), str(out), str(count), str(size), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def release(processes):
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_launches_at_once_do_no_run_twice(out):
    processes = [start(out, 60, 2, "race") for _ in range(2)]
    release(processes)
    assert [process.wait(60) for process in processes] == [0, 0]
    lines = toy.trained(out)
    assert sorted(name for name, _, _ in lines) == sorted(f"r{n}" for n in range(60))
    assert len(Finished(str(out)).records()) == 60
    assert {pid for _, pid, _ in lines} == {process.pid for process in processes}


@pytest.mark.slow
def test_the_fleet_of_a_killed_launcher_is_taken_over(out):
    victim = start(out, 4, 2, "hang")
    release([victim])
    until(lambda: toy.trained(out))
    victim.send_signal(signal.SIGKILL)
    heirs = [start(out, 4, 2, "race") for _ in range(2)]
    release(heirs)
    assert [process.wait(60) for process in heirs] == [0, 0]
    lines = toy.trained(out)
    assert lines[0][:2] == ["r0", victim.pid]
    again = [name for name, pid, _ in lines if pid != victim.pid]
    assert sorted(again) == ["r0", "r1", "r2", "r3"]
    assert lines[0][2] == next(fleet for name, _, fleet in lines[1:] if name == "r0")
    assert len(Finished(str(out)).records()) == 4


# --- workers ---


def test_devices_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert launch.visible_devices() == ["4", "5", "6"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.visible_devices() == []
    assert launch.shares_of_devices(2, ["4", "5", "6"]) == [
        {"CUDA_VISIBLE_DEVICES": "4,6"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert launch.shares_of_devices(2, []) == [{}, {}]
    with pytest.raises(UserError, match="--workers=3, but there are 2 devices"):
        launch.shares_of_devices(3, ["0", "1"])
