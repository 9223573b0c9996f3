"""Where a path points: local, `gs://`, a packaged asset, or the local Hugging Face hub cache."""

import os
import pathlib

from etils import epath

from prompt_jax.errors import UserError, nearest

PathLike = str | os.PathLike
_ASSETS = pathlib.Path(__file__).resolve().parent.parent / "assets"


def resolve_path(path: PathLike) -> epath.Path:
    """The folder or file that a path names.

    Args:
        path: local, `gs://`, `prompt_jax:NAME` (a packaged asset), `hf:DIR`, `hf:ORG/NAME` (the
            hub cache), or `t5x:DIR`.

    Returns:
        The path.

    Raises:
        UserError: no such asset; a repository that is not in the cache.
    """
    text = os.fspath(path)
    if "://" in text and "gs://" not in text:
        raise UserError(f"{text}: paths are local or gs://")
    kind, colon, name = text.partition(":")
    if not colon or name.startswith("//") or kind not in ("prompt_jax", "hf", "t5x", "peft"):
        return epath.Path(path)
    if kind == "prompt_jax":
        return _asset(name)
    if kind == "hf" and "://" not in name and not os.path.exists(name):
        return _cached(name)
    return epath.Path(name)


def target_path(path: PathLike) -> epath.Path:
    """Where to write: a prefix that names a format (`hf:`, `t5x:`, `peft:`) is taken off."""
    kind, colon, name = os.fspath(path).partition(":")
    return epath.Path(name if colon and kind in ("hf", "t5x", "peft") else path)


def _asset(name: str) -> epath.Path:
    if ".." in pathlib.PurePosixPath(name).parts or not (_ASSETS / name).exists():
        there = [p.name for p in _ASSETS.iterdir() if not p.name.startswith(("_", "."))]
        raise UserError(f"prompt_jax:{name}: no such packaged asset; {nearest(name, there)}")
    return epath.Path(_ASSETS / name)


def hub_cache() -> pathlib.Path:
    """The folder of the Hugging Face hub cache, by its own environment variables."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return pathlib.Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))


def _cached(name: str) -> epath.Path:
    """The snapshot of `ORG/NAME` that `refs/main` (or the only one there) names."""
    if name.startswith(("/", ".")) or len(name.split("/")) > 2:
        raise UserError(f"hf:{name}: no such folder")
    folder = hub_cache() / f"models--{name.replace('/', '--')}"
    main = folder / "refs" / "main"
    snapshots = sorted((folder / "snapshots").glob("*"))
    revision = main.read_text().strip() if main.is_file() else ""
    if revision:
        snapshots = [folder / "snapshots" / revision]
    if len(snapshots) > 1:
        raise UserError(
            f"hf:{name}: the hub cache holds several revisions; give one: {snapshots[0]}"
        )
    if not snapshots or not snapshots[0].is_dir():
        raise UserError(
            f"hf:{name}: no such folder, and not in the hub cache {hub_cache()}; "
            f"download it with: hf download {name}"
        )
    return epath.Path(snapshots[0])
