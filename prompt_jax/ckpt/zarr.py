"""Arrays in zarr folders, local or in a bucket, read in parts and written with TensorStore."""

import functools
import math
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from prompt_jax.ckpt.source import Index, Tensor
from prompt_jax.errors import RunFailed, UserError

HEADER = ".zarray"
DTYPES = ("float64", "float32", "float16", "bfloat16")
_CACHE_BYTES = 128 << 20  # decoded chunks kept between two reads of parts of one array
_CHUNK_BYTES = 16 << 20


def kvstore(path: epath.Path) -> dict[str, str]:
    """TensorStore's description of a folder, local or `gs://`."""
    text = str(path)
    if text.startswith("gs://"):
        bucket, _, rest = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{rest.rstrip('/')}/"}
    return {"driver": "file", "path": f"{pathlib.Path(text).absolute()}/"}


def read_file(folder: epath.Path, name: str) -> bytes | None:
    """A file of a bucket; None where there is none.

    Raises:
        UserError: the bucket cannot be read.
    """
    import tensorstore

    try:
        found = tensorstore.KvStore.open(kvstore(folder)).result().read(name).result()
    except Exception as error:
        raise UserError(f"{folder / name}: cannot be read ({_line(error)})") from error
    return found.value if found.state == "value" else None


class Arrays:
    """Reads the arrays of one checkpoint; decoded chunks of one of them are held at a time."""

    def __init__(self):
        self._held = functools.lru_cache(maxsize=1)(_store)

    def open(self, folder: epath.Path, name: str, stated: dict[str, Any] | None = None) -> Tensor:
        """An array; a chunk that is missing or damaged is an error, at the latest when read.

        Args:
            folder: its own.
            name: shown in messages.
            stated: `shape`, `chunks`, `dtype`, as far as they are told elsewhere too.

        Raises:
            UserError: no array of floats there, or not what is stated.
        """
        local = "://" not in str(folder)
        if local and not (folder / HEADER).exists():
            raise UserError(f"{folder / HEADER}: no such file ({name} is stored there)")
        try:
            store = _store(folder, 0)
            dtype = np.dtype(store.dtype.numpy_dtype)
        except Exception as error:
            raise UserError(f"{folder}: {name} cannot be opened ({_line(error)})") from error
        header = store.spec().to_json()["metadata"]
        shape, chunks = header["shape"], header["chunks"]
        found = {**header, "dtype": dtype.name}
        told = {key: value for key, value in (stated or {}).items() if key in found and value}
        odd = [key for key, value in told.items() if key != "compressor" and found[key] != value]
        wide = any(c > max(s, 1) for c, s in zip(chunks, shape, strict=True))
        if wide or header.get("order", "C") != "C" or str(header["dtype"]).startswith(">") or odd:
            raise UserError(f"{folder / HEADER}: {name}: is not the header that T5X wrote")
        if dtype.name not in DTYPES:
            raise UserError(f"{folder}: ~ {name} is {dtype}, expected float32 or bfloat16")
        count = math.prod(-(-s // c) for c, s in zip(chunks, shape, strict=True))
        there = sum(not file.name.startswith(".") for file in folder.iterdir()) if local else count
        if there != count:
            raise UserError(f"{folder}: {name} is damaged: {there} of its {count} chunks are there")
        cache = max(_CACHE_BYTES, math.prod(chunks) * dtype.itemsize + 1)

        def read(index: Index) -> np.ndarray:
            try:
                return self._held(folder, cache)[index].read().result()
            except Exception as error:
                raise UserError(f"{folder}: {name} is damaged ({_line(error)})") from error

        return Tensor(tuple(shape), dtype, read)


def _store(folder: epath.Path, cache: int):
    """An open array that keeps so many bytes of decoded chunks."""
    import tensorstore

    spec = {"driver": "zarr", "kvstore": kvstore(folder), "fill_missing_data_reads": False}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": cache}})
    return tensorstore.open(spec, read=True, open=True, context=context).result()


def write(folder: epath.Path, array: np.ndarray) -> dict[str, Any]:
    """Writes an array.

    Args:
        folder: new.
        array: of floats.

    Returns:
        Its metadata: `shape`, `chunks`, `dtype`, `compressor`.

    Raises:
        RunFailed: a full disk, or a bucket that cannot be written.
    """
    import tensorstore

    dtype = "bfloat16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.str
    metadata = {
        "shape": list(array.shape),
        "chunks": _chunks(array.shape, array.itemsize),
        "dtype": dtype,
        "compressor": {"id": "gzip", "level": 1},
    }
    spec = {"driver": "zarr", "kvstore": kvstore(folder), "metadata": metadata}
    # A chunk of zeros is written too: a missing one is refused when read.
    spec["store_data_equal_to_fill_value"] = True
    try:
        store = tensorstore.open(spec, create=True, open=False).result()
        store.write(array).result()
    except Exception as error:
        raise RunFailed(f"{folder}: cannot be written ({_line(error)})") from error
    return metadata


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """Whole rows, as many as stay below `_CHUNK_BYTES`."""
    row = int(np.prod(shape[1:], dtype=np.int64)) * itemsize
    return [max(1, min(shape[0], _CHUNK_BYTES // max(row, 1))), *shape[1:]]


def _line(error: Exception) -> str:
    """The first line of a library's message, without its source locations."""
    return re.sub(r"\s*\[(source locations|tensorstore_spec)=.*", "", str(error), flags=re.S)
