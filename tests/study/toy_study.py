"""A study of toy runs, without gin and without training: what launchers do with fleets.

Run as a script it is one launcher: `toy_study.py OUT RUNS SIZE MODE`.
"""

import dataclasses
import json
import os
import pathlib
import sys
import time
from types import SimpleNamespace
from typing import ClassVar

from prompt_jax.config import Resolved
from prompt_jax.study import launch, packing
from prompt_jax.study.finished import Finished
from prompt_jax.study.grid import Axis, Point
from prompt_jax.study.launch import Share
from prompt_jax.study.packing import Bytes, Fleets
from prompt_jax.study.study import Member, Runs, Study


@dataclasses.dataclass(frozen=True)
class ToyMethod:
    slots: int
    name: str = "toy"
    varies: ClassVar[tuple[str, ...]] = ("slots",)


@dataclasses.dataclass(frozen=True)
class ToyRun:
    model_dir: str
    random_seed: int
    kind: str = "a"
    slots: int = 0
    varies: ClassVar[tuple[str, ...]] = ("model_dir", "random_seed", "slots")
    data = SimpleNamespace(mixture_or_task_name="task")
    backbone = SimpleNamespace(checkpoint="prompt_jax:micro_xs", config="config")
    parallel = SimpleNamespace(model=1)
    num_microbatches = 1

    @property
    def method(self):
        return ToyMethod(self.slots)


def member(out, name, kind="a", needs=(), slots=0):
    run = ToyRun(f"{out}/runs/{name}", int(name[1:]), kind, slots)
    resolved = Resolved(run, {"Run.kind": kind}, {"Run.kind": "default"}, "", "hash")
    return Member(name, Point({"seed": int(name[1:])}), resolved, tuple(needs))


def study(out, members, size=0, **fleets):
    """A study of `members` in the folder `out`."""
    how = Fleets(size=size, **fleets)
    whole = Study("toy", Axis("seed", (1,)), out_dir=str(out), fleets=how)
    return Runs(whole, {each.id: each for each in members})


def record(member, status="ok", **more):
    return {"run": member.id, "status": status, "steps": 1, "reason": None, **more}


def measure(run):
    return Bytes(100, state=20 + run.slots, gradients=5, batch=5, activations=50)


def log_and_train(out, pause):
    """A trainer that writes down what it trains, run after run."""

    def train(members, folder, how):
        for each in members:
            with open(f"{out}/trained.jsonl", "a") as file:
                file.write(json.dumps([each.id, os.getpid(), pathlib.Path(folder).name]) + "\n")
            time.sleep(pause)
        return [record(each) for each in members]

    return train


def trained(out):
    """Every line of the log: [run, process, fleet]."""
    file = pathlib.Path(out) / "trained.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(out, count, size, mode):
    members = [member(out, f"r{n}") for n in range(int(count))]
    runs = study(out, members, int(size))
    pause = {"race": 0.003, "slow": 0.5, "hang": 1000.0}[mode]
    launch.train_fleet = log_and_train(out, pause)
    packing.bytes_of = measure
    print("ready", flush=True)
    sys.stdin.readline()
    launch.launch(runs, Share(), Finished(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
