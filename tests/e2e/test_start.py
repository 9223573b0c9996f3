"""A process as it starts: programs are compiled once and kept, memory comes in huge pages."""

import json
import os
import subprocess
import sys

import pytest
from test_crash import ROOT, finish, start

from prompt_jax import environment


def test_a_process_is_told_once_and_the_users_word_stands(monkeypatch, tmp_path):
    monkeypatch.setattr(
        os, "environ", {"PROMPT_JAX_CACHE": str(tmp_path), "GRPC_VERBOSITY": "INFO"}
    )
    environment.prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "xla")
    assert os.environ["GRPC_VERBOSITY"] == "INFO"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_process_starts_itself_with_huge_pages_and_its_arguments():
    code = """
import json, os, sys
from prompt_jax import environment
before = os.environ.get("GLIBC_TUNABLES")
environment.use_huge_pages()
print(json.dumps([before, sys.argv[1:], os.getpid()]))
"""
    bare = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    for given, expected in (({}, environment.HUGE_PAGES), ({"GLIBC_TUNABLES": ""}, "")):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "a b", "c"],
            cwd=ROOT, env={**bare, **given}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        output, _ = process.communicate(timeout=60)
        assert json.loads(output) == [expected, ["a b", "c"], process.pid]


@pytest.mark.slow
def test_the_second_start_compiles_nothing(tmp_path, monkeypatch):
    """Every program comes from the user's cache, however short its compile was."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name)  # the suite's own
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))
    kept = []
    for name in ("first", "second"):
        code, output = finish(start(tmp_path / name))
        assert code == 0, output
        kept.append(
            {p.name for p in (tmp_path / "cache" / "xla").iterdir() if "-atime" not in p.name}
        )
    assert len(kept[0]) >= 2 and kept[1] == kept[0]
