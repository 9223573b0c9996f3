"""Which runs a study has: parts that extend a point, composed into a grid.

A point has labels (axis -> value, what tables and figures speak of) and settings (macro or
"Class.field" -> value, what configures the run). In a dict of settings the key `gin_file` names
files of the run, one or several, which add up; a string "@Class()" stands for a part.
"""

import dataclasses
import functools
from typing import Any

from prompt_jax.errors import UserError, nearest

FILES, LABELS = "gin_file", "labels"


@dataclasses.dataclass(frozen=True)
class Made:
    """A value that is a file in another run's MODEL_DIR."""

    by: "Point"
    path: str


@dataclasses.dataclass(frozen=True)
class Point:
    """A run to be.

    Attributes:
        labels: axis -> value as JSON has it.
        settings: macro or "Class.field" -> value as gin has it, `Made`, or a tuple of `Made`.
        gin_files: of this point, beside the study's.
        needs: points whose runs must have ended first.
    """

    labels: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    gin_files: tuple[str, ...] = ()
    needs: tuple["Point", ...] = ()

    def extended(self, labels: dict, settings: dict, needs: tuple = ()) -> "Point":
        """This point with more: settings replace earlier ones, labels may not.

        Raises:
            UserError: an axis that the point has already.
        """
        for axis in labels:
            if axis in self.labels:
                raise UserError(f"axis {axis!r} comes twice in {show(self.labels)}")
        return Point(
            {**self.labels, **labels},
            {**self.settings, **{k: v for k, v in settings.items() if k != FILES}},
            _joined(self.gin_files, files_of(settings)),
            _joined(self.needs, needs),
        )


def show(labels: dict[str, Any]) -> str:
    """Labels as messages have them: "length=20, seed=0"."""
    return ", ".join(f"{axis}={value}" for axis, value in labels.items()) or "the only run"


def files_of(settings: dict[str, Any]) -> tuple[str, ...]:
    """The gin files that a dict of settings names."""
    files = settings.get(FILES, ())
    return (files,) if isinstance(files, str) else tuple(files)


def _joined(first: tuple, more: tuple) -> tuple:
    return (*first, *(item for item in more if item not in first))


def _check_settings(where: str, settings: Any) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{where} is {settings!r}; write {{'NAME': value, ...}}")
    for name in settings:
        if not isinstance(name, str):
            raise UserError(f"{where}: {name!r} is no name of a setting")
    files = settings.get(FILES, ())
    files = files_of(settings) if isinstance(files, (str, list, tuple)) else (files,)
    if not all(isinstance(file, str) for file in files):
        raise UserError(f"{where}: {FILES} = {settings[FILES]!r}; one name or several")


def check_parts(where: str, parts: tuple) -> None:
    """Refuses what is no part of a grid.

    Raises:
        UserError: with what stands there.
    """
    for part in parts:
        if not callable(getattr(part, "points", None)):
            raise UserError(f"{where}: {part!r} is no part of a grid, such as @NAME/Axis()")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One point per value.

    Attributes:
        name: of the axis: its label.
        values: plain values, each bound to `setting`, its own label; or label -> settings.
        setting: macro or "Class.field" that plain values are bound to; default: `name`.
    """

    name: str
    values: tuple | dict
    setting: str = ""

    def __post_init__(self):
        if not self.values:
            raise UserError(f"axis {self.name!r} has no values")
        if isinstance(self.values, dict):
            for label, settings in self.values.items():
                _check_settings(f"axis {self.name!r}, {label!r}", settings)
        elif any(self.values.count(value) > 1 for value in self.values):
            raise UserError(f"axis {self.name!r} has a value twice: {self.values}")

    def points(self, so_far: Point) -> list[Point]:
        """`so_far` with each value."""
        values = self.values
        if not isinstance(values, dict):
            bound = self.setting or self.name
            return [so_far.extended({self.name: value}, {bound: value}) for value in values]
        return [so_far.extended({self.name: label}, values[label]) for label in values]


@dataclasses.dataclass(frozen=True)
class Product:
    """Every combination, the last part fastest; each part sees the point so far."""

    parts: tuple

    def __post_init__(self):
        check_parts("Product.parts", self.parts)

    def points(self, so_far: Point) -> list[Point]:
        """All combinations."""
        found = [so_far]
        for part in self.parts:
            found = [longer for point in found for longer in part.points(point)]
        return found


@dataclasses.dataclass(frozen=True)
class Zip:
    """The first points of all parts together, the second ones, and so on."""

    parts: tuple

    def __post_init__(self):
        check_parts("Zip.parts", self.parts)

    def points(self, so_far: Point) -> list[Point]:
        """One point per place.

        Raises:
            UserError: the parts differ in length.
        """
        columns = [part.points(so_far) for part in self.parts]
        if len({len(column) for column in columns}) > 1:
            lengths = ", ".join(
                f"{getattr(part, 'name', type(part).__name__)} has {len(column)}"
                for part, column in zip(self.parts, columns, strict=True)
            )
            raise UserError(f"Zip takes parts of equal length: {lengths}")
        found = []
        for row in zip(*columns, strict=True):
            point = so_far
            for other in row:
                point = self._with(point, other, so_far)
            found.append(point)
        return found

    @staticmethod
    def _with(point: Point, other: Point, start: Point) -> Point:
        """`point` with what a part has added to `start`."""
        labels = {k: v for k, v in other.labels.items() if k not in start.labels}
        new = {k: v for k, v in other.settings.items() if start.settings.get(k, start) != v}
        return point.extended(labels, {**new, FILES: other.gin_files}, other.needs)


@dataclasses.dataclass(frozen=True)
class Union:
    """The points of all parts, one after the other; without parts there are none."""

    parts: tuple = ()

    def __post_init__(self):
        check_parts("Union.parts", self.parts)

    def points(self, so_far: Point) -> list[Point]:
        """All of them."""
        return [point for part in self.parts for point in part.points(so_far)]


@dataclasses.dataclass(frozen=True)
class Points:
    """Points written out.

    Attributes:
        values: dicts of settings, each with its labels under the key `labels` (axis -> value);
            without it the settings are the labels.
    """

    values: tuple[dict, ...]

    def __post_init__(self):
        for number, value in enumerate(self.values):
            _check_settings(f"point {number}", value)
            _check_settings(f"point {number}, {LABELS}", value.get(LABELS, {}))

    def points(self, so_far: Point) -> list[Point]:
        """`so_far` with each of them."""
        found = []
        for value in self.values:
            settings = {name: item for name, item in value.items() if name != LABELS}
            plain = {name: item for name, item in settings.items() if name != FILES}
            found.append(so_far.extended(value.get(LABELS, plain), settings))
        return found


@dataclasses.dataclass(frozen=True)
class When:
    """`then` where a label so far is one of `values`, else `otherwise`; None adds nothing.

    `then = @Union()`, which has no points, leaves a combination out.
    """

    axis: str
    values: tuple
    then: Any = None
    otherwise: Any = None

    def __post_init__(self):
        check_parts("When", tuple(part for part in (self.then, self.otherwise) if part))

    def points(self, so_far: Point) -> list[Point]:
        """What the chosen part makes of `so_far`.

        Raises:
            UserError: no part before this one has the axis.
        """
        label = _label(so_far, self.axis, "When.axis")
        chosen = self.then if label in self.values else self.otherwise
        return chosen.points(so_far) if chosen else [so_far]


@dataclasses.dataclass(frozen=True)
class After:
    """One point per run of another grid, which must have ended: it gives a file.

    Attributes:
        name: of the axis; its label is that of the earlier run on the axis `name`, or else all
            its labels, those of `same` left out. "": no axis; one earlier run must agree.
        grid: the earlier runs; they belong to the study too.
        setting: bound to the file, e.g. 'PROMPT_FILE', 'INITIAL_CHECKPOINT_PATH'.
        path: of the file in the earlier run's MODEL_DIR, e.g. 'prompt.npy', 'backbone'.
        same: axes on which the earlier run must agree with the point so far.
        settings: more settings of these points.
    """

    name: str
    grid: Any
    setting: str
    path: str
    same: tuple[str, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_parts(f"{self.kind}.grid", (self.grid,))
        _check_settings(self.where, self.settings)

    @property
    def kind(self) -> str:
        """Of the part, for messages."""
        return type(self).__name__

    @property
    def where(self) -> str:
        """Before every complaint."""
        return f"{self.kind}, axis {self.name!r}" if self.name else f"{self.kind}, {self.setting}"

    @functools.cached_property
    def earlier(self) -> list[Point]:
        """The runs that come first."""
        return self.grid.points(Point())

    def agreeing(self, so_far: Point) -> list[Point]:
        """The earlier runs that agree with a point.

        Raises:
            UserError: an axis of `same` that one of the two does not have; no such run.
        """
        place, found = f"{self.kind}.same", []
        for run in self.earlier:
            pairs = [(_label(so_far, axis, place), _label(run, axis, place)) for axis in self.same]
            if all(here == there for here, there in pairs):
                found.append(run)
        if not found:
            raise UserError(f"{self.where}: no earlier run for {show(so_far.labels)}")
        return found

    def points(self, so_far: Point) -> list[Point]:
        """`so_far` with each earlier run that agrees with it.

        Raises:
            UserError: see `agreeing`; several runs where there is no axis to tell them apart.
        """
        runs = self.agreeing(so_far)
        if not self.name and len(runs) > 1:
            several = " and ".join(show(run.labels) for run in runs[:2])
            raise UserError(f"{self.where}: {several} agree; name the axis, or more of `same`")
        return [
            so_far.extended(
                {self.name: self._label_of(run)} if self.name else {},
                {**self.settings, self.setting: Made(run, self.path)},
                (run,),
            )
            for run in runs
        ]

    def _label_of(self, run: Point) -> Any:
        if self.name in run.labels:
            return run.labels[self.name]
        left = [value for axis, value in run.labels.items() if axis not in self.same]
        left = left or list(run.labels.values())
        return left[0] if len(left) == 1 else "/".join(map(str, left))


@dataclasses.dataclass(frozen=True)
class AfterAll(After):
    """One point that needs all runs of another grid at once: a file of each, as a tuple.

    `setting` is bound to the files in the order of the grid, e.g. 'Prompts.paths'; the label on
    the axis `name`, if it has one, is how many there are.
    """

    def points(self, so_far: Point) -> list[Point]:
        """`so_far` after all earlier runs that agree with it.

        Raises:
            UserError: see `After.agreeing`.
        """
        runs = self.agreeing(so_far)
        files = {self.setting: tuple(Made(run, self.path) for run in runs)}
        labels = {self.name: len(runs)} if self.name else {}
        return [so_far.extended(labels, {**self.settings, **files}, tuple(runs))]


def _label(point: Point, axis: str, where: str) -> Any:
    if axis not in point.labels:
        raise UserError(
            f"{where}: no axis {axis!r} in {show(point.labels)}; {nearest(axis, point.labels)}"
        )
    return point.labels[axis]
