"""What a cache's key sees of a task's code."""

import functools
import importlib
import sys

import numpy as np
import pytest

from prompt_jax.data import fingerprint
from prompt_jax.data.fingerprint import describe


@pytest.fixture
def written(tmp_path, monkeypatch):
    """write(name, text) -> module, freshly imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text, load=True):
        (tmp_path / f"{name}.py").write_text(text)
        fingerprint.code_hash.cache_clear()
        fingerprint._origin.cache_clear()
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return importlib.import_module(name) if load else None

    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if name.startswith("fp_"):
            del sys.modules[name]


def test_helpers_count_imported_lazily_or_not(written):
    user = "def read():\n    from fp_helper import WORD\n    return WORD\n"
    written("fp_deep", "X = 1\n", load=False)
    written("fp_helper", "import fp_deep\nWORD = 1\n", load=False)
    module = written("fp_user", user)
    one = describe(module.read)
    assert describe(module.read) == one
    written("fp_helper", "import fp_deep\nWORD = 2\n", load=False)
    two = describe(module.read)
    written("fp_deep", "X = 2\n", load=False)
    three = describe(module.read)
    written("fp_bystander", "X = 2\n", load=False)
    assert describe(module.read) == three
    assert one != two != three != one


def test_libraries_count_by_name_only():
    assert fingerprint.code_hash("numpy") == "" == fingerprint.code_hash("json")
    assert fingerprint.code_hash("prompt_jax.data.metrics") != ""


def test_arguments_closures_and_defaults_count():
    def make(word):
        return lambda text, more=word: (text, word)

    things = [
        make("a"),
        make("b"),
        functools.partial(make, "a"),
        functools.partial(make, word="a"),
        np.arange(3),
        np.arange(4),
        np.arange(3.0),
        {"a": (1, 2.5, None, True)},
        {"a": (1, 2.5, None, False)},
        {"x", "y"},
        b"x",
        "x",
        dict.fromkeys("ab"),
        int,
    ]
    accounts = [fingerprint.fingerprint({"it": describe(thing)}) for thing in things]
    assert len(set(accounts)) == len(things)
    again = [fingerprint.fingerprint({"it": describe(thing)}) for thing in things]
    assert accounts == again
    assert describe({"x", "y"}) == describe({"y", "x"})


def test_functions_without_a_file_count_by_their_bytecode():
    def typed(body):
        space = {"__name__": "__main__"}
        exec(f"def read(split):\n    return {body}", space)
        return describe(space["read"])

    assert typed("[1]") == typed("[1]") != typed("[2]")
    assert typed("[x for x in (1, 2)]") != typed("[x for x in (1, 3)]")


def test_paths_count_with_their_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    one = describe(str(path))
    path.write_text("two")
    assert describe(str(path)) != one
    assert describe("nowhere.txt") == "nowhere.txt"


def test_objects_count_with_their_attributes_and_no_address():
    class Source:
        def __init__(self, word):
            self.word, self.me = word, self

    assert describe(Source("a")) == describe(Source("a")) != describe(Source("b"))
