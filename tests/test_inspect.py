"""`prompt-jax inspect`: its functions against loops, and the verb through the front door."""

import json
import math
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax import similarity, train
from prompt_jax.__main__ import main
from prompt_jax.assemble import Method, assemble
from prompt_jax.ckpt import folder, load, prompt_file, save_result, tree
from prompt_jax.config import resolve
from prompt_jax.data.vocabulary import load_vocabulary
from prompt_jax.testing.tiny import tiny_config, tiny_params

pytestmark = pytest.mark.xdist_group("inspect")  # one worker: the fixtures are made once

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
MICRO = "prompt_jax:micro_s"


# --- functions and their twins ---


def loop_cosine(a, b):
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    sizes = [math.sqrt(sum(float(x) ** 2 for x in each)) for each in (a, b)]
    return dot / (sizes[0] * sizes[1]) if all(sizes) else 0.0


def vectors(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neighbours_are_those_of_a_loop(monkeypatch, dtype):
    monkeypatch.setattr(similarity, "_BLOCK", 7)  # several blocks, the last one short
    prompt, table = vectors(0, 4, 6), np.array(jnp.asarray(vectors(1, 40, 6), dtype))
    table[3] = 0
    prompt[2] = np.float32(3.0) * table[12].astype(np.float32)
    rows, cosines = similarity.neighbours(prompt, table, 5)
    for slot, vector in enumerate(prompt):
        alike = [(-loop_cosine(vector, row), number) for number, row in enumerate(table)]
        best = sorted((round(value, 6), number) for value, number in alike)[:5]
        assert rows[slot].tolist() == [number for _, number in best]
        np.testing.assert_allclose(cosines[slot], [-value for value, _ in best], atol=2e-6)
    assert rows[2, 0] == 12 and cosines[2, 0] == pytest.approx(1, abs=1e-6)
    assert similarity.neighbours(prompt, table[:2], 5)[0].shape == (4, 2)


def test_only_a_block_of_the_table_becomes_float32(monkeypatch):
    monkeypatch.setattr(similarity, "_BLOCK", 8)
    seen, astype = [], similarity._directions
    monkeypatch.setattr(
        similarity, "_directions", lambda x, *d: seen.append(len(x)) or astype(x, *d)
    )
    similarity.neighbours(vectors(0, 3, 4), vectors(1, 50, 4))
    assert max(seen) == 8


def test_duplicates_and_shared_are_those_of_a_loop():
    prompt = vectors(0, 7, 5)
    prompt[4] = 2 * prompt[1] + 1e-3
    prompt[6] = -prompt[0]
    expected = [
        (i, j)
        for i in range(7)
        for j in range(i + 1, 7)
        if loop_cosine(prompt[i], prompt[j]) >= similarity.DUPLICATE
    ]
    assert similarity.duplicates(prompt) == expected == [(1, 4)]
    assert len(similarity.duplicates(prompt, -1.0)) == 21
    assert similarity.duplicates(np.zeros((2, 3), np.float32)) == []
    assert similarity.shared(np.array([5, 2, 5, 9, 2, 5])) == {5: [0, 2, 5], 2: [1, 4]}


def test_similarities_are_those_of_a_loop():
    a, b = vectors(0, 3, 5), vectors(1, 4, 5)
    pairs = [loop_cosine(x, y) for x in a for y in b]
    means = [[sum(column) / len(each) for column in each.T.tolist()] for each in (a, b)]
    assert similarity.similarity_per_token(a, b) == pytest.approx(sum(pairs) / 12, abs=1e-7)
    assert similarity.similarity_average(a, b) == pytest.approx(loop_cosine(*means), abs=1e-7)


def test_similarities_keep_what_spot_says_of_them():
    """Symmetric; free of order and of the whole prompt's scale; equal where rows are equal."""
    a, b = vectors(0, 3, 5), vectors(1, 3, 5)
    for alike in (similarity.similarity_average, similarity.similarity_per_token):
        assert alike(a, b) == pytest.approx(alike(b, a), abs=1e-12)
        assert alike(a[::-1], np.float32(7) * b) == pytest.approx(alike(a, b), abs=1e-6)
    assert similarity.similarity_average(a, a) == pytest.approx(1)
    assert similarity.similarity_per_token(a, a) < 0.9
    one, two = np.tile(a[:1], (4, 1)), np.tile(b[:1], (2, 1))
    assert similarity.similarity_average(one, two) == pytest.approx(
        similarity.similarity_per_token(one, two)
    )


def test_norms_and_rowwise_cosines():
    a, b = vectors(0, 9, 5), vectors(1, 9, 5)
    expected = [loop_cosine(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(similarity.cosines(a, b), expected, atol=1e-7)
    sizes = [math.sqrt(sum(float(x) ** 2 for x in row)) for row in a]
    assert similarity.mean_norm(a) == pytest.approx(sum(sizes) / 9)


# --- the verb ---


def inspect(*flags):
    return main(["inspect", *map(str, flags)])


@pytest.fixture(scope="module")
def micro():
    """(embedding table of micro_s in float32, its vocabulary)."""
    source = load.open_source(MICRO)
    table = source.tensors[tree.EMBEDDING].whole().astype(np.float32)
    return table, load_vocabulary(str(source.vocabulary))


@pytest.fixture
def rows(tmp_path, micro):
    """A prompt made of rows of the table: (file, their ids); the first and the fourth are one."""
    ids = [77, 1200, 3, 77, 2500]
    np.save(tmp_path / "rows.npy", micro[0][ids] * np.float32([[1], [2], [1], [3], [0.5]]))
    return tmp_path / "rows.npy", ids


def test_a_prompt_of_real_tokens_finds_them(tmp_path, rows, micro, capsys):
    file, ids = rows
    table, vocabulary = micro
    assert inspect(file, f"--backbone={MICRO}", f"--json={tmp_path / 'x.json'}") == 0
    found = json.loads((tmp_path / "x.json").read_text())
    (report,) = found["prompts"]
    assert found["compare"] is None
    assert (report["length"], report["width"], report["path"]) == (5, 128, str(file))
    for slot, token in zip(report["slots"], ids, strict=True):
        assert [n["id"] for n in slot["neighbours"]][0] == token
        assert slot["neighbours"][0]["piece"] == vocabulary.piece(token)
        assert slot["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-6)
        values = [n["cosine"] for n in slot["neighbours"]]
        assert len(values) == 5 and values == sorted(values, reverse=True)
    assert report["duplicates"] == [[0, 3]]
    assert report["shared"] == {vocabulary.piece(77): [0, 3]}
    norms = np.linalg.norm(np.load(file), axis=1)
    assert [slot["norm"] for slot in report["slots"]] == pytest.approx(norms.tolist())
    assert report["norms"]["max"] == pytest.approx(float(norms.max()))
    pieces = table[: vocabulary.pieces]
    assert report["backbone"]["rows"] == len(pieces) == 3996
    mean = float(np.linalg.norm(pieces, axis=1).mean())
    assert report["backbone"]["mean_norm"] == pytest.approx(mean, rel=1e-5)
    out = capsys.readouterr().out
    assert f"{vocabulary.piece(1200)} 1.00" in out and "0 = 3" in out
    assert f"of embeddings {mean:.3g}" in out and "init: not recorded" in out


def test_sentinels_are_no_neighbours(tmp_path, micro):
    np.save(tmp_path / "p.npy", micro[0][[4000, 4095]])
    assert inspect(tmp_path / "p.npy", f"--backbone={MICRO}", f"--json={tmp_path / 'x.json'}") == 0
    (report,) = json.loads((tmp_path / "x.json").read_text())["prompts"]
    assert all(n["id"] < 3996 for slot in report["slots"] for n in slot["neighbours"])


def test_without_a_backbone_it_says_how_to_get_neighbours(rows, capsys):
    assert inspect(rows[0]) == 0
    out = capsys.readouterr().out
    assert "neighbours: not shown: no backbone is known; give --backbone=PATH" in out
    assert "nearest" not in out and "norms:" in out


def test_without_a_vocabulary_rows_have_numbers(capsys):
    """A PEFT adapter on the Hugging Face T5 it was made for; no sentencepiece model there."""
    adapter = FIXTURES / "peft" / "peft_prompt10_on_t5v11_tiny"
    assert inspect(adapter, f"--backbone=hf:{FIXTURES / 't5v11_tiny'}") == 0
    out = capsys.readouterr().out
    assert "10 slots of width 64" in out and "#" in out and "give --vocabulary" in out


@pytest.fixture
def of_bytes(tmp_path):
    """A backbone of ByT5's table."""
    config = tiny_config(vocab_size=384)
    folder.save(tmp_path / "byt5", tiny_params(config), config, None)
    return f"--backbone={tmp_path / 'byt5'}"


def test_a_vocabulary_may_be_given(tmp_path, of_bytes, capsys):
    np.save(tmp_path / "p.npy", vectors(0, 3, 64))
    assert inspect(tmp_path / "p.npy", of_bytes, "--vocabulary=byte") == 0
    assert "among 259 pieces" in capsys.readouterr().out


def test_pieces_are_no_markup_and_move_no_cursor(tmp_path, of_bytes, capsys):
    table = load.load_backbone(tmp_path / "byt5").params["token_embedder"]["embedding"]
    np.save(tmp_path / "p.npy", table[np.array([ord(" "), ord("["), 0x1B]) + 3])
    assert inspect(tmp_path / "p.npy", of_bytes, "--vocabulary=byte") == 0
    out = capsys.readouterr().out
    assert "▁ 1.00" in out and "[ 1.00" in out and "<0x1B> 1.00" in out and "\x1b" not in out
    for name in ("[red]one.npy", "[b]two.npy"):
        shutil.copy(tmp_path / "p.npy", tmp_path / name)
    assert inspect("--compare", tmp_path / "[red]one.npy", tmp_path / "[b]two.npy") == 0
    out = capsys.readouterr().out
    assert "0 [red]one" in out and "1 [b]two" in out


def test_distances_to_the_init(tmp_path, capsys):
    start, end = vectors(0, 3, 4), vectors(1, 3, 4)
    np.save(tmp_path / "prompt_init.npy", start)
    np.save(tmp_path / "prompt.npy", end)
    assert inspect(tmp_path / "prompt.npy", f"--json={tmp_path / 'x.json'}") == 0
    (report,) = json.loads((tmp_path / "x.json").read_text())["prompts"]
    pairs = list(zip(start, end, strict=True))
    squares = [sum(float(x - y) ** 2 for x, y in zip(*pair, strict=True)) for pair in pairs]
    for slot, square, pair in zip(report["slots"], squares, pairs, strict=True):
        assert slot["from_init"] == pytest.approx(math.sqrt(square), rel=1e-5)
        assert slot["cosine_to_init"] == pytest.approx(loop_cosine(*pair), abs=1e-6)
    assert report["init"]["distance"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    whole = loop_cosine(start.ravel(), end.ravel())
    assert report["init"]["cosine"] == pytest.approx(whole, abs=1e-6)
    out = capsys.readouterr().out
    assert f"init: distance {math.sqrt(sum(squares)):.3g}, cosine {whole:.2f}" in out

    np.save(tmp_path / "prompt_init.npy", start[:2])
    assert inspect(tmp_path / "prompt.npy") == 0
    assert "has shape [2, 4], not [3, 4]" in capsys.readouterr().out


# --- comparing ---


@pytest.fixture
def three(tmp_path):
    """Three prompts of one width and different lengths."""
    for number, name in enumerate("abc"):
        np.save(tmp_path / f"{name}.npy", vectors(number, 3 + number, 8))
    return [tmp_path / f"{name}.npy" for name in "abc"]


def test_compare_is_a_matrix_a_figure_and_json(tmp_path, three, capsys):
    png, out = tmp_path / "figures" / "x.png", tmp_path / "x.json"
    assert inspect("--compare", *three, f"--png={png}", f"--json={out}") == 0
    found = json.loads(out.read_text())
    assert found["prompts"] == [] and found["compare"]["prompts"] == ["a", "b", "c"]
    arrays = [np.load(file) for file in three]
    for kind, alike in (
        ("sim_avg", similarity.similarity_average),
        ("sim_pertoken", similarity.similarity_per_token),
    ):
        expected = [[alike(a, b) for b in arrays] for a in arrays]
        np.testing.assert_allclose(found["compare"][kind], expected, atol=1e-12)
    np.testing.assert_allclose(np.diag(found["compare"]["sim_avg"]), 1)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and png.stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "sim_avg" in printed and "sim_pertoken" in printed and f"wrote {png}" in printed
    assert f"{found['compare']['sim_avg'][0][1]:.3f}" in printed and "2 c" in printed
    assert "slots of width" not in printed


def test_compare_writes_no_figure_unless_asked(tmp_path, three, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert inspect(three[0], "--compare", *three[1:]) == 0
    assert sorted(tmp_path.iterdir()) == before


def test_several_prompts_are_compared_too(tmp_path, three, capsys):
    assert inspect(*three[:2], f"--json={tmp_path / 'x.json'}") == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert [report["length"] for report in found["prompts"]] == [3, 4]
    assert found["compare"]["prompts"] == ["a", "b"]


def test_names_are_short_where_they_are_unique(tmp_path, three):
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        shutil.copy(three[0], tmp_path / run / "prompt.npy")
    (tmp_path / "two" / "c.npy").write_bytes(three[2].read_bytes())
    given = [tmp_path / "one" / "prompt.npy", tmp_path / "two" / "prompt.npy", three[1]]
    given += [three[2], tmp_path / "two" / "c.npy", three[1]]
    assert inspect("--compare", *given, f"--json={tmp_path / 'x.json'}") == 0
    found = json.loads((tmp_path / "x.json").read_text())["compare"]
    assert found["prompts"] == ["one", "two", "b", str(three[2]), str(given[4])]
    assert found["sim_avg"][0][1] == pytest.approx(1)


# --- what is refused ---


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["give a PROMPT", "--compare"]),
        (["nowhere.npy"], ["prompt nowhere.npy: no such file"]),
        (["nowhere"], ["prompt nowhere: no .npy"]),
        (["a.npy", "--compare", "nowhere.npy"], ["nowhere.npy: no such file"]),
        (["a.npy", "--backbone=nowhere"], ["nowhere"]),
        (["a.npy", f"--backbone={MICRO}"], ["a.npy has width 8", "has 128"]),
        (["wide.npy", f"--backbone={MICRO}", "--vocabulary=no.model"], ["'no.model' does not"]),
        (["--compare", "a.npy", "wide.npy"], ["a.npy has 8, wide.npy has 128"]),
        (["--compare", "a.npy"], ["--compare: one prompt alone"]),
        (["--compare", "a.npy", "a.npy"], ["--compare: one prompt alone"]),
        (["a.npy", "--png=x.png"], ["--png: one prompt alone"]),
        (["a.npy", "--bakbone=x"], ["--bakbone", "did you mean '--backbone'"]),
        (["a.npy", "--gin.X=1"], ["takes no --gin. flags"]),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, three, monkeypatch, capsys, flags, parts):
    np.save(tmp_path / "wide.npy", vectors(9, 2, 128))
    monkeypatch.chdir(tmp_path)
    assert inspect(*flags) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err, captured.err
    assert not (tmp_path / "x.png").exists()


# --- a run's own prompt ---

RUN = {
    "MIXTURE_OR_TASK_NAME": "'micro_sentiment'",
    "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 4}",
    "PROMPT_LENGTH": "4",
    "BATCH_SIZE": "4",
    "TRAIN_STEPS": "2",
    "EVAL_PERIOD": "9",
    "EVAL_STEPS": "1",
    "Parallel.data": "1",
}


def configure(folder, **changes):
    values = {**RUN, "MODEL_DIR": f"'{folder}'", **changes}
    files = ["models/micro_xs.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin"]
    return resolve(files, [f"{name}={value}" for name, value in values.items()])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The MODEL_DIR of a run on an embedded backbone."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    train.run(configure(folder))
    return folder


def test_a_run_knows_its_backbone_and_its_init(finished, tmp_path, capsys):
    assert inspect(finished, f"--json={tmp_path / 'x.json'}") == 0
    (report,) = json.loads((tmp_path / "x.json").read_text())["prompts"]
    assert report["path"] == f"{finished}/prompt.safetensors"
    assert report["method"] == "prompt_tuning"
    assert report["backbone"]["path"].endswith("assets/micro_xs")
    assert report["backbone"]["foreign"] is None
    start, end = np.load(finished / "prompt_init.npy"), np.load(finished / "prompt.npy")
    assert start.shape == (4, 64) and not np.array_equal(start, end)
    table = load.open_source("prompt_jax:micro_xs").tensors[tree.EMBEDDING].whole()
    assert all((row == table.astype(np.float32)).all(1).any() for row in start)  # sampled pieces
    assert report["init"]["distance"] == pytest.approx(float(np.linalg.norm(end - start)), rel=1e-5)
    out = capsys.readouterr().out
    assert "from init" in out and "WARNING" not in out

    # The same from the record, where the config was not taken along.
    for name in ("prompt.npy", "record.json"):
        shutil.copy(finished / name, tmp_path / name)
    assert inspect(tmp_path / "prompt.npy") == 0
    assert "assets/micro_xs" in capsys.readouterr().out


def test_another_backbone_of_the_same_width_is_told(finished, capsys):
    assert inspect(finished, f"--backbone=hf:{FIXTURES / 't5v11_tiny'}") == 0
    prompt = prompt_file.load(f"{finished}/prompt.safetensors")
    assert f"WARNING: trained on the backbone {prompt.backbone}, here is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"Backbone.checkpoint": "gone", "Backbone.random_weights": False},
            "the run's backbone cannot be read (",
        ),
        (
            {"Backbone.checkpoint": MICRO, "Backbone.random_weights": True},
            "the run's backbone has random weights",
        ),
        ({"Backbone.checkpoint": None}, "no backbone is known"),
        ({"architectures": ["T5"]}, "no backbone is known"),
    ],
)
def test_a_run_whose_backbone_is_not_there(tmp_path, monkeypatch, capsys, config, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.save(tmp_path / "prompt.npy", vectors(0, 2, 128))
    assert inspect("prompt.npy") == 0
    assert f"neighbours: not shown: {said}" in capsys.readouterr().out


def test_a_run_that_goes_on_keeps_its_first_values(finished, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(finished, folder)
    mark = vectors(5, 4, 64)
    np.save(folder / "prompt_init.npy", mark)
    train.run(configure(folder, TRAIN_STEPS="3"))
    np.testing.assert_array_equal(np.load(folder / "prompt_init.npy"), mark)


def test_a_method_without_a_prompt_records_no_first_values(tmp_path):
    save_result.save_init(str(tmp_path), assemble(tiny_config(), Method("model_tuning")), {})
    assert not list(tmp_path.iterdir())
