"""Our backbone folders: what is recorded when they are written, and refused when it is not so."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from prompt_jax.ckpt import folder, load
from prompt_jax.errors import UserError
from prompt_jax.testing.tiny import tiny_config, tiny_params

VOCABULARY = pathlib.Path(load.__file__).parents[1] / "assets" / "vocabulary" / "micro.model"
CONFIG = tiny_config(vocab_size=4096, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "backbone"
    folder.save(path, tiny_params(CONFIG), CONFIG, VOCABULARY, shard_bytes=60_000)
    return path


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "generation_config.json",
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "prompt_jax.json",
        "spiece.model",
    ],
)
def test_one_flipped_byte_anywhere_is_refused(written, tmp_path, file):
    shutil.copytree(written, tmp_path / "copy")
    target = tmp_path / "copy" / file
    whole = target.read_bytes()
    rng = np.random.default_rng(0)
    for at in (0, 9, len(whole) - 1, *rng.integers(0, len(whole), 12)):
        bit = 1 << int(rng.integers(0, 8))
        target.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        if file == "prompt_jax.json" and target.read_bytes().split() == whole.split():
            continue  # another blank between two fields
        with pytest.raises(UserError) as error:
            load.load_backbone(tmp_path / "copy")
        assert str(tmp_path / "copy") in str(error.value) and "\n" not in str(error.value)
    target.write_bytes(whole)
    load.load_backbone(tmp_path / "copy")


def test_a_damaged_tensor_is_named(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    file = sorted((tmp_path / "copy").glob("model-*"))[0]
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(bytes(whole))
    with pytest.raises(UserError, match=r"shared\.weight is damaged"):
        load.load_backbone(tmp_path / "copy")
    with pytest.raises(UserError, match=r"shared\.weight is damaged"):
        load.read_fingerprint(load.open_source(tmp_path / "copy"))


@pytest.mark.parametrize("file", ["spiece.model", "generation_config.json"])
def test_a_missing_file_is_named(written, tmp_path, file):
    shutil.copytree(written, tmp_path / "copy")
    (tmp_path / "copy" / file).unlink()
    with pytest.raises(UserError, match=f"{file}: is missing"):
        load.load_backbone(tmp_path / "copy")


def test_without_its_record_a_folder_is_foreign(written, tmp_path):
    """Somebody who changes it on purpose removes the record; the strict checks stay."""
    shutil.copytree(written, tmp_path / "copy")
    (tmp_path / "copy" / folder.RECORD).unlink()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.3}))
    found = load.load_backbone(tmp_path / "copy")
    assert found.fingerprint == load.load_backbone(written).fingerprint
    assert load.open_source(tmp_path / "copy").config.dropout_rate == 0.3


def test_the_record_names_the_fingerprint(written):
    record = json.loads((written / folder.RECORD).read_text())
    assert record["fingerprint"] == load.load_backbone(written).fingerprint
    assert set(record["files"]) == {p.name for p in written.iterdir()} - {folder.RECORD}


def test_a_killed_save_is_swept_up(tmp_path):
    (tmp_path / ".out.writing").mkdir()
    (tmp_path / ".out.writing" / "half").write_text("x")
    folder.save(tmp_path / "out", tiny_params(CONFIG), CONFIG, None)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "half").exists()


def test_what_is_written_may_be_read_by_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        folder.save(tmp_path / "out", tiny_params(CONFIG), CONFIG, None)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}
