"""The package as a user gets it: wheel, editable install and plain checkout, from elsewhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from packaging.requirements import Requirement

import prompt_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ["prompt_jax", "tasks", "gin", "setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"]
HEAVY = {"torch", "transformers", "peft", "t5x", "t5"}
EXPLAIN = [
    "explain",
    *("--gin_file=models/micro_s.gin", "--gin_file=methods/prompt_tuning.gin"),
    *("--gin_file=runs/prompt_tune.gin", "--gin.MIXTURE_OR_TASK_NAME='micro_sentiment'"),
    *("--gin.MODEL_DIR='out/x'", "--gin.PROMPT_LENGTH=20"),
]


def run(*command, cwd) -> subprocess.CompletedProcess:
    """Runs a command with nothing of this session's Python in its environment."""
    mine = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in mine}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )


def succeed(*command, cwd) -> str:
    """What a command prints; fails the test with its output when it does not end well."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments, cwd):
    """pip without index and without build isolation: no network."""
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    succeed(sys.executable, "-m", "pip", *arguments, *offline, cwd=cwd)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> pathlib.Path:
    """A copy of the tree: builds leave folders behind, and stale ones end up in wheels."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> pathlib.Path:
    """The wheel of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", checkout, "-w", folder, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def make_environment(folder: pathlib.Path) -> pathlib.Path:
    """A new venv that sees this one's libraries but not an installed prompt_jax; its bin folder.

    A path in a .pth file joins sys.path, but .pth files in there (editable installs) are not read.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    ours = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(ours) + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """bin folder of a venv into which the wheel was installed."""
    binaries = make_environment(tmp_path_factory.mktemp("installed"))
    pip("--python", binaries / "python", "install", "--no-compile", wheel, cwd=wheel.parent)
    return binaries


def origin(python, cwd) -> pathlib.Path:
    """Where `import prompt_jax` finds it."""
    code = "import prompt_jax; print(prompt_jax.__file__)"
    return pathlib.Path(succeed(python, "-c", code, cwd=cwd).strip()).resolve()


def tasks_file(python, cwd) -> pathlib.Path:
    """Where `prompt_jax.tasks.micro` would be imported from."""
    code = "import importlib.util as u; print(u.find_spec('prompt_jax.tasks.micro').origin)"
    return pathlib.Path(succeed(python, "-c", code, cwd=cwd).strip()).resolve()


def shipped() -> set[str]:
    """Names in the wheel that the tree calls for."""
    code = {p.relative_to(ROOT).as_posix() for p in (ROOT / "prompt_jax").rglob("*.py")}
    assets = {p for p in (ROOT / "prompt_jax" / "assets").rglob("*") if p.is_file()}
    beside = {*(ROOT / "tasks").rglob("*.py"), *(ROOT / "gin").rglob("*.gin")}
    return {
        *code,
        *(p.relative_to(ROOT).as_posix() for p in assets),
        *("prompt_jax/" + p.relative_to(ROOT).as_posix() for p in beside),
    }


@pytest.mark.xdist_group("package")
def test_wheel_holds_the_tree_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = shipped()
    assert any(name.startswith("prompt_jax/gin/") for name in expected)
    assert any(name.startswith("prompt_jax/tasks/") for name in expected)
    assert any(name.startswith("prompt_jax/assets/") for name in expected)
    assert held == expected


@pytest.mark.xdist_group("package")
def test_wheel_works_elsewhere(installed, tmp_path):
    """`tasks` and `explain` from another folder, with the gin files and tasks of the wheel."""
    assert origin(installed / "python", tmp_path).is_relative_to(installed.parent.resolve())
    assert "micro_sentiment" in succeed(installed / "prompt-jax", "tasks", cwd=tmp_path)
    explained = succeed(installed / "prompt-jax", *EXPLAIN, cwd=tmp_path)
    assert "micro_sentiment" in explained and str(ROOT) not in explained
    micro = tasks_file(installed / "python", tmp_path)
    assert micro.is_relative_to(installed.parent.resolve())


@pytest.mark.slow
@pytest.mark.xdist_group("package")
def test_wheel_wins_in_a_checkout(installed, checkout):
    """The console script takes the installed package even when started in a checkout."""
    assert "micro_sentiment" in succeed(installed / "prompt-jax", "tasks", cwd=checkout)


@pytest.mark.slow
@pytest.mark.xdist_group("package")
def test_plain_checkout(checkout, tmp_path):
    """Nothing installed but the libraries: `python -m prompt_jax` in the root of a checkout."""
    python = make_environment(tmp_path) / "python"
    assert origin(python, checkout) == (checkout / "prompt_jax" / "__init__.py").resolve()
    assert "micro_sentiment" in succeed(python, "-m", "prompt_jax", "tasks", cwd=checkout)
    succeed(python, "-m", "prompt_jax", *EXPLAIN, cwd=checkout)
    assert tasks_file(python, checkout) == (checkout / "tasks" / "micro.py").resolve()


@pytest.mark.slow
@pytest.mark.xdist_group("package")
def test_editable_install(checkout, tmp_path):
    """An editable install finds tasks and gin files in the checkout, from another folder."""
    binaries = make_environment(tmp_path / "venv")
    pip("--python", binaries / "python", "install", "-e", checkout, cwd=tmp_path)
    assert origin(binaries / "python", tmp_path).is_relative_to(checkout.resolve())
    assert "micro_sentiment" in succeed(binaries / "prompt-jax", "tasks", cwd=tmp_path)
    succeed(binaries / "prompt-jax", *EXPLAIN, cwd=tmp_path)
    assert tasks_file(binaries / "python", tmp_path) == (checkout / "tasks" / "micro.py").resolve()


@pytest.mark.xdist_group("package")
def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
    fields = archive.read(name).decode().split("\n\n")[0].splitlines()
    required = [Requirement(f.removeprefix("Requires-Dist: ")) for f in fields if "-Dist: " in f]
    core = [r for r in required if not r.marker]
    assert {"jax", "flax", "seqio", "grain", "gin-config"} <= {r.name for r in core}
    assert not {r.name for r in core} & HEAVY
    assert all(r.specifier for r in required), "every requirement has a range"
    assert f"Version: {prompt_jax.__version__}" in fields
    assert any(f.startswith("Requires-Python:") and ">=3.11" in f for f in fields)
    assert any(n.endswith("LICENSE") for n in archive.namelist())
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(fields))
    for version in versions:
        check_constraints(version, [r for r in required if "parity" not in str(r.marker)])


def check_constraints(version: str, required: list[Requirement]):
    """A constraints file pins every requirement within its range, and no torch."""
    lines = (ROOT / "constraints" / f"constraints-{version}.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {re.sub(r"[-_.]+", "-", name).lower(): pin for name, pin in pins.items()}
    assert not set(pins) & HEAVY
    assert not any(name.startswith("nvidia") for name in pins)
    for requirement in required:
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in ("setuptools", "wheel"):
            assert requirement.specifier.contains(pins[name]), f"{version}: {requirement}"


def test_one_version_and_licence_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {prompt_jax.__version__}" in citation
    assert "license: Apache-2.0" in citation
    assert f"## {prompt_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence


@pytest.mark.parametrize(
    "version, fits", [("3.10.1", False), ("3.11.0", True), ("3.13.2", True), ("3.14.0", False)]
)
def test_make_refuses_a_python_that_does_not_fit(tmp_path, version, fits):
    """`make demo` says which Python is needed before it makes a venv."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    fake = tmp_path / "fake-python"
    numbers = tuple(int(n) for n in version.split("."))
    fake.write_text(
        f"""#!{sys.executable}
import sys
if sys.argv[1] == "-V":
    print("Python {version}")
elif sys.argv[1] == "-c":
    sys.version_info = {numbers}
    exec(sys.argv[2])
else:
    sys.exit("reached " + " ".join(sys.argv[1:]))
"""
    )
    fake.chmod(0o755)
    done = run("make", "demo", f"PYTHON={fake}", cwd=tmp_path)
    assert done.returncode == 2
    assert ("reached -m venv" in done.stderr) == fits
    assert (f"is needed, {fake} is Python {version}" in done.stderr) != fits
    assert not (tmp_path / ".venv").exists()
