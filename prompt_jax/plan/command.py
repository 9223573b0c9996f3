"""`prompt-jax plan`: resolves, plans, prints; one machine in full, or a table of sizes."""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import shlex
import sys
from typing import Any

import jax

from prompt_jax.config import Resolved, resolve
from prompt_jax.data.show import check_name
from prompt_jax.errors import UserError, nearest
from prompt_jax.plan import lowering, topology
from prompt_jax.plan.choose import Plan, make_plan, remembering
from prompt_jax.plan.topology import GIB, Topology

SIZES = ("small", "base", "large", "xl", "xxl")
DTYPES = ("bfloat16", "float32", "int8")
# A plan opens neither a task nor weights, and writes into no MODEL_DIR.
UNSET = {"MIXTURE_OR_TASK_NAME": "", "MODEL_DIR": "", "INITIAL_CHECKPOINT_PATH": None}


def plan_command(args: Any) -> None:
    """Prints what the run of `args` costs on each `--topology`.

    Args:
        args: `gin_file`, `gin`, `gin_search_paths`, and the flags of `plan`.

    Raises:
        UserError: an unknown machine, no libtpu, a mesh that does not divide.
    """
    machines = [topology.parse(name, args.num_slices) for name in args.topology.split(",")]
    dtypes = args.dtypes.split(",")
    for dtype in set(dtypes) - set(DTYPES):
        raise UserError(f"--dtypes: {dtype!r}; {nearest(dtype, DTYPES)}")
    topology.start(machines)
    compile_step = lowering.compile_step
    if args.estimate:
        compile_step = lambda *_: None  # noqa: E731
    if args.cache:
        compile_step = remembering(args.cache, versions(machines), compile_step)
    if args.sizes:
        plans = by_size(args, machines, dtypes, compile_step)
        text = table(plans)
    else:
        resolved = _resolved(args, args.gin_file, ())
        models = [pathlib.Path(file).stem for file in args.gin_file if file.startswith("models/")]
        name = models[0] if models else ""
        plans = [
            (name, resolved, make_plan(resolved, m, args.rows, compile_step)) for m in machines
        ]
        text = "\n\n".join(describe(*each) for each in plans)
    print(text)
    if args.markdown:
        page = heading(plans[0], machines) + table(plans) + "\n"
        pathlib.Path(args.markdown).write_text(page)
    if args.json:
        records = [record(*each) for each in plans]
        whole = {"versions": versions(machines), "plans": records}
        pathlib.Path(args.json).write_text(json.dumps(whole, indent=1) + "\n")


def _resolved(args: Any, files: list[str], bindings: tuple[str, ...]) -> Resolved:
    gin = [*bindings, *args.gin]
    resolved = resolve(files, gin, args.gin_search_paths, unset=UNSET)
    data = resolved.run.data
    if data.mixture_or_task_name:
        check_name(data.mixture_or_task_name, data.mixture_or_task_module)
    return resolved


def by_size(args: Any, machines: list[Topology], dtypes: list[str], compile_step) -> list:
    """Each T5 1.1 size and dtype: on every machine named, or on the smallest slice of one kind.

    Args:
        args: of `plan_command`; its model file is replaced.
        machines: one: its smaller slices are tried too, the smallest first; several: all of them.
        dtypes: of storage and arithmetic (int8 computes in bfloat16).
        compile_step: as `make_plan` takes it.

    Returns:
        (name, resolved, plan) each; of a size that fits no slice, the largest.
    """
    others = [file for file in args.gin_file if not file.startswith("models/")]
    found = []
    for dtype in dtypes:
        for size in SIZES:
            computed = "bfloat16" if dtype == "int8" else dtype
            bindings = (f"T5Config.dtype='{computed}'", f"T5Config.param_dtype='{dtype}'")
            files = [*others, f"models/t5_1_1_{size}.gin"]
            resolved = _resolved(args, files, bindings)
            row = []
            for machine in machines if len(machines) > 1 else topology.smaller(machines[0]):
                plan = make_plan(resolved, machine, args.rows, compile_step)
                row.append((f"t5_1_1_{size}", resolved, plan))
                print(line(*row[-1]), file=sys.stderr, flush=True)
                if len(machines) == 1 and plan.compiled.fits:
                    break
            found += row if len(machines) > 1 else row[-1:]
    return found


# --- words ---


def _size(amount: int | float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount / size:,.2f} {unit}"
    return f"{amount:.0f} B"


def _time(seconds: int | float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _mesh(plan: Plan) -> str:
    spread = ", frozen weights over both" if plan.mesh.over_data else ""
    return f"{plan.mesh.data} x {plan.mesh.model}{spread}, remat {plan.mesh.remat}"


def _verdict(plan: Plan) -> str:
    found = plan.compiled
    if not found.available:
        return _size(found.needs)
    word = "fits" if found.fits else "does not fit"
    word += " by estimate" if found.estimated else ""
    return f"{word}: needs {_size(found.needs)} of {_size(found.available)}"


def _sent(plan: Plan) -> float:
    if plan.compiled.estimated:
        return plan.cost.sent
    return sum((entry["sent"] for entry in plan.compiled.collectives), 0.0)


def describe(name: str, resolved: Resolved, plan: Plan) -> str:
    """A plan in words, for a terminal."""
    run, found, cost = resolved.run, plan.compiled, plan.cost
    config, batch, machine = run.backbone.config, plan.batch, plan.machine
    count = machine.chips * machine.slices
    rows = [("machine", f"{machine.name}, {count} devices, {machine.slices} slice(s)")]
    rows.append(("model", name))
    rows.append(("method", f"{run.method.name}, P = {run.method.slots}"))
    numbers = plan.parameters
    kinds = f"{config.param_dtype} stored, {config.dtype} computed"
    rows.append(("parameters", f"{numbers[0]:,} frozen ({kinds}), {numbers[1]:,} trainable"))
    laid = f"{batch.examples} examples in {batch.rows} rows of {batch.inputs} + {batch.targets}"
    rows.append(("batch", f"{laid} ({batch.assumed}; {run.num_microbatches} microbatch(es))"))
    rows.append(("mesh", f"{_mesh(plan)} (data x model; {plan.tried} tried)"))
    for flag in plan.flags:
        rows.append(("add", flag))
    rows.append(("memory", f"{_verdict(plan)} a device"))
    for part in ("frozen", "state", "batch", "temporaries", "program"):
        rows.append((f"  {part}", _size(getattr(found, part)) if getattr(found, part) else ""))
    rows.append(("FLOPs", f"{cost.flops:.4g} a device and step (formula)"))
    rows.append(("bytes moved", f"{_size(cost.moved)} a device and step (formula)"))
    for entry in found.collectives:
        across = ", across slices" if entry["crosses"] else ""
        calls = f"{entry['calls']} calls, {_size(entry['bytes'])}"
        rows.append((entry["kind"], f"{calls}; {_size(entry['sent'])} sent a device{across}"))
    if plan.roofline and found.fits:
        parts = ", ".join(f"{k} {_time(v)}" for k, v in plan.seconds.items() if v)
        speed = f"{batch.examples / plan.roofline:,.4g} examples/s"
        rows.append(("roofline", f"{_time(plan.roofline)} a step, at best {speed} ({parts})"))
    if found.lower_seconds:
        rows.append(("lowered in", _time(found.lower_seconds)))
        rows.append(("compiled in", _time(found.compile_seconds)))
    rows += [("note", text) for text in notes(plan, config)]
    return "\n".join(f"{title:<19} {text}".rstrip() for title, text in rows if text)


def notes(plan: Plan, config: Any) -> list[str]:
    """What one has to know to believe a plan."""
    found = []
    if not plan.machine.is_tpu and not plan.compiled.estimated:
        found.append("memory is that of this machine's CPU compiler")
        if config.dtype == "bfloat16":
            found[0] += ", which multiplies bfloat16 in float32: temporaries are overstated"
    if plan.machine.chip.flops:
        found.append("peak FLOP/s, memory, links and network are the vendor's numbers")
    return found


def line(name: str, resolved: Resolved, plan: Plan) -> str:
    """A plan in one line, to show progress."""
    config = resolved.run.backbone.config
    return (
        f"{name} {config.param_dtype} on {plan.machine.name}: {_mesh(plan)}: "
        f"{_verdict(plan)} ({plan.tried} tried, {_time(plan.compiled.compile_seconds)})"
    )


def table(plans: list) -> str:
    """Plans as rows of Markdown."""
    names = ("model", "dtype", "machine", "mesh", "fits", "bytes a device", "weights")
    names += ("temporaries", "FLOPs", "sent", "roofline", "examples/s", "compiled in")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for name, resolved, plan in plans:
        config, found = resolved.run.backbone.config, plan.compiled
        cells = [
            name,
            config.param_dtype,
            plan.machine.name,
            _mesh(plan),
            "yes" if found.fits else "no",
            _size(found.needs),
            _size(found.frozen),
            _size(found.temporaries) if found.fits else "",
            f"{plan.cost.flops:.3g}" if found.fits else "",
            _size(_sent(plan)) if found.fits else "",
            _time(plan.roofline) if found.fits else "",
            f"{plan.batch.examples / plan.roofline:,.3g}" if found.fits and plan.roofline else "",
            "estimate" if found.estimated else _time(found.compile_seconds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def heading(first: tuple[str, Resolved, Plan], machines: list[Topology]) -> str:
    """What stands above a table: how it was made."""
    _, resolved, plan = first
    run, batch = resolved.run, plan.batch
    made = ", ".join(f"{name} {version}" for name, version in versions(machines).items())
    limits = run.data.task_feature_lengths
    return (
        "# Plans\n\n"
        f"Made on {datetime.date.today().isoformat()} with {made}, on a machine without an "
        "accelerator, by\n\n"
        f"```\n{shlex.join(['prompt-jax', *sys.argv[1:]])}\n```\n\n"
        f"{run.method.name}, P = {run.method.slots}, {batch.examples} examples of "
        f"{limits['inputs']} inputs and {limits['targets']} targets a step ({batch.assumed}). "
        "A mesh is data x model, chosen by `plan`: the fastest by estimate of those that fit. "
        "Bytes are the compiler's, per device, but for rows marked as estimates; FLOPs are a "
        "formula's, per device and step; the roofline takes the vendors' peak numbers, so it is a "
        "bound and no forecast.\n\n"
    )


def record(name: str, resolved: Resolved, plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    config = dataclasses.asdict(resolved.run.backbone.config)
    whole = {
        "model": name,
        "method": resolved.run.method.name,
        "config": config,
        **dataclasses.asdict(plan),
    }
    return {**whole, "roofline": plan.roofline, "prompt_length": resolved.run.method.slots}


def versions(machines: list[Topology]) -> dict[str, str]:
    """What compiles."""
    found = {"jax": jax.__version__}
    if any(machine.is_tpu for machine in machines):
        try:
            found["libtpu"] = importlib.metadata.version("libtpu")
        except importlib.metadata.PackageNotFoundError:
            found["libtpu"] = "none"
    return found
