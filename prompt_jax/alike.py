"""In what two configurations agree: which runs can be trained as one program."""

import dataclasses
from typing import Any


def common(part: Any) -> Any:
    """A part without the fields in which the runs of a fleet may differ (`varies` of its class).

    Args:
        part: a dataclass, with dataclasses, containers and plain values in its fields.

    Returns:
        Nested dicts, tuples and values; equal where the parts are alike.
    """
    if dataclasses.is_dataclass(part):
        varies = getattr(part, "varies", ())
        names = [field.name for field in dataclasses.fields(part) if field.name not in varies]
        own = {name: common(getattr(part, name)) for name in names}
        return {"": type(part).__name__, **own}
    if isinstance(part, dict):
        return {key: common(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return tuple(common(value) for value in part)
    return part


def difference(a: Any, b: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first place where what `common` returned differs, as (name, value of a, value of b)."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        kind = a.get("", name)
        pairs = [(f"{kind}.{key}" if "" in a else f"{name}[{key!r}]", a[key], b[key]) for key in a]
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        pairs = [(f"{name}[{i}]", *both) for i, both in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else (name, a, b)
    found = (difference(mine, theirs, where) for where, mine, theirs in pairs)
    return next((each for each in found if each), None)
