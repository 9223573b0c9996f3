"""`prompt-jax explain`: every final value and where it came from; no device, no TensorFlow."""

import json
import pathlib
import sys

from prompt_jax.config import Resolved
from prompt_jax.resolver import Reference, literal


def rows(resolved: Resolved) -> list[tuple[str, str, str]]:
    """(name, value as gin writes it, origin) of every value, macros first."""
    return [(key, literal(value), resolved.origins[key]) for key, value in resolved.values.items()]


def explain_command(args) -> None:
    """Prints the table of `args.resolved`: a grid on a terminal, plain columns elsewhere."""
    resolved = args.resolved
    table = rows(resolved)
    if sys.stdout.isatty():
        _print_grid(table)
    else:
        _print_plain(table)
    for line in resolved.unused:
        print(f"not read by this run: {line}")
    print(f"config hash {resolved.hash}")
    if args.json:
        values = {
            key: [str(v) if isinstance(v, Reference) else v, resolved.origins[key]]
            for key, v in resolved.values.items()
        }
        pathlib.Path(args.json).write_text(json.dumps(values, indent=1, default=str) + "\n")


def _print_plain(table: list[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    for name, value, origin in table:
        print(f"{name:<{widths[0]}}  {value:<{min(widths[1], 60)}}  {origin}")


def _print_grid(table: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table("name", "value", "origin", highlight=False)
    part = None
    for name, value, origin in table:
        if name.rpartition(".")[0] != part:
            part = name.rpartition(".")[0]
            grid.add_section()
        style = "dim" if origin == "default" else "bold" if origin == "--gin." else ""
        grid.add_row(*(Text(cell, style, overflow="fold") for cell in (name, value, origin)))
    Console().print(grid)
