"""`prompt-jax tasks`: what there is (without TensorFlow), and what a task's examples become."""

import json
import pathlib
from typing import Any

import numpy as np

from prompt_jax.data import layout as lay
from prompt_jax.data.quiet import quiet_start
from prompt_jax.data.task import REGISTRY, Mixture, Task, known
from prompt_jax.errors import UserError
from prompt_jax.slots import SLOT0

_MOST_LABELS = 20  # more different targets than this are no labels
_BINS = 16


def check_name(name: str, module: str | None = None) -> None:
    """Refuses an unknown task; seqio is asked only where a user's module registers with it.

    Raises:
        UserError: nothing of that name; the nearest ones and where they were looked for.
    """
    from prompt_jax.data import registry

    with quiet_start():  # a user's module may import TensorFlow
        if registry.find(name, module) is None:
            if module is None:
                raise registry.unknown(name, REGISTRY, None)
            registry.get_tasks(name, module)


def source_state(entry: Task | Mixture) -> str:
    """Where the examples of a task come from, here and now."""
    if isinstance(entry, Mixture):
        return "mixture of " + ", ".join(entry.rates)
    return entry.source.state()


def tasks_command(args) -> None:
    """Lists the shipped tasks, or shows one.

    Raises:
        UserError: no such task or split, or its examples cannot be read.
    """
    shown = describe(args) if args.name else listing(args.module)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(shown, indent=1) + "\n")
    if args.plot and not args.name:
        raise UserError("--plot: give the NAME of a task")
    if args.plot:
        from prompt_jax.report import draw_lengths

        title = f"{shown['name']}, {shown['split']}"
        pathlib.Path(args.plot).write_bytes(draw_lengths(title, shown["histogram"]))
    if args.name:
        _print_task(shown)
    else:
        _print_table(shown)


def listing(module: str | None = None) -> list[dict[str, Any]]:
    """A record per task and mixture: name, family, splits, metrics, source.

    Args:
        module: MIXTURE_OR_TASK_MODULE; its tasks come last.
    """
    from prompt_jax.data import registry

    entries = known()
    if module:
        registry.find("", module)
        entries |= known()
    return [_record(name, entry) for name, entry in entries.items()]


def _record(name: str, entry: Task | Mixture) -> dict[str, Any]:
    tasks = [entry]
    if isinstance(entry, Mixture):
        tasks = [REGISTRY[part] for part in entry.rates if part in REGISTRY]
    first = tasks[0].splits if tasks else ()
    splits = [split for split in first if all(split in task.splits for task in tasks)]
    metrics = dict.fromkeys(metric for task in tasks for metric in task.metric_names or ())
    return {
        "name": name,
        "family": entry.family,
        "splits": splits,
        "metrics": list(metrics),
        "source": source_state(entry),
    }


def describe(args) -> dict[str, Any]:
    """Lengths, truncation and the first examples of one split, through the path that trains.

    Args:
        args: `name`, `module`, `split`, `count`, `inputs`, `targets`, `prompt_length`, `layout`,
            `vocabulary` (a local path, or "byte") of the command line.

    Returns:
        {"name", "split", "examples", "lengths": {feature: {...}}, "smallest": lengths that cut
        fewer than 1 % of the examples, "splits": {split: {"examples", "truncated", "labels"}},
        "histogram": {feature: [edges, counts]}, "shown": [...]}.
    """
    from prompt_jax.data import cache, registry
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
    entry = registry.find(first, args.module)
    splits = {} if entry is None or args.split else dict.fromkeys(entry.splits)
    for name in splits:
        if entry.source.here(name):
            splits[name] = _open(first, name, vocabulary, args.module, limits)
    slots = lay.slot_ids(args.prompt_length)
    return {
        "name": first,
        "mixture": {"name": args.name, "tasks": list(tasks)} if len(tasks) > 1 else None,
        "split": split,
        "examples": len(built),
        "vocabulary": args.vocabulary,
        "lengths": _lengths(built, limits),
        "smallest": _smallest(built),
        "splits": {name: _account(of, limits) for name, of in {**splits, split: built}.items()},
        "histogram": {name: _histogram(column) for name, column in _columns(built).items()},
        "shown": [
            _example(built, at, vocabulary, limits, slots, args.layout)
            for at in range(min(args.count, len(built)))
        ],
    }


def _lengths(built, limits: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Per feature: own tokens (EOS included) and the share of examples that are cut."""
    return {
        name: {
            "mean": round(float(column.mean()), 1),
            "median": int(np.median(column)),
            "p95": int(np.percentile(column, 95, method="higher")),
            "longest": int(column.max()),
            "limit": limits[name],
            "truncated": round(float((column > limits[name]).mean()), 4),
        }
        for name, column in _columns(built).items()
    }


def _columns(built) -> dict[str, np.ndarray]:
    """Own tokens of every example, EOS included, by feature."""
    lengths = built.lengths()
    if lengths is None:
        return {"targets": np.array([len(built.targets(at)) for at in range(len(built))])}
    return dict(zip(("inputs", "targets"), lengths.T, strict=True))


def _smallest(built) -> dict[str, int]:
    """The smallest TASK_FEATURE_LENGTHS that cut fewer than 1 % of the examples."""
    return {
        name: int(np.sort(column)[len(column) - 1 - (len(column) - 1) // 100])
        for name, column in _columns(built).items()
    }


def _open(name: str, split: str, vocabulary, module: str | None, limits: dict[str, int]):
    """A split that was not asked for: its cache, or why there is none (hidden labels, say)."""
    from prompt_jax.data import cache

    try:
        return cache.build(name, split, vocabulary, module=module, lengths=limits)
    except UserError as error:
        return str(error)


def _account(built, limits: dict[str, int]) -> dict[str, Any]:
    """Examples of a split, how many of them are cut, and how often each short target occurs."""
    if built is None or isinstance(built, str):
        return {"missing": built or "not here"}
    columns = _columns(built)
    cut = np.zeros(len(built), bool)
    for name, column in columns.items():
        cut |= column > limits[name]
    texts: dict[str, int] = {}
    for at in range(len(built)):
        text = built.example(at).get("targets_pretokenized", "")
        texts[text] = texts.get(text, 0) + 1
        if len(texts) > _MOST_LABELS:
            texts = {}
            break
    labels = dict(sorted(texts.items(), key=lambda item: -item[1]))
    truncated = round(float(cut.mean()), 4)
    return {"examples": len(built), "truncated": truncated, "labels": labels or None}


def _histogram(lengths: np.ndarray) -> list[list[int]]:
    """Edges and counts of at most `_BINS` bins of equal width."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // _BINS))
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(lengths, edges)
    return [edges.tolist(), counts.tolist()]


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
    for name, (edges, counts) in shown["histogram"].items():
        print(f"  lengths of {name}:")
        top = max(counts)
        for edge, following, count in zip(edges, edges[1:], counts, strict=False):
            print(f"    {edge:5d} .. {following - 1:<5d} {count:8d} {'#' * -(-40 * count // top)}")
    smallest = ", ".join(f"'{name}': {length}" for name, length in shown["smallest"].items())
    print(f"  smallest that cut fewer than 1 %: TASK_FEATURE_LENGTHS = {{{smallest}}}")
    for name, of in shown["splits"].items():
        if "missing" in of:
            print(f"  {name}: {of['missing']}")
            continue
        labels = ", ".join(f"{text!r} {count}" for text, count in (of["labels"] or {}).items())
        print(
            f"  {name}: {of['examples']} examples, {100 * of['truncated']:.1f}% cut"
            + (f"; {labels}" if labels else "")
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
