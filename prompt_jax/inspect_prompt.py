"""`prompt-jax inspect`: what a prompt lies near, how far it has come, how alike prompts are."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from prompt_jax import similarity
from prompt_jax.ckpt import fingerprint, hf, load, prompt_file, prompts, tree
from prompt_jax.ckpt.paths import resolve_path
from prompt_jax.ckpt.prompts import Prompt
from prompt_jax.ckpt.save_result import INIT
from prompt_jax.ckpt.source import Source
from prompt_jax.data.vocabulary import Vocabulary, check_fits, load_vocabulary
from prompt_jax.errors import UserError

_FINGERPRINTED = 300_000_000  # numbers of a backbone that are read in seconds
_HINT = "give --backbone=PATH, e.g. --backbone=prompt_jax:micro_s"


# --- what a prompt belongs to ---


@dataclasses.dataclass(frozen=True)
class Table:
    """The embedding table in which neighbours are looked up.

    Attributes:
        source: the backbone.
        rows: [V, H] in the file's dtype; with a vocabulary only its real pieces.
        vocabulary: spells the rows; None: they have numbers only.
    """

    source: Source
    rows: np.ndarray
    vocabulary: Vocabulary | None

    def spell(self, row: int) -> str:
        """A row as the vocabulary spells it, or `#row`."""
        return self.vocabulary.piece(row) if self.vocabulary else f"#{row}"

    @functools.cached_property
    def mean_norm(self) -> float:
        """The mean length of a row."""
        return similarity.mean_norm(self.rows)

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Of the backbone: as recorded, else computed; None where that would take minutes."""
        if self.source.recorded:
            return fingerprint.combine(self.source.recorded)
        numbers = sum(int(np.prod(t.shape)) for t in self.source.tensors.values())
        return load.read_fingerprint(self.source) if numbers <= _FINGERPRINTED else None


def open_table(checkpoint: str, vocabulary: str | None = None) -> Table:
    """Reads the embedding table of a stored backbone, and nothing else of it.

    Args:
        checkpoint: whatever INITIAL_CHECKPOINT_PATH takes.
        vocabulary: a sentencepiece model, a folder that holds one, or `byte`; None: the one
            beside the weights, if any.

    Raises:
        UserError: no backbone there, or a vocabulary that does not fit it.
    """
    source = load.open_source(checkpoint)
    if tree.EMBEDDING not in source.tensors:
        raise UserError(f"{source.place}: holds no tensor {tree.EMBEDDING}")
    place = vocabulary or source.vocabulary
    words = load_vocabulary(str(resolve_path(place))) if place else None
    stored = source.tensors[tree.EMBEDDING]
    if words:
        check_fits(words, stored.shape[0])
    return Table(source, stored.whole()[: words.pieces if words else None], words)


def run_config(prompt: Prompt) -> dict[str, Any]:
    """The flat config of the run in whose MODEL_DIR a prompt lies; empty where there is none."""
    folder = epath.Path(prompt.path).parent
    for name in ("config.json", "record.json"):
        if (folder / name).exists():
            fields = hf.read_json(folder / name)
            flat = fields.get("config", fields)  # a record holds more than the config
            if isinstance(flat, dict) and "Backbone.checkpoint" in flat:
                return flat
    return {}


class Tables:
    """Finds the embedding table of each prompt; prompts of one backbone share it.

    Args:
        backbone: `--backbone`; None: that of the run in whose MODEL_DIR a prompt lies.
        vocabulary: `--vocabulary`; None: the run's, or the one beside the weights.
    """

    def __init__(self, backbone: str | None, vocabulary: str | None):
        self._backbone, self._vocabulary = backbone, vocabulary
        self._opened: dict[tuple[str, str | None], Table] = {}

    def find(self, prompt: Prompt) -> Table | str:
        """The table, or why there is none.

        Raises:
            UserError: `--backbone` cannot be read, or another width.
        """
        checkpoint, vocabulary = self._backbone, self._vocabulary
        if not checkpoint:
            flat = run_config(prompt)
            checkpoint = flat.get("Backbone.checkpoint")
            vocabulary = vocabulary or flat.get("Backbone.vocabulary")
            if flat.get("Backbone.random_weights"):
                return "the run's backbone has random weights, which are not stored"
            if not checkpoint:
                return f"no backbone is known; {_HINT}"
        try:
            table = self._open(checkpoint, vocabulary)
        except UserError as error:
            if self._backbone:
                raise
            return f"the run's backbone cannot be read ({error}); {_HINT}"
        widths = prompt.array.shape[1], table.rows.shape[1]
        if widths[0] != widths[1]:
            raise UserError(
                f"prompt {prompt.path} has width {widths[0]}, the backbone {table.source.place} "
                f"has {widths[1]}; give --backbone=PATH of its own"
            )
        return table

    def _open(self, checkpoint: str, vocabulary: str | None) -> Table:
        key = checkpoint, vocabulary
        if key not in self._opened:
            self._opened[key] = open_table(*key)
        return self._opened[key]


def foreign(prompt: Prompt, table: Table) -> str | None:
    """That the prompt was trained on another backbone, where both can tell; else None."""
    if prompt.file is None or table.fingerprint in (None, prompt.file.backbone):
        return None
    return f"trained on the backbone {prompt.file.backbone}, here is {table.fingerprint}"


# --- the report ---


def describe(prompt: Prompt, table: Table | str) -> dict[str, Any]:
    """All that is said about one prompt, as `--json` writes it.

    Args:
        prompt: float32 [P, H] and where it lies; `prompt_init.npy` is looked for beside it.
        table: where neighbours are looked up, or why they are not.

    Returns:
        `path`, `length`, `width`, `method`, `norms`, `backbone`, `init`, `duplicates`, `shared`
        and, per slot, `slots`. `backbone` and `init` hold `missing` where there is none.
    """
    array = prompt.array.astype(np.float64)
    norms = np.linalg.norm(array, axis=-1)
    slots = [{"slot": i, "norm": float(norm)} for i, norm in enumerate(norms)]
    report = {
        "path": prompt.path,
        "length": len(array),
        "width": array.shape[1],
        "method": prompt.file.method if prompt.file else None,
        "norms": {name: float(getattr(norms, name)()) for name in ("min", "mean", "max")},
        "backbone": {"missing": table},
        "init": _from_init(prompt, array, slots),
        "duplicates": similarity.duplicates(prompt.array),
        "shared": {},
        "slots": slots,
    }
    if isinstance(table, str):
        return report
    report["backbone"] = {
        "path": table.source.place,
        "rows": len(table.rows),
        "mean_norm": table.mean_norm,
        "vocabulary": str(getattr(table.vocabulary, "path", "byte")) if table.vocabulary else None,
        "foreign": foreign(prompt, table),
    }
    rows, near = similarity.neighbours(prompt.array, table.rows)
    report["shared"] = {table.spell(row): at for row, at in similarity.shared(rows[:, 0]).items()}
    for slot, ids, values in zip(slots, rows.tolist(), near.tolist(), strict=True):
        slot["neighbours"] = [
            {"id": row, "piece": table.spell(row), "cosine": value}
            for row, value in zip(ids, values, strict=True)
        ]
    return report


def _from_init(prompt: Prompt, array: np.ndarray, slots: list[dict]) -> dict[str, Any]:
    """Distance and cosine to the first values; those of each slot are added to `slots`."""
    file = epath.Path(prompt.path).parent / INIT
    if not file.exists():
        return {"missing": "not recorded"}
    init = prompt_file.load_array(str(file)).astype(np.float64)
    if init.shape != array.shape:
        return {"missing": f"{file} has shape {list(init.shape)}, not {list(array.shape)}"}
    distances = np.linalg.norm(array - init, axis=-1)
    for slot, distance, cosine in zip(
        slots, distances, similarity.cosines(array, init), strict=True
    ):
        slot |= {"from_init": float(distance), "cosine_to_init": float(cosine)}
    whole = similarity.cosines(array.reshape(1, -1), init.reshape(1, -1))
    return {
        "path": str(file),
        "distance": float(np.linalg.norm(distances)),  # Frobenius
        "cosine": float(whole[0]),
    }


def compare(named: dict[str, Prompt]) -> dict[str, Any]:
    """Both similarities of each prompt with each.

    Args:
        named: name -> prompt.

    Returns:
        `prompts` (names), `sim_avg` and `sim_pertoken` (matrices in their order), `backbones`
        (fingerprints, as far as the files tell).

    Raises:
        UserError: prompts of different widths.
    """
    first, *others = named.values()
    for other in others:
        widths = first.array.shape[1], other.array.shape[1]
        if widths[0] != widths[1]:
            raise UserError(
                f"prompts of different widths cannot be compared: {first.path} has {widths[0]}, "
                f"{other.path} has {widths[1]}"
            )

    def matrix(alike: Callable[[np.ndarray, np.ndarray], float]) -> list[list[float]]:
        return [[alike(a.array, b.array) for b in named.values()] for a in named.values()]

    return {
        "prompts": list(named),
        "sim_avg": matrix(similarity.similarity_average),
        "sim_pertoken": matrix(similarity.similarity_per_token),
        "backbones": sorted({each.file.backbone for each in named.values() if each.file}),
    }


def name_all(paths: Sequence[str], found: Sequence[Prompt]) -> dict[str, Prompt]:
    """Short names: of the run, else of the file; the path as given, where those are not unique.

    Args:
        paths: as the user gave them.
        found: what was read there.

    Returns:
        Name -> prompt; a path that was given twice stands once.
    """
    paths = [str(path) for path in paths]
    short = []
    for prompt in found:
        place = pathlib.PurePath(prompt.path)
        run = place.stem in ("prompt", "prompt_last", pathlib.PurePath(INIT).stem)
        short.append(place.parent.name if run else place.stem)
    names = [
        name if name and short.count(name) == paths.count(path) else path
        for name, path in zip(short, paths, strict=True)
    ]
    return dict(zip(names, found, strict=True))


# --- what is printed ---


def inspect_command(args) -> None:
    """`prompt-jax inspect`.

    Raises:
        UserError: no prompt, backbone or vocabulary there, or widths that differ.
    """
    # Only a fingerprint is computed by jax: accelerators are left to whoever trains on them.
    jax.config.update("jax_platforms", "cpu")
    if not args.prompt and not args.compare:
        raise UserError("give a PROMPT to look into, or --compare A B ...")
    paths = [*args.prompt, *args.compare]
    found = [prompts.read(path) for path in paths]
    named = name_all(paths, found)
    if (args.compare or args.png) and len(named) < 2:
        flag = "--compare" if args.compare else "--png"
        raise UserError(f"{flag}: one prompt alone has no similarities; give another one")
    similarities = compare(named) if len(named) > 1 else None
    tables = Tables(args.backbone, args.vocabulary)
    reports = [describe(prompt, tables.find(prompt)) for prompt in found[: len(args.prompt)]]

    for report in reports:
        _print_report(report)
    if similarities:
        _print_similarities(similarities)
    if args.png:
        from prompt_jax.report import draw_similarities

        prompt_file.write_bytes(epath.Path(args.png), draw_similarities(similarities))
        print(f"wrote {args.png}")
    if args.json:
        text = json.dumps({"prompts": reports, "compare": similarities}, indent=1)
        prompt_file.write_bytes(epath.Path(args.json), text.encode())


def _print_report(report: dict[str, Any]) -> None:
    """A summary, the paper's table, and what slots have in common."""
    backbone, init, norms = report["backbone"], report["init"], report["norms"]
    method = f", {report['method']}" if report["method"] else ""
    print(f"{report['path']}: {report['length']} slots of width {report['width']}{method}")
    beside = "" if "missing" in backbone else f"; of embeddings {backbone['mean_norm']:.3g}"
    of_slots = f"{norms['min']:.3g} to {norms['max']:.3g}, mean {norms['mean']:.3g}"
    print(f"  norms: {of_slots}{beside}")
    if "missing" in backbone:
        print(f"  neighbours: not shown: {backbone['missing']}")
    else:
        kind = "pieces" if backbone["vocabulary"] else "rows (no vocabulary; give --vocabulary)"
        print(f"  neighbours: among {backbone['rows']:,} {kind} of {backbone['path']}")
        if backbone["foreign"]:
            print(f"  WARNING: {backbone['foreign']}; neighbours may mean nothing")
    if "missing" in init:
        print(f"  init: {init['missing']}")
    else:
        print(f"  init: distance {init['distance']:.3g}, cosine {init['cosine']:.2f}")
    _print_slots(report["slots"])
    pairs = ", ".join(f"{i} = {j}" for i, j in report["duplicates"])
    print(f"duplicate slots (cosine >= {similarity.DUPLICATE}): {pairs or 'none'}")
    if "missing" not in backbone:
        groups = [
            f"{_plain(piece)} ({', '.join(map(str, at))})" for piece, at in report["shared"].items()
        ]
        print(f"slots with one nearest neighbour: {', '.join(groups) or 'none'}")
    print()


def _print_slots(slots: list[dict[str, Any]]) -> None:
    """A row per slot: norm, way from the init, neighbours with their cosines."""
    first = slots[0]
    head, top = ["slot", "norm"], len(first.get("neighbours", ()))
    head += ["from init", "cos init"] if "from_init" in first else []
    rows = []
    for slot in slots:
        cells = [str(slot["slot"]), f"{slot['norm']:.3g}"]
        if "from_init" in slot:
            cells += [f"{slot['from_init']:.3g}", f"{slot['cosine_to_init']:.2f}"]
        near = slot.get("neighbours", ())
        rows.append([*cells, *(f"{_plain(n['piece'])} {n['cosine']:.2f}" for n in near)])
    ranks = ["nearest", *(str(i + 2) for i in range(top - 1))] if top else []
    _print_table([*head, *ranks], rows, numbers=len(head))


def _print_similarities(similarities: dict[str, Any]) -> None:
    """Both matrices; columns are numbered, rows have names."""
    names = similarities["prompts"]
    for kind, title in (
        ("sim_avg", "sim_avg: cosine of the mean vectors"),
        ("sim_pertoken", "sim_pertoken: mean cosine of all pairs of slots"),
    ):
        print(title)
        rows = [
            [f"{i} {name}", *(f"{value:.3f}" for value in row)]
            for i, (name, row) in enumerate(zip(names, similarities[kind], strict=True))
        ]
        _print_table(["", *map(str, range(len(names)))], rows, numbers=0)
    if len(similarities["backbones"]) > 1:
        print("WARNING: prompts of different backbones: their similarities may mean nothing")


def _print_table(head: list[str], rows: list[list[str]], numbers: int) -> None:
    """A table without lines inside; the first `numbers` columns stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE, highlight=False)
    for i, title in enumerate(head):
        grid.add_column(title, justify="right" if i < numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))  # as it is: a piece such as "[b]" is no markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # as wide as the table needs
    console.print(grid)


def _plain(piece: str) -> str:
    """A piece that cannot move the cursor: blanks as `▁`, what is not printable by its code."""
    shown = (c if c.isprintable() else f"\\u{ord(c):04x}" for c in piece.replace(" ", "▁"))
    return "".join(shown)
