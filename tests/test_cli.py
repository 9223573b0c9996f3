"""The command line: exit codes, one-line complaints, and what `explain` may touch."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import pytest

from prompt_jax import __main__ as cli
from prompt_jax.data import show, task
from prompt_jax.errors import Interrupted, RunFailed, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = [
    "--gin_file=models/micro_s.gin",
    "--gin_file=methods/prompt_tuning.gin",
    "--gin_file=runs/prompt_tune.gin",
    "--gin.MODEL_DIR='out/x'",
]
SST2 = "--gin.MIXTURE_OR_TASK_NAME='sst2'"


def shell(*argv, cwd=None, code=None):
    """(exit code, stdout, stderr, CPU seconds) of `prompt-jax` (or of `code`) in a new process."""
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "prompt_jax"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*start, *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout, done.stderr, seconds


# --- exit codes ---


def ends_badly(args):
    raise {
        "user": UserError("your input"),
        "failed": RunFailed("no finite loss at step 3; last good checkpoint: step 2"),
        "stopped": Interrupted(signal.SIGTERM, "saved step 5"),
        "ctrl-c": KeyboardInterrupt(),
        "bug": ZeroDivisionError("a bug"),
    }[args.how]


def asks_a_bucket(args):
    import tensorflow as tf

    raise tf.errors.PermissionDeniedError(None, None, "gs://private/x:\n401")


def gets_sigterm(args):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def verbs(monkeypatch):
    def how(parser):
        parser.add_argument("--how")

    for function in (ends_badly, gets_sigterm, asks_a_bucket):
        verb = cli.Verb("a test", how, f"{__name__}:{function.__name__}", gin=False)
        monkeypatch.setitem(cli.VERBS, function.__name__, verb)
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("user", 2, "your input\n"),
        ("failed", 3, "no finite loss at step 3; last good checkpoint: step 2\n"),
        ("stopped", 143, "saved step 5\n"),
        ("ctrl-c", 130, "interrupted\n"),
    ],
)
def test_exit_codes(verbs, capsys, monkeypatch, how, code, line):
    monkeypatch.delenv("PROMPT_JAX_DEBUG", raising=False)
    assert cli.main(["ends_badly", f"--how={how}"]) == code
    assert capsys.readouterr().err == line
    monkeypatch.setenv("PROMPT_JAX_DEBUG", "1")
    assert cli.main(["ends_badly", f"--how={how}"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(verbs):
    with pytest.raises(ZeroDivisionError):
        cli.main(["ends_badly", "--how=bug"])


def test_a_bucket_that_cannot_be_read_is_one_line(verbs, capsys):
    assert cli.main(["asks_a_bucket"]) == 2
    assert capsys.readouterr().err == "PermissionDeniedError: gs://private/x: 401\n"


def test_sigterm_anywhere_is_143(verbs, capsys):
    assert cli.main(["gets_sigterm"]) == 143


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["trian"], ["unknown verb 'trian'", "did you mean 'train'"]),
        ([], ["give a verb", "explain"]),
        (["explain", "--gin_fil=x"], ["--gin_fil", "did you mean '--gin_file'"]),
        (["eval", "--batch_size=0"], ["--batch_size", "'0'"]),
        (["predict", "--decode=greedi"], ["--decode", "'greedy'"]),
        (["train", "--process_id=-1"], ["--process_id", "'-1'"]),
        (["train", *RUN, SST2, "--process_id=1"], ["--coordinator, --num_processes are missing"]),
        (["tasks", "--gin.X=1"], ["takes no --gin. flags: --gin.X=1"]),
        (["tasks", "sst3"], ["no task or mixture 'sst3'", "'sst2'"]),
        (["train", *RUN[:3]], ["MIXTURE_OR_TASK_NAME is required", "MODEL_DIR is required"]),
        (["explain", *RUN, "--gin.MIXTURE_OR_TASK_NAME='sst3'"], ["'sst3'", "did you mean 'sst2'"]),
        (["explain", *RUN, SST2, "--gin_file=methods/prompt_tunning.gin"], ["'methods/prompt_tu"]),
        (["explain", *RUN, "--gin.MIXTURE_OR_TASK_NAME=sst2"], ["=\"'sst2'\""]),
    ],
)
def test_bad_input_is_exit_2(verbs, capsys, argv, parts):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in parts:
        assert part in captured.err, captured.err


def test_console_in_a_new_process(tmp_path):
    code, out, err, _ = shell("train", *RUN, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err == (
        "runs/prompt_tune.gin:8: MIXTURE_OR_TASK_NAME is required and not set; "
        "e.g. --gin.MIXTURE_OR_TASK_NAME=\"'micro_sentiment'\"\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_error():
    argv = " ".join(f'"{a}"' for a in (sys.executable, "-m", "prompt_jax", "explain", *RUN, SST2))
    pipe = f"{argv} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", pipe], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (141, "")


def test_gin_flags_reach_the_verb():
    args = cli.parse(["explain", "--gin.A=1", *RUN, "--gin.B=@C()", "--gin_search_paths=a,b"])
    assert args.gin == ["A=1", "MODEL_DIR='out/x'", "B=@C()"]
    assert args.gin_search_paths == ["a", "b"]
    assert args.gin_file == [flag.split("=")[1] for flag in RUN[:3]]


# --- explain ---

EXPLAIN = """
import sys
from prompt_jax.__main__ import main
code = main(sys.argv[1:])
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a device was opened"
heavy = {"tensorflow", "seqio", "orbax", "grain", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


def test_explain_is_light(tmp_path):
    argv = ["explain", *RUN, SST2, "--gin.PROMPT_LENGTH=7", "--json=values.json"]
    code, out, err, seconds = shell(*argv, cwd=tmp_path, code=EXPLAIN)
    assert code == 0, err
    assert seconds < 3
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line[:1].isupper()}
    assert rows["PROMPT_LENGTH"] == ["PROMPT_LENGTH", "7", "--gin."]
    assert rows["PromptBank.length"][1:] == ["7", "methods/prompt_tuning.gin:31"]
    assert rows["Data.split"][1:] == ["'train'", "default"]
    assert rows["MODEL_DIR"][1:] == ["'out/x'", "--gin."]
    assert "\x1b" not in out
    values = json.loads((tmp_path / "values.json").read_text())
    assert values["PROMPT_LENGTH"] == [7, "--gin."] and values["Run.data"][0] == "@Data()"


USER_TASK = """
import functools, seqio, tensorflow as tf
def rows(split, shuffle_files=False, seed=None):
    return tf.data.Dataset.from_tensor_slices({"inputs": ["a b"], "targets": ["c"]})
feature = seqio.Feature(seqio.ByteVocabulary())
seqio.TaskRegistry.add(
    "own_task", source=seqio.FunctionDataSource(rows, splits=["train"]), preprocessors=[],
    output_features={"inputs": feature, "targets": feature}, metric_fns=[])
"""


@pytest.mark.slow
def test_explain_with_a_users_module(tmp_path):
    (tmp_path / "own.py").write_text(USER_TASK)
    argv = ["explain", *RUN, "--gin.MIXTURE_OR_TASK_MODULE='own.py'"]
    code, out, err, seconds = shell(*argv, "--gin.MIXTURE_OR_TASK_NAME='own_task'", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "'own_task'" in out
    if seconds >= 8:  # the bar is for an idle machine; on a busy one the module's own imports tell
        assert seconds < 1.4 * shell(code="import seqio, tensorflow")[3]


def test_explain_grid_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["explain", *RUN, SST2]) == 0
    out = capsys.readouterr().out
    assert "(('prompt/.*', 'train'), ('backbone/.*', None))" in out and "methods/prompt" in out


# --- tasks ---


def test_tasks_lists_the_index(tmp_path):
    code, out, err, _ = shell("tasks", "--json=tasks.json", cwd=tmp_path)
    assert (code, err) == (0, "")
    records = json.loads((tmp_path / "tasks.json").read_text())
    names = [record["name"] for record in records]
    assert len(names) > 100 and set(names) <= set(task.known())
    assert {"sst2", "micro_sentiment", "super_glue", "spot_all"} <= set(names)
    assert all(name in out for name in names)


def test_source_state(monkeypatch, tmp_path):
    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    sst2 = task.known()["sst2"]
    assert show.source_state(sst2) == "needs network: TFDS glue/sst2"
    (tmp_path / "tfds" / "glue" / "sst2").mkdir(parents=True)
    assert show.source_state(sst2) == "cached: TFDS glue/sst2"
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv").write_text("sentence\tlabel\n")
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    assert show.source_state(sst2) == f"local: {tmp_path / 'sst2'} (train)"
    assert show.source_state(task.known()["glue"]).startswith("mixture of cola, sst2")


def test_tasks_shows_examples(tmp_path, monkeypatch, capsys):
    (tmp_path / "sst2").mkdir()
    lines = "sentence\tlabel\ngood\t1\nbad film\t0\n"
    (tmp_path / "sst2" / "train.tsv").write_text(lines)
    (tmp_path / "sst2" / "test.tsv").write_text(lines + "fine\t1\n")
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    argv = ["tasks", "sst2", "--vocabulary=byte", "--prompt_length=3", "--inputs=15", "--targets=9"]
    files = [f"--json={tmp_path / 'x.json'}", f"--plot={tmp_path / 'x.png'}"]
    assert cli.main([*argv, *files]) == 0
    shown = json.loads((tmp_path / "x.json").read_text())
    assert shown["examples"] == 2
    assert shown["lengths"]["inputs"] == {
        "mean": 17.0, "median": 17, "p95": 19, "longest": 19, "limit": 15, "truncated": 0.5,
    }  # fmt: skip
    first, second = shown["shown"]
    assert first["inputs"]["row"] == ["[slot 0..2]", *"sentence: good", "</s>"]
    assert first["inputs"]["truncated_to"] is None and first["inputs"]["row_length"] == 18
    assert second["inputs"]["row"] == ["[slot 0..2]", *"sentence: bad ", "</s>"]
    assert second["inputs"]["truncated_to"] == 15 and second["inputs"]["tokens"] == 19
    assert second["features"]["label"] == "0"
    assert shown["smallest"] == {"inputs": 19, "targets": 9}
    half = {"examples": 2, "truncated": 0.5, "labels": {"positive": 1, "negative": 1}}
    assert shown["splits"]["train"] == half
    assert shown["splits"]["validation"] == {"missing": "not here"}
    assert shown["splits"]["test"]["labels"] == {"positive": 2, "negative": 1}
    edges, counts = shown["histogram"]["inputs"]
    assert (edges[0], edges[-1]) == (15, 20) and counts == [1, 0, 0, 0, 1]
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    out = capsys.readouterr().out
    assert "[slot 0..2] s e n t e n c e :   g o o d </s>" in out
    assert "cuts 50.0% of examples" in out and "validation: not here" in out
    assert "TASK_FEATURE_LENGTHS = {'inputs': 19, 'targets': 9}" in out


def test_the_smallest_lengths_cut_fewer_than_one_in_a_hundred(tmp_path, monkeypatch):
    """Of 200 examples one may be cut, not two; of 100 none."""
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sst2").mkdir()
    for split, count, expected in (("train", 200, 14), ("test", 100, 24)):
        long = ["x" * 20, "x" * 3] + ["x" * 3] * (count - 2) if count == 200 else ["x" * 13]
        texts = long if count == 200 else [*long, *["x"] * (count - 1)]
        lines = "".join(f"{text}\t1\n" for text in texts)
        (tmp_path / "sst2" / f"{split}.tsv").write_text(f"sentence\tlabel\n{lines}")
        flags = ["tasks", "sst2", "--vocabulary=byte", f"--split={split}"]
        assert cli.main([*flags, f"--json={tmp_path / 'x.json'}"]) == 0
        shown = json.loads((tmp_path / "x.json").read_text())
        assert shown["smallest"]["inputs"] == expected, split
