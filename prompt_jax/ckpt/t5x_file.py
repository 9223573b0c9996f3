"""T5X's msgpack file `checkpoint`, read in parts: what lies in it is found without being held.

An array is either inline (Flax's extension type 1, in pieces where it is large) or a map that names
a zarr folder. Source: flax/serialization.py, t5x/checkpoints.py; the msgpack specification.
"""

import math
import os
from typing import Any

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
from etils import epath
from flax import traverse_util

from prompt_jax.ckpt import zarr
from prompt_jax.ckpt.source import Index, Tensor
from prompt_jax.errors import UserError

NAME = "checkpoint"
VERSION = 3
_TARGET = "optimizer", "target"
_PIECES = "__msgpack_chunked_array__"  # Flax splits arrays of more than 1 GiB
# First byte of a value -> bytes of its length field, and bytes between that and its payload.
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_SIZED |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
_COUNTED = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)

Span = tuple[int, int]  # where a value starts, and where the next one does


def exists(folder: epath.Path) -> bool:
    """Whether a folder holds the file.

    Raises:
        UserError: a bucket that cannot be read.
    """
    if "://" in str(folder):
        return zarr.read_file(folder, NAME) is not None
    return (folder / NAME).exists()


def open_target(folder: epath.Path) -> dict[str, Tensor | dict[str, Any]]:
    """What lies under `optimizer/target`.

    Args:
        folder: a checkpoint's.

    Returns:
        "encoder/..." -> the tensor, or the map that names its zarr folder.

    Raises:
        UserError: no such file, damaged, or another version.
    """
    file = folder / NAME
    try:
        data = _Data(folder)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    try:
        spans: dict[tuple[str, ...], Span] = {}
        _walk(data, 0, (), spans)
        version = spans.get(("version",))
        if version is None or data.value(version) != VERSION:
            raise UserError(f"{file}: is no T5X checkpoint of version {VERSION}")
        target = {p[2:]: span for p, span in spans.items() if p[:2] == _TARGET and len(p) > 2}
        return dict(_arrays(data, traverse_util.unflatten_dict(target), (), str(file)))
    except UserError:
        raise
    except Exception as error:  # whatever a damaged byte leads to
        raise UserError(f"{file}: damaged, or no T5X checkpoint ({error})") from error


def write(folder: epath.Path, places: dict[str, dict[str, Any]]) -> None:
    """Writes the file of a checkpoint that holds weights alone, all of them as zarr.

    Args:
        folder: the checkpoint's.
        places: "encoder/..." -> the map that names a zarr folder.
    """
    target = traverse_util.unflatten_dict(places, sep="/")
    state = {"step": np.zeros((), np.int32), "param_states": {}}
    packed = {"version": VERSION, "optimizer": {"target": target, "state": state}}
    (folder / NAME).write_bytes(flax.serialization.msgpack_serialize(packed))


class _Data:
    """The bytes of the file: read from the disk as they are asked for, or those of a bucket."""

    def __init__(self, folder: epath.Path):
        path, self._held, self._fd = str(folder / NAME), None, -1
        if "://" in path:
            self._held = zarr.read_file(folder, NAME)
            if self._held is None:
                raise FileNotFoundError("no such file")
            self.size = len(self._held)
        else:
            self._fd = os.open(path, os.O_RDONLY)  # as long as there are arrays to read from it
            self.size = os.fstat(self._fd).st_size

    def __del__(self):
        if self._fd >= 0:
            os.close(self._fd)

    def read(self, start: int, count: int) -> bytes:
        if not 0 <= start <= start + count <= self.size:
            raise ValueError(f"ends at byte {self.size}")
        if self._held is not None:
            return self._held[start : start + count]
        return os.pread(self._fd, count, start)

    def value(self, span: Span):
        """A value that is no array."""
        return msgpack.unpackb(self.read(span[0], span[1] - span[0]), strict_map_key=False)


def _walk(data: _Data, at: int, path: tuple[str, ...], spans: dict) -> int:
    """Notes where every value lies that holds no others; returns where the next one starts."""
    start, (size, children) = at, _head(data, at)
    first, at = data.read(start, 1)[0], start + size
    if children is None:
        spans[path] = start, at
        return at
    for number in range(children):
        key = str(number)
        if first in _MAPS:
            place, at = at, at + _head(data, at)[0]
            key = str(data.value((place, at)))
        at = _walk(data, at, (*path, key), spans)
    return at


def _head(data: _Data, at: int) -> tuple[int, int | None]:
    """Bytes of a value (of its header, where it holds others), and how many it holds."""
    first = data.read(at, 1)[0]
    number = lambda count: int.from_bytes(data.read(at + 1, count), "big")  # noqa: E731
    if first in _COUNTED:
        return 1 + _COUNTED[first], number(_COUNTED[first])
    if 0x80 <= first < 0xA0:  # a small map or array
        return 1, first & 0x0F
    if first in _SIZED:
        width, between = _SIZED[first]
        size = 1 + width + between + number(width)
    elif 0xA0 <= first < 0xC0:  # a small string
        size = 1 + (first & 0x1F)
    elif first in _FIXED:
        size = 1 + _FIXED[first]
    elif first < 0x80 or first >= 0xE0:  # a small number
        size = 1
    else:
        raise ValueError(f"byte {first:#x} at {at}")
    if at + size > data.size:
        raise ValueError(f"ends at byte {data.size}")
    return size, None


def _arrays(data: _Data, node: dict, path: tuple[str, ...], file: str):
    """(name, tensor or zarr's map) of every array in a tree of spans."""
    name = "/".join(path)
    if _PIECES in node:
        shape = tuple(data.value(span) for _, span in sorted(_numbered(node["shape"])))
        yield name, _inline(data, [span for _, span in sorted(_numbered(node["chunks"]))], shape)
    elif "driver" in node:
        flat = traverse_util.flatten_dict(node)
        tree = traverse_util.unflatten_dict({p: data.value(span) for p, span in flat.items()})
        known = tree.get("metadata", {})
        for key in set(known) & {"shape", "chunks"}:
            known[key] = [known[key][number] for number in sorted(known[key], key=int)]
        yield name, tree
    else:
        for key, child in node.items():
            if isinstance(child, dict):
                yield from _arrays(data, child, (*path, key), file)
            else:
                tensor = _inline(data, [child], None)
                if tensor.dtype.name not in zarr.DTYPES:
                    each = "/".join((*path, key))
                    raise UserError(
                        f"{file}: ~ {each} is {tensor.dtype}, expected float32 or bfloat16"
                    )
                yield "/".join((*path, key)), tensor


def _numbered(node: dict):
    return ((int(key), value) for key, value in node.items())


def _inline(data: _Data, spans: list[Span], shape: tuple[int, ...] | None) -> Tensor:
    """An array whose bytes lie in the file, in one or several pieces."""
    pieces = [_piece(data, span) for span in spans]
    dtype = pieces[0][1]
    shape = pieces[0][0] if shape is None else shape
    if sum(math.prod(each) for each, _, _ in pieces) != math.prod(shape):
        raise ValueError(f"pieces that do not make {list(shape)}")

    def read(index: Index) -> np.ndarray:
        array, at = np.empty(math.prod(shape), dtype), 0
        for each, _, start in pieces:
            count = math.prod(each)
            data_bytes = data.read(start, count * dtype.itemsize)
            array[at : at + count] = np.frombuffer(data_bytes, dtype)
            at += count
        return array.reshape(shape)[index]

    return Tensor(shape, dtype, read)


def _piece(data: _Data, span: Span) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and first byte of an array in one piece: (shape, name of dtype, bytes)."""
    start, stop = span
    head = data.read(start, min(stop - start, 256))
    skip = {0xC7: 3, 0xC8: 4, 0xC9: 6}.get(head[0], 2)
    unpacker = msgpack.Unpacker()
    unpacker.feed(head[skip:])
    if unpacker.read_array_header() != 3 or head[skip - 1] != 1:
        raise ValueError(f"no array at byte {start}")
    shape, name = tuple(unpacker.unpack()), unpacker.unpack()
    name = name.decode() if isinstance(name, bytes) else name
    dtype = jnp.dtype(name)  # bfloat16 is none of NumPy's
    first = stop - math.prod(shape) * dtype.itemsize
    if not all(type(size) is int and size >= 0 for size in shape) or first < start + skip:
        raise ValueError(f"an array of {list(shape)} at byte {start}")
    return shape, dtype, first
