"""`prompt-jax tasks`: what there is (without TensorFlow), and what a task's examples become."""

import json
import os
import pathlib
from typing import Any

import numpy as np

from prompt_jax.data import index
from prompt_jax.data import layout as lay
from prompt_jax.data.quiet import quiet_start
from prompt_jax.errors import UserError, nearest
from prompt_jax.slots import SLOT0


def check_name(name: str, module: str | None = None) -> None:
    """Refuses an unknown task; looks into the static index, and imports only a user's module.

    Raises:
        UserError: nothing of that name; the nearest ones and where they were looked for.
    """
    if module:
        from prompt_jax.data import cache

        with quiet_start():
            cache.get_tasks(name, module)
    elif name not in index.TASKS:
        files = ", ".join(sorted({f"tasks/{entry.module}.py" for entry in index.TASKS.values()}))
        raise UserError(
            f"no task or mixture {name!r}: {nearest(name, index.TASKS)} "
            f"(looked in {files}; other tasks need MIXTURE_OR_TASK_MODULE)"
        )


def source_state(name: str, entry: index.Entry) -> str:
    """Where the examples of a shipped task come from, here and now."""
    if entry.parts:
        return "mixture of " + ", ".join(entry.parts)
    if entry.family == "micro":
        return "generated, offline"
    folder = pathlib.Path(os.environ.get("PROMPT_JAX_DATA", ""), name)
    if os.environ.get("PROMPT_JAX_DATA"):
        there = [split for split in entry.splits if (folder / f"{split}.tsv").is_file()]
        if there:
            return f"{folder} ({', '.join(there)})"
    return f"TFDS; or PROMPT_JAX_DATA with {name}/{{{','.join(entry.splits)}}}.tsv"


def tasks_command(args) -> None:
    """Lists the shipped tasks, or shows one.

    Raises:
        UserError: no such task or split, or its examples cannot be read.
    """
    shown = describe(args) if args.name else listing()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(shown, indent=1) + "\n")
    if args.name:
        _print_task(shown)
    else:
        _print_table(shown)


def listing() -> list[dict[str, Any]]:
    """A record per shipped task: name, family, splits, metrics, source."""
    return [
        {
            "name": name,
            "family": entry.family,
            "splits": list(entry.splits),
            "metrics": list(entry.metrics),
            "source": source_state(name, entry),
        }
        for name, entry in index.TASKS.items()
    ]


def describe(args) -> dict[str, Any]:
    """Lengths, truncation and the first examples of one split, through the path that trains.

    Args:
        args: `name`, `module`, `split`, `count`, `inputs`, `targets`, `prompt_length`, `layout`,
            `vocabulary` (a local path, or "byte") of the command line.

    Returns:
        {"name", "split", "examples", "lengths": {feature: {...}}, "shown": [...]}.
    """
    from prompt_jax.data import cache
    from prompt_jax.data.vocabulary import load_vocabulary

    lay.check_layout(args.layout)
    check_name(args.name, args.module)
    with quiet_start():
        tasks, _ = cache.get_tasks(args.name, args.module)
    split = args.split or "train"
    vocabulary = load_vocabulary(args.vocabulary)
    limits = {"inputs": args.inputs, "targets": args.targets}
    first = next(iter(tasks))  # of a mixture: its first task, named in the output
    built = cache.build(first, split, vocabulary, module=args.module, lengths=limits)
    slots = lay.slot_ids(args.prompt_length)
    return {
        "name": first,
        "mixture": {"name": args.name, "tasks": list(tasks)} if len(tasks) > 1 else None,
        "split": split,
        "examples": len(built),
        "vocabulary": args.vocabulary,
        "lengths": _lengths(built, limits),
        "shown": [
            _example(built, at, vocabulary, limits, slots, args.layout)
            for at in range(min(args.count, len(built)))
        ],
    }


def _lengths(built, limits: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Per feature: own tokens (EOS included) and the share of examples that are cut."""
    lengths = built.lengths()
    if lengths is None:
        targets = [len(built.targets(at)) for at in range(len(built))]
        columns = {"targets": np.array(targets)}
    else:
        columns = dict(zip(("inputs", "targets"), lengths.T, strict=True))
    return {
        name: {
            "mean": round(float(column.mean()), 1),
            "median": int(np.median(column)),
            "p95": int(np.percentile(column, 95, method="higher")),
            "longest": int(column.max()),
            "limit": limits[name],
            "truncated": round(float((column > limits[name]).mean()), 4),
        }
        for name, column in columns.items()
    }


def _example(built, at: int, vocabulary, limits, slots, layout: str) -> dict[str, Any]:
    """One example as the model gets it."""
    shown: dict[str, Any] = {"features": built.example(at)}
    for name in ("inputs", "targets"):
        tokens = getattr(built, name)(at)
        if tokens is None:
            continue
        cut = lay.truncate(np.asarray(tokens, np.int32), limits[name])
        row = lay.write_slots(cut, slots, layout) if name == "inputs" else cut
        shown[name] = {
            "text": vocabulary.decode([int(token) for token in tokens]),
            "tokens": len(tokens),
            "truncated_to": len(cut) if len(cut) < len(tokens) else None,
            "row": _pieces(row, vocabulary),
            "row_length": len(row),
        }
    return shown


def _pieces(row: np.ndarray, vocabulary) -> list[str]:
    """A row of tokens in words: pieces, `[slot 0..19]` and `</s>`."""
    names, at = [], 0
    while at < len(row):
        stop = at
        while stop < len(row) and row[stop] >= SLOT0:
            stop += 1
        if stop > at:
            names.append(f"[slot {row[at] - SLOT0}..{row[stop - 1] - SLOT0}]")
            at = stop
            continue
        names.append(vocabulary.piece(int(row[at])))
        at += 1
    return names


def _print_table(records: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "family", "splits", "metrics", "source", box=box.SIMPLE, highlight=False)
    for record in records:
        cells = (record["name"], record["family"], record["splits"], record["metrics"])
        plain = [", ".join(cell) if isinstance(cell, list) else cell for cell in cells]
        table.add_row(*plain, record["source"])
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _print_task(shown: dict[str, Any]) -> None:
    if shown["mixture"]:
        print(f"{shown['mixture']['name']}: mixture of {', '.join(shown['mixture']['tasks'])}")
    print(f"{shown['name']} {shown['split']}: {shown['examples']} examples")
    for name, of in shown["lengths"].items():
        print(
            f"  {name}: tokens mean {of['mean']}, median {of['median']}, 95% {of['p95']}, longest "
            f"{of['longest']}; limit {of['limit']} cuts {100 * of['truncated']:.1f}% of examples"
        )
    for number, example in enumerate(shown["shown"]):
        print(f"\n#{number}  {json.dumps(example['features'], ensure_ascii=False)}")
        for name in ("inputs", "targets"):
            if name not in example:
                continue
            of = example[name]
            cut = f", truncated to {of['truncated_to']}" if of["truncated_to"] else ""
            print(f"  {name}: {of['text']!r}")
            print(f"    {of['tokens']} tokens{cut}; row of {of['row_length']}:")
            print(f"    {' '.join(of['row'])}")
