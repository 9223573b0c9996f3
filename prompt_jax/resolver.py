"""Bindings -> constructed dataclasses: macros, references, types, required values. Knows no gin."""

import dataclasses
import functools
import importlib
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_jax.conform import Mismatch, conform
from prompt_jax.errors import UserError

# How a required value may look; shown when it is unset.
EXAMPLES = {
    "MODEL_DIR": "'out/run1'",
    "MIXTURE_OR_TASK_NAME": "'micro_sentiment'",
    "MIXTURE_OR_TASK_MODULE": "'my_tasks'",
    "TASK_FEATURE_LENGTHS": "{'inputs': 128, 'targets': 8}",
    "INITIAL_CHECKPOINT_PATH": "'backbones/t5_1_1_small'",
    "PROMPT_FILE": "'out/run0/prompt.npy'",
    "CLASS_LABELS": "('positive', 'negative')",
    "TRAIN_STEPS": "1000",
    "BATCH_SIZE": "32",
    "PROMPT_LENGTH": "20",
    "STUDY_DIR": "'out/my_study'",
}

COMMAND = "--gin."


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@name()`: an instance of a registered dataclass; name is `Class` or `scope/Class`."""

    name: str
    call: bool = True

    def __str__(self):
        return f"@{self.name}" + ("()" if self.call else "")


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%name`; `%gin.REQUIRED` marks a value that the user must give."""

    name: str

    def __str__(self):
        return f"%{self.name}"


REQUIRED = Macro("gin.REQUIRED")


@dataclasses.dataclass(frozen=True)
class Binding:
    """One statement `key = value`, and where it stands ("file:line" or "--gin.").

    Attributes:
        key: macro or "Class.field".
        value: literals, `Reference` and `Macro`.
        place: where it stands.
        file: the file; None on the command line.
        given: a program's own: it beats every file, and may set what this run does not read.
    """

    key: str
    value: Any
    place: str
    file: str | None
    given: bool = False

    @property
    def where(self) -> str:
        """The place as an error message starts."""
        return self.place if self.file else f"{COMMAND}{self.key}"


def setting(key: str, value: Any, place: str) -> Binding:
    """A binding that a program gives; a string "@Class()", at any depth, stands for that part."""

    def expression(value):
        if isinstance(value, dict):
            return {k: expression(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(expression(item) for item in value)
        if isinstance(value, str) and (part := re.fullmatch(r"@([\w./]+)(\(\))?", value)):
            return Reference(part[1], bool(part[2]))
        return value

    return Binding(key, expression(value), place, place, given=True)


def macros_in(value: Any) -> set[str]:
    """The names of the macros that an expression reads."""
    return {leaf.name for leaf in leaves(value) if isinstance(leaf, Macro) and leaf != REQUIRED}


def leaves(value: Any) -> Iterator[Any]:
    """The literals, references and macros inside nested containers."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(key)
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def literal(value: Any) -> str:
    """A value as gin reads it.

    Raises:
        TypeError: gin has no way to write it (a function, an array, ...).
    """
    if isinstance(value, dict):
        items = (f"{literal(k)}: {literal(v)}" for k, v in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (list, tuple)):
        items = [literal(item) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, (Reference, Macro)):
        return str(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "1e999" if value > 0 else "-1e999"
    if value is None or type(value) in (bool, int, float, str, bytes):
        return repr(value)
    raise TypeError(f"gin cannot write {value!r}")


class Classes:
    """The registered dataclasses, imported when first asked for."""

    def __init__(self, registry: Mapping[str, str]):
        self.registry = registry
        self._loaded: dict[str, type] = {}

    def load(self, name: str) -> type:
        name = name.split("/")[-1]
        if name not in self._loaded:
            module, _, attribute = self.registry[name].partition(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def fields(self, name: str) -> dict[str, dataclasses.Field]:
        return {field.name: field for field in dataclasses.fields(self.load(name)) if field.init}

    def as_gin(self, value: Any) -> Any:
        """A default as gin would write it: instances of registered classes become references."""
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            kind = type(value)
            target = f"{kind.__module__}:{kind.__qualname__}"
            for name, registered in self.registry.items():
                if registered == target:
                    return self._bare(name, value)
            raise TypeError(f"a default is a {target}, which config.REGISTRY does not name")
        if isinstance(value, dict):
            return {self.as_gin(k): self.as_gin(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(self.as_gin(item) for item in value)
        return value

    def _bare(self, name: str, value: Any) -> Reference:
        # `Class.field` has one value in a run, so a default instance may not carry another.
        for field in self.fields(name).values():
            if getattr(value, field.name) != default_of(field):
                raise TypeError(f"a default {name}(...) sets {field.name}; bind it in gin instead")
        return Reference(name)


def default_of(field: dataclasses.Field) -> Any:
    """A field's default; `dataclasses.MISSING` where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


_BROKEN = object()  # stands for a value whose error has been reported


class Resolver:
    """Walks from the root through references and macros; notes what is read, and from where."""

    def __init__(self, winners: dict[str, Binding], classes: Classes, errors: list[str]):
        self.winners, self.classes, self.errors = winners, classes, errors
        self.used: set[str] = set()
        self.built: dict[str, Any] = {}
        self.macros: dict[str, Any] = {}
        self.fields: dict[str, tuple[Any, Any, str]] = {}  # key -> (expression, value, origin)
        self.order: list[str] = []  # parts as they are met: the root first
        self._open: list[str] = []

    def construct(self, reference: Reference, where: str) -> Any:
        """The instance that `reference` names; one per name."""
        name = reference.name
        if name in self.built:
            return self.built[name]
        if self._circular(str(reference), where):
            return _BROKEN
        self._open.append(str(reference))
        self.order.append(name)
        cls = self.classes.load(name)
        hints = _hints(cls)
        values = {
            field.name: self._field(name, field, hints[field.name], where)
            for field in self.classes.fields(name).values()
        }
        self._open.pop()
        self.built[name] = _BROKEN
        if not any(value is _BROKEN for value in values.values()):
            try:
                self.built[name] = cls(**values)
            except (UserError, ValueError) as error:
                self.errors.append(f"{name}: {error}")
        return self.built[name]

    def _field(self, name: str, field: dataclasses.Field, hint: Any, where: str) -> Any:
        key = f"{name}.{field.name}"
        bound = self.winners.get(key) or self.winners.get(key.split("/")[-1])
        if bound is None:
            expression, origin, where_set = self.classes.as_gin(default_of(field)), "default", key
        else:
            self.used.add(bound.key)
            expression, origin, where_set = bound.value, bound.place, bound.where
        if expression is dataclasses.MISSING or expression == REQUIRED:
            at = where if bound is None else where_set
            self.errors.append(f"{at}: {key} is required and not set; e.g. {_example(key, hint)}")
            return _BROKEN
        value = self._evaluate(expression, where_set, hint)
        if value is _BROKEN:
            return value
        try:
            value = conform(value, hint)
        except Mismatch as mismatch:
            shown, source = literal(self._shown(value)), key
            if isinstance(expression, Macro):
                source = f"{expression.name} (read by {key})"
                where_set = self.winners[expression.name].where
            self.errors.append(f"{where_set}: {source} = {shown} should be {mismatch}")
            return _BROKEN
        self.fields[key] = (expression, self._shown(value), origin)
        return value

    def _evaluate(self, value: Any, where: str, hint: Any) -> Any:
        """`value` with macros replaced and references constructed."""
        if isinstance(value, Macro):
            return self._macro(value, where, hint)
        if isinstance(value, Reference):
            known = value.call and value.name.split("/")[-1] in self.classes.registry
            return self.construct(value, where) if known else _BROKEN
        if isinstance(value, dict):
            keys = [self._evaluate(k, where, Any) for k in value]
            items = [self._evaluate(v, where, Any) for v in value.values()]
            broken = any(part is _BROKEN for part in (*keys, *items))
            return _BROKEN if broken else dict(zip(keys, items, strict=True))
        if isinstance(value, (list, tuple)):
            items = tuple(self._evaluate(item, where, Any) for item in value)
            return _BROKEN if any(item is _BROKEN for item in items) else items
        return value

    def _macro(self, macro: Macro, where: str, hint: Any) -> Any:
        binding = self.winners.get(macro.name)
        self.used.add(macro.name)
        if binding is None or binding.value == REQUIRED:
            at = binding.where if binding else where
            example = _example(macro.name, hint)
            self.errors.append(f"{at}: {macro.name} is required and not set; e.g. {example}")
            return _BROKEN
        if self._circular(str(macro), where):
            return _BROKEN
        self._open.append(str(macro))
        value = self._evaluate(binding.value, binding.where, hint)
        self._open.pop()
        self.macros[macro.name] = self._shown(value)
        return value

    def _circular(self, name: str, where: str) -> bool:
        if name not in self._open:
            return False
        loop = " -> ".join([*self._open[self._open.index(name) :], name])
        self.errors.append(f"{where}: {loop} goes in a circle")
        return True

    def _shown(self, value: Any) -> Any:
        """A constructed value with its parts as references again."""
        for name, instance in self.built.items():
            if value is instance:
                return Reference(name)
        if isinstance(value, dict):
            return {self._shown(k): self._shown(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(self._shown(item) for item in value)
        return value


def _example(key: str, hint: Any) -> str:
    if key in EXAMPLES:
        value = EXAMPLES[key]
    else:
        options = typing.get_args(hint) or (hint,)
        samples = {int: "1", float: "0.1", str: "'text'", bool: "True"}
        value = next((samples[option] for option in options if option in samples), "VALUE")
    shell_safe = not set(value) & set("'(){} ")
    return f"{COMMAND}{key}={value}" if shell_safe else f'{COMMAND}{key}="{value}"'
