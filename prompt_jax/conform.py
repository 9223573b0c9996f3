"""Values against annotations: what a field of a configuration dataclass may hold."""

import collections.abc
import types
import typing
from typing import Any, Literal, Union

_PLAIN = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}


class Mismatch(Exception):
    """A value does not fit; the message says what would, e.g. "a whole number"."""


def describe(hint: Any) -> str:
    """What an annotation asks for, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if hint is None or hint is type(None):
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if hint is tuple or origin is tuple:
        return "a tuple, of one element (x,)"
    if hint is dict or origin in (dict, collections.abc.Mapping):
        return "a dict"
    if hint is list or origin in (list, collections.abc.Sequence):
        return "a list"
    return f"@{hint.__name__}()" if isinstance(hint, type) else str(hint)


def conform(value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it: whole numbers become floats, lists become tuples, where asked.

    Args:
        value: a literal, a container or a constructed part.
        hint: the field's annotation, as `typing.get_type_hints` gives it.

    Returns:
        An equal value of the annotated type, so that 1 and 1.0 configure the same run.

    Raises:
        Mismatch: the value does not fit.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in _PLAIN:
        exact = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        return _accept(exact, value, hint)
    if hint is None or hint is type(None):
        return _accept(value is None, value, hint)
    if origin in (Union, types.UnionType):
        return _first_fit(value, hint, args)
    if origin is Literal:
        return _accept(any(value == a and type(value) is type(a) for a in args), value, hint)
    if hint is tuple or origin is tuple:
        return _conform_tuple(value, hint, args)
    if hint is dict or origin in (dict, collections.abc.Mapping):
        _accept(isinstance(value, dict), value, hint)
        key_hint, item_hint = args or (Any, Any)
        return {conform(k, key_hint): conform(v, item_hint) for k, v in value.items()}
    if hint is list or origin in (list, collections.abc.Sequence):
        _accept(isinstance(value, (list, tuple)), value, hint)
        return [conform(item, args[0] if args else Any) for item in value]
    if hint is collections.abc.Callable or origin is collections.abc.Callable:
        return _accept(callable(value), value, hint)
    if isinstance(hint, type) and hint is not object and not getattr(hint, "_is_protocol", False):
        return _accept(isinstance(value, hint), value, hint)
    return value


def _accept(fits: bool, value: Any, hint: Any) -> Any:
    if not fits:
        raise Mismatch(describe(hint))
    return value


def _first_fit(value: Any, hint: Any, args: tuple) -> Any:
    # A whole number stays one where the union has both int and float.
    for arg in sorted(args, key=lambda arg: arg is float):
        try:
            return conform(value, arg)
        except Mismatch:
            continue
    raise Mismatch(describe(hint))


def _conform_tuple(value: Any, hint: Any, args: tuple) -> tuple:
    _accept(isinstance(value, (list, tuple)), value, hint)
    if not args:
        return tuple(value)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(conform(item, args[0]) for item in value)
    if len(args) != len(value):
        raise Mismatch(f"a tuple of {len(args)}")
    return tuple(conform(item, arg) for item, arg in zip(value, args, strict=True))
