"""Backbone folders as we write them: a Hugging Face T5 folder and what it should hold.

`prompt_jax.json` beside the weights records a digest of every tensor and of every other byte, so
that one flipped byte is refused when the folder is read (DESIGN decisions 11 and 15).
"""

import hashlib
import json
import os
from collections.abc import Callable

import numpy as np
from etils import epath
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from prompt_jax import __version__
from prompt_jax.ckpt import fingerprint, hf, hf_config, tree
from prompt_jax.ckpt.paths import PathLike, resolve_path, target_path
from prompt_jax.ckpt.source import Index, Tensor
from prompt_jax.errors import RunFailed, UserError
from prompt_jax.models.t5.config import T5Config

RECORD = "prompt_jax.json"
SHARD_BYTES = 128 << 20  # a shard lies twice in memory while it is written
_GENERATION = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def save(
    path: PathLike,
    params: dict,
    config: T5Config,
    vocabulary: PathLike | None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a parameter tree as a backbone folder, whole or not at all.

    Args:
        path: the folder; an older backbone there is replaced.
        params: the parameter tree.
        config: its shape.
        vocabulary: a sentencepiece model, copied as `spiece.model`; None for bytes.
        shard_bytes: weights beyond this are split over several files.

    Raises:
        UserError: `path` holds something else than a backbone, or the tree is not T5Config's.
    """
    tensors = of_tree(params, config)

    def fill(fresh: epath.Path) -> None:
        write(fresh, tensors, config, vocabulary, shard_bytes)

    replace(path, fill, is_ours)


def of_tree(params: dict, config: T5Config) -> dict[str, Tensor]:
    """The canonical tensors of a parameter tree in memory.

    Raises:
        UserError: the tree is not that of `config`.
    """
    flat, leaves = traverse_util.flatten_dict(params), tree.leaves(config)
    if set(flat) != {leaf.path for leaf in leaves}:
        odd = sorted("/".join(p) for p in set(flat) ^ {leaf.path for leaf in leaves})
        raise UserError(f"the tree is not that of T5Config: {', '.join(odd)}")
    found = {}
    for leaf in leaves:
        array = flat[leaf.path]
        for i, name in enumerate(leaf.names):

            def read(index: Index, array=array, row=(i,) if leaf.layers else ()) -> np.ndarray:
                return np.asarray(array[row] if row else array)[index]

            found[name] = Tensor(leaf.shape, np.dtype(array.dtype), read)
    return found


def replace(
    path: PathLike, fill: Callable[[epath.Path], None], written: Callable[[epath.Path], bool]
) -> None:
    """Fills a new folder beside `path`, then puts it in its place.

    Args:
        path: the folder to write.
        fill: writes its files.
        written: whether everything in an older folder there is what this would write.

    Raises:
        UserError: `path` is something else, which is left alone.
    """
    folder = target_path(path)
    if "://" not in str(folder):  # a link is followed; `.` gets its name
        folder = epath.Path(os.path.realpath(folder))
    there = folder.exists()
    if there and (not folder.is_dir() or any(folder.iterdir()) and not written(folder)):
        raise UserError(f"{folder}: exists and holds other files; name another one")
    if epath.Path(os.path.realpath(os.getcwd())).is_relative_to(folder):
        raise UserError(f"{folder}: holds the working directory; name another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.parent / f".{folder.name}.{what}" for what in ("writing", "old"))
    for left in (fresh, old):  # of a process that was killed
        if left.exists():
            left.rmtree()
    fresh.mkdir()
    try:
        fill(fresh)
    except BaseException:
        fresh.rmtree()
        raise
    if there:
        folder.rename(old)
    fresh.rename(folder)
    if there:
        old.rmtree()


def is_ours(folder: epath.Path) -> bool:
    """Whether a folder holds what `write` wrote and nothing else."""
    if not (folder / RECORD).exists():
        return False
    files = hf.read_json(folder / RECORD).get("files")
    names = {file.name for file in folder.iterdir()}
    return isinstance(files, dict) and names <= {*files, RECORD}


def write(
    folder: epath.Path,
    tensors: dict[str, Tensor],
    config: T5Config,
    vocabulary: PathLike | None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, str]:
    """Fills a folder, one shard in memory at a time.

    Args:
        folder: new and empty.
        tensors: canonical name -> tensor.
        config: their shape.
        vocabulary: a sentencepiece model to copy; None for bytes.
        shard_bytes: of a file.

    Returns:
        Canonical name -> digest of what was written.
    """
    _write_json(folder / hf.CONFIG, hf_config.to_hf(config))
    _write_json(folder / "generation_config.json", _GENERATION)
    if vocabulary is not None:
        resolve_path(vocabulary).copy(folder / hf.VOCABULARY)
    shards, digests = _shards(tensors, shard_bytes), {}
    for number, names in enumerate(shards, 1):
        file = _shard_name(number, len(shards))
        held = {}
        for name in names:
            array = tensors[name].whole()
            digests[name] = fingerprint.of_array(array)
            stored = array.T if hf.transposed(name) else array
            held[hf.hf_name(name)] = np.ascontiguousarray(stored)
            del array, stored
        try:
            save_file(held, str(folder / file), {"format": "pt"})
            os.chmod(folder / file, 0o666 & ~_umask())  # safetensors makes it the owner's alone
        except SafetensorError as error:
            raise RunFailed(f"{folder / file}: cannot be written ({error})") from error
        del held
    if len(shards) > 1:
        where = {
            hf.hf_name(name): _shard_name(number, len(shards))
            for number, names in enumerate(shards, 1)
            for name in names
        }
        total = sum(_bytes(tensor) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / hf.INDEX, index)
    _record(folder, digests)
    return digests


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    """Names by file, in order; a file ends before the tensor that would exceed `limit`."""
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _bytes(tensor) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(tensor)
    return shards


def _shard_name(number: int, count: int) -> str:
    return hf.WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_json(file: epath.Path, fields: dict) -> None:
    file.write_text(json.dumps(fields, indent=2) + "\n")


# --- the record of what was written ---


def _record(folder: epath.Path, digests: dict[str, str]) -> None:
    fields = {
        "format": 1,
        "version": __version__,
        "fingerprint": fingerprint.combine(digests),
        "files": {file.name: _file_digest(file) for file in sorted(folder.iterdir())},
        "tensors": digests,
    }
    _write_json(folder / RECORD, {**fields, "digest": _own_digest(fields)})


def recorded(folder: epath.Path) -> dict[str, str]:
    """The digests recorded beside a backbone's tensors, once its other bytes are checked.

    Args:
        folder: any backbone folder.

    Returns:
        Canonical name -> digest; empty where nothing was recorded.

    Raises:
        UserError: a file is missing or is not what was written.
    """
    file = folder / RECORD
    if not file.exists():
        return {}
    fields = hf.read_json(file)
    if fields.pop("digest", None) != _own_digest(fields):
        raise UserError(f"{file}: is damaged; {_REMEDY}")
    known = fields.get("files"), fields.get("tensors")
    if fields.get("format") != 1 or not all(isinstance(each, dict) and each for each in known):
        raise UserError(f"{file}: has another format than this version reads; {_REMEDY}")
    for name, expected in fields["files"].items():
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: is missing; {_REMEDY}")
        if _file_digest(folder / name) != expected:
            raise UserError(f"{folder / name}: is not what was written there; {_REMEDY}")
    return fields["tensors"]


_REMEDY = f"copy the folder anew, or remove its {RECORD} to use it as it is"


def _own_digest(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _file_digest(file: epath.Path) -> str:
    """SHA-256 of a file; of a safetensors file, of its header (its tensors have digests)."""
    with file.open("rb") as stream:
        if file.suffix != ".safetensors":
            return hashlib.sha256(stream.read()).hexdigest()
        size = stream.read(8)
        header = stream.read(min(int.from_bytes(size, "little"), 100 << 20))
        return hashlib.sha256(size + header).hexdigest()
