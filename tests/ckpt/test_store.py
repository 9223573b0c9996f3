"""Run state on disk: what is read back is what was saved, or it is refused."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.ckpt import store as stores
from prompt_jax.ckpt.store import Store
from prompt_jax.errors import UserError

EXTRA = {"best": None, "done": {"seconds": 1.5}}


def state():
    values = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    return {"prompt": jnp.asarray(values), "v": jnp.full((20, 64), 3.0), "step": jnp.int32(7)}


@pytest.fixture
def saved(tmp_path):
    store = Store(str(tmp_path / "checkpoints"))
    store.save(3, state(), EXTRA, {0: 0.5})
    store.close()
    return tmp_path / "checkpoints"


def restore(folder):
    store = Store(str(folder))
    try:
        return store.restore(3, state())
    finally:
        store.close()


def test_what_is_saved_is_restored(saved):
    found = restore(saved)
    assert found.extra == EXTRA
    jax.tree.map(np.testing.assert_array_equal, found.state, state())


def test_what_the_caller_changes_afterwards_is_not_saved(tmp_path, monkeypatch):
    """The JSON is written later, by a thread; a run's account of itself goes on meanwhile."""
    store, given = Store(str(tmp_path / "checkpoints")), []
    save = store._args.JsonSave
    monkeypatch.setattr(store._args, "JsonSave", lambda item: given.append(item) or save(item))
    done = {"seconds": {"total": 1}}
    store.save(3, state(), {"done": done})
    done["seconds"]["total"] = 2
    assert given[0]["done"] == {"seconds": {"total": 1}}
    store.wait()
    assert store.restore(3, state()).extra == {"done": {"seconds": {"total": 1}}}
    store.close()


def test_one_flipped_byte_changes_nothing_or_is_refused(saved):
    rng = np.random.default_rng(0)
    refused = 0
    for file in [path for path in saved.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        for at in rng.integers(0, len(whole), 4) if whole else []:
            bit = 1 << int(rng.integers(0, 8))
            file.write_bytes(flipped(whole, at, bit))
            try:
                found = restore(saved)
            except UserError as error:
                refused += 1
                assert "damaged" in str(error) and "\n" not in str(error)
            else:
                assert found.extra == EXTRA
                jax.tree.map(np.testing.assert_array_equal, found.state, state())
        file.write_bytes(whole)
    assert refused > 8


def flipped(whole, at, bit=1):
    return whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]


def test_data_and_json_are_both_covered(saved):
    """The two places where Orbax itself notices nothing."""
    largest = max((p for p in saved.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    extra = pathlib.Path(next(saved.glob("3/extra/metadata")))
    fields = json.loads(extra.read_text())
    for file, content in (
        (largest, flipped(largest.read_bytes(), largest.stat().st_size // 2)),
        (extra, json.dumps(fields | {"done": {"seconds": 2.5}}).encode()),
    ):
        whole = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(UserError, match="checkpoints/3: is damaged"):
            restore(saved)
        file.write_bytes(whole)
    restore(saved)
    assert stores._digest(EXTRA) != stores._digest({**EXTRA, "best": 1})
