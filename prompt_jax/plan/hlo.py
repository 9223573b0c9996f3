"""Collectives of a compiled program, from its text: kind, bytes, how often, across slices or not.

A scanned layer's collectives stand in the text once; they are multiplied by the trips of the loops
around them.
"""

import collections
import dataclasses
import math
import re

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "s2": 2, "u2": 2, "s4": 4, "u4": 4}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|[a-z_]+computation)=%?([^\s,)}]+)")
_BRANCHES = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program, with all its repetitions.

    Attributes:
        kind: one of `KINDS`.
        bytes: of the whole array of one call (what a gather ends with, a reduction takes in).
        times: calls a step.
        group: how many devices take part.
        crosses: some group holds devices of two slices.
        shapes: "bf16[32128,4096]" of each array.
    """

    kind: str
    bytes: int
    times: int
    group: int
    crosses: bool
    shapes: tuple[str, ...]

    @property
    def sent(self) -> float:
        """Bytes that each device sends a step, by the usual ring algorithms."""
        if self.kind == "collective-permute":
            return float(self.bytes * self.times)
        share = (self.group - 1) / max(1, self.group)
        return (2 if self.kind == "all-reduce" else 1) * share * self.bytes * self.times


def collectives(text: str, devices: int, per_slice: int = 0) -> list[Collective]:
    """Every collective of a compiled program.

    Args:
        text: `compiled.as_text()`.
        devices: on how many it runs; numbered slice after slice.
        per_slice: devices of one slice; 0 for a single slice.

    Returns:
        Collectives in the order of the text, each logical one once.
    """
    bodies = _computations(text)
    trips = _times(bodies)
    found, seen = [], set()
    for name, lines in bodies.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match is None or not trips.get(name):
                continue
            groups = _groups(line, devices)
            shapes = _shapes(match[1], match[2], bool(match[3]))
            # One that overlaps with computation is written several times under one channel.
            channel = re.search(r"channel_id=(\d+)", line)
            if channel and (key := (channel[1], match[2], shapes, groups.tobytes())) in seen:
                continue
            if channel:
                seen.add(key)
            size = sum(_bytes(shape) for shape in shapes)
            if match[2] == "reduce-scatter":
                size *= groups.shape[1]
            found.append(
                Collective(
                    match[2],
                    size,
                    trips[name],
                    groups.shape[1],
                    _crosses(groups, per_slice),
                    shapes,
                )
            )
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines of every computation; the entry's under "ENTRY" too."""
    found, lines = {}, None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found[match[2]] = []
            if match[1]:
                found["ENTRY"] = lines
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return found


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one step."""
    times: dict[str, int] = collections.defaultdict(int)
    calls: dict[str, list[tuple[str, int]]] = {}
    for name, lines in bodies.items():
        calls[name] = []
        for line in lines:
            repeated = _trips(line, bodies) if " while(" in line else 1
            branches = [b for m in _BRANCHES.findall(line) for b in re.findall(r"[^\s%,]+", m)]
            for called in (*_CALLED.findall(line), *branches):
                if called in bodies:
                    calls[name].append((called, repeated))

    def visit(name, count):
        times[name] += count
        for called, repeated in calls[name]:
            visit(called, count * repeated)

    visit("ENTRY", 1)
    return times


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Trips of a loop: what the compiler noted, else the bound that its condition compares to."""
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
    if known:
        return int(known[1])
    condition = "\n".join(bodies.get(re.search(r"condition=%?([^\s,)}]+)", line)[1], ()))
    bounds = [int(n) for n in re.findall(r"= [su]\d+\[\]\S* constant\((\d+)\)", condition)]
    return bounds[0] if len(bounds) == 1 else 1


def _shapes(result: str, kind: str, started: bool) -> tuple[str, ...]:
    """The arrays of a collective's result; the start of an asynchronous one repeats its inputs."""
    shapes = [
        f"{dtype}[{dims}]" for dtype, dims in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", result))
    ]
    if started and kind in ("all-gather", "collective-permute", "reduce-scatter", "all-to-all"):
        real = [shape for shape in shapes if shape not in ("u32[]", "s32[]")]
        shapes = real[len(real) // 2 :]
    return tuple(shapes)


def _bytes(shape: str) -> int:
    dtype, dims = _SHAPE.match(shape).groups()
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _groups(line: str, devices: int) -> np.ndarray:
    """Who talks to whom, [groups, devices of a group]; all of them where the text names none."""
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", line):
        return np.array([_numbers(p) for p in re.findall(r"\{([\d,]+)\}", pairs[1])])
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", line):
        return np.array([_numbers(g) for g in re.findall(r"\{([\d,]+)\}", listed[1])])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, dims = _numbers(iota[1]), _numbers(iota[2])
        ids = np.arange(math.prod(dims)).reshape(dims)
        return (ids.transpose(_numbers(iota[3])) if iota[3] else ids).reshape(shape)
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", line
    )
    if mesh:
        axes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        inner = re.findall(r"'(\w+)'", mesh[3])
        ids = _device_ids(mesh[2], math.prod(axes.values())).reshape(tuple(axes.values()))
        names = list(axes)
        order = [names.index(axis) for axis in [a for a in names if a not in inner] + inner]
        return ids.transpose(order).reshape(-1, math.prod(axes[axis] for axis in inner))
    return np.arange(devices)[None]


def _device_ids(text: str | None, count: int) -> np.ndarray:
    """A mesh's devices in its own order: "[4,2]T(1,0)", "0,2,1,3", or None for 0, 1, 2, ..."""
    if not text:
        return np.arange(count)
    if iota := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        ids = np.arange(count).reshape(_numbers(iota[1]))
        return ids.transpose(_numbers(iota[2])) if iota[2] else ids
    return np.array(_numbers(text))


def _numbers(text: str) -> tuple[int, ...]:
    """ "0,2,4" -> (0, 2, 4)."""
    return tuple(int(n) for n in text.split(","))


def _crosses(groups: np.ndarray, per_slice: int) -> bool:
    """Whether a group holds devices of two slices."""
    if not per_slice:
        return False
    slices = groups // per_slice
    return bool((slices != slices[:, :1]).any())
