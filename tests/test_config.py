"""The gin mechanism on toy parts: precedence, every kind of error, the round trip."""

import dataclasses
import itertools
import json
from typing import Any, Literal

import pytest

from prompt_jax.config import resolve
from prompt_jax.conform import Mismatch, conform
from prompt_jax.errors import UserError
from prompt_jax.resolver import Reference


@dataclasses.dataclass(frozen=True)
class Uniform:
    scale: float = 0.5


@dataclasses.dataclass(frozen=True)
class Labels:
    labels: tuple[str, ...]
    rest: Any = Uniform()


@dataclasses.dataclass(frozen=True)
class Bank:
    length: int
    init: Any = Uniform()

    def __post_init__(self):
        if self.length < 1:
            raise UserError(f"length {self.length}: a bank has at least one vector")


@dataclasses.dataclass(frozen=True)
class Loss:
    z: float = 1e-4
    kind: Literal["sum", "mean"] = "sum"


@dataclasses.dataclass(frozen=True)
class Run:
    bank: Bank
    model_dir: str
    losses: tuple = (Loss(),)
    steps: int = 100
    lengths: dict[str, int] = dataclasses.field(default_factory=lambda: {"inputs": 8})
    note: str | None = None


REGISTRY = {c.__name__: f"{__name__}:{c.__name__}" for c in (Uniform, Labels, Bank, Loss, Run)}

METHOD = """\
# A method.
Run.bank = @Bank()
Bank.length = %PROMPT_LENGTH
PROMPT_LENGTH = 20
CLASS_LABELS = %gin.REQUIRED
Labels.labels = %CLASS_LABELS
"""
RUN = """\
MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = 100
Run:
  model_dir = %MODEL_DIR
  steps = %TRAIN_STEPS
"""
MODEL_DIR = "MODEL_DIR='out/a'"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("method.gin", METHOD)
    write("run.gin", RUN)
    return tmp_path


def write(name, text):
    with open(name, "w") as file:
        file.write(text)
    return name


def toy(files=("method.gin", "run.gin"), bindings=(MODEL_DIR,), paths=()):
    return resolve(files, bindings, paths, registry=REGISTRY)


def message(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        toy(*args, **kwargs)
    return str(caught.value)


# --- values ---


def test_constructs_typed_frozen_parts(folder):
    run = toy(bindings=[MODEL_DIR, "TRAIN_STEPS=7"]).run
    assert run == Run(Bank(20, Uniform()), "out/a", (Loss(),), 7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.steps = 8


def test_origins_and_values(folder):
    resolved = toy(bindings=[MODEL_DIR, "Uniform.scale=1"])
    expected = {
        "PROMPT_LENGTH": (20, "method.gin:4"),
        "Bank.length": (20, "method.gin:3"),
        "MODEL_DIR": ("out/a", "--gin."),
        "Run.model_dir": ("out/a", "run.gin:4"),
        "Run.bank": (Reference("Bank"), "method.gin:2"),
        "Bank.init": (Reference("Uniform"), "default"),
        "Uniform.scale": (1.0, "--gin."),
        "Run.losses": ((Reference("Loss"),), "default"),
        "Loss.z": (1e-4, "default"),
    }
    for key, (value, origin) in expected.items():
        assert (resolved.values[key], resolved.origins[key]) == (value, origin), key
    assert list(resolved.values) == list(resolved.origins)
    parts = [key.partition(".")[0] for key in resolved.values if "." in key]
    assert list(dict.fromkeys(parts)) == ["Run", "Bank", "Uniform", "Loss"]
    assert parts == sorted(parts, key=["Run", "Bank", "Uniform", "Loss"].index)
    assert resolved.unused == ("CLASS_LABELS (method.gin:5)", "Labels.labels (method.gin:6)")


def test_references_in_containers_and_scopes(folder):
    write("two.gin", "Run.losses = (@Loss(), @b/Loss())\nLoss.z = 0.5\nb/Loss.kind = 'mean'\n")
    resolved = toy(("method.gin", "run.gin", "two.gin"))
    assert resolved.run.losses == (Loss(0.5), Loss(0.5, "mean"))
    assert resolved.values["Loss.kind"] == "sum" and resolved.values["b/Loss.kind"] == "mean"
    again = toy([write("config.gin", resolved.text)], ())
    assert again.run == resolved.run and again.hash == resolved.hash


def test_a_switched_part_reads_its_own_fields(folder):
    resolved = toy(bindings=[MODEL_DIR, "Bank.init=@Labels()", "CLASS_LABELS=['a', 'b']"])
    assert resolved.run.bank.init == Labels(("a", "b"), Uniform())


# --- precedence ---


def test_includer_beats_included_beats_default(folder):
    write("base.gin", "Run.steps = 5\nLoss.z = 0.25\n")
    write("outer.gin", "include 'base.gin'\nRun.steps = 6\nRun.model_dir = 'x'\n")
    resolved = toy(("outer.gin", "method.gin"), ())
    assert resolved.run.steps == 6 and resolved.origins["Run.steps"] == "outer.gin:2"
    assert resolved.run.losses[0].z == 0.25 and resolved.origins["Loss.z"] == "base.gin:2"
    assert toy(("outer.gin", "method.gin"), ["Run.steps=7"]).run.steps == 7


@pytest.mark.parametrize("conflict", [False, True])
def test_order_of_files_never_changes_a_result(folder, conflict):
    write("base.gin", "Run.steps = 5\nLoss.z = 0.25\n")
    write("outer.gin", "include 'base.gin'\nRun.steps = 6\nRun.model_dir = 'x'\n")
    write("other.gin", "include 'base.gin'\nUniform.scale = 2.0\n")
    write("more.gin", f"Loss.kind = 'mean'\n{'Loss.z = 9.0' if conflict else ''}\n")
    seen = set()
    files = ("outer.gin", "method.gin", "other.gin", "base.gin", "more.gin")
    for order in itertools.permutations(files):
        try:
            resolved = toy(order, ())
            seen.add((resolved.hash, repr(resolved.run), str(sorted(resolved.origins.items()))))
        except UserError as error:
            seen.add(" ".join(sorted(str(error).replace(":", " ").split())))
    assert len(seen) == 1
    assert isinstance(seen.pop(), str) == conflict


def test_search_paths_come_first(folder):
    (folder / "own").mkdir()
    write("own/run.gin", RUN.replace("100", "300"))
    assert toy().run.steps == 100
    assert toy(paths=["own"]).run.steps == 300
    assert toy(("method.gin", str(folder / "own" / "run.gin"))).run.steps == 300


# --- the hash and the round trip ---


def test_config_gin_alone_gives_the_same_run(folder):
    write("odd.gin", "Run.lengths = {'inputs': 3, 'a b': -1}\nRun.note = 'it\\'s\\n\"x\"'\n")
    bindings = [MODEL_DIR, "Loss.z=1e999", "Uniform.scale=-0.25"]
    first = toy(("method.gin", "run.gin", "odd.gin"), bindings)
    again = toy([write("config.gin", first.text)], ())
    assert again.run == first.run
    assert again.hash == first.hash
    assert again.flat() == first.flat()
    assert again.text == first.text
    assert toy(["config.gin"], ["PROMPT_LENGTH=3"]).run.bank.length == 3


def test_hash_ignores_names_and_folders_and_sees_values(folder):
    base = toy().hash
    assert toy(bindings=["MODEL_DIR='elsewhere'"]).hash == base
    write("renamed.gin", "\n\n# moved\n" + METHOD)
    assert toy(("run.gin", "renamed.gin")).hash == base
    assert toy(bindings=[MODEL_DIR, "Uniform.scale=0.5"]).hash == base
    assert toy(bindings=[MODEL_DIR, "Bank.length=20"]).hash == base
    assert toy(bindings=[MODEL_DIR, "Uniform.scale=0.6"]).hash != base
    assert toy(bindings=[MODEL_DIR, "Bank.init=@Labels()", "CLASS_LABELS=('a',)"]).hash != base


def test_whole_and_decimal_numbers_configure_the_same_run(folder):
    whole = toy(bindings=[MODEL_DIR, "Loss.z=1"])
    decimal = toy(bindings=[MODEL_DIR, "Loss.z=1.0"])
    assert whole.hash == decimal.hash and isinstance(whole.run.losses[0].z, float)


def test_flat_is_json(folder):
    flat = toy().flat()
    assert json.loads(json.dumps(flat)) == flat
    assert flat["Run.bank"] == "@Bank()" and "MODEL_DIR" not in flat


# --- errors: (extra file, bindings) -> parts of the message ---

ERRORS = {
    "unset macro": ("", [], ["run.gin:1: MODEL_DIR is required", "--gin.MODEL_DIR=\"'out/run1'\""]),
    "unset field": (
        "",
        [MODEL_DIR, "Bank.init=@Labels()", "Labels.rest=@Labels()"],
        ["CLASS_LABELS is required", "goes in a circle"],
    ),
    "misspelt macro flag": ("", [MODEL_DIR, "TRAIN_STEP=5"], ["--gin.TRAIN_STEP", "'TRAIN_STEPS'"]),
    "macro nothing reads": ("EXTRA = 1", [MODEL_DIR], ["extra.gin:1", "nothing reads", "EXTRA"]),
    "macro nobody sets": (
        "Loss.z = %Z_LOS\nZ_LOSS = 1\nRun.note = %Z_LOSS",
        [MODEL_DIR],
        ["extra.gin:1", "%Z_LOS", "did you mean 'Z_LOSS'"],
    ),
    "unknown configurable": ("Bnk.length = 1", [MODEL_DIR], ["extra.gin:1", "'Bnk'", "'Bank'"]),
    "unknown field": (
        "\nUniform.scal = 1",
        [MODEL_DIR],
        ["extra.gin:2", "Uniform has no field 'scal'", "did you mean 'scale'"],
    ),
    "unknown reference": ("Run.losses = (@Lss(),)", [MODEL_DIR], ["extra.gin:1", "@Lss()", "Loss"]),
    "reference without call": ("Run.losses = (@Loss,)", [MODEL_DIR], ["write @Loss()"]),
    "bound twice in files": (
        "Run.steps = 3",
        [MODEL_DIR],
        ["run.gin:5", "extra.gin:1", "Run.steps is bound 2 times"],
    ),
    "bound twice in one file": ("Loss.z = 1\nLoss.z = 1", [MODEL_DIR], ["extra.gin:1", ":2", "2"]),
    "bound twice on the command": (
        "",
        [MODEL_DIR, "TRAIN_STEPS=1", "TRAIN_STEPS=2"],
        ["--gin.", "TRAIN_STEPS is bound 2 times"],
    ),
    "wrong type": (
        "Run.note = 3",
        [MODEL_DIR, "TRAIN_STEPS='7'"],
        [
            "extra.gin:1",
            "Run.note = 3 should be a string or None",
            "--gin.TRAIN_STEPS",
            "= '7'",
            "whole",
        ],
    ),
    "bool is no number": ("Loss.z = True", [MODEL_DIR], ["Loss.z = True should be a number"]),
    "no choice of a literal": ("Loss.kind = 'max'", [MODEL_DIR], ["one of 'sum', 'mean'"]),
    "missing comma": ("Run.losses = (@Loss())", [MODEL_DIR], ["@Loss() should be a tuple", "(x,)"]),
    "wrong part": ("", [MODEL_DIR, "Run.bank=@Loss()"], ["@Loss() should be @Bank()"]),
    "import": (
        "import os",
        [MODEL_DIR],
        ["extra.gin:1", "may not import", "MIXTURE_OR_TASK_MODULE"],
    ),
    "from import": ("from os import path", [MODEL_DIR], ["extra.gin:1", "may not import"]),
    "import in a flag": ("", [MODEL_DIR, "import os\nLoss.z=1"], ["may not import"]),
    "syntax": ("Run.note = = 3", [MODEL_DIR], ["extra.gin:1", "cannot read 'Run.note = = 3'"]),
    "unclosed": ("Run.losses = (1,\n", [MODEL_DIR], ["extra.gin:", "cannot read"]),
    "unquoted in a file": ("\nRun.note = hello", [MODEL_DIR], ["extra.gin:2", "quotes: 'hello'"]),
    "unquoted flag": ("", ["MODEL_DIR=out/a"], ["inner quotes: --gin.MODEL_DIR=\"'out/a'\""]),
    "empty flag": ("", [MODEL_DIR, "TRAIN_STEPS="], ["--gin.TRAIN_STEPS="]),
    "missing include": ("include 'runs/promt_tune.gin'", [MODEL_DIR], ["extra.gin:1: no file"]),
    "flag for a part not there": ("", [MODEL_DIR, "Labels.rest=@Uniform()"], ["no @Labels()"]),
    "flag for a macro not used": (
        "",
        [MODEL_DIR, "CLASS_LABELS=('a',)"],
        ["--gin.CLASS_LABELS", "only by Labels.labels (method.gin:6)", 'Bank.init="@Labels()"'],
    ),
    "the part's own complaint": ("", [MODEL_DIR, "PROMPT_LENGTH=0"], ["Bank: length 0"]),
    "circular macros": ("Run.note = %A\nA = %B\nB = %A", [MODEL_DIR], ["%A -> %B -> %A"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error(folder, case):
    text, bindings, parts = ERRORS[case]
    write("extra.gin", text + "\n")
    shown = message(("method.gin", "run.gin", "extra.gin"), bindings)
    for part in parts:
        assert part in shown, shown


def test_required_field_without_binding(folder):
    write("only.gin", "Run.bank = @Bank()\nRun.model_dir = 'x'\n")
    shown = message(("only.gin",), ())
    assert shown == "only.gin:1: Bank.length is required and not set; e.g. --gin.Bank.length=1"


def test_missing_file_names_the_nearest_shipped(folder):
    assert "--gin_file: no file 'nothing.gin'" in message(("nothing.gin",), ())


def test_includes_go_one_level_deep(folder):
    write("c.gin", "Loss.z = 1.0\n")
    write("b.gin", "include 'c.gin'\n")
    write("a.gin", "include 'b.gin'\n")
    assert "b.gin:1: includes go one level deep" in message(("method.gin", "run.gin", "a.gin"))


def test_all_errors_at_once(folder):
    write("extra.gin", "import os\nBnk.x = 1\nUniform.scal = 2\nLoss.z = 'no'\nRun.steps = 1\n")
    shown = message(("method.gin", "run.gin", "extra.gin"), ["TRAIN_STEP=5"])
    assert shown.startswith("7 errors in the configuration:\n")
    for part in (
        "extra.gin:1: gin files may not import",
        "extra.gin:2: 'Bnk'",
        "extra.gin:3: Uniform has no field 'scal'",
        "extra.gin:4: Loss.z = 'no' should be a number",
        "Run.steps is bound 2 times",
        "--gin.TRAIN_STEP",
        "run.gin:1: MODEL_DIR is required",
    ):
        assert part in shown, shown


# --- types ---


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        (1, int | float, 1),
        ([1, 2], tuple[int, ...], (1, 2)),
        ((1, 2), list[float], [1.0, 2.0]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        (("a", 1), tuple[str, int], ("a", 1)),
        (None, str | None, None),
        (print, Any, print),
    ],
)
def test_conform(value, hint, expected):
    got = conform(value, hint)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (1.5, int),
        ("1", float),
        (1, bool),
        (None, str),
        ("ab", tuple[str, ...]),
        (("a", 1), tuple[str, ...]),
        (("a",), tuple[str, int]),
        ({"a": "b"}, dict[str, int]),
        (True, Literal[1, 2]),
        (Loss(), Bank),
    ],
)
def test_conform_refuses(value, hint):
    with pytest.raises(Mismatch):
        conform(value, hint)
