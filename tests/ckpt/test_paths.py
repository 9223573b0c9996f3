"""Where paths point: packaged assets and the Hugging Face hub cache."""

import shutil
from pathlib import Path

import pytest

from prompt_jax.ckpt import load, paths
from prompt_jax.errors import UserError

TINY = Path(__file__).parent.parent / "fixtures" / "t5v11_tiny"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache that holds ORG/tiny, as the hub's own client lays it out."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / "abc123"
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in TINY.iterdir():
        shutil.copy(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    return repository


def test_a_repository_in_the_hub_cache_is_found(cache):
    found = load.load_backbone("hf:org/tiny").fingerprint
    assert found == load.load_backbone(TINY).fingerprint
    (cache / "snapshots" / "older").mkdir()
    assert str(paths.resolve_path("hf:org/tiny")).endswith("abc123")


def test_an_absent_repository_says_how_to_download_it(cache):
    for name in ("org/other", "other"):
        with pytest.raises(UserError, match=f"not in the hub cache.*hf download {name}$"):
            load.open_source(f"hf:{name}")
    with pytest.raises(UserError, match="no such folder$"):
        load.open_source("hf:/nowhere/at/all")


def test_a_repository_of_pickles_says_so(cache):
    snapshot = cache / "snapshots" / "abc123"
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin: is a pickle, which is never read"):
        load.open_source("hf:org/tiny")


def test_the_cache_is_where_the_client_puts_it(monkeypatch):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.hub_cache() == Path("/home/me/.cache/huggingface/hub")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert paths.hub_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/h")
    assert paths.hub_cache() == Path("/h/hub")


def test_a_folder_wins_over_the_cache(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, tmp_path / "org" / "tiny")
    assert str(paths.resolve_path("hf:org/tiny")) == "org/tiny"


def test_packaged_assets(tmp_path):
    assert str(paths.resolve_path(tmp_path)) == str(tmp_path)
    assert str(paths.resolve_path("gs://bucket/model")) == "gs://bucket/model"
    assert paths.resolve_path("prompt_jax:micro_s").name == "micro_s"
    for bad in ("prompt_jax:nothing_like_it", "prompt_jax:../ckpt"):
        with pytest.raises(UserError, match="no such packaged asset"):
            paths.resolve_path(bad)


def test_targets_lose_their_prefix():
    assert str(paths.target_path("hf:new/folder")) == "new/folder"
    assert str(paths.target_path("t5x:gs://b/c")) == "gs://b/c"
    assert str(paths.target_path("plain")) == "plain"


def test_several_revisions_without_a_main_are_told_apart(cache):
    (cache / "snapshots" / "def456").mkdir()
    (cache / "refs" / "main").write_text("")
    with pytest.raises(UserError, match="several revisions; give one: .*snapshots/abc123"):
        paths.resolve_path("hf:org/tiny")
