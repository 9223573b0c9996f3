"""Tables of `bench_peft.py`'s records: on the terminal, and as docs/performance.md.

    .venv/bin/python tools/bench_table.py out/bench.json [out/bench_gpu.json] [--out FILE]

A record says when, where, with which versions and by which command it was measured; the document
says no more than its records do.
"""

import argparse
import json
import pathlib
import platform
import statistics
from collections.abc import Sequence
from typing import Any

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "performance.md"
PEFT = {"peft": "PEFT", "grouped": "PEFT, group_by_length"}
XL = "t5_1_1_xl"

Row = list[str]


def machine() -> dict[str, Any]:
    """The processor's name and the memory, as the system tells them."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = pathlib.Path("/proc/meminfo")
    total = memory.read_text().split()[1] if memory.exists() else 0
    return {
        "processor": names[0] if names else platform.processor(),
        "system": platform.platform(),
        "memory_gb": round(int(total) / 2**20, 1),
    }


# --- numbers ---


def ratio(spread: dict[str, float], digits: int = 2) -> str:
    """A median with its interval."""
    return (
        f"{spread['median']:.{digits}f} [{spread['low']:.{digits}f}, {spread['high']:.{digits}f}]"
    )


def inverse(spread: dict[str, float]) -> dict[str, float]:
    """The spread of 1 / x: order is turned round, and so is the median of an odd number."""
    turned = {"median": 1 / spread["median"], "low": 1 / spread["high"]}
    return {**turned, "high": 1 / spread["low"]}


def bars(record: dict) -> list[dict[str, Any]]:
    """What was promised against what was measured; a bar without its case is left out.

    Returns:
        {"name", "value", "bar", "met"} each; "≤" and "≥" in the bar say which side is good.
    """
    found = []

    def judge(name: str, value: float, sign: str, bar: float) -> None:
        met = value <= bar if sign == "≤" else value >= bar
        found.append({"name": name, "value": value, "bar": f"{sign} {bar:g}", "met": met})

    on_gpu = record["flags"]["gpu"]
    for model, part in record["models"].items():
        for name, case in part["steps"].items():
            against = case["speedup"].get("peft")
            if against and on_gpu:
                if model == XL:
                    judge(f"{model} {name}: examples/s, PEFT's", against["median"], "≥", 1.5)
                    if name.startswith("unpadded") and case["mfu"]:
                        judge(f"{model} {name}: MFU", case["mfu"]["ours"]["median"], "≥", 0.45)
            elif against and case["case"]["kind"] == "unpadded":
                time = inverse(against)["median"]
                judge("unpadded: step time, PEFT's", time, "≤", 0.95)
                peaks = {side: case["memory"][side]["peak_mb"] for side in ("ours", "peft")}
                judge("peak memory, PEFT's", peaks["ours"] / peaks["peft"], "≤", 0.8)
            elif against:
                bar = 1.6 if case["case"]["prompt"] == 20 else 1.1
                judge(f"{name}: examples/s, PEFT's", against["median"], "≥", bar)
        if "256" in part.get("mixed", {}).get("of_one", {}):
            share = part["mixed"]["of_one"]["256"]["median"]
            judge("256 prompts in a batch, one prompt's throughput", share, "≥", 0.95)
    return found


# --- rows ---


def step_rows(part: dict) -> list[Row]:
    """case, side, examples/s, seconds a step, padding, ours against it, MFU."""
    rows = []
    for name, case in part["steps"].items():
        for side, rate in case["examples_per_second"].items():
            opened, count = case["opened"][side], case["case"]["steps"]
            seconds = statistics.median(case["seconds"][side]) / count
            against = ratio(case["speedup"][side]) + " ×" if side in case["speedup"] else ""
            mfu = f"{case['mfu'][side]['median']:.1%}" if case["mfu"].get(side) else ""
            padding = 1 - opened["positions"] / opened["computed"]
            label = PEFT.get(side, "prompt_jax")
            rate = f"{rate['median']:.1f}"
            rows.append([name, label, rate, f"{seconds:.3f}", f"{padding:.0%}", against, mfu])
        for side in case["opened"]:
            if side not in case["examples_per_second"]:
                why = "does not fit the memory"
                rows.append([name, PEFT.get(side, "prompt_jax"), why, "", "", "", ""])
    return rows


def other_rows(part: dict) -> list[Row]:
    """What, prompt_jax, PEFT: memory, checkpoints, mixed prompts, start."""
    rows = []
    for name, case in part["steps"].items():
        if "memory" in case:
            ours, peft = case["memory"]["ours"], case["memory"]["peft"]
            keys = [key for key in ours if key in peft]
            labels = {"before_model_mb": "before the weights", "peak_mb": "peak"}
            labels["device_peak_mb"] = "device's peak"
            for key in keys:
                label = f"{name}: memory, {labels[key]} (MB)"
                share = f" ({ours[key] / peft[key]:.2f} of PEFT's)"
                rows.append([label, f"{ours[key]:,.0f}{share}", f"{peft[key]:,.0f}"])
        if "checkpoint" in case:
            cells = []
            for side in ("ours", "peft"):
                saved = case["checkpoint"][side]
                seconds = statistics.median(saved["seconds"])
                cells.append(f"{saved['bytes']:,} bytes, {seconds:.3f} s")
            rows.append(["checkpoint (prompt and optimizer)", *cells])
    if "mixed" in part:
        rate, share = part["mixed"]["requests_per_second"], part["mixed"]["of_one"]
        for k in (k for k in rate if k != "peft"):
            cell = f"{rate[k]:.1f} requests/s, {ratio(share[k], 3)} of one prompt's"
            theirs = f"{rate['peft']:.1f} requests/s" if k == "1" else "no such batch"
            rows.append([f"{part['mixed']['requests']} requests, {k} prompts", cell, theirs])
    if "start" in part:
        median = {name: statistics.median(times) for name, times in part["start"].items()}
        ours = f"{median['cold']:.1f} s cold, {median['warm']:.1f} s warm"
        rows.append(["process start to first step", ours, f"{median['peft']:.1f} s"])
    return rows


def quiet(record: dict) -> bool:
    """Whether no block took much longer than another of its side."""
    return all(c["quiet"] for part in record["models"].values() for c in part["steps"].values())


# --- output ---


STEPS = ["case", "side", "examples/s", "s a step", "padding", "ours against it", "MFU"]
OTHERS = ["", "prompt_jax", "PEFT"]


def show(record: dict) -> str:
    """A record as text tables."""
    lines = []
    for model, part in record["models"].items():
        lines += ["", model, *aligned([STEPS, *step_rows(part)])]
        others = other_rows(part)
        lines += ["", *aligned([OTHERS, *others])] if others else []
    lines += ["", *(bar_line(bar) for bar in record["bars"])]
    if not quiet(record):
        lines.append("the machine was busy: measure again on one that does nothing else")
    return "\n".join(lines)


def bar_line(bar: dict) -> str:
    """A bar and whether it is met."""
    return f"{'met   ' if bar['met'] else 'MISSED'} {bar['name']} {bar['value']:.2f} ({bar['bar']})"


def aligned(rows: Sequence[Row]) -> list[str]:
    """Rows as columns of equal width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def table(head: Row, rows: Sequence[Row]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


HEAD = """# How fast, how large

Written by `tools/bench_table.py` from the records of `tools/bench_peft.py`; do not edit. Each side
has a process of its own on the same cores, both read the same random weights and the same
examples, find the same loss and the same gradient norm before any clock runs, and take turns.
A ratio is the median over pairs of blocks, with the interval that encloses the true median with
95 % (order statistics). `sst2` cases draw SST-2's real lengths: packed here; padded to the longest
of the batch by PEFT, or sorted by length within 50 batches (`group_by_length`). MFU counts
4 N positions (text and slots, no padding) plus attention within each example, without weight
gradients and without anything that is computed twice. Memory is the most that a process held,
from its start to the end of its steps. PEFT's batches lie ready on the device before the clock
starts; ours are packed and placed while it runs."""


def markdown(records: Sequence[dict]) -> str:
    """docs/performance.md."""
    lines = [HEAD]
    for record in records:
        lines += ["", *_section(record)]
    return "\n".join(lines) + "\n"


def _section(record: dict) -> list[str]:
    parts = record["models"]
    ours, peft = (next(iter(parts.values()))["about"][side] for side in ("ours", "peft"))
    versions = {**ours["versions"], **peft["versions"], "prompt_jax": record["code_version"]}
    before, after = (f"{record[f'load_average{end}'][0]:.2f}" for end in ("", "_after"))
    device = "" if not record["flags"]["gpu"] else f"{ours['device']}, "
    where = f"{device}{record['machine']['processor']}, {record['cores']} cores"
    flags = record["flags"]
    lines = [
        f"## {ours['device'] if flags['gpu'] else 'CPU'}, {record['written'][:10]}",
        "",
        f"`{record['command']}`",
        "",
        f"- {where}, {record['machine']['memory_gb']} GB; {record['machine']['system']}",
        f"- load average {before} at the start, {after} at the end"
        + ("" if quiet(record) else "; **the machine was busy, the numbers are provisional**"),
        f"- {flags['dtype']} weights and arithmetic, dropout {flags['dropout']} on both sides, "
        f"attention of transformers: {peft['attention']}",
        f"- {', '.join(f'{name} {version}' for name, version in versions.items())}",
    ]
    for model, part in parts.items():
        count = part["about"]["ours"]["parameters"]
        lines += ["", f"### {model} ({count:,} parameters)", "", *table(STEPS, step_rows(part))]
        others = other_rows(part)
        lines += ["", *table(OTHERS, others)] if others else []
    if record["bars"]:
        rows = [
            [bar["name"], f"{bar['value']:.2f}", bar["bar"], "yes" if bar["met"] else "**no**"]
            for bar in record["bars"]
        ]
        lines += ["", *table(["bar", "measured", "bar at", "met"], rows)]
    return lines


def main() -> None:
    """Reads records, writes the document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", default=DOCUMENT, type=pathlib.Path)
    args = parser.parse_args()
    records = [json.loads(path.read_text()) for path in args.records]
    for record in records:
        print(show(record))
    args.out.write_text(markdown(records))
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
