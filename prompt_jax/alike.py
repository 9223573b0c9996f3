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
        Nested tuples: equal, with equal `repr`, for parts that may share a program.
    """
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        kind = type(part)
        kept = [
            f.name for f in dataclasses.fields(part) if f.name not in getattr(kind, "varies", ())
        ]
        values = tuple((name, common(getattr(part, name))) for name in kept)
        return (f"{kind.__module__}:{kind.__qualname__}", values)
    if isinstance(part, dict):
        return ("dict", tuple(sorted(((repr(k), common(v)) for k, v in part.items()), key=repr)))
    if isinstance(part, (list, tuple)):
        return ("tuple", tuple(common(item) for item in part))
    return part


def fleet_key(part: Any) -> str:
    """Twelve hexadecimal digits that parts share if, and only if, their `common` is the same."""
    return hashlib.sha256(repr(common(part)).encode()).hexdigest()[:12]
