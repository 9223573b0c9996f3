"""Records: what is read from where; columns, conditions, orders; the verb `ledger`."""

import csv
import io
import json
import pathlib

import pytest
from made_up_runs import record, study

from prompt_jax import __main__ as cli
from prompt_jax.errors import UserError
from prompt_jax.study import query
from prompt_jax.study import records as ledger


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def ids(records):
    return [found["id"] for found in records]


# --- reading ---


def test_what_a_folder_holds(tmp_path):
    """Its own record; else its ledger; else its JSON files; else what lies below, not deeper."""
    one, two, three = (record({"rate": 0.3}, i) for i in range(3))
    put(tmp_path / "run" / "record.json", one)
    put(tmp_path / "run" / "config.json", {"no": "record"})
    put(tmp_path / "study" / "ledger" / "a.json", two)
    put(tmp_path / "study" / "grid.json", {"no": "record"})
    put(tmp_path / "flat" / "b.json", three)
    put(tmp_path / "flat" / "a.json", two)
    put(tmp_path / "flat" / ".c.json.part.json", "half")
    put(tmp_path / "run" / "checkpoints" / "9" / "record.json", "{}")
    put(tmp_path / "deep" / "x" / "y" / "record.json", one)
    put(tmp_path / "deep" / "z" / "ledger" / "t.json", three)
    put(tmp_path / "deep" / "checkpoints" / "record.json", "{}")
    put(tmp_path / "deep" / "x" / "y" / "table.json", "[]")
    for folder, expected in (
        ("run", [one]),
        ("study", [two]),
        ("flat", [two, three]),
        ("deep", [one, three]),
        ("flat/b.json", [three]),
    ):
        assert ids(ledger.read([str(tmp_path / folder)])) == ids(expected), folder
    several = [str(tmp_path / name) for name in ("run", "flat", "flat/a.json")]
    assert ids(ledger.read(several)) == ids([one, two, three])


def test_of_one_run_the_last_record_counts(tmp_path):
    old = record({"rate": 0.3}, 0, status="interrupted")
    new = {**old, "status": "ok", "written": "2027-01-02T00:00:00+00:00"}
    other = {**old, "study": "another"}
    for name, content in (("a", new), ("b", old), ("c", other)):
        put(tmp_path / f"{name}.json", content)
    assert [r["status"] for r in ledger.read([str(tmp_path)])] == ["ok", "interrupted"]


def test_damaged_files_are_named(tmp_path):
    put(tmp_path / "good.json", record({"rate": 0.3}))
    damaged = put(tmp_path / "half.json", '{"run": "x", "sta')
    other = put(tmp_path / "list.json", "[1]")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError) as caught:
        ledger.read([str(tmp_path)])
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / "bytes.json"), damaged, other]
    assert "damaged" in lines[1] and "no 'status'" in lines[2]
    for path, word in ((tmp_path / "gone", "no such"), (tmp_path / "empty", "no records")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=word):
            ledger.read([str(path)])


# --- columns ---


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("config.Adafactor.learning_rate", 0.3),
        ("config.scope/Adafactor.learning_rate", 0.5),
        ("metrics.micro_qa/validation.f1", 0.25),
        ("metrics.test", {"accuracy": 0.75}),
        ("point.rate", None),
        ("a.b.c", "short key, long path"),
        ("a.b.d", "long key"),
        ("a.b.e", "of the longest key"),
        ("steps", 7),
        ("config.Adafactor", ledger.MISSING),
        ("steps.more", ledger.MISSING),
        ("", ledger.MISSING),
    ],
)
def test_a_column_takes_the_longest_key_that_leads_on(column, expected):
    found = ledger.find(
        {
            "steps": 7,
            "config": {"Adafactor.learning_rate": 0.3, "scope/Adafactor.learning_rate": 0.5},
            "metrics": {"test": {"accuracy": 0.75}, "micro_qa/validation": {"f1": 0.25}},
            "point": {"rate": None},
            "a": {"b": {"c": "short key, long path", "e": "of a shorter key"}, "x": 1},
            "a.b": {"d": "long key", "e": "of the longest key"},
        },
        column,
    )
    assert found is expected or found == expected


def test_every_column_can_be_looked_up():
    records = study()
    listed = ledger.columns(records)
    assert listed["reason"] == "no finite loss at step 12" and listed["point.rate"] == 0.03
    assert list(listed)[:3] == ["run", "id", "study"]
    for column, example in listed.items():
        values = [ledger.value(found, column) for found in records]
        assert next((v for v in values if v is not None), None) == example, column
    ledger.check_columns(records, listed)
    with pytest.raises(UserError, match="fig: no record has 'point.modle'; did you mean 'point.m"):
        ledger.check_columns(records, ["point.modle"], "fig: ")


def test_shown_columns():
    shown = ledger.shown_columns(study())
    assert shown[:6] == [
        "id",
        *(f"point.{a}" for a in ("model", "method", "RANDOM_SEED", "rate", "task")),
    ]
    assert shown[6:9] == ["status", "metrics.test.accuracy", "metrics.test.f1"]
    assert shown[-4:] == ["trainable_parameters", "steps", "seconds.train", "reason"]
    lone = {"run": "r", "method": "m", "seed": 1, "status": "ok", "reason": None}
    assert ledger.shown_columns([lone]) == ["run", "method", "seed", "status"]
    assert "study" in ledger.shown_columns([{**lone, "study": "a"}, {**lone, "study": "b"}])


# --- conditions and orders ---

ROWS = [
    {"status": "ok", "n": 2, "x": 0.5, "name": "prompt_tuning", "flag": True, "none": None},
    {"status": "ok", "n": 10, "x": 1e-3, "name": "model_tuning", "flag": False, "none": None},
    {"status": "failed", "n": None, "name": "prompt_design", "none": "set"},
]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("name=prompt_tuning", [0]),
        ("name = 'prompt_tuning'", [0]),
        ("name!=prompt_tuning", [1, 2]),
        ("name~prompt", [0, 2]),
        ("name~_t", [0, 1]),
        ("n=10", [1]),
        ("n=10.0", [1]),
        ("n!=10", [0, 2]),
        ("n<10", [0]),
        ("n<=10", [0, 1]),
        ("n>2", [1]),
        ("n>=2", [0, 1]),
        ("x=0.001", [1]),
        ("x>1e-2", [0]),
        ("flag=true", [0]),
        ("flag=False", [1]),
        ("flag!=true", [1, 2]),
        ("n=none", [2]),
        ("none=", [0, 1]),
        ("none!=", [2]),
        ("name>=prompt", [0, 2]),
    ],
)
def test_conditions(text, kept):
    condition = ledger.condition(text)
    assert [i for i, row in enumerate(ROWS) if condition.holds(row)] == kept


def test_conditions_that_are_none():
    for text in ("name", "=3", ""):
        with pytest.raises(UserError, match="write COLUMN=VALUE"):
            ledger.condition(text)
    with pytest.raises(UserError, match="n is a number, 'many' is none"):
        ledger.condition("n<many").holds(ROWS[0])


def test_sorting_puts_the_missing_last():
    rows = [{"x": v} for v in (3, None, "b", 0.5, float("nan"), "a", 10)]
    up = [row["x"] for row in ledger.sort(rows, "x")]
    down = [row["x"] for row in ledger.sort(rows, "x", descending=True)]
    assert up[:5] == [0.5, 3, 10, "a", "b"]
    assert down[:5] == ["b", "a", 10, 3, 0.5]
    assert up[5] is None and up[6] != up[6]


# --- the verb ---


@pytest.fixture
def folder(tmp_path):
    for found in study(2):
        put(tmp_path / "ledger" / f"{found['id']}.json", found)
    return tmp_path


def run(capsys, *argv):
    code = cli.main(["ledger", *map(str, argv)])
    out = capsys.readouterr()
    assert code == 0, out.err
    return out.out.splitlines()


def test_the_verb_prints_a_table(folder, capsys):
    columns = "--columns=point.method,metrics.test.accuracy,reason"
    where = ["--where=point.model=micro_s", "--where=point.rate<=0.03"]
    head, *lines, count = run(capsys, folder, columns, *where, "--sort=-metrics.test.accuracy")
    assert head.split() == ["point.method", "metrics.test.accuracy", "reason"]
    at = [head.index(name) for name in head.split()]
    cells = [
        [line[a:b].strip() for a, b in zip(at, [*at[1:], None], strict=True)] for line in lines
    ]
    chosen = [
        r for r in study(2) if r["point"]["model"] == "micro_s" and r["point"]["rate"] == 0.03
    ]
    scored = sorted(
        (r for r in chosen if r["metrics"]), key=lambda r: -r["metrics"]["test"]["accuracy"]
    )
    expected = [[r["method"], f"{r['metrics']['test']['accuracy']:.4g}", ""] for r in scored]
    expected += [[r["method"], "", r["reason"]] for r in chosen if not r["metrics"]]
    assert cells == expected and count == "6 of 72 records"


def test_the_verb_on_a_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    lines = run(capsys, folder, "--columns=id,point.rate", "--where=point.rate=0.1")
    assert any("───" in line for line in lines) and lines[-1] == "18 of 72 records"


def test_the_verb_lists_columns(folder, capsys):
    lines = run(capsys, folder, "--list")
    assert lines[0].split() == ["column", "example"]
    listed = dict(line.split(maxsplit=1) for line in lines[1:])
    assert listed["config.Adafactor.learning_rate"] == "0.03"
    assert listed["curve"].endswith("...") and len(listed["curve"]) == 60


def test_files_hold_what_was_selected(folder, capsys, tmp_path):
    from pyarrow import parquet

    files = {kind: tmp_path / "out" / f"x.{kind}" for kind in ("csv", "parquet", "json")}
    flags = [f"--{kind}={file}" for kind, file in files.items()]
    columns = ["id", "point.rate", "metrics.test.accuracy", "point.RANDOM_SEED", "reason"]
    where = ["--where=point.method=prompt_tuning", "--sort=id"]
    lines = run(capsys, folder, *flags, *where, f"--columns={','.join(columns)}")
    assert lines == ["24 of 72 records", *(f"wrote {file}" for file in files.values())]
    expected = sorted(
        (r for r in study(2) if r["method"] == "prompt_tuning"), key=lambda r: r["id"]
    )
    values = [{c: ledger.value(r, c) for c in columns} for r in expected]
    assert json.loads(files["json"].read_text()) == values
    assert parquet.read_table(files["parquet"]).to_pylist() == values
    with files["csv"].open() as lines:
        rows = list(csv.DictReader(lines))
    assert rows == [{c: ledger.as_text(v) for c, v in row.items()} for row in values]
    assert float(rows[0]["metrics.test.accuracy"]) == values[0]["metrics.test.accuracy"]
    run(capsys, folder, *flags, *where)  # all columns; whole records
    assert json.loads(files["json"].read_text()) == expected
    everything = parquet.read_table(files["parquet"])
    assert set(everything.column_names) == set(ledger.columns(expected))
    assert json.loads(everything["curve"][0].as_py()) == expected[0]["curve"]


def test_mixed_columns_become_text_in_parquet():
    from pyarrow import parquet

    head, rows = ["a", "b", "c", "d"], [[1, True, 1, None], [2.5, "x", 1 << 70, None]]
    table = parquet.read_table(io.BytesIO(query.parquet_bytes(head, rows)))
    assert table.to_pylist() == [
        {"a": 1.0, "b": "true", "c": "1", "d": None},
        {"a": 2.5, "b": "x", "c": str(1 << 70), "d": None},
    ]


def test_a_write_that_fails_leaves_the_old_file(folder, monkeypatch):
    from prompt_jax.ckpt import prompt_file

    table = folder / "x.csv"
    table.write_text("old")

    class Full(type(prompt_file.epath.Path("."))):
        def replace(self, target):
            raise OSError("disk full")

    monkeypatch.setattr(query.epath, "Path", Full)
    with pytest.raises(OSError):
        query.write(study(1), ["id"], csv_file=str(table))
    assert table.read_text() == "old"
    assert [path.name for path in folder.iterdir() if "x.csv" in path.name] == ["x.csv"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ["--columns=metrics.test.acuracy"],
            ["'metrics.test.acuracy'", "did you mean 'metrics.tes"],
        ),
        (["--sort=-point.rat"], ["'point.rat'", "'point.rate'"]),
        (["--where=point.modle=x"], ["'point.modle'", "'point.model'"]),
        (
            ["--where=status=ok", "--where=point.model=micro_x"],
            ["point.model=micro_x", "'micro_xs'"],
        ),
        (["--where=point.model"], ["write COLUMN=VALUE"]),
        (["--gin.X=1"], ["takes no --gin. flags"]),
    ],
)
def test_the_verb_complains_in_one_line(folder, capsys, flags, parts):
    assert cli.main(["ledger", str(folder), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert all(part in captured.err for part in parts), captured.err


# --- buckets ---


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://b/ is a folder here; as GCS does, folders are listed with a slash."""
    from etils.epath import backend, gpath

    root = tmp_path / "bucket"
    root.mkdir()

    def here(path):
        return str(path).replace("gs://b", str(root))

    class Bucket(backend._OsPathBackend):
        def listdir(self, path):
            return [f.name + "/" * f.is_dir() for f in pathlib.Path(here(path)).iterdir()]

        def glob(self, path):
            return [name.replace(str(root), "gs://b") for name in super().glob(here(path))]

    def patched(name):
        def call(self, path, *rest, **options):
            rest = [here(value) if "gs://" in str(value) else value for value in rest]
            return getattr(backend._OsPathBackend, name)(self, here(path), *rest, **options)

        return call

    for name in ("open", "exists", "isdir", "makedirs", "mkdir", "replace", "rename", "remove"):
        setattr(Bucket, name, patched(name))
    monkeypatch.setattr(gpath._GPath, "_backend", Bucket())
    return root


def test_records_in_a_bucket(bucket, capsys):
    one, two = record({"rate": 0.3}, 0), record({"rate": 1.0}, 1)
    put(bucket / "runs" / "a" / "record.json", one)
    put(bucket / "runs" / "a" / "checkpoints" / "record.json", "{}")
    put(bucket / "study" / "ledger" / "b.json", two)
    assert ids(ledger.read(["gs://b/runs", "gs://b/study"])) == ids([one, two])
    with pytest.raises(UserError, match="gs://b/none: no such"):
        ledger.read(["gs://b/none"])
    assert run(capsys, "gs://b/study", "--csv=gs://b/x.csv")[-1] == "wrote gs://b/x.csv"
    assert two["id"] in (bucket / "x.csv").read_text()


def test_a_file_may_hold_a_list_of_records(tmp_path):
    """What `prompt-jax ledger --json` writes is read again."""
    held = [{"id": "a", "status": "ok"}, {"id": "b", "status": "failed"}]
    (tmp_path / "all.json").write_text(json.dumps(held))
    assert ledger.read([str(tmp_path / "all.json")]) == held
    (tmp_path / "all.json").write_text(json.dumps([*held, 3]))
    with pytest.raises(UserError, match="all.json: no record of a run"):
        ledger.read([str(tmp_path)])
