"""T5X checkpoints (version 3): a msgpack file `checkpoint` and a zarr folder per large array.

Layers may be scanned (one array for all of them, stacked along axis 0 or 1) or not. Arrays are read
with TensorStore, in parts; the optimizer's state is not read. Source: t5x/checkpoints.py and
t5x/examples/{t5,scalable_t5}/network.py.
"""

import functools
import mmap
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
from etils import epath

from prompt_jax.ckpt import fingerprint, tree
from prompt_jax.ckpt.source import Index, Source, Tensor
from prompt_jax.errors import RunFailed, UserError
from prompt_jax.models.t5.config import T5Config

FILE = "checkpoint"
VERSION = 3
PROMPT = "encoder/prompt/prompt/prompt"  # where google-research/prompt-tuning keeps its prompt
_CACHE_BYTES = 128 << 20  # decoded chunks kept between two reads of parts of one array
_CHUNK_BYTES = 16 << 20
_LEAF_KEYS = ("driver", "dtype", "kvstore", "metadata", "__msgpack_chunked_array__")
_DTYPES = ("float64", "float32", "float16", "bfloat16")
_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)  # first byte of a msgpack map


def is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder looks like a T5X checkpoint.

    Raises:
        UserError: a bucket that cannot be read.
    """
    return _remote(folder) is not None if "://" in str(folder) else (folder / FILE).exists()


def is_prompt(folder: epath.Path) -> bool:
    """Whether a checkpoint holds a prompt and no backbone."""
    stored = _open_arrays(folder)
    return PROMPT in stored and tree.EMBEDDING not in stored


def is_ours(folder: epath.Path, tensors: Iterable[str]) -> bool:
    """Whether a folder holds what `write` would write for these tensors and nothing else."""
    names = {f"target.{name.replace('/', '.')}" for name in tensors}
    return {file.name for file in folder.iterdir()} <= {FILE, *names}


def open_checkpoint(folder: epath.Path) -> Source:
    """Opens the weights of a checkpoint.

    Args:
        folder: `.../checkpoint_STEP`, local or `gs://`.

    Returns:
        Its tensors under canonical names; sizes are read from the shapes.

    Raises:
        UserError: damaged, another version, a path that leaves the folder, or not a T5.
    """
    stored = _open_arrays(folder)
    stored.pop(PROMPT, None)
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        name = name.replace("/relative_posemb/", "/relpos_bias/")
        if "/layers/" not in name:
            tensors[name] = tensor
            continue
        stack = name.split("/")[0]
        axis = _layer_axis(stored, stack)
        for layer in range(tensor.shape[axis]):
            each = name.replace("/layers/", f"/layers_{layer}/")
            tensors[each] = _layer(tensor, axis, layer)
    config = _config(tensors, str(folder))
    known = {name for leaf in tree.leaves(config) for name in leaf.names}
    return Source(
        place=str(folder),
        tensors={name: tensors[name] for name in tensors if name in known},
        unknown={name: tensors[name].shape for name in tensors if name not in known},
        config=config,
    )


def read_prompt(folder: epath.Path) -> np.ndarray:
    """The prompt in a checkpoint of google-research/prompt-tuning, or in its zarr folder alone.

    Raises:
        UserError: there is none.
    """
    if (folder / ".zarray").exists():
        return _zarr(folder, folder.name).whole()
    stored = _open_arrays(folder)
    if PROMPT not in stored:
        raise UserError(f"{folder}: holds no target/{PROMPT}")
    return stored[PROMPT].whole()


def check_config(config: T5Config) -> None:
    """Refuses what a T5X checkpoint cannot say: it holds arrays alone.

    Raises:
        UserError: reading it back would give another model.
    """
    plain = T5Config.__dataclass_fields__
    said = {"scale_logits": config.tied_head}
    said |= {n: plain[n].default for n in ("position_max_distance", "norm_epsilon")}
    for name, value in said.items():
        if getattr(config, name) != value:
            raise UserError(
                f"T5Config.{name} = {getattr(config, name)}: a T5X checkpoint cannot say it, and "
                f"would be read as {value}"
            )


def write(folder: epath.Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Writes a checkpoint of weights alone, unscanned, every array as zarr.

    Args:
        folder: new; filled in place (the caller renames a finished folder).
        tensors: name under `target` -> tensor, in this order.

    Returns:
        Name -> digest of what was written.
    """
    import tensorstore

    target: dict[str, Any] = {}
    digests = {}
    for name, tensor in tensors.items():
        path = f"target.{name.replace('/', '.')}"
        chunks = _chunks(tensor.shape, tensor.dtype.itemsize)
        metadata = {
            "shape": list(tensor.shape),
            "chunks": chunks,
            "dtype": _zarr_dtype(tensor.dtype),
            "compressor": {"id": "gzip", "level": 1},
        }
        spec = {"driver": "zarr", "kvstore": kvstore(folder / path), "metadata": metadata}
        # A chunk of zeros is written too: a missing one is refused when read.
        spec["store_data_equal_to_fill_value"] = True
        array = tensor.whole()
        try:
            store = tensorstore.open(spec, create=True, open=False).result()
            store.write(array).result()
        except Exception as error:
            raise RunFailed(f"{folder / path}: cannot be written ({_line(error)})") from error
        digests[name] = fingerprint.of_array(array)
        place = {"driver": "file", "path": f"{path}/"}
        known = {k: metadata[k] for k in ("chunks", "compressor", "shape")}
        *parents, last = name.split("/")
        node = target
        for parent in parents:
            node = node.setdefault(parent, {})
        dtype = str(np.dtype(tensor.dtype))
        node[last] = {"driver": "zarr", "dtype": dtype, "kvstore": place, "metadata": known}
    state = {"step": np.zeros((), np.int32), "param_states": {}}
    packed = {"version": VERSION, "optimizer": {"target": target, "state": state}}
    (folder / FILE).write_bytes(flax.serialization.msgpack_serialize(packed))
    return digests


def kvstore(path: epath.Path) -> dict[str, str]:
    """TensorStore's description of a folder, local or `gs://`."""
    text = str(path)
    if text.startswith("gs://"):
        bucket, _, rest = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{rest.rstrip('/')}/"}
    return {"driver": "file", "path": f"{pathlib.Path(text).absolute()}/"}


# --- the msgpack file ---


def _open_arrays(folder: epath.Path) -> dict[str, Tensor]:
    """Every array under `target`, by its path there."""
    data = _bytes(folder)
    try:
        leaves = dict(_walk(data, folder))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder / FILE}: damaged, or no T5X checkpoint ({error})") from error
    if leaves.pop("version", None) != VERSION:
        raise UserError(f"{folder / FILE}: is no T5X checkpoint of version {VERSION}")
    return {name.removeprefix("optimizer/target/"): leaf for name, leaf in leaves.items()}


def _bytes(folder: epath.Path):
    """The msgpack file: mapped where it is local, else read."""
    if "://" not in str(folder):
        try:
            with open(folder / FILE, "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / FILE}: cannot be read ({error})") from error
    return _remote(folder)


def _remote(folder: epath.Path) -> bytes | None:
    """The msgpack file of a bucket, if it is there."""
    import tensorstore

    try:
        found = tensorstore.KvStore.open(kvstore(folder)).result().read(FILE).result()
    except Exception as error:
        raise UserError(f"{folder / FILE}: cannot be read ({_line(error)})") from error
    return found.value if found.state == "value" else None


def _walk(data, folder: epath.Path):
    """(path, Tensor) of every array under `optimizer/target`, and ("version", number)."""
    unpacker = msgpack.Unpacker(_Reader(data), raw=False, max_buffer_size=len(data) + 1)

    def walk(path: str):
        for _ in range(unpacker.read_map_header()):
            key = unpacker.unpack()
            name, start = f"{path}/{key}" if path else str(key), unpacker.tell()
            inside = name == "optimizer" or name.startswith("optimizer/target")
            if inside and data[start] in _MAPS and not _is_leaf(data, start):
                yield from walk(name)
                continue
            unpacker.skip()
            if name == "version":
                yield name, msgpack.unpackb(data[start : unpacker.tell()])
            elif inside:
                yield name, _leaf(data, start, unpacker.tell(), name, folder)

    yield from walk("")


class _Reader:
    """The file interface that msgpack reads from, over mapped memory."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def read(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        self.at += len(piece)
        return piece


def _is_leaf(data, start: int) -> bool:
    """Whether the map at `start` describes one array: a zarr folder, or chunks of an inline one."""
    head = msgpack.Unpacker(raw=False)
    head.feed(data[start : start + 64])
    return bool(head.read_map_header()) and head.unpack() in _LEAF_KEYS


def _leaf(data, start: int, stop: int, name: str, folder: epath.Path) -> Tensor:
    value = flax.serialization.msgpack_restore(data[start:stop])
    if isinstance(value, dict):
        path = str(value["kvstore"]["path"]).rstrip("/")
        if value["driver"] != "zarr" or pathlib.PurePath(path).name != path or path in (".", ".."):
            raise UserError(f"{folder / FILE}: {name}: the path {path!r} leaves the folder")
        if path != name.removeprefix("optimizer/").replace("/", "."):
            raise UserError(f"{folder / FILE}: {name}: the path {path!r} is another array's")
        return _zarr(
            folder / path, name, {**value.get("metadata", {}), "dtype": value.get("dtype")}
        )
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        raise UserError(f"{folder / FILE}: ~ {name} is {array.dtype}, expected float32 or bfloat16")

    def read(index: Index) -> np.ndarray:
        return np.asarray(flax.serialization.msgpack_restore(data[start:stop]))[index]

    return Tensor(array.shape, array.dtype, read)


# --- zarr ---


def _zarr(folder: epath.Path, name: str, stated: dict[str, Any] | None = None) -> Tensor:
    """A zarr array; a chunk that is missing or damaged is an error when it is read.

    Its header must say what the msgpack file has `stated` (shape, chunks, dtype).
    """
    import tensorstore

    if "://" not in str(folder) and not (folder / ".zarray").exists():
        raise UserError(f"{folder / '.zarray'}: no such file ({name} is stored there)")
    spec = {"driver": "zarr", "kvstore": kvstore(folder), "fill_missing_data_reads": False}
    try:
        store = tensorstore.open(spec, read=True, open=True, context=_context()).result()
        dtype = np.dtype(store.dtype.numpy_dtype)
    except Exception as error:
        raise UserError(f"{folder}: {name} cannot be opened ({_line(error)})") from error
    header = store.spec().to_json()["metadata"]
    wide = any(c > max(s, 1) for c, s in zip(header["chunks"], header["shape"], strict=True))
    found = {**header, "dtype": dtype.name}
    told = {key: value for key, value in (stated or {}).items() if key in found and value}
    odd = [key for key, value in told.items() if key != "compressor" and found[key] != value]
    if wide or header.get("order", "C") != "C" or str(header["dtype"]).startswith(">") or odd:
        raise UserError(f"{folder / '.zarray'}: {name}: is not the header that T5X wrote")
    if dtype.name not in _DTYPES:
        raise UserError(f"{folder}: ~ {name} is {dtype}, expected float32 or bfloat16")

    def read(index: Index) -> np.ndarray:
        try:
            return store[index].read().result()
        except Exception as error:
            raise UserError(f"{folder}: {name} is damaged ({_line(error)})") from error

    return Tensor(tuple(store.shape), dtype, read)


@functools.cache
def _context():
    """One pool of decoded chunks for all arrays."""
    import tensorstore

    return tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})


def _line(error: Exception) -> str:
    """The first line of a library's message, without its source locations."""
    return re.sub(r"\s*\[(source locations|tensorstore_spec)=.*", "", str(error), flags=re.S)


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """Whole rows, as many as stay below `_CHUNK_BYTES`."""
    row = int(np.prod(shape[1:], dtype=np.int64)) * itemsize
    return [max(1, min(shape[0], _CHUNK_BYTES // max(row, 1))), *shape[1:]]


def _zarr_dtype(dtype: np.dtype) -> str:
    return "bfloat16" if dtype == ml_dtypes.bfloat16 else np.dtype(dtype).str


# --- scanned layers, sizes ---


def _layer_axis(stored: dict[str, Tensor], stack: str) -> int:
    """Where the layers lie in scanned arrays: 1 (T5X's default), unless the norms say 0."""
    norm = stored.get(f"{stack}/layers/pre_mlp_layer_norm/scale")
    width = stored[tree.EMBEDDING].shape[-1] if tree.EMBEDDING in stored else None
    return 0 if norm and norm.shape[0] != width and norm.shape[-1] == width else 1


def _layer(tensor: Tensor, axis: int, layer: int) -> Tensor:
    """One layer of a scanned array."""

    def read(index: Index) -> np.ndarray:
        whole = (*index[:axis], slice(layer, layer + 1), *index[axis:])
        return np.squeeze(tensor.read(whole), axis)

    return Tensor((*tensor.shape[:axis], *tensor.shape[axis + 1 :]), tensor.dtype, read)


def _config(tensors: dict[str, Tensor], place: str) -> T5Config:
    """The sizes that the shapes tell."""
    shape = lambda name: tensors[name].shape  # noqa: E731
    count = {
        stack: len({m[1] for m in (re.match(rf"{stack}/layers_(\d+)/", n) for n in tensors) if m})
        for stack in ("encoder", "decoder")
    }
    bias = "encoder/relpos_bias/rel_embedding"
    per_layer = bias not in tensors
    bias = "encoder/layers_0/relpos_bias/rel_embedding" if per_layer else bias
    try:
        vocab_size, emb_dim = shape(tree.EMBEDDING)
        heads, buckets = shape(bias)
        width = shape("encoder/layers_0/attention/query/kernel")[1]
        mlp_dim = shape("encoder/layers_0/mlp/wo/kernel")[0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{place}: its target is no T5: {error} is missing or misshapen") from error
    tied = tree.HEAD not in tensors
    relu = "encoder/layers_0/mlp/wi/kernel" in tensors
    if tied and not relu:
        raise UserError(f"{place}: its target is no T5: - {tree.HEAD}")
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=heads,
        head_dim=width // heads,
        mlp_dim=mlp_dim,
        num_encoder_layers=count["encoder"],
        num_decoder_layers=count["decoder"],
        activation="relu" if relu else "gated-gelu",
        tied_head=tied,
        scale_logits=tied,  # as T5X's network has it
        per_layer_position_bias=per_layer,
        position_buckets=buckets,
    )
