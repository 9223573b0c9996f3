"""The line between processes: who is missing, dead, silent or unlike, and the step all stop at."""

import json
import random
import socket
import threading
import time

import pytest

from prompt_jax.errors import RunFailed, UserError
from prompt_jax.parallel import lifeline
from prompt_jax.parallel.lifeline import Hub, Lifeline
from prompt_jax.parallel.multihost import Distributed, find_place


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(autouse=True)
def no_line_outlives_its_test(monkeypatch):
    """A line whose hub has gone ends its process: here, the test session."""
    lines, init = [], Lifeline.__init__

    def noted(self, *args, **kwargs):
        self._over = False
        lines.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Lifeline, "__init__", noted)
    yield
    for line in lines:
        line._over = True
    for line in lines:
        if hasattr(line, "_link"):
            line._link.close()
    time.sleep(0.1)


@pytest.fixture
def exits(monkeypatch, no_line_outlives_its_test):
    """Exit codes and words of processes that the line ends, in place of their ends."""
    found, words = [], []
    monkeypatch.setattr(lifeline.os, "_exit", found.append)
    monkeypatch.setattr(lifeline, "_GRACE", 0.2)
    monkeypatch.setattr("builtins.print", lambda *args, **_: words.append(" ".join(args)))
    return found, words


def until(condition):
    """Waits a few seconds at most."""
    end = time.monotonic() + 4
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def together(count, come=None, facts=None, join_timeout=20.0, silence=20.0):
    """[a Lifeline or the error of each process], all in threads of this one."""
    address = ("127.0.0.1", free_port())
    Hub(address, count, join_timeout, silence)
    made: dict = {}

    def join(place, index):
        own = (facts or {}).get(index, {"steps": 5})
        try:
            made[place] = Lifeline(address, index, count, own, join_timeout, silence)
        except (RunFailed, UserError) as error:
            made[place] = error

    indices = list(range(count)) if come is None else come
    threads = [threading.Thread(target=join, args=pair) for pair in enumerate(indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [made[place] for place in range(len(indices))], address


def test_the_missing_are_named_to_all():
    began = time.monotonic()
    made, _ = together(4, come=[0, 2], join_timeout=1.0)
    assert {str(error) for error in made} == {"processes 1, 3 of 4 did not come within 1 s"}
    assert all(isinstance(error, RunFailed) for error in made)
    assert time.monotonic() - began < 5


def test_no_hub_is_said_with_its_address():
    port = free_port()
    with pytest.raises(RunFailed, match=f"process 1: process 0 did not answer at 127.0.0.1:{port}"):
        Lifeline(("127.0.0.1", port), 1, 2, {}, 0.5, 5.0)


def test_another_configuration_is_named_to_all():
    made, _ = together(3, facts={1: {"steps": 6}})
    message = "process 1 runs something else: steps: 6 there, 5 on process 0"
    assert {str(error) for error in made} == {message}
    assert all(isinstance(error, UserError) for error in made)


def test_an_index_claimed_twice_and_another_count():
    made, _ = together(3, come=[0, 1, 1])
    assert "two processes claim to be process 1" in {str(error) for error in made}
    address = ("127.0.0.1", free_port())
    Hub(address, 2, 5.0, 5.0)
    with pytest.raises(UserError, match="process 1 says that there are 3 processes.*says 2"):
        Lifeline(address, 1, 3, {}, 5.0, 5.0)


@pytest.mark.filterwarnings("error")
def test_strangers_are_no_processes():
    address = ("127.0.0.1", free_port())
    Hub(address, 2, 20.0, 20.0)
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"stop": 15}\n', b"\xff" * 4000):
        with socket.create_connection(address) as stranger:
            stranger.sendall(text)
    made = []
    threads = [
        threading.Thread(target=lambda i=i: made.append(Lifeline(address, i, 2, {}, 20.0, 20.0)))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line.index for line in made) == [0, 1]


@pytest.mark.parametrize("seed", range(6))
def test_a_signal_to_one_stops_all_after_the_same_step(seed, monkeypatch):
    """As a run: no process ends step n before all have begun it; the network takes its time."""
    count, rng, tell = 4, random.Random(seed), Hub._tell

    def slowly(self, **message):
        time.sleep(rng.uniform(0, 0.1))
        tell(self, **message)

    monkeypatch.setattr(Hub, "_tell", slowly)
    lines, _ = together(count)
    when, who = rng.randrange(1, 12), rng.randrange(count)
    begun = threading.Barrier(count)
    stopped: dict[int, tuple[int, int]] = {}

    def work(line, delays):
        for step, delay in enumerate(delays, 1):
            begun.wait(timeout=20)  # the collectives of a step
            time.sleep(delay)
            signum = 15 if line.index == who and step >= when else None
            if found := line.agree(step, signum):
                stopped[line.index] = (step, found)
                return

    threads = [
        threading.Thread(target=work, args=(line, [rng.uniform(0, 0.01) for _ in range(200)]))
        for line in lines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    steps = {step for step, _ in stopped.values()}
    assert len(stopped) == count and len(steps) == 1, stopped
    assert {signum for _, signum in stopped.values()} == {15}
    assert when <= steps.pop()
    assert all(line.agreed for line in lines)


def test_a_death_ends_the_others_with_its_index(exits):
    found, words = exits
    lines, _ = together(3)
    lines[0].last_words = lambda: "last good checkpoint: out/5"
    lines[2]._link.close()  # as the kernel does for a killed process
    said = "process 2 ended without a word (killed?); process 0 ends. last good checkpoint: out/5"
    until(lambda: said in words and len(found) == 3)
    assert set(found) == {3}


def test_a_process_that_hangs_is_missed(exits):
    found, words = exits
    address = ("127.0.0.1", free_port())
    Hub(address, 2, 20.0, 1.0)
    hanging = socket.create_connection(address)
    hanging.sendall(json.dumps({"hello": 1, "count": 2, "facts": {}}).encode() + b"\n")
    Lifeline(address, 0, 2, {}, 20.0, 1.0)
    said = "process 1 has been silent for 1 s; process 0 ends."
    until(lambda: said in words and found)
    assert found == [3]


def test_a_failure_of_one_is_told_to_all_and_the_first_counts(exits):
    found, words = exits
    lines, _ = together(3)
    assert lines[1].fail(2, "no such file") is None
    until(lambda: len(found) == 2)
    assert found == [2, 2] and "process 1: no such file; process 2 ends." in words
    lines, _ = together(2)
    lines[1]._link.close()
    assert lines[0].fail(1, "a collective failed") == (
        3,
        "process 1 ended without a word (killed?)",
    )
    until(lambda: len(found) >= 3)  # the one whose line was cut


def test_those_who_are_done_may_leave(exits):
    found, _ = exits
    lines, _ = together(2)
    for line in reversed(lines):
        line.leave()
        line._link.close()
        time.sleep(0.3)
        assert found == []


# --- where a process stands ------------------------------------------------------------------

FLAGS = {"coordinator": "10.0.0.1:1234", "num_processes": 4, "process_id": 2}


def test_a_place_from_flags_or_environment():
    assert find_place(Distributed(), {}) is None
    assert find_place(Distributed(num_processes=1), {"SLURM_NTASKS": "8"}) is None
    place = find_place(Distributed(**FLAGS), {})
    assert (place.address, place.count, place.index) == (("10.0.0.1", 1234), 4, 2)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    environment = dict(zip(names, map(str, FLAGS.values()), strict=True))
    assert find_place(Distributed(), environment) == place
    assert find_place(Distributed(process_id=3), environment).index == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinator": None}, "--coordinator is missing"),
        ({"num_processes": None, "process_id": None}, "--num_processes, --process_id are missing"),
        ({"process_id": 4}, "--process_id=4 is not among 0..3"),
        ({"coordinator": "host"}, "--coordinator=host: write HOST:PORT"),
    ],
)
def test_half_a_place_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        find_place(Distributed(**{**FLAGS, **changes}), {})


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def test_a_place_from_slurm(monkeypatch):
    def place(**changes):
        environment = {**SLURM, **changes}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return find_place(Distributed(), environment)

    one = place()
    assert (one.count, one.index, one.local_devices) == (2, 1, None)
    assert one.address[0] == "node03"
    several = place(SLURM_NTASKS="8", SLURM_STEP_TASKS_PER_NODE="4(x2)", SLURM_LOCALID="3")
    assert several.local_devices == (3,)
    bound = place(SLURM_NTASKS="8", SLURM_STEP_TASKS_PER_NODE="4(x2)", CUDA_VISIBLE_DEVICES="3")
    assert bound.local_devices is None
    assert place(SLURM_NTASKS="1") is None
    alone = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    assert find_place(Distributed(), alone) is None  # a batch script that did not call srun
