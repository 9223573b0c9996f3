"""What a plan assumes, chooses and prints; and that what it compiles is the run's own step."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import pytest

from prompt_jax import __main__ as cli
from prompt_jax import train
from prompt_jax.assemble import assemble
from prompt_jax.backbone import open_backbone
from prompt_jax.config import resolve
from prompt_jax.data.layout import assemble as lay_out
from prompt_jax.errors import UserError
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.plan import choose, command, lowering, topology
from prompt_jax.plan.cost import Mesh
from prompt_jax.plan.lowering import Compiled, refusal
from prompt_jax.plan.topology import Chip, Topology
from prompt_jax.step import jit_train_step

PROMPT = ["methods/prompt_tuning.gin", "runs/prompt_tune.gin"]
MODEL = ["methods/model_tuning.gin", "runs/model_tune.gin"]
XS = "models/micro_xs.gin"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: extra `plan`"
)


def resolved(*gin, files=PROMPT, model=XS):
    return resolve([model, *files], gin, unset=command.UNSET)


# --- without a task, a MODEL_DIR, a checkpoint ---


def test_what_a_plan_does_not_need_has_a_value_and_the_users_counts():
    assert resolved().run.model_dir == "" and resolved().run.backbone.checkpoint is not None
    bare = resolved(model="models/t5_1_1_small.gin")
    assert bare.run.backbone.checkpoint is None
    assert bare.origins["MODEL_DIR"] == bare.origins["INITIAL_CHECKPOINT_PATH"] == "default"
    own = resolved("MODEL_DIR='out/x'")
    assert (own.run.model_dir, own.origins["MODEL_DIR"]) == ("out/x", "--gin.")
    with pytest.raises(UserError, match="MODEL_DIR is required"):
        resolve([XS, *PROMPT], ["MIXTURE_OR_TASK_NAME='sst2'"])


LENGTHS = "TASK_FEATURE_LENGTHS={'inputs': 500, 'targets': 10}"


@pytest.mark.parametrize(
    ("gin", "data", "given", "expected"),
    [
        ((), 1, None, (32, 608, 16)),  # 600 positions, rounded up as a packed row's capacity is
        (("Data.packing=False",), 1, None, (32, 600, 16)),
        ((), 24, None, (48, 608, 16)),
        (("NUM_MICROBATCHES=4",), 3, None, (36, 608, 16)),
        ((), 4, 10, (12, 608, 16)),
        (("PACKED_LENGTHS={'inputs': 1200, 'targets': 64}",), 1, None, (16, 1200, 64)),
        (("PACKED_LENGTHS={'inputs': 1200, 'targets': 16}",), 1, None, (20, 1200, 16)),
    ],
)
def test_rows_that_are_assumed(gin, data, given, expected):
    batch = choose.rows(resolved(LENGTHS, *gin).run, data, given)
    assert (batch.rows, batch.inputs, batch.targets) == expected
    assert batch.examples == 32 and batch.assumed


def test_a_row_that_holds_no_example_is_refused():
    with pytest.raises(UserError, match="600 inputs, its prompt included"):
        choose.rows(resolved(LENGTHS, "PACKED_LENGTHS={'inputs': 512, 'targets': 16}").run, 1)


# --- the run's own step ---


@pytest.mark.parametrize("files", [PROMPT, MODEL], ids=["prompt", "model"])
def test_the_planned_step_is_the_runs(files):
    """Places, and the compiler's account of memory, are those of a run's real arrays."""
    run = resolved("BATCH_SIZE=4", files=files).run
    mesh = Mesh(2, 2, True, "full")
    batch = choose.rows(run, mesh.data)
    planned = lowering.compile_step(run, batch, mesh, jax.devices())

    shardings = Shardings(Parallel(2, 2).mesh(), True)
    config = dataclasses.replace(run.backbone.config, remat="full")
    model = assemble(config, run.method, shardings.fetch_layer)
    opened = open_backbone(run.backbone, model, shardings)
    optimizer, state, frozen, _ = train.init(run, model, opened, shardings)
    rows = shardings.put_batch(lay_out([], [], [], (batch.rows, batch.inputs, batch.targets)))
    for real, said in zip(
        jax.tree.leaves((state, frozen, rows)),
        jax.tree.leaves(lowering.arguments(lowering.leaves(run), batch, shardings)),
        strict=True,
    ):
        assert (real.shape, real.dtype) == (said.shape, said.dtype)
        assert real.sharding.is_equivalent_to(said.sharding, real.ndim)
    for path, leaf in state.trainable.items():
        assert leaf.sharding.is_equivalent_to(shardings.leaf(path, leaf.shape, False), leaf.ndim)
    step = jit_train_step(model, optimizer, run.num_microbatches)
    memory = step.lower(state, frozen, rows).compile().memory_analysis()
    held = planned.frozen + planned.state + planned.batch
    unread = (
        held - memory.argument_size_in_bytes
    )  # counters and the like that the step does not read
    assert planned.fits and 0 <= unread <= 1024
    assert planned.temporaries == memory.temp_size_in_bytes > 0
    assert planned.collectives and not any(entry["crosses"] for entry in planned.collectives)


def test_an_optimizers_state_is_counted():
    shardings = lowering.shardings_of(Mesh(1, 1, False, "none"), jax.devices())

    def bytes_of(files):
        run = resolved(files=files).run
        state, frozen, _ = lowering.arguments(lowering.leaves(run), choose.rows(run, 1), shardings)
        return lowering.shard_bytes(state), lowering.shard_bytes(frozen)

    (prompt, backbone), (model, nothing) = bytes_of(PROMPT), bytes_of(MODEL)
    width = resolved().run.backbone.config.emb_dim
    assert 2 * 4 * 100 * width <= prompt <= 2 * 4 * 100 * width + 64  # Adafactor's moment, counters
    assert nothing == 0 and model > backbone


@pytest.mark.parametrize(
    ("message", "needs", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (29.00G) exceeds available HBM (15.75G).",
            29 * 2**30 + 100,
            int(15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. "
            "Exceeded hbm capacity by 4.75G.",
            int(20.5 * 2**30),
            int(15.75 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: in other words", 100, 0),
    ],
)
def test_refusals_of_the_compiler(message, needs, available):
    assert refusal(message, 100) == (needs, available)


# --- the mesh ---


def machine(memory, count=8):
    chip = Chip("toy", 1e12, memory, 1e9, 1e9, 1e8)
    return Topology(f"cpu:{count}", chip, count)


def planned(answers, limit, *gin):
    """(the plan, the meshes that were compiled) with a compiler that gives `answers`."""
    asked = []

    def compile_step(run, batch, mesh, there, slices):
        asked.append(mesh)
        return Compiled(answers[len(asked) - 1], 1000)

    return choose.make_plan(resolved(*gin), machine(limit), None, compile_step), asked


def test_the_first_mesh_that_fits_is_taken_and_its_flags_said():
    plan, asked = planned([True], 2**40)
    assert plan.mesh == asked[0] == Mesh(8, 1, False, "none") and plan.flags == ()
    plan, asked = planned([False, False, True], 2**40)
    assert plan.mesh == asked[2] and plan.tried == len(set(asked)) == 3 and plan.flags
    assert plan.compiled.fits and plan.roofline == max(plan.seconds.values()) > 0
    flags = [flag.removeprefix("--gin.").replace('"', "") for flag in plan.flags]
    run = resolved(*flags).run
    assert (run.parallel.model, run.backbone.config.remat) == (plan.mesh.model, plan.mesh.remat)
    assert run.parallel.shard_frozen_over_data == plan.mesh.over_data


def test_where_nothing_fits_the_smallest_is_compiled_and_refused():
    plan, asked = planned([False] * 9, 2**40)
    assert not plan.compiled.fits and len(asked) <= choose.TRIES
    plan, asked = planned([True], 2**10)  # not even the weights: nothing is compiled
    assert not plan.compiled.fits and asked == [] and plan.tried == 0
    assert plan.compiled.needs > 2**10


def test_the_users_mesh_stays():
    plan, asked = planned([True], 2**40, "Parallel.model=4")
    assert plan.mesh == Mesh(2, 4, False, "none") and plan.flags == ()
    plan, asked = planned([True] * 3, 2**40, "T5Config.remat='minimal'")
    assert {mesh.remat for mesh in asked} == {"minimal"}
    with pytest.raises(UserError, match="= 2 x 3, but --topology=cpu:8 has 8 devices"):
        planned([True], 2**40, "Parallel.model=3")


def test_frozen_weights_are_split_over_the_devices_of_one_slice():
    two = dataclasses.replace(machine(2**40, 4), slices=2)
    meshes = choose.candidates(resolved().run, {}, two, True)
    assert all(mesh.data * mesh.model == 8 and mesh.data % 2 == 0 for mesh in meshes)
    over = [mesh for mesh in meshes if mesh.over_data]
    assert {mesh.sizes["data"] for mesh in over} == {2, 4}  # of the four of a slice


def test_what_was_compiled_is_remembered(tmp_path):
    calls = []

    def compile_step(*args):
        calls.append(args)
        return Compiled(True, 7, collectives=({"kind": "all-reduce", "sent": 1.5},))

    run, mesh = resolved().run, Mesh(8, 1, False, "none")
    first = choose.remembering(str(tmp_path / "c"), {"jax": "1"}, compile_step)
    again = choose.remembering(str(tmp_path / "c"), {"jax": "1"}, compile_step)
    batch = choose.rows(run, 8)
    assert first(run, batch, mesh, jax.devices()) == again(run, batch, mesh, jax.devices())
    assert len(calls) == 1
    other = choose.remembering(str(tmp_path / "c"), {"jax": "2"}, compile_step)
    other(run, batch, mesh, jax.devices())
    again(run, batch, dataclasses.replace(mesh, remat="full"), jax.devices())
    assert len(calls) == 3


def test_estimates_where_nothing_may_be_compiled(tmp_path):
    remembered = choose.remembering(str(tmp_path / "c"), {}, lambda *_: None)
    plan = choose.make_plan(resolved(), machine(2**40), None, remembered)
    assert plan.compiled.estimated and plan.compiled.fits and plan.seconds["links"] > 0
    assert plan.compiled.needs == plan.compiled.frozen + plan.compiled.temporaries
    assert not (tmp_path / "c").exists()
    assert not choose.make_plan(resolved(), machine(2**22), None, remembered).compiled.fits


# --- the command ---

ARGV = ["plan", f"--gin_file={XS}", *(f"--gin_file={file}" for file in PROMPT)]


def test_the_command_prints_and_writes_one_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--gin.BATCH_SIZE=8", "--gin.PROMPT_LENGTH=10", "--gin.Parallel.model=2"]
    argv = [*ARGV, *flags, "--topology=cpu:4", "--num_slices=2", "--json=plan.json"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for words in ("cpu:4, 8 devices, 2 slice(s)", "P = 10", "8 examples in 8 rows of 288 + 32",
                  "4 x 2, remat none", "float32 stored", "across slices"):  # fmt: skip
        assert words in out, out
    [plan] = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert plan["compiled"]["fits"] and plan["compiled"]["temporaries"] > 0
    assert plan["mesh"] == {"data": 4, "model": 2, "over_data": False, "remat": "none", "slices": 2}
    crossing = [e for e in plan["compiled"]["collectives"] if e["crosses"]]
    width = plan["config"]["emb_dim"]
    sums = sum(entry["bytes"] for entry in crossing)
    assert 4 * 10 * width <= sums <= 4 * 10 * width + 64  # the prompt's gradient and a few numbers
    assert [path.name for path in pathlib.Path().iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5e:4x5x1"], "no such machine; did you mean 'v5e:"),
        (["--topology=cpu:8", "--gin.Parallel.model=5"], "1 x 5, but --topology=cpu:8 has 8"),
        (["--sizes", "--dtypes=bfloat61"], "did you mean 'bfloat16'"),
        (["--gin.MIXTURE_OR_TASK_NAME='sst3'"], "did you mean 'sst2'"),
        (["--rows=0"], "'0' is no positive whole number"),
    ],
)
def test_bad_flags_are_one_line(flags, words, capsys):
    assert cli.main([*ARGV, *flags]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_sizes_as_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lowering, "compile_step", lambda *_: Compiled(True, 9))
    page = tmp_path / "plan.md"
    flags = ["--sizes", "--topology=cpu:2,cpu:4", "--dtypes=bfloat16", f"--markdown={page}"]
    assert cli.main([*ARGV, *flags]) == 0
    text = page.read_text()
    assert text.startswith("# Plans\n\nMade on 20") and "prompt-jax" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    expected = [(size, machine) for size in command.SIZES for machine in ("cpu:2", "cpu:4")]
    for row, (size, machine) in zip(rows, expected, strict=True):
        assert row.startswith(f"| t5_1_1_{size} | bfloat16 | {machine} | ")
    assert capsys.readouterr().out.strip() in text


def test_sizes_on_the_smallest_slice_that_fits(tmp_path):
    file = tmp_path / "plans.json"
    flags = ["--sizes", "--topology=gpu:h100x8", "--dtypes=bfloat16", "--gin.BATCH_SIZE=256"]
    remat = "--gin.T5Config.remat='none'"
    assert cli.main([*ARGV, *flags, remat, "--estimate", f"--json={file}"]) == 0
    plans = json.loads(file.read_text())["plans"]
    assert [plan["model"] for plan in plans] == [f"t5_1_1_{size}" for size in command.SIZES]
    assert all(plan["compiled"]["fits"] for plan in plans)
    chips = [plan["machine"]["chips"] for plan in plans]
    assert chips == sorted(chips) and chips[0] == 1 and 2 <= chips[-1] <= 8
    totals = [sum(plan["parameters"]) - 100 * plan["config"]["emb_dim"] for plan in plans]
    assert totals == [76_961_152, 247_577_856, 783_150_080, 2_849_757_184, 11_135_332_352]


@needs_libtpu
def test_a_step_that_cannot_fit_a_tpu_is_refused_at_once(capsys):
    flags = ["--topology=v5e:1x1", "--gin.BATCH_SIZE=1"]
    argv = ["plan", "--gin_file=models/t5_1_1_xxl.gin", *ARGV[2:], *flags]
    assert cli.main(argv) == 0
    assert "does not fit: needs 41." in capsys.readouterr().out


@pytest.mark.slow
@needs_libtpu
def test_a_small_step_is_compiled_for_a_tpu_and_a_large_one_refused():
    small = ("BATCH_SIZE=8", "Parallel.model=2", "T5Config.dtype='bfloat16'")
    plan = choose.make_plan(resolved(*small), topology.parse("v5e:2x2"))
    assert plan.compiled.fits and plan.compiled.program > 0
    assert plan.compiled.available == int(15.75 * 2**30) and plan.roofline > 0
    assert {entry["kind"] for entry in plan.compiled.collectives} >= {"all-reduce"}


@needs_libtpu
def test_what_libtpu_refuses_is_a_plan_that_does_not_fit():
    """Activations of 64 rows a device that nothing recomputes."""
    flags = ("Parallel.shard_frozen_over_data=True", "T5Config.remat='none'", "BATCH_SIZE=1024")
    kind = ("T5Config.dtype='bfloat16'", "T5Config.param_dtype='bfloat16'")
    plan = choose.make_plan(
        resolved(*flags, *kind, model="models/t5_1_1_xxl.gin"), topology.parse("v5e:4x4")
    )
    assert not plan.compiled.fits and plan.tried == 1
    assert plan.compiled.needs > plan.compiled.available == int(15.75 * 2**30)
