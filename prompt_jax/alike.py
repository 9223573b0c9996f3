"""What runs must have in common to be trained as one program.

A part says in `varies`, a class variable, which of its fields may differ between the runs of a
fleet; all others must be equal.
"""

import dataclasses
import hashlib
from typing import Any


def common(part: Any) -> Any:
    """A part without the fields in which the runs of a fleet may differ.

    Args:
        part: a configuration dataclass, a container of them, or a plain value.

    Returns:
        Nested dicts, tuples and values: equal, with equal `repr`, for parts that may share a
        program.
    """
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        kind = type(part)
        varies = getattr(kind, "varies", ())
        names = [field.name for field in dataclasses.fields(part) if field.name not in varies]
        own = {name: common(getattr(part, name)) for name in names}
        return {"": f"{kind.__module__}:{kind.__qualname__}", **own}
    if isinstance(part, dict):
        return {repr(key): common(part[key]) for key in sorted(part, key=repr)}
    if isinstance(part, list | tuple):
        return tuple(common(value) for value in part)
    return part


def fleet_key(part: Any) -> str:
    """Twelve hexadecimal digits that parts share if, and only if, their `common` is the same."""
    return hashlib.sha256(repr(common(part)).encode()).hexdigest()[:12]


def difference(a: Any, b: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first place where what `common` returned differs, as (name, value of a, value of b)."""
    if (
        isinstance(a, dict)
        and isinstance(b, dict)
        and a.keys() == b.keys()
        and a.get("") == b.get("")
    ):
        kind = a[""].partition(":")[2] if "" in a else None
        names = {key: f"{kind}.{key}" if kind else f"{name}[{key}]" for key in a}
        pairs = [(names[key], a[key], b[key]) for key in a]
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        pairs = [(f"{name}[{at}]", *both) for at, both in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, dict) and isinstance(b, dict):
        return name, _kind(a), _kind(b)
    else:
        return None if a == b else (name, a, b)
    found = (difference(mine, theirs, where) for where, mine, theirs in pairs)
    return next((each for each in found if each), None)


def _kind(shown: dict) -> str:
    """What to call a dict that `common` made: the part's class, or the keys."""
    return shown[""].partition(":")[2] if "" in shown else ", ".join(shown)
