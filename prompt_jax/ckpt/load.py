"""Backbone folders: read strictly into shards, written atomically, and their fingerprint."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from flax import traverse_util
from jaxtyping import Array, UInt32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prompt_jax.ckpt import hf
from prompt_jax.errors import UserError, nearest
from prompt_jax.models.t5.config import T5Config

_ASSETS = pathlib.Path(__file__).resolve().parent.parent / "assets"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD_BYTES = 5_000_000_000
_SHOWN = 12
PathLike = str | os.PathLike
_DTYPES = ("F32", "F16", "BF16", "F64")


def resolve_path(path: PathLike) -> epath.Path:
    """Where a path points: `prompt_jax:NAME` is a packaged asset, all else is itself.

    Args:
        path: local, `gs://`, or `prompt_jax:NAME`.

    Returns:
        The path.

    Raises:
        UserError: no such asset.
    """
    text = str(path)
    if not text.startswith("prompt_jax:"):
        return epath.Path(path)
    name = text.removeprefix("prompt_jax:")
    if ".." in pathlib.PurePosixPath(name).parts or not (_ASSETS / name).exists():
        there = [p.name for p in _ASSETS.iterdir() if not p.name.startswith(("_", "."))]
        raise UserError(f"{text}: no such packaged asset; {nearest(name, there)}")
    return epath.Path(_ASSETS / name)


def read_config(path: PathLike) -> T5Config:
    """The shape of the model in a backbone folder.

    Args:
        path: the folder.

    Returns:
        Its T5Config; the head is untied exactly if a head of its own is stored.

    Raises:
        UserError: no folder, no weights, or not a T5.
    """
    folder = resolve_path(path)
    file = folder / "config.json"
    fields = _read_json(file)
    with _open_tensors(folder) as tensors:
        own_head = hf.HEAD in tensors.files
        if own_head and fields.get("tie_word_embeddings") is not False:
            own_head = not tensors.equal(hf.HEAD, hf.SHARED)
    return hf.from_hf(fields, tied_head=not own_head, place=str(file))


def load_backbone(
    path: PathLike,
    config: T5Config,
    *,
    place: Callable[[tuple[str, ...], np.ndarray], Array] | None = None,
) -> dict:
    """Reads a backbone folder; nothing is guessed and nothing is left over.

    Args:
        path: the folder.
        config: the shape it must have; `param_dtype` is what leaves are stored as.
        place: given the path of a leaf and its whole array, puts it on devices; one leaf is in
            host memory at a time.

    Returns:
        The parameter tree.

    Raises:
        UserError: missing (-), extra (+) or reshaped (~) tensors, listed; an unreadable file.
    """
    place = place or (lambda _, array: jnp.asarray(array))
    folder = resolve_path(path)
    flat = {}
    with _open_tensors(folder) as tensors:
        leaves = hf.leaves(config)
        _check(tensors, leaves, config, str(folder))
        for leaf in leaves:
            # ml_dtypes registers "bfloat16" with NumPy.
            array = np.empty(leaf.full_shape, np.dtype(config.param_dtype))
            rows = array if leaf.stacked else array[None]
            for row, name in zip(rows, leaf.names, strict=True):
                tensor = tensors.read(name)
                row[...] = tensor.T if leaf.transposed else tensor
            flat[leaf.path] = place(leaf.path, array)
    return traverse_util.unflatten_dict(flat)


def save_backbone(
    path: PathLike,
    params: dict,
    config: T5Config,
    vocabulary_file: PathLike | None,
    *,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes a backbone folder that transformers 4 and 5 open too; whole or not at all.

    Args:
        path: the folder; an older backbone there is replaced.
        params: the parameter tree.
        config: its shape.
        vocabulary_file: a sentencepiece model, copied as `spiece.model`; None for bytes.
        shard_bytes: weights beyond this are split over several files.

    Raises:
        UserError: `path` holds something else than a backbone.
    """
    folder = resolve_path(path)
    replaces = folder.exists()
    if replaces and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise UserError(f"{folder}: exists and is no backbone folder; name another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.parent / f".{folder.name}.writing"
    if fresh.exists():
        fresh.rmtree()
    fresh.mkdir()
    _write_json(fresh / "config.json", hf.to_hf(config))
    generation = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    _write_json(fresh / "generation_config.json", generation)
    _write_weights(fresh, params, config, shard_bytes)
    if vocabulary_file is not None:
        resolve_path(vocabulary_file).copy(fresh / "spiece.model")
    if replaces:
        folder.rmtree()
    fresh.rename(folder)


def fingerprint(params: dict) -> str:
    """Identifies weights: the same for any storage that holds the same numbers, on any mesh.

    Per canonical unstacked tensor, two wrapping sums of a hash of (float32 bits, index): free of
    order, so shards add up without moving. bfloat16 counts as the float32 it stands for.

    Args:
        params: the backbone's tree, layers stacked.

    Returns:
        16 hexadecimal digits.
    """
    lines = []
    for path, leaf in sorted(traverse_util.flatten_dict(params).items()):
        stacked = "layers" in path
        sums = np.asarray(_sums(leaf, stacked))
        shape = leaf.shape[1:] if stacked else leaf.shape
        names = hf.canonical_names(path, leaf.shape[0])
        lines += [
            f"{name} {tuple(shape)} {a:08x}{b:08x}"
            for name, (a, b) in zip(names, sums, strict=True)
        ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


@functools.partial(jax.jit, static_argnums=1)
def _sums(leaf: Array, stacked: bool) -> UInt32[Array, "L 2"]:
    rows = leaf if stacked else leaf[None]
    bits = jax.lax.bitcast_convert_type(rows.astype(jnp.float32), jnp.uint32)
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in range(bits.ndim - 1, 0, -1):
        place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index, stride = index + place * np.uint32(stride), stride * bits.shape[axis]
    mixed = _mix(bits ^ _mix(index + np.uint32(0x9E3779B9)))
    axes = tuple(range(1, bits.ndim))
    return jnp.stack(
        [jnp.sum(h, axes, dtype=jnp.uint32) for h in (mixed, _mix(mixed + np.uint32(1)))], -1
    )


def _mix(x: Array) -> Array:
    """A bijection of 32 bits with good avalanche (xor-shift-multiply)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


class _Tensors:
    """The tensors of a folder; headers are read and checked when opened, values on demand."""

    def __init__(self, files: dict, place: str):
        self.files, self.place = files, place

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        return self.files[name].get_slice(name).get_dtype()

    def read(self, name: str) -> np.ndarray:
        return self.files[name].get_tensor(name)

    def equal(self, one: str, other: str, rows: int = 4096) -> bool:
        if other not in self.files or self.shape(one) != self.shape(other):
            return False
        a, b = (self.files[name].get_slice(name) for name in (one, other))
        count = self.shape(one)[0]
        parts = (slice(i, min(i + rows, count)) for i in range(0, count, rows))
        return all(np.array_equal(a[part], b[part]) for part in parts)


@contextlib.contextmanager
def _open_tensors(folder: epath.Path) -> Iterator[_Tensors]:
    """Opens every weights file of a folder; the library checks sizes in headers first."""
    index = folder / _INDEX
    if index.exists():
        names = _read_json(index).get("weight_map", {})
        for file in names.values():
            if pathlib.PurePath(file).name != file or file in ("", ".", ".."):
                raise UserError(f"{index}: the path {file!r} leaves the folder")
    elif (folder / _WEIGHTS).exists():
        names = None
    else:
        raise UserError(f"{folder}: holds neither {_WEIGHTS} nor {_INDEX}")
    with contextlib.ExitStack() as stack:
        handles = {}
        for file in sorted(set(names.values())) if names else [_WEIGHTS]:
            handles[file] = _open_file(folder / file, stack)
        if names is None:
            files = dict.fromkeys(handles[_WEIGHTS].keys(), handles[_WEIGHTS])
        else:
            there = {name: handle for handle in handles.values() for name in handle.keys()}
            files = {name: there[name] for name in names if name in there}
            files |= {name: handle for name, handle in there.items() if name not in names}
        yield _Tensors(files, str(folder))


def _open_file(file: epath.Path, stack: contextlib.ExitStack):
    if not file.exists():
        raise UserError(f"{file}: is in the index but not in the folder")
    local = str(file)
    if "://" in local:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        local = str(file.copy(epath.Path(folder) / file.name))
    try:
        return stack.enter_context(safe_open(local, "numpy"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: is no safetensors file: {error}") from error


def _check(tensors: _Tensors, leaves: list[hf.Leaf], config: T5Config, place: str) -> None:
    expected = {name: leaf.hf_shape for leaf in leaves for name in leaf.names}
    complaints = []
    for name, shape in expected.items():
        if name not in tensors.files:
            complaints.append(f"- {name} {list(shape)}")
        elif tensors.shape(name) != shape:
            found = list(tensors.shape(name))
            complaints.append(f"~ {name} {found}, expected {list(shape)}")
        elif tensors.dtype(name) not in _DTYPES:
            complaints.append(f"~ {name} is {tensors.dtype(name)}, expected F32 or BF16")
    aliases = (*hf.ALIASES, hf.HEAD) if config.tied_head else hf.ALIASES
    for name in sorted(set(tensors.files) - set(expected) - set(hf.UNUSED)):
        if name not in aliases or not tensors.equal(name, hf.SHARED):
            complaints.append(f"+ {name} {list(tensors.shape(name))}")
    if complaints:
        more = f"; and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
        shown = "; ".join(complaints[:_SHOWN]) + more
        raise UserError(f"{place}: its tensors are not those of T5Config: {shown}")


def _write_weights(folder: epath.Path, params: dict, config: T5Config, limit: int) -> None:
    flat = traverse_util.flatten_dict(params)
    leaves = hf.leaves(config)
    if set(flat) != {leaf.path for leaf in leaves}:
        odd = sorted("/".join(p) for p in set(flat) ^ {leaf.path for leaf in leaves})
        raise UserError(f"{folder}: the tree is not that of T5Config: {', '.join(odd)}")
    shards, size = [{}], 0
    for leaf in leaves:
        array = np.asarray(flat[leaf.path])
        for name, row in zip(leaf.names, array if leaf.stacked else array[None], strict=True):
            tensor = np.ascontiguousarray(row.T if leaf.transposed else row)
            if shards[-1] and size + tensor.nbytes > limit:
                _flush(folder, shards)
                size = 0
            shards[-1][name] = tensor
            size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], str(folder / _WEIGHTS), {"format": "pt"})
        return
    _flush(folder, shards)
    _finish_index(folder, [shard for shard in shards if shard])


def _flush(folder: epath.Path, shards: list[dict]) -> None:
    """Writes the open shard, keeps only its tensors' sizes, opens the next one."""
    name = folder / f"part-{len(shards):05d}.safetensors"
    save_file(shards[-1], str(name), {"format": "pt"})
    shards[-1] = {tensor: array.nbytes for tensor, array in shards[-1].items()}
    shards.append({})


def _finish_index(folder: epath.Path, shards: list[dict]) -> None:
    where = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{i:05d}.safetensors").rename(folder / name)
        where |= dict.fromkeys(shard, name)
    total = sum(size for shard in shards for size in shard.values())
    _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _read_json(file: epath.Path) -> dict:
    if not file.exists():
        raise UserError(f"{file}: no such file")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: is not JSON: {error}") from error


def _write_json(file: epath.Path, fields: dict) -> None:
    file.write_text(json.dumps(fields, indent=2) + "\n")


assert np.dtype("bfloat16") == ml_dtypes.bfloat16  # importing ml_dtypes registers the name
