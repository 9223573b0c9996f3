"""What a tokenised cache depends on: a task's code, arguments and files, as one hash."""

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import sys
import types
from typing import Any

import numpy as np

_DEPTH = 16
_DATA = (".txt", ".tsv", ".csv", ".json", ".jsonl")
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def file_hash(path: str) -> str:
    """sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: dict) -> str:
    """One hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def describe(thing: Any, depth: int = _DEPTH) -> Any:
    """A JSON-able account of a callable or an argument, equal in every process.

    Functions count with the source they reach (see `code_hash`), their defaults and closures;
    paths of local files with the file's content; objects with their class and attributes.

    Args:
        thing: a preprocessor, a data source, an argument.
        depth: how deep nested objects are followed.
    """
    if thing is None or isinstance(thing, bool | int | float):
        return thing
    if isinstance(thing, bytes):
        return thing.hex()
    if isinstance(thing, np.ndarray | np.generic):
        return [str(thing.dtype), list(thing.shape), hashlib.sha256(thing.tobytes()).hexdigest()]
    if isinstance(thing, str | os.PathLike):
        text = os.fspath(thing)
        return [text, file_hash(text)] if isinstance(text, str) and os.path.isfile(text) else text
    if depth == 0:
        return type(thing).__qualname__
    if isinstance(thing, dict):
        return {str(key): describe(value, depth - 1) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [describe(value, depth - 1) for value in thing]
    if isinstance(thing, set | frozenset):
        return sorted(json.dumps(describe(value, depth - 1)) for value in thing)
    if isinstance(thing, functools.partial):
        parts = [describe(part, depth - 1) for part in (thing.func, thing.args, thing.keywords)]
        return ["partial", *parts]
    if isinstance(thing, types.MethodType):
        return [describe(thing.__func__, depth - 1), describe(thing.__self__, depth - 1)]
    if isinstance(thing, types.FunctionType):
        return _describe_function(thing, depth)
    if isinstance(thing, type | types.BuiltinFunctionType):
        return [thing.__module__, thing.__qualname__, code_hash(thing.__module__)]
    attributes = getattr(thing, "__dict__", {})
    kind = type(thing)
    code = code_hash(kind.__module__)
    return [kind.__module__, kind.__qualname__, code, describe(dict(attributes), depth - 1)]


def _describe_function(function: types.FunctionType, depth: int) -> Any:
    """A function's name, reachable source, bytecode, defaults and closure."""
    function = inspect.unwrap(function)  # decorators of libraries hold nothing that matters
    if not isinstance(function, types.FunctionType):
        return describe(function, depth - 1)
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    source = code_hash(function.__module__ or "")
    return [
        function.__module__,
        function.__qualname__,
        source,
        # A function typed into a notebook has no file; its bytecode stands for it.
        None if source else _describe_code(function.__code__),
        describe(function.__defaults__, depth - 1),
        describe(function.__kwdefaults__, depth - 1),
        describe(cells, depth - 1),
    ]


def _describe_code(code: types.CodeType) -> list:
    """Bytecode, names and constants of a function and of those inside it."""
    constants = [
        _describe_code(part) if isinstance(part, types.CodeType) else repr(part)
        for part in code.co_consts
        if not isinstance(part, frozenset)  # their order differs from process to process
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises when the variable was never set
    except ValueError:
        return False
    return True


def _is_local(path: str | None) -> bool:
    """Whether a source file is the user's or this project's, not a library's."""
    if not path or not path.endswith(".py") or not os.path.isfile(path):
        return False
    path = os.path.abspath(path)
    if path.startswith(_ROOT + os.sep):
        return True
    library = os.path.dirname(os.path.abspath(os.__file__))
    outside = "site-packages" not in path and "dist-packages" not in path
    return outside and not path.startswith(library + os.sep)


@functools.lru_cache(maxsize=256)
def code_hash(module: str) -> str:
    """Hash of the local source files that a module reaches through its imports.

    Import statements inside functions count too; libraries do not. Data files beside a module
    of this project (a lexicon) count.

    Args:
        module: dotted name, imported already.

    Returns:
        A hash; "" for a library's module.
    """
    first = getattr(sys.modules.get(module), "__file__", None)
    if not _is_local(first):
        return ""
    seen: dict[str, str] = {}
    waiting = [(module, os.path.abspath(first))]
    while waiting:
        name, path = waiting.pop()
        if path in seen:
            continue
        seen[path] = file_hash(path)
        if path.startswith(_ROOT + os.sep):
            folder = os.path.dirname(path)
            for data in sorted(os.listdir(folder)):
                if data.endswith(_DATA):
                    seen[os.path.join(folder, data)] = file_hash(os.path.join(folder, data))
        waiting += [found for found in _imports(name, path) if found[1] not in seen]
    return fingerprint({"files": sorted(seen.values())})


def _imports(module: str, path: str) -> list[tuple[str, str]]:
    """(name, file) of the local modules that a source file imports."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
            parent = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parent, *filter(None, [node.module])]) if node.level else node.module
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    found = []
    # The package's own `__init__` reaches, lazily, the whole program.
    for name in sorted(names - {None, "", "prompt_jax"}):
        origin = _origin(name)
        if _is_local(origin):
            found.append((name, os.path.abspath(origin)))
    return found


@functools.lru_cache(maxsize=1024)
def _origin(name: str) -> str | None:
    """The source file of a local module; None for a library's, or where `name` is no module."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    try:
        # Looking for `a.b` imports `a`: never do that to a library.
        top = importlib.util.find_spec(name.partition(".")[0])
        if top is None or not _is_local(top.origin):
            return None
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return spec.origin if spec else None
