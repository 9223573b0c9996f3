"""A study's gin file -> its runs, each resolved and checked; all that is wrong is said at once."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from prompt_jax.alike import common
from prompt_jax.config import ConfigurationError, Resolved, resolve
from prompt_jax.errors import UserError, nearest
from prompt_jax.resolver import setting
from prompt_jax.study.grid import FILES, Made, Point, check_parts, files_of, show
from prompt_jax.study.packing import Fleets
from prompt_jax.study.page import check_names
from prompt_jax.study.part import Part

_GRID, _PACKING = "prompt_jax.study.grid", "prompt_jax.study.packing"
_FIGURES = "prompt_jax.study.figures"
# What a study's gin file may name; its runs have `config.REGISTRY`.
STUDY = {
    "Study": "prompt_jax.study.study:Study",
    "Fleets": f"{_PACKING}:Fleets",
    **{name: f"{_GRID}:{name}" for name in ("Axis", "Product", "Zip", "Union", "Points")},
    **{name: f"{_GRID}:{name}" for name in ("When", "After", "AfterAll")},
    **{name: f"{_FIGURES}:{name}" for name in ("Lines", "Bars", "Efficiency", "Sensitivity")},
    **{name: f"{_FIGURES}:{name}" for name in ("Curves", "HeatMap", "Scatter")},
    "Metrics": "prompt_jax.study.several:Metrics",
    "Retrieval": "prompt_jax.study.retrieval:Retrieval",
    "Table": "prompt_jax.study.table:Table",
}
OWN = ("MODEL_DIR", "Run.model_dir")  # set by the study


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs, and what is drawn from their records.

    Attributes:
        name: of the study, and of its folder.
        grid: its points, e.g. @Product().
        description: for the report.
        out_dir: all that the study writes (STUDY_DIR); None: out/NAME.
        gin_files: of every run.
        settings: of every run: macro or "Class.field" -> value; a point's settings win.
        report: the figures and tables.
        fleets: how runs are trained together.
    """

    name: str
    grid: Any
    description: str = ""
    out_dir: str | None = None
    gin_files: tuple[str, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    report: tuple[Part, ...] = ()
    fleets: Fleets = Fleets()

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise UserError(f"Study.name = {self.name!r}: letters, digits, '_', '-' and '.' alone")
        if "://" in self.folder:
            raise UserError(f"STUDY_DIR = {self.folder!r}: claims need a local or mounted folder")
        check_parts("Study.grid", (self.grid,))
        check_names(self.report)

    @property
    def folder(self) -> str:
        """OUT."""
        return (self.out_dir or f"out/{self.name}").rstrip("/")


@dataclasses.dataclass(frozen=True)
class Member:
    """A run of a study.

    Attributes:
        id: twelve hexadecimal digits of its configuration, wherever the study lies.
        point: its labels and settings.
        resolved: its configuration; MODEL_DIR is OUT/runs/ID.
        needs: ids of the runs that must have ended well before it starts.
    """

    id: str
    point: Point
    resolved: Resolved
    needs: tuple[str, ...]

    @property
    def run(self) -> Any:
        """`train.Run`."""
        return self.resolved.run


@dataclasses.dataclass(frozen=True)
class Runs:
    """A study with its runs, in the order of the grid; what a run needs stands before it."""

    study: Study
    members: dict[str, Member]
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """OUT."""
        return self.study.folder


class _Complaints:
    """Messages, each with the points that it is about."""

    def __init__(self):
        self._found: dict[str, list[str]] = {}

    def add(self, message: str, point: str) -> None:
        places = self._found.setdefault(message, [])
        if point not in places:
            places.append(point)

    def finish(self) -> None:
        """Raises ConfigurationError if there are any."""
        lines = []
        for message, places in self._found.items():
            count = len(places) - 1
            more = f" (and {count} more point{'s' if count > 1 else ''})" if count else ""
            lines.append(f"{places[0]}: {message}{more}")
        if lines:
            raise ConfigurationError(lines)


def resolve_study(
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    *,
    checked: bool = True,
) -> Runs:
    """Reads a study and configures each of its runs.

    Args:
        gin_files: of the study.
        bindings: of the study: "NAME=VALUE", the text behind `--gin.`.
        search_paths: further folders of gin files, the study's and the runs'.
        checked: whether names, counts and shapes are checked too; nothing is opened for it.

    Returns:
        The study and its runs.

    Raises:
        UserError: the study's own file is wrong.
        ConfigurationError: everything that is wrong in any point, with its labels.
    """
    study = resolve(gin_files, bindings, search_paths, registry=STUDY, root="Study").run
    points = study.grid.points(Point())
    if not points:
        raise UserError(f"study {study.name}: the grid has no points")
    complaints = _Complaints()
    members = _Members(study, search_paths, complaints)
    for point in points:
        members.add(point)
    members.check_settings()
    if checked:
        _check(list(members.found.values()), complaints)
    complaints.finish()
    return Runs(study, members.found, tuple(members.notes))


class _Members:
    """Points -> members, one per configuration."""

    def __init__(self, study: Study, search_paths: Sequence[str], complaints: _Complaints):
        self.study, self.search_paths, self.complaints = study, search_paths, complaints
        self.found: dict[str, Member] = {}
        self.notes: list[str] = []
        self._done: dict[int, tuple[Point, str | None]] = {}  # the point keeps its number taken
        self._read: set[str] = set()  # settings of the study that some run reads

    def add(self, point: Point) -> str | None:
        """The id of a point's run; None where something is wrong with it."""
        if id(point) not in self._done:
            self._done[id(point)] = (point, self._resolve(point))
        return self._done[id(point)][1]

    def _resolve(self, point: Point) -> str | None:
        needs = {id(need): self.add(need) for need in point.needs}
        if None in needs.values():
            return None
        out = self.study.folder

        def placed(value):
            if isinstance(value, tuple):
                return tuple(map(placed, value))
            made = isinstance(value, Made)
            return f"{out}/runs/{needs[id(value.by)]}/{value.path}" if made else value

        given = {**self.study.settings, **point.settings}
        values = {name: placed(value) for name, value in given.items() if name != FILES}
        for name in OWN:
            if name in values:
                self.complaints.add(f"{name} is the study's own; set STUDY_DIR", show(point.labels))
                return None
        first = self._configure(point, values, f"{out}/runs/_")
        if first is None:
            return None
        name = first.hash_in(out)[:12]
        if name in self.found:
            self._merge(self.found[name], point)
            return name
        resolved = self._configure(point, values, f"{out}/runs/{name}")
        self.found[name] = Member(name, point, resolved, tuple(dict.fromkeys(needs.values())))
        return name

    def _configure(self, point: Point, values: dict, model_dir: str) -> Resolved | None:
        place = "Study.grid"
        files = (*self.study.gin_files, *files_of(self.study.settings), *point.gin_files)
        given = [
            setting(name, value, place if name in point.settings else "Study.settings")
            for name, value in {**values, "MODEL_DIR": model_dir}.items()
        ]
        try:
            resolved = resolve(tuple(dict.fromkeys(files)), (), self.search_paths, given=given)
        except UserError as error:
            for line in getattr(error, "lines", (str(error),)):
                self.complaints.add(line, show(point.labels))
            return None
        self._read |= {n for n in values if f"{n} (Study.settings)" not in resolved.unused}
        unread = [name for name in point.settings if f"{name} ({place})" in resolved.unused]
        for name in unread:
            message = f"this run does not read {name}; {nearest(name, resolved.values)}"
            self.complaints.add(f"{place}: {message}", show(point.labels))
        return None if unread else resolved

    def _merge(self, member: Member, point: Point) -> None:
        """Two points are one run: it has the labels of both, where they do not contradict."""
        there, here = member.point.labels, point.labels
        if any(there[axis] != here[axis] for axis in set(there) & set(here)):
            message = f"is the same run as {show(there)}; leave one out"
            self.complaints.add(message, show(here))
            return
        if there != here and not (set(here) <= set(there)):
            self.notes.append(f"{show(there)} and {show(here)} are one run, {member.id}")
        both = dataclasses.replace(member.point, labels={**there, **here})
        self.found[member.id] = dataclasses.replace(member, point=both)

    def check_settings(self) -> None:
        """Reports settings of the study that no run reads."""
        for name in self.study.settings if self.found else ():
            if name != FILES and name not in self._read:
                known = {key for member in self.found.values() for key in member.resolved.values}
                message = f"no run reads {name}; {nearest(name, known)}"
                self.complaints.add(message, "Study.settings")


# --- checks that open nothing ---


def _check(members: list[Member], complaints: _Complaints) -> None:
    from prompt_jax import checks as refusals
    from prompt_jax.data.show import check_name
    from prompt_jax.plan import choose

    def named(run):
        for name in (run.data.mixture_or_task_name, *run.transfer_tasks):
            check_name(name, run.data.mixture_or_task_module)

    # A check, and what decides it: asked once for all runs in which that is the same.
    checks: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
        (refusals.check, lambda run: run),
        (lambda run: choose.rows(run, 1), lambda run: (run.data, run.method.slots)),
        (named, lambda run: (run.data, run.transfer_tasks)),
        (check_init, lambda run: (run.backbone.config, run.method.bank)),
        (
            check_shapes,
            lambda run: (common((run.backbone.config, run.method)), run.method.slots),
        ),
    ]
    known: dict[tuple, str | None] = {}
    for member in members:
        for number, (check, part) in enumerate(checks):
            key = (number, repr(part(member.run)))
            if key not in known:
                known[key] = _message(check, member.run)
            if known[key]:
                complaints.add(known[key], show(member.point.labels))


def _message(check: Callable[[Any], Any], run: Any) -> str | None:
    try:
        check(run)
    except UserError as error:
        return str(error)
    return None


def check_init(run: Any) -> None:
    """Draws the prompt's first values, of a vocabulary that says nothing.

    Raises:
        UserError: the init cannot fill the bank.
    """
    from prompt_jax.assemble import assemble

    assemble(run.backbone.config, run.method).prompt_shapes()


def check_shapes(run: Any) -> None:
    """Assembles the model and follows the shapes of a step through it; nothing is computed.

    Raises:
        UserError: the parts do not fit together.
    """
    import jax

    from prompt_jax.assemble import assemble
    from prompt_jax.data import layout
    from prompt_jax.plan import lowering

    arrays = layout.assemble([], [], [], (2, 8, 8))
    batch = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
    try:
        held = lowering.leaves(run)
        model = assemble(run.backbone.config, run.method)
        jax.eval_shape(model.outputs, {**held.frozen, **held.state.leaves}, batch)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the shapes of {run.method.name} do not fit: {reason}") from error
