"""The direction of imports (DESIGN section 4), and what `import prompt_jax` costs."""

import ast
import graphlib
import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "prompt_jax"

# unit -> units that it may import; a unit is a module or folder right under prompt_jax. A new one
# must say here where it stands. BASE may be imported by all of them.
BASE = {"environment", "errors", "slots", "__init__"}
ALLOWED = {
    "__init__": {"predict"},
    "__main__": {
        *("config", "explain", "train", "evaluate", "predict", "convert", "data", "ckpt", "ledger"),
        *("inspect_prompt", "bench", "plan", "study"),
    },
    "study": {
        *("alike", "assemble", "checks", "ckpt", "config", "data", "ledger", "plan", "report"),
        *("resolver", "train"),
    },
    "alike": set(),
    "bench": {"ckpt", "ledger", "workbench"},
    "workbench": {
        *("assemble", "backbone", "ckpt", "config", "data", "evaluate", "flops"),
        *("fleet", "ledger", "member", "parallel", "requests", "stages", "step", "train"),
    },
    "flops": {"models"},
    "plan": {"assemble", "config", "data", "models", "parallel", "parts", "step"},
    "convert": {"ckpt", "data", "merge", "models"},
    "merge": {"ckpt", "models", "predict"},
    "inspect_prompt": {"ckpt", "data", "report", "similarity"},
    "similarity": set(),
    "relatedness": {"ckpt", "similarity"},
    "explain": {"config", "resolver", "data"},
    "config": {"resolver", "conform"},
    "resolver": {"conform"},
    "conform": set(),
    "train": {
        *("assemble", "backbone", "step", "losses", "data", "ckpt", "checks", "fleet", "member"),
        *("parallel", "evaluate", "probes", "ledger", "progress", "report", "stages"),
    },
    "checks": {"alike", "backbone", "ckpt", "data", "ledger", "losses", "parallel", "progress"},
    "member": {
        *("assemble", "backbone", "ckpt", "evaluate", "fleet", "ledger", "progress"),
        *("stages", "step"),
    },
    "fleet": {"assemble", "data", "parallel", "stages", "step"},
    "predict": {
        *("assemble", "backbone", "checks", "ckpt", "config", "data", "evaluate"),
        *("ledger", "parallel", "requests"),
    },
    "probes": {"assemble", "data", "evaluate", "losses", "parts", "step"},
    "evaluate": {
        *("assemble", "backbone", "data", "decode", "label_tokens", "ledger", "parallel"),
        *("requests", "trie"),
    },
    "ensemble": {"assemble", "data", "evaluate"},
    "trie": {"decode"},
    "label_tokens": set(),
    "requests": {"data"},
    "decode": {"likelihood", "models"},
    "backbone": {"assemble", "ckpt", "data", "models", "parallel", "parts", "spread"},
    "spread": {"assemble"},
    "stages": set(),
    "step": {"assemble", "losses", "parts"},
    "assemble": {"losses", "models", "parts"},
    "losses": set(),
    "parts": {"label_tokens", "likelihood", "losses", "similarity"},
    "likelihood": set(),
    "models": set(),
    "data": {"report"},
    "parallel": set(),
    "ckpt": {"assemble", "models", "parallel"},
    "ledger": {"ckpt"},
    "progress": {"ledger"},
    "report": set(),
    "testing": {
        *("assemble", "config", "data", "losses", "models", "parts", "progress", "step"),
    },
    "tasks": {"data"},
    "environment": set(),
    "errors": set(),
    "slots": set(),
}
# outside package -> the only places where it may be imported, lazily or not
ONLY_IN = {
    "gin": {"config.py"},
    "seqio": {"data/preprocess.py", "data/vocabulary.py"},
    "tensorflow": {"data/preprocess.py"},
    "tensorflow_datasets": {"data/preprocess.py"},
    "tensorflow_text": {"data/preprocess.py", "tasks/"},
    "libtpu": {"plan/topology.py"},
    "ray": {"study/ray_launch.py"},
    "evosax": {"parts/evolution.py"},
    "torch": set(),
    "transformers": set(),
    "peft": set(),
    "tests": set(),
    "tools": set(),
}
HEAVY = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "orbax", "grain"}


def test_directions_have_no_circle():
    """The table itself is a hierarchy (`__init__` aside, which everything sits under)."""
    table = {here: targets for here, targets in ALLOWED.items() if here != "__init__"}
    assert "slots" in graphlib.TopologicalSorter(table).static_order()


def modules() -> dict[str, pathlib.Path]:
    """Dotted name -> file, of the package and of the tasks beside it."""
    found = {}
    for base, prefix in ((PACKAGE, "prompt_jax"), (ROOT / "tasks", "prompt_jax.tasks")):
        for path in base.rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((prefix, *parts))] = path
    return found


MODULES = modules()


def imports(path: pathlib.Path, name: str, everywhere: bool = True) -> set[str]:
    """Absolute names that a file imports; only those of the module level if not `everywhere`.

    `from a import b` counts as a.b where that is a module of ours, else as a.
    """
    tree = ast.parse(path.read_text())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names = set()
    for node in ast.walk(tree) if everywhere else module_level(tree.body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(dots, package) if node.level else node.module
            for alias in node.names:
                full = f"{base}.{alias.name}"
                names.add(full if full in MODULES else base)
    return names


def module_level(body: list[ast.stmt]):
    """Statements that run on import: not those inside functions, but those inside if and try."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        inner = [s for field in ("body", "orelse", "finalbody") for s in getattr(node, field, [])]
        inner += [s for handler in getattr(node, "handlers", []) for s in handler.body]
        yield from module_level(inner)


def unit(name: str) -> str:
    """'prompt_jax.data.cache' -> 'data'."""
    return name.split(".")[1] if "." in name else "__init__"


def place(name: str) -> str:
    """Where a module lies: 'config.py', 'data/cache.py', 'tasks/glue.py'."""
    path = MODULES[name]
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return path.relative_to(base).as_posix()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_direction(name):
    """A module imports only what its unit may."""
    here = unit(name)
    assert here in ALLOWED, f"{name}: say in ALLOWED what the new unit '{here}' may import"
    allowed = ALLOWED[here] | BASE | {here}
    wrong = {
        target
        for target in imports(MODULES[name], name)
        if target.split(".")[0] == "prompt_jax" and unit(target) not in allowed
    }
    assert not wrong, f"{name} ({here}) may import {sorted(allowed)}, not {sorted(wrong)}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_outside_packages_have_one_place(name):
    """gin, seqio, TensorFlow, torch are imported only where they may be."""
    for target in imports(MODULES[name], name):
        places = ONLY_IN.get(target.split(".")[0])
        if places is not None:
            assert place(name).startswith(tuple(places)), f"{name} imports {target}"


def reached(start: str) -> dict[str, list[str]]:
    """Heavy package -> the chain of module-level imports that leads to it."""
    found, seen, queue = {}, set(), [[start]]
    while queue:
        chain = queue.pop()
        name = chain[-1]
        if name in seen:
            continue
        seen.add(name)
        for target in imports(MODULES[name], name, everywhere=False):
            top = target.split(".")[0]
            if top in HEAVY:
                found.setdefault(top, [*chain, target])
            parents = [target.rsplit(".", n)[0] for n in range(target.count("."))]
            queue += [[*chain, t] for t in [target, *parents] if t in MODULES]
    return found


@pytest.mark.parametrize("name", ["prompt_jax", "prompt_jax.config", "prompt_jax.__main__"])
def test_light_modules_reach_nothing_heavy(name):
    """No chain of module-level imports leads from the command line to TensorFlow or Orbax."""
    if name not in MODULES:
        pytest.fail(f"{name} is gone")
    assert not reached(name)


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in sys.modules after `statement`, plus '<backend>' if jax opened one."""
    code = f"""
import sys
{statement}
bridge = sys.modules.get("jax._src.xla_bridge")
opened = ["<backend>"] if bridge and bridge.backends_are_initialized() else []
print("LOADED", *{{name.split(".")[0] for name in sys.modules}}, *opened)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(out.stdout.split("LOADED")[1].split())


def test_the_probe_sees_what_it_looks_for():
    assert "<backend>" in loaded_by("import jax; jax.devices()")


@pytest.mark.parametrize("module", ["prompt_jax", "prompt_jax.config", "prompt_jax.__main__"])
def test_import_is_light(module):
    """Importing pulls in no TensorFlow or seqio and opens no device."""
    loaded = loaded_by(f"import {module}")
    assert not loaded & (HEAVY | {"torch", "<backend>"})
