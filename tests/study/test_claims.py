"""Claims: one holder at a time, among real processes, of which some are killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from prompt_jax.study import claims

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Takes what is free of `count` names, says which, and holds it until its input ends.
HOLD = """
import sys
from prompt_jax.study import claims
folder, count = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
held = {n: c for n in range(count) if (c := claims.take(folder, f"f{n}"))}
print(*held, flush=True)
sys.stdin.read()
"""


def start(folder, count):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def race(processes):
    """Starts all at once; what each of them holds."""
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [set(map(int, process.stdout.readline().split())) for process in processes]


def end(processes):
    for process in processes:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_one_holder_at_a_time(tmp_path):
    first = claims.take(tmp_path, "a")
    assert claims.take(tmp_path, "a") is None and claims.take(tmp_path, "b") is not None
    about = claims.holder(tmp_path, "a")
    assert about["pid"] == os.getpid() and about["machine"] == claims.machine()
    assert about["started"] == claims.started(os.getpid()) and about["time"] <= time.time()
    first.release()
    assert claims.holder(tmp_path, "a") is None
    with claims.take(tmp_path, "a") as second:
        assert claims.holder(tmp_path, "a") and not second.lost
    assert claims.holder(tmp_path, "a") is None
    claims.take(tmp_path, "a").release(for_good=True)
    assert not list(tmp_path.glob("a.*"))


def test_a_claim_is_released_by_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), claims.take(tmp_path, "a"):
        raise KeyboardInterrupt
    assert claims.holder(tmp_path, "a") is None


def test_processes_that_race_share_the_names(tmp_path):
    processes = [start(tmp_path, 200) for _ in range(3)]
    held = race(processes)
    assert sum(map(len, held)) == 200 and set().union(*held) == set(range(200))
    end(processes)


def test_the_claims_of_a_killed_process_are_taken_over_once(tmp_path):
    holder = start(tmp_path, 100)
    assert race([holder]) == [set(range(100))]
    assert claims.take(tmp_path, "f0") is None
    heirs = [start(tmp_path, 100) for _ in range(3)]
    holder.send_signal(signal.SIGKILL)  # not waited for: a zombie is as dead
    time.sleep(0.2)
    held = race(heirs)
    assert sum(map(len, held)) == 100 and set().union(*held) == set(range(100))
    end([*heirs, holder])


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path):
    claims.take(tmp_path, "a")
    file = tmp_path / "a.0.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "started": "1"}))
    assert claims.take(tmp_path, "a") is not None


def test_another_machine_is_alive_while_it_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "machine", lambda: "elsewhere")
    monkeypatch.setattr(claims, "BEAT", 0.05)
    far = claims.take(tmp_path, "a")
    monkeypatch.undo()
    file = tmp_path / "a.0.json"
    os.utime(file, (0, 0))
    monkeypatch.setattr(claims, "BEAT", 0.05)
    time.sleep(0.3)
    assert claims.take(tmp_path, "a") is None  # it has touched its file
    far._stop.set()
    far._thread.join()
    os.utime(file, (time.time() - claims.LIMIT + 20,) * 2)
    assert claims.take(tmp_path, "a") is None
    os.utime(file, (time.time() - claims.LIMIT - 20,) * 2)
    ours = claims.take(tmp_path, "a")
    assert ours is not None and far.lost and not ours.lost
    far.release()
    assert claims.take(tmp_path, "a") is None  # who has lost it cannot release it
    assert [p.name for p in tmp_path.glob("a.*")] == ["a.1.json"]


def test_a_late_comer_does_not_take_a_number_of_long_ago(tmp_path, monkeypatch):
    """It saw number 0 released, and slept while others took 1 and 2."""
    claims.take(tmp_path, "a").release()
    real = claims._create

    def slow(file):
        monkeypatch.setattr(claims, "_create", real)
        claims.take(tmp_path, "a").release()  # 1
        assert claims.take(tmp_path, "a") is not None  # 2
        assert not (tmp_path / "a.1.json").exists()
        return real(file)

    monkeypatch.setattr(claims, "_create", slow)
    assert claims.take(tmp_path, "a") is None
    assert [p.name for p in tmp_path.glob("a.*")] == ["a.2.json"]


def test_started():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert claims.started(child.pid) == claims.started(child.pid) is not None
    child.kill()
    time.sleep(0.2)
    assert claims.started(child.pid) is None  # not yet waited for
    child.communicate()
    assert claims.started(child.pid) is None
