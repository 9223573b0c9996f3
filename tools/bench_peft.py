"""Time, memory and checkpoints of prompt tuning against PEFT on PyTorch, both in turn.

    .venv/bin/python tools/bench_peft.py --peft_python PATH --json out/bench.json
    .venv/bin/python tools/bench_peft.py --peft_python PATH --json out/bench_gpu.json --gpu
    .venv/bin/python tools/bench_table.py out/bench.json out/bench_gpu.json   # docs/performance.md

PATH is the Python of a venv with torch, transformers and peft (the extra `parity`; keep it apart
from the project's own). Each side stays alive in a process of its own, on the same cores, and
takes its turn block by block, so that what else the machine does falls on both. Both read the same
random weights and the same examples; before any clock runs they must find the same loss and the
same gradient norm of the prompt: they do the same work, packed here, padded there.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout's package, whatever is installed

from bench_table import bars, machine, show  # noqa: E402

from prompt_jax import bench, environment, workbench  # noqa: E402

# Relative: of the loss, and of the gradient's norm, which went through every layer twice.
TOLERANCE = {"float32": (1e-3, 1e-3), "bfloat16": (2e-2, 1e-1)}
SAME = ("parameters", "trainable")
ONE_GPU = {"CUDA_VISIBLE_DEVICES": "0"}  # of several the same one, unless the caller says which
PAUSE = 1.0  # seconds: threads of OpenMP and MKL spin for a while after their last product


# --- the two processes ---


class Side:
    """A worker process that waits for its turn."""

    def __init__(self, name: str, command: list[str], env: dict[str, str]):
        """Starts it and waits until its backbone is in memory."""
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**ONE_GPU, **os.environ, **env},
        )
        self._reply()
        self.about = self.ask("about")

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench_peft: the {self.name} side ended: exit {self.process.wait()}")
        return json.loads(line)

    def ask(self, do: str, **arguments) -> dict:
        """What the side's method `do` returns; {"full": why} where a device's memory is full."""
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        self.process.stdin.close()
        self.process.wait(timeout=60)


def ours_command(args, model: str, folder: str) -> tuple[list[str], dict[str, str]]:
    """How our side is started."""
    gin = [f"DROPOUT_RATE={args.dropout}", "Z_LOSS=0.0"]  # PEFT's loss is plain cross-entropy
    gin += [f"T5Config.{name}='{args.dtype}'" for name in ("param_dtype", "dtype")]
    flags = [f"--model={model}", f"--folder={folder}", *(f"--gin={each}" for each in gin)]
    env = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": str(args.memory),
        "GLIBC_TUNABLES": environment.HUGE_PAGES,  # as `prompt-jax` starts itself
    }
    return [sys.executable, str(ROOT / "tools" / "bench_ours.py"), *flags], env


def theirs_command(args, folder: str) -> tuple[list[str], dict[str, str]]:
    """How PEFT's side is started."""
    flags = [f"--{k}={getattr(args, k)}" for k in ("threads", "dtype", "dropout", "memory")]
    script = str(ROOT / "tools" / "bench_theirs.py")
    env = {"OMP_NUM_THREADS": str(args.threads), "TRANSFORMERS_VERBOSITY": "error"}
    return [args.peft_python, script, f"--folder={folder}", *flags], env


# --- cases ---


def unpadded(args, batch: int, name: str) -> dict:
    """The case of examples that are all as long."""
    shape = {"batch": batch, "inputs": args.inputs, "targets": args.targets}
    return {
        "name": name,
        "kind": "unpadded",
        **shape,
        "prompt": args.prompt_length,
        "steps": args.steps,
    }


def cases(args) -> list[dict]:
    """The cases of training steps; `steps` is how many of its batches a block holds."""
    found = []
    if "unpadded" in args.only:
        for batch in args.batch:
            name = "unpadded" if len(args.batch) == 1 else f"unpadded-{batch}"
            found.append(unpadded(args, batch, name))
    if "sst2" in args.only:
        sst2 = {"kind": "sst2", "batch": args.examples, "row": args.row, "steps": args.batches}
        for prompt in (20, 100):
            found.append({"name": f"sst2-p{prompt}", "prompt": prompt, **sst2})
    return found


def alternate(blocks: dict, repeat: int, label: str) -> dict[str, list[float]]:
    """Blocks in turn, each first in its turn; name -> seconds of each but the first, a warm-up.

    A side whose memory is full is left out.
    """
    found = {name: [] for name in blocks}
    for number in range(repeat + 1):
        names, at = list(found), number % max(len(found), 1)
        for name in [*names[at:], *names[:at]]:
            reply = blocks[name]()
            time.sleep(PAUSE)
            if "full" in reply:
                del found[name]
                print(f"{label} {name}: {reply['full']}", flush=True)
            elif number:  # the first warms up
                found[name].append(reply["seconds"])
        last = "  ".join(f"{n} {s[-1]:.3f}" for n, s in found.items() if s)
        print(f"{label} block {number}: {last or 'warm'}", flush=True)
    return found


def same_work(ours: dict, peft: dict, tolerance: tuple[float, float], where: str) -> None:
    """Ends the program where the two sides compute different things."""
    loss, norm = tolerance
    for key, bound in (("loss", loss), ("grad_norm", norm), *((name, 0.0) for name in SAME)):
        if key in ours and not math.isclose(ours[key], peft[key], rel_tol=bound):
            sys.exit(f"bench_peft: {where}: not the same work: {key} {ours[key]} != {peft[key]}")


def train_case(args, case: dict, ours: Side, peft: Side) -> dict:
    """A case of training steps, both sides in turn, PEFT's group_by_length as a third."""
    name, count = case["name"], case["steps"]
    opened = {"ours": ours.ask("open", case=case), "peft": peft.ask("open", case=case)}
    if not any("full" in each for each in opened.values()):
        same_work(opened["ours"], opened["peft"], TOLERANCE[args.dtype], name)
    turns = {"ours": (ours, name), "peft": (peft, name)}
    if case["kind"] == "sst2":
        opened["grouped"] = peft.ask("open", case=case, grouped=True)
        turns["grouped"] = (peft, f"{name}-grouped")
    blocks = {
        each: lambda side=side, key=key: side.ask("steps", name=key, count=count)
        for each, (side, key) in turns.items()
        if "full" not in opened[each]
    }
    seconds = alternate(blocks, args.blocks, name)
    found = {"case": case, "opened": opened, "seconds": seconds, **ratios(opened, seconds)}
    if case["kind"] == "unpadded":
        found["memory"] = {side.name: side.ask("memory") for side in (ours, peft)}
        if "checkpoint" in args.only and len(seconds) == 2:
            found["checkpoint"] = {
                side.name: side.ask("save", name=name, repeat=args.blocks) for side in (ours, peft)
            }
    for side, key in turns.values():
        side.ask("close", name=key)
    return found


def ratios(opened: dict, seconds: dict[str, list[float]]) -> dict:
    """Rates of each side, and ours against each of theirs, block by block."""
    rate = {
        name: [opened[name]["examples"] / each for each in times] for name, times in seconds.items()
    }
    speedup = {
        name: bench.spread([a / b for a, b in zip(rate["ours"], rate[name], strict=True)])
        for name in rate
        if name != "ours" and "ours" in rate
    }
    peak, work = opened["ours"].get("peak_flops"), opened["ours"].get("flops")
    return {
        "examples_per_second": {name: bench.spread(each) for name, each in rate.items()},
        "speedup": speedup,
        "quiet": all(max(each) <= bench.QUIET * min(each) for each in seconds.values()),
        "mfu": {
            name: bench.spread([work / each / peak for each in times])
            for name, times in seconds.items()
            if peak and name != "grouped"
        },
    }


def mixed_case(args, ours: Side, peft: Side) -> dict:
    """Mixed prompts here; PEFT, which has none, with one prompt."""
    blocks = {}
    for k in (k for k in (1, 16, 256) if k <= args.requests):
        shape = ours.ask("open_mixed", name=str(k), prompts=k, requests=args.requests)
        blocks[str(k)] = lambda k=k: ours.ask("mixed", name=str(k))
    peft.ask("open_mixed", name="mixed", **shape)
    blocks["peft"] = lambda: peft.ask("mixed", name="mixed")
    seconds = alternate(blocks, args.blocks, "mixed")
    return bench.mixed_rates(seconds, args.requests)


def start_case(args, model: str, folder: str) -> dict:
    """Processes from their start to the end of their first step."""
    shape = workbench.Shape(args.batch[0], args.inputs, args.prompt_length, args.targets)
    bindings = [
        *workbench.start_bindings(shape),
        f"INITIAL_CHECKPOINT_PATH='{folder}/backbone'",
        "Backbone.random_weights=False",
        f"DROPOUT_RATE={args.dropout}",
    ]
    found = {"cold": [], "warm": [], "peft": []}
    command, env = theirs_command(args, folder)
    command += [f"--first_step={args.prompt_length}"]
    for number in range(args.starts):
        with tempfile.TemporaryDirectory() as caches:
            for name in ("cold", "warm"):
                found[name].append(workbench.first_step_seconds(model, bindings, 0, caches))
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
        ) as process:
            done = process.stdout.readline()
            seconds = time.perf_counter() - began
        if not done:
            sys.exit("bench_peft: PEFT's process ended before its first step")
        found["peft"].append(seconds)
        print(f"start {number}: { ({k: round(v[-1], 2) for k, v in found.items()}) }", flush=True)
    return found


# --- a record ---


def compare(args, model: str) -> Iterator[dict]:
    """All cases of one model, as a part of the record, which grows case by case."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        command, env = ours_command(args, model, folder)
        subprocess.run([*command, "--make"], env={**ONE_GPU, **os.environ, **env}, check=True)
        peft = Side("peft", *theirs_command(args, folder))
        stack.callback(peft.close)
        ours = Side("ours", command, env)
        stack.callback(ours.close)
        same_work(ours.about, peft.about, (0.0, 0.0), model)
        found = {"about": {"ours": ours.about, "peft": peft.about}, "steps": {}}
        for case in cases(args):
            found["steps"][case["name"]] = train_case(args, case, ours, peft)
            yield found
        if "mixed" in args.only:
            found["mixed"] = mixed_case(args, ours, peft)
            yield found
        if "start" in args.only:
            case = unpadded(args, args.batch[0], "unpadded")
            ours.ask("open", case=case)  # writes the batch that PEFT's process reads
            ours.close()  # nothing else runs on the cores
            peft.close()
            found["start"] = start_case(args, model, folder)
    yield found


KINDS = ("unpadded", "sst2", "mixed", "checkpoint", "start")
GPU = {
    "model": "t5_1_1_base,t5_1_1_large,t5_1_1_xl,t5_1_1_xxl",
    "dtype": "bfloat16",
    "batch": "8,32,64",
    "inputs": 512,
    "examples": 128,
    "row": 612,
    "steps": 5,
    "batches": 5,
    "only": "unpadded,sst2",
}
TINY = {
    "model": "micro_xs",
    "batch": "3",
    "inputs": 12,
    "prompt_length": 5,
    "examples": 6,
    "requests": 16,
    "batches": 2,
    "steps": 2,
    "blocks": 2,
    "starts": 1,
}


def flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed flags; `--gpu` and `--tiny` change defaults alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peft_python", help="Python with torch, transformers and peft")
    parser.add_argument("--gpu", action="store_true", help="the sizes and shapes of a large GPU")
    parser.add_argument("--tiny", action="store_true", help="a tiny T5: a test of this tool")
    parser.add_argument("--model", default="t5_1_1_small", help="NAME,NAME of models/NAME.gin")
    parser.add_argument("--only", default=",".join(KINDS), help="cases, with commas")
    parser.add_argument("--threads", type=int, default=2, help="cores, the same for both")
    parser.add_argument("--blocks", type=int, default=7, help="timed blocks of each side")
    parser.add_argument("--dropout", type=float, default=0.0, help="on both sides")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE, help="on both sides")
    parser.add_argument("--batch", default="16", help="examples, unpadded; several with commas")
    parser.add_argument("--inputs", type=int, default=128, help="own tokens, unpadded")
    parser.add_argument("--targets", type=int, default=8, help="target tokens, unpadded")
    parser.add_argument("--prompt_length", type=int, default=100, help="slots, unpadded")
    parser.add_argument("--steps", type=int, default=3, help="steps of an unpadded block")
    parser.add_argument("--examples", type=int, default=32, help="examples a batch, sst2")
    parser.add_argument("--row", type=int, default=0, help="our packed row, sst2; 0: chosen")
    parser.add_argument("--batches", type=int, default=8, help="batches of an sst2 block")
    parser.add_argument("--requests", type=int, default=256, help="requests, mixed")
    parser.add_argument("--starts", type=int, default=3, help="processes started, each kind")
    parser.add_argument("--memory", type=float, default=0.45, help="of a GPU's, each side")
    parser.add_argument("--json", help="also write the record here, after every case")
    asked, _ = parser.parse_known_args(argv)
    parser.set_defaults(**((GPU if asked.gpu else {}) | (TINY if asked.tiny else {})))
    args = parser.parse_args(argv)
    args.only, args.model = args.only.split(","), args.model.split(",")
    args.batch = [int(each) for each in args.batch.split(",")]
    unknown = sorted(set(args.only) - set(KINDS))
    if unknown:
        parser.error(f"--only {unknown[0]!r}: choose from {', '.join(KINDS)}")
    if not args.peft_python:
        parser.error("--peft_python PATH is needed: a venv with torch, transformers and peft")
    return args


def main() -> None:
    """Measures; shows and writes the record."""
    args = flags()
    if hasattr(os, "sched_setaffinity") and not args.gpu:  # for all processes started from here
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    shown = {name: value for name, value in vars(args).items() if name not in ("json",)}
    command = " ".join(["tools/bench_peft.py", *sys.argv[1:]])
    record = {"command": command, "flags": shown, **bench.about(), "machine": machine()}
    record["models"] = {}
    for model in args.model:
        for found in compare(args, model):  # after every case: what is measured stays
            record["models"][model] = found
            record["load_average_after"] = os.getloadavg()
            record["bars"] = bars(record)
            if args.json:
                pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
                pathlib.Path(args.json).write_text(json.dumps(record, indent=1) + "\n")
    print(show(record))


if __name__ == "__main__":
    main()
