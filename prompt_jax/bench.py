"""`prompt-jax bench`: what a run costs here: steps, mixed prompts, start, memory, checkpoints.

Needs neither task files nor a network (`workbench.py`); `tools/bench_peft.py` times the same
objects in turn with PEFT's.
"""

import dataclasses
import datetime
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from prompt_jax import ledger, workbench
from prompt_jax.ckpt.prompt_file import write_bytes
from prompt_jax.errors import UserError, nearest

QUIET = 1.2  # slowest block over fastest, at most, on a machine that does nothing else

# Dense bfloat16 FLOPs a second, by the beginning of the device's name; the makers' data sheets.
PEAK = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


# --- numbers ---


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median with its interval by order statistics, distribution-free.

    The k-th smallest and k-th largest of n enclose the median with probability
    1 - 2 P(Binomial(n, 1/2) < k); the largest k that gives 95 % is taken, 1 where none does.

    Returns:
        {"median", "low", "high", "coverage", "min", "max", "n"}.

    Source: H. A. David and H. N. Nagaraja, "Order Statistics", 2003, section 7.1.
    """
    ordered, n = sorted(values), len(values)
    coverage = lambda k: 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n  # noqa: E731
    k = max([1, *(k for k in range(1, n // 2 + 1) if coverage(k) >= 0.95)])
    return {
        "median": statistics.median(ordered),
        "low": ordered[k - 1],
        "high": ordered[-k],
        "coverage": round(max(coverage(k), 0.0), 4),
        "min": ordered[0],
        "max": ordered[-1],
        "n": n,
    }


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOPs a second of all devices here, or None for one that PEAK lacks."""
    names = [name for name in PEAK if device_kind.startswith(name)]
    return PEAK[max(names, key=len)] * jax.device_count() if names else None


def rates(work: dict[str, Any], seconds: Sequence[float], count: int) -> dict[str, Any]:
    """What a case's blocks say.

    Args:
        work: of `Steps.work`.
        seconds: of each block.
        count: steps of a block.

    Returns:
        The work, {"seconds" of each block, "step_seconds" (spread), "examples_per_second",
        "flops_per_second", "mfu" (where the device is known), "quiet"}.
    """
    middle = statistics.median(seconds)
    found = {
        **work,
        "seconds": list(seconds),
        "step_seconds": spread([each / count for each in seconds]),
        "examples_per_second": work["examples"] / middle,
        "flops_per_second": work["flops"] / middle,
        "quiet": max(seconds) <= QUIET * min(seconds),
    }
    peak = peak_flops(jax.devices()[0].device_kind)
    return {**found, "mfu": found["flops_per_second"] / peak} if peak else found


def timed(blocks: dict[str, Callable[[], float]], repeat: int) -> dict[str, list[float]]:
    """Blocks in turn, `repeat` times after one that warms up: name -> seconds of each."""
    found = {name: [] for name in blocks}
    for number in range(repeat + 1):
        for name, block in blocks.items():
            seconds = block()
            if number:
                found[name].append(seconds)
    return found


# --- the verb ---


def _steps_case(steps: workbench.Steps, count: int, repeat: int) -> dict[str, Any]:
    seconds = timed({"": lambda: steps.block(count)}, repeat)[""]
    return rates(steps.work(count), seconds, count)


def _unpadded(bench: workbench.Bench, args) -> dict[str, Any]:
    return _steps_case(workbench.unpadded(bench, _shape(args)), args.steps, args.repeat)


def _sst2(bench: workbench.Bench, args) -> dict[str, Any]:
    cases = {f"P={p}": workbench.sst2(bench, p, args.examples, args.row) for p in (20, 100)}
    return {name: _steps_case(each, args.batches, args.repeat) for name, each in cases.items()}


def _mixed(bench: workbench.Bench, args) -> dict[str, Any]:
    cases = {
        str(k): workbench.Mixed(bench, k, args.requests) for k in (1, 16, 256) if k <= args.requests
    }
    seconds = timed({name: each.block for name, each in cases.items()}, args.repeat)
    return mixed_rates(seconds, args.requests)


def mixed_rates(seconds: dict[str, list[float]], requests: int) -> dict[str, Any]:
    """Requests a second for each K, and each K's throughput as a share of K = 1."""
    alone = seconds["1"]
    return {
        "requests": requests,
        "prompt": workbench.MIXED_PROMPT,
        "seconds": seconds,
        "requests_per_second": {k: requests / statistics.median(s) for k, s in seconds.items()},
        "of_one": {
            k: spread([a / b for a, b in zip(alone, s, strict=True)]) for k, s in seconds.items()
        },
    }


def _start(bench: workbench.Bench, args) -> dict[str, Any]:
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    bindings, backbone = [*workbench.start_bindings(_shape(args)), *args.gin], bench.run.backbone
    rows = 0 if backbone.vocabulary or backbone.checkpoint else bench.config.vocab_size
    for _ in range(args.starts):
        with tempfile.TemporaryDirectory() as caches:
            for name in found:
                found[name].append(workbench.first_step_seconds(args.model, bindings, rows, caches))
    return found


def _memory(bench: workbench.Bench, args) -> dict[str, Any]:
    steps = workbench.unpadded(bench, _shape(args))
    steps.block(args.steps)
    return workbench.memory(bench)


def _checkpoint(bench: workbench.Bench, args) -> dict[str, Any]:
    return workbench.checkpoint(workbench.unpadded(bench, _shape(args)), args.repeat)


# In this order: memory is the most that was held so far.
CASES = {
    "memory": _memory,
    "unpadded": _unpadded,
    "sst2": _sst2,
    "mixed": _mixed,
    "checkpoint": _checkpoint,
    "start": _start,
}


def _shape(args) -> workbench.Shape:
    return workbench.Shape(args.batch, args.inputs, args.prompt_length, args.targets)


def chosen(only: str) -> list[str]:
    """The cases that `--only` names, in the order in which they run.

    Raises:
        UserError: an unknown one.
    """
    names = [name.strip() for name in only.split(",") if name.strip()] or list(CASES)
    for name in names:
        if name not in CASES:
            raise UserError(f"--only {name!r} is unknown: {nearest(name, CASES)}")
    return [name for name in CASES if name in names]


def about() -> dict[str, Any]:
    """When and where a record is of."""
    return {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code_version": ledger.code_version(),
        "versions": ledger.versions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_average": os.getloadavg(),
    }


def bench_command(args) -> dict[str, Any]:
    """`prompt-jax bench`: a short table, and a record with `--json`.

    Raises:
        UserError: an unknown case or model.
    """
    names = chosen(args.only)
    record = {"model": args.model, "gin": args.gin, "shape": dataclasses.asdict(_shape(args))}
    record |= about()
    bench = workbench.Bench.open(args.model, args.gin)
    device = jax.devices()[0].device_kind
    record |= {"devices": {"kind": device, "count": jax.device_count()}, "cases": {}}
    for name in names:
        record["cases"][name] = CASES[name](bench, args)
        print("\n".join(lines(name, record["cases"][name])), flush=True)
        if args.json:  # after every case: what is measured stays, whatever comes
            write_bytes(epath.Path(args.json), json.dumps(record, indent=1).encode())
    return record


def lines(name: str, case: dict[str, Any]) -> list[str]:
    """A case as lines of the table."""
    if "step_seconds" in case:
        step, mfu = case["step_seconds"], f"  MFU {case['mfu']:.1%}" if "mfu" in case else ""
        busy = "" if case["quiet"] else "  (the machine was busy)"
        padding = 1 - case["positions"] / case["computed"]
        return [
            f"{name:<14} {step['median']:.3f} s a step [{step['low']:.3f}, {step['high']:.3f}]  "
            f"{case['examples_per_second']:.1f} examples/s  padding {padding:.0%}  "
            f"{case['flops_per_second'] / 1e12:.3f} TFLOP/s{mfu}{busy}"
        ]
    if name == "sst2":
        return [line for p, each in case.items() for line in lines(f"sst2 {p}", each)]
    if name == "mixed":
        rate, share = case["requests_per_second"], case["of_one"]
        return [
            f"mixed K={k:<6} {rate[k]:.1f} requests/s  {share[k]['median']:.3f} of one prompt's "
            f"[{share[k]['low']:.3f}, {share[k]['high']:.3f}]"
            for k in rate
        ]
    if name == "checkpoint":
        median = statistics.median(case["seconds"])
        return [f"{name:<14} {case['bytes']:,} bytes  {median:.3f} s"]
    if name == "start":
        cold, warm = (statistics.median(case[kind]) for kind in ("cold", "warm"))
        return [f"{name:<14} first step after {cold:.1f} s cold, {warm:.1f} s warm"]
    return [f"{name:<14} " + "  ".join(f"{key} {value:,.0f}" for key, value in case.items())]
