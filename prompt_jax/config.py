"""Gin files and `--gin.` flags -> one typed, frozen `Run`, with every value's origin.

The only module that imports gin, and of gin only its parser: no global state, no code run by a
configuration. Precedence: defaults < one binding among the given files (an includer beats what it
includes) < `--gin.`. Everything that is wrong is reported at once, with file, line and the
nearest valid name, before a device is opened.

A macro is `NAME = value`, read as `%NAME`; a part is `@Class()`, its fields `Class.field = value`.
`@scope/Class()` reads `scope/Class.field` before `Class.field`: two instances of one class.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gin import config_parser

from prompt_jax.errors import UserError, nearest
from prompt_jax.resolver import (
    COMMAND,
    EXAMPLES,
    REQUIRED,
    Binding,
    Classes,
    Macro,
    Reference,
    Resolver,
    leaves,
    literal,
    macros_in,
)

REGISTRY = {
    "Run": "prompt_jax.train:Run",
    "Backbone": "prompt_jax.backbone:Backbone",
    "Method": "prompt_jax.assemble:Method",
    "T5Config": "prompt_jax.models.t5.config:T5Config",
    "PromptBank": "prompt_jax.parts.bank:PromptBank",
    "LowRankBank": "prompt_jax.parts.banks.low_rank:LowRankBank",
    "OffsetBank": "prompt_jax.parts.banks.low_rank:OffsetBank",
    "TaskBank": "prompt_jax.parts.banks.tasks:TaskBank",
    "MaskedBank": "prompt_jax.parts.banks.masked:MaskedBank",
    "BottleneckBank": "prompt_jax.parts.banks.low_rank:BottleneckBank",
    "LayersBank": "prompt_jax.parts.banks.layers:LayersBank",
    "PrefixBank": "prompt_jax.parts.banks.layers:PrefixBank",
    "WeightsBank": "prompt_jax.parts.banks.weights:WeightsBank",
    "GeneratorBank": "prompt_jax.parts.banks.generator:GeneratorBank",
    "Banks": "prompt_jax.parts.bank:Banks",
    "UniformInit": "prompt_jax.parts.init:UniformInit",
    "SampledVocabulary": "prompt_jax.parts.init:SampledVocabulary",
    "CommonVocabulary": "prompt_jax.parts.init:CommonVocabulary",
    "ClassLabels": "prompt_jax.parts.init:ClassLabels",
    "TextInit": "prompt_jax.parts.init:TextInit",
    "FileInit": "prompt_jax.parts.init:FileInit",
    "Prompts": "prompt_jax.parts.init:Prompts",
    "Static": "prompt_jax.parts.select:Static",
    "Remaining": "prompt_jax.parts.select:Remaining",
    "Retrieved": "prompt_jax.parts.select:Retrieved",
    "EncoderSlots": "prompt_jax.parts.inject:EncoderSlots",
    "LayerSlots": "prompt_jax.parts.inject:LayerSlots",
    "AddedSlots": "prompt_jax.parts.inject:AddedSlots",
    "Generated": "prompt_jax.parts.inject:Generated",
    "Prefix": "prompt_jax.parts.inject:Prefix",
    "Offset": "prompt_jax.parts.inject:Offset",
    "Weights": "prompt_jax.parts.inject:Weights",
    "Injects": "prompt_jax.parts.inject:Injects",
    "LMHead": "prompt_jax.parts.head:LMHead",
    "ClassifierHead": "prompt_jax.parts.head:ClassifierHead",
    "VerbalizerHead": "prompt_jax.parts.head:VerbalizerHead",
    "ClassCrossEntropy": "prompt_jax.losses:ClassCrossEntropy",
    "ClassHinge": "prompt_jax.losses:ClassHinge",
    "BinaryCrossEntropy": "prompt_jax.losses:BinaryCrossEntropy",
    "Distillation": "prompt_jax.losses:Distillation",
    "CrossEntropy": "prompt_jax.losses:CrossEntropy",
    "Trainable": "prompt_jax.parts.trainable:Trainable",
    "Adafactor": "prompt_jax.parts.trainable:Adafactor",
    "AdamW": "prompt_jax.parts.trainable:AdamW",
    "Gradient": "prompt_jax.parts.phases:Gradient",
    "PruneTokens": "prompt_jax.parts.prune:PruneTokens",
    "PrunePieces": "prompt_jax.parts.prune:PrunePieces",
    "KeepSource": "prompt_jax.parts.transfer:KeepSource",
    "Teach": "prompt_jax.parts.transfer:Teach",
    "Search": "prompt_jax.parts.phases:Search",
    "CMAES": "prompt_jax.parts.evolution:CMAES",
    "ResidualBank": "prompt_jax.parts.banks.residual:ResidualBank",
    "SubspaceBank": "prompt_jax.parts.banks.subspace:SubspaceBank",
    "Score": "prompt_jax.parts.phases:Score",
    "Parallel": "prompt_jax.parallel.mesh:Parallel",
    "Distributed": "prompt_jax.parallel.multihost:Distributed",
    "TaskMetrics": "prompt_jax.evaluate:TaskMetrics",
    "Decoding": "prompt_jax.evaluate:Decoding",
    "TrieDecoding": "prompt_jax.evaluate:TrieDecoding",
    "TemplateEnsemble": "prompt_jax.ensemble:TemplateEnsemble",
    "PromptEnsemble": "prompt_jax.ensemble:PromptEnsemble",
    "TaskSimilarity": "prompt_jax.relatedness:TaskSimilarity",
    "LossGap": "prompt_jax.probes:LossGap",
    "PromptProbe": "prompt_jax.probes:PromptProbe",
    "Data": "prompt_jax.data.loader:Data",
    "SpanCorruption": "prompt_jax.data.objectives:SpanCorruption",
    "PrefixLM": "prompt_jax.data.objectives:PrefixLM",
    "Mixed": "prompt_jax.data.objectives:Mixed",
}

# The hash names an experiment; where its files lie and which processes run it is no part of it.
_NOT_HASHED = ("Run.model_dir", "Run.distributed", "Run.profile_steps", "Distributed.")


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A finished configuration.

    Attributes:
        run: the constructed root, `prompt_jax.train.Run`.
        values: macro or "Class.field" -> final value; parts as `Reference`.
        origins: the same keys -> "file:line", "--gin." or "default".
        text: self-contained gin text; alone it resolves to the same run and hash.
        hash: sha256 of the flat configuration, whatever its files and MODEL_DIR are called.
        unused: "key (file:line)" of file bindings that this run does not read.
    """

    run: Any
    values: dict[str, Any]
    origins: dict[str, str]
    text: str
    hash: str
    unused: tuple[str, ...] = ()

    def flat(self) -> dict[str, Any]:
        """The final values, JSON-able: "Class.field" -> value, parts as "@Class()"."""
        return _flat(self.values)

    def hash_in(self, folder: str) -> str:
        """The hash with `folder`, where a path begins with it, called FOLDER: it may be moved."""

        def moved(value):
            if isinstance(value, dict):
                return {k: moved(v) for k, v in value.items()}
            if isinstance(value, list):
                return [moved(item) for item in value]
            inside = isinstance(value, str) and f"{value}/".startswith(f"{folder}/")
            return f"FOLDER{value[len(folder) :]}" if inside else value

        return _digest(moved(self.flat()))

    def on_processes(self, flags: Mapping[str, Any]) -> "Resolved":
        """The same on the processes of the command line: fields of `Distributed`, not written."""
        distributed = dataclasses.replace(self.run.distributed, **flags)
        return dataclasses.replace(self, run=dataclasses.replace(self.run, distributed=distributed))


class ConfigurationError(UserError):
    """A configuration is wrong; `lines` has a message each."""

    def __init__(self, lines: Iterable[str]):
        self.lines = tuple(dict.fromkeys(lines))
        many = f"{len(self.lines)} errors in the configuration:"
        super().__init__("\n  ".join([many, *self.lines] if len(self.lines) > 1 else self.lines))


def gin_folder() -> pathlib.Path:
    """The folder of the shipped gin files: inside a wheel's package, beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parent
    inside = package / "gin"
    return inside if inside.is_dir() else package.parent / "gin"


def resolve(
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    *,
    unset: Mapping[str, Any] | None = None,
    given: Sequence[Binding] = (),
    registry: Mapping[str, str] = REGISTRY,
    root: str = "Run",
) -> Resolved:
    """Reads, checks and constructs a configuration.

    Args:
        gin_files: names, looked up in `search_paths`, the working directory and the shipped `gin/`;
            their order does not matter.
        bindings: "NAME=VALUE" or "Class.field=VALUE", the text behind `--gin.`.
        search_paths: further folders, searched first.
        unset: macro -> what a verb takes where neither a file nor a flag sets it.
        given: bindings of a program (`resolver.setting`): they beat the files.
        registry: configurable name -> "module:Class" of a frozen, typed dataclass.
        root: the configurable to construct.

    Returns:
        The configuration.

    Raises:
        ConfigurationError: everything that is wrong with it, a line each.
    """
    errors: list[str] = []
    found, includes, readable = _read_all(gin_files, bindings, search_paths, errors)
    found += given
    winners = _merge(found, includes, errors)
    for name, value in (unset or {}).items():
        if name not in winners or winners[name].value == REQUIRED:
            winners[name] = Binding(name, value, "default", "default")
    classes = Classes(registry)
    known = _check_names(found, classes, readable, errors)
    if not readable:
        raise ConfigurationError(errors)
    resolver = Resolver(winners, classes, errors)
    run = resolver.construct(Reference(root), "the run")
    if known:
        _check_used(winners, found, resolver, errors)
    if errors:
        raise ConfigurationError(errors)
    return _finish(run, resolver, winners)


# --- reading ---


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name):
        return Macro(macro_name)


def _read_all(gin_files, bindings, search_paths, errors):
    """-> (every binding, {includer: set of included files}, whether all of it could be read)."""
    before, refused = len(errors), []  # imports do not hide what else is wrong
    found, includes, done = [], {}, {}

    def read(name, asked_by):
        path = _find(name, search_paths)
        if path is None:
            shipped = [p.relative_to(gin_folder()).as_posix() for p in gin_folder().glob("*/*.gin")]
            errors.append(f"{asked_by}: no file {name!r}; {nearest(name, shipped)}")
            return None, []
        if path in done:
            return path, []
        done[path] = name
        try:
            statements = _parse(_contents(path), (name, path), errors, refused)
        except (OSError, UnicodeDecodeError) as error:
            errors.append(f"{asked_by}: cannot read {name!r}: {error}")
            return path, []
        found.extend(s for s in statements if isinstance(s, Binding))
        return path, [(path, s) for s in statements if not isinstance(s, Binding)]

    # All given files first, so that an include means the same wherever its file is named.
    asked = [include for name in gin_files for include in read(name, "--gin_file")[1]]
    for outer, statement in asked:
        place = f"{done[outer]}:{statement.location.line_num}"
        inner, deeper = read(statement.filename, place)
        if inner != outer:
            includes.setdefault(outer, set()).add(inner)
        for path, nested in deeper:
            at = f"{done[path]}:{nested.location.line_num}"
            errors.append(f"{at}: includes go one level deep; name {nested.filename!r} elsewhere")
    for text in bindings:
        found += _parse(text, None, errors, refused)
    readable = len(errors) == before
    errors += refused
    return found, includes, readable


def _find(name: str, search_paths: Sequence[str]) -> str | None:
    if "://" in name:
        return name
    for folder in (*search_paths, os.curdir, gin_folder()):
        path = pathlib.Path(folder) / name
        if path.is_file():
            return str(path.resolve())
    return None


def _contents(path: str) -> str:
    if "://" in path:
        from etils import epath  # only for remote paths: it is slow to import

        return epath.Path(path).read_text()
    return pathlib.Path(path).read_text(encoding="utf-8")


def _parse(text: str, file: tuple[str, str] | None, errors, refused) -> list:
    """Bindings and include statements of a file's text, or of one `--gin.` flag (file None)."""
    statements, wrong, imports = _parsed(text, file)
    errors += wrong
    refused += imports
    return statements


@functools.lru_cache(maxsize=256)  # the runs of a study share files
def _parsed(text: str, file: tuple[str, str] | None) -> tuple[list, list[str], list[str]]:
    """-> (statements, errors, refused imports)."""
    statements, errors, refused = [], [], []
    shown = file[0] if file else COMMAND
    try:
        for statement in config_parser.ConfigParser(io.StringIO(text), _Delegate()):
            place = f"{shown}:{statement.location.line_num}" if file else COMMAND
            if isinstance(statement, config_parser.BindingStatement):
                key = f"{statement.scope}/" if statement.scope else ""
                key += statement.selector + (f".{statement.arg_name}" if statement.arg_name else "")
                path = file[1] if file else None
                statements.append(Binding(key, statement.value, place, path))
            elif isinstance(statement, config_parser.ImportStatement):
                refused.append(
                    f"{place}: gin files may not import ({statement.format()!r}); "
                    "own tasks come in by MIXTURE_OR_TASK_MODULE"
                )
            elif isinstance(statement, config_parser.IncludeStatement) and file:
                statements.append(statement)
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        errors.append(_syntax_message(text, file, error))
        return statements if file else [], errors, refused
    if not file and len(statements) != 1:
        errors.append(f"{COMMAND}{text}: write {COMMAND}NAME=VALUE")
        return [], errors, refused
    return statements, errors, refused


def _syntax_message(text: str, file: tuple[str, str] | None, error: Exception) -> str:
    if not file:
        name, _, value = text.partition("=")
        quoted = "'" + value.strip("'\"") + "'"
        return (
            f"{COMMAND}{text}: {value!r} is no gin value; "
            f'a string takes inner quotes: {COMMAND}{name}="{quoted}"'
        )
    line = getattr(error, "lineno", None) or (error.args[1][0] if len(error.args) > 1 else 1)
    lines = text.splitlines()
    content = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    reason = str(getattr(error, "msg", None) or error.args[0])
    if "Failed to parse token" in reason:
        token = reason.rsplit("'", 2)[-2]
        reason = f"{token} is no gin value; strings take quotes: '{token}'"
    return f"{file[0]}:{line}: cannot read {content!r}: {' '.join(reason.split())}"


# --- merging ---


def _merge(found: list[Binding], includes, errors) -> dict[str, Binding]:
    """The binding that counts, per key: `--gin.`, given, or the one that no includer overrides."""
    by_key: dict[str, list[Binding]] = {}
    for binding in found:
        by_key.setdefault(binding.key, []).append(binding)
    winners = {}
    for key, candidates in by_key.items():
        files = {binding.file for binding in candidates}
        overridden = {inner for outer in files for inner in includes.get(outer, ())}
        in_files = [b for b in candidates if b.file and b.file not in overridden and not b.given]
        given = [b for b in candidates if b.given]
        on_command = [b for b in candidates if not b.file]
        for level in (in_files, given, on_command):
            if len(level) > 1:
                places = " and ".join(dict.fromkeys(b.where for b in level))
                errors.append(f"{places}: {key} is bound {len(level)} times; keep one")
        winners[key] = (on_command or given or in_files or candidates)[-1]
    return winners


def _check_names(found: list[Binding], classes: "Classes", readable: bool, errors) -> bool:
    """Reports unknown configurables, fields, references and macros; whether there were none."""
    before = len(errors)
    macros = {b.key for b in found if "." not in b.key}
    readers = set().union(*(macros_in(b.value) for b in found))
    for binding in found:
        name, _, field = binding.key.rpartition(".")
        if field == binding.key:
            if binding.key not in readers and readable and not binding.given:
                errors.append(
                    f"{binding.where}: nothing reads the macro {field}; {nearest(field, readers)}"
                )
        elif name.split("/")[-1] not in classes.registry:
            errors.append(
                f"{binding.where}: {name!r} is no configurable; {nearest(name, classes.registry)}"
            )
        elif field not in classes.fields(name):
            errors.append(
                f"{binding.where}: {name} has no field {field!r}; "
                f"{nearest(field, classes.fields(name))}"
            )
        for leaf in leaves(binding.value):
            if isinstance(leaf, Reference) and leaf.name.split("/")[-1] not in classes.registry:
                errors.append(
                    f"{binding.where}: {leaf} is no configurable; "
                    f"{nearest(leaf.name, classes.registry)}"
                )
            elif isinstance(leaf, Reference) and not leaf.call:
                errors.append(f"{binding.where}: write {leaf}(), a part, not {leaf}")
            elif isinstance(leaf, Macro) and leaf != REQUIRED and leaf.name not in macros:
                # The known macros are a request to the user, all others a slip of the pen.
                if readable and leaf.name not in EXAMPLES:
                    errors.append(
                        f"{binding.where}: no file sets the macro {leaf}; "
                        f"{nearest(leaf.name, macros)}"
                    )
    return len(errors) == before


def _check_used(winners, found, resolver: Resolver, errors) -> None:
    """A `--gin.` flag that changes nothing is an error; files may set values for other parts."""
    for key, binding in winners.items():
        if binding.file or key in resolver.used:
            continue
        if "." in key:
            name = key.rpartition(".")[0]
            errors.append(
                f"{binding.where}: this run has no @{name}(){_where_to_put(name, resolver)}"
            )
            continue
        readers = [b for b in found if key in macros_in(b.value)]
        shown = ", ".join(f"{b.key} ({b.place})" for b in readers)
        hint = _where_to_put(readers[0].key.rpartition(".")[0], resolver)
        errors.append(f"{binding.where}: read only by {shown}, which this run does not use{hint}")


def _where_to_put(name: str, resolver: Resolver) -> str:
    """How to bring a part into the run: in the place of one that is defined beside it."""
    module = resolver.classes.registry.get(name.split("/")[-1], "").partition(":")[0]
    for key, (_, value, _) in resolver.fields.items():
        if isinstance(value, Reference):
            there = resolver.classes.registry[value.name.split("/")[-1]].partition(":")[0]
            if there == module:
                return f'; add {COMMAND}{key}="@{name}()"'
    return ""


# --- writing ---
def _flat(values: dict[str, Any]) -> dict[str, Any]:
    def plain(value):
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Reference) else value

    return {key: plain(value) for key, value in values.items() if "." in key}


def _finish(run: Any, resolver: Resolver, winners: dict[str, Binding]) -> Resolved:
    macros, met = resolver.macros, resolver.order.index
    fields = dict(sorted(resolver.fields.items(), key=lambda item: met(item[0].rpartition(".")[0])))
    values = {**macros, **{key: value for key, (_, value, _) in fields.items()}}
    origins = {name: winners[name].place for name in macros}
    origins |= {key: origin for key, (_, _, origin) in fields.items()}
    lines = ["# Every value of one run. Start it again with this file alone.", ""]
    lines += [f"{name} = {literal(winners[name].value)}" for name in macros]
    group = None
    for key, (expression, value, _) in fields.items():
        if key.rpartition(".")[0] != group:
            group = key.rpartition(".")[0]
            lines.append("")
        lines.append(f"{key} = {literal(expression if macros_in(expression) else value)}")
    unused = tuple(f"{k} ({b.place})" for k, b in winners.items() if k not in resolver.used)
    digest = _digest(_flat(values))
    return Resolved(run, values, origins, "\n".join(lines) + "\n", digest, unused)


def _digest(flat: dict[str, Any]) -> str:
    hashed = {key: value for key, value in flat.items() if not key.startswith(_NOT_HASHED)}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
