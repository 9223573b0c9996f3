"""Backbones of any format, read strictly and straight into their shards."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array

from prompt_jax.ckpt import fingerprint, folder, hf, t5x, tree
from prompt_jax.ckpt.paths import PathLike, resolve_path
from prompt_jax.ckpt.source import Index, Source, Tensor
from prompt_jax.errors import UserError
from prompt_jax.models.t5 import storage
from prompt_jax.models.t5.config import T5Config

_SHOWN = 12
Place = Callable[[tree.Path, tuple[int, ...]], Sharding]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A backbone in memory.

    Attributes:
        params: the parameter tree.
        fingerprint: of the numbers in the files.
    """

    params: dict
    fingerprint: str


def open_source(path: PathLike) -> Source:
    """Opens a stored backbone, whatever its format.

    Args:
        path: a T5X checkpoint, a Hugging Face folder, or ours; anything `resolve_path` takes.

    Returns:
        Its tensors; headers are checked, values not yet read.

    Raises:
        UserError: no backbone there, or a damaged one.
    """
    place = resolve_path(path)
    if not str(path).startswith("hf:") and t5x.is_checkpoint(place):
        return t5x.open_checkpoint(place)
    if str(path).startswith("t5x:"):
        raise UserError(f"{place}: holds no file `{t5x.FILE}`; name a checkpoint_STEP folder")
    records = folder.recorded(place)
    return dataclasses.replace(hf.open_folder(place), recorded=records)


def load_backbone(
    path: PathLike, config: T5Config | None = None, *, sharding: Place | None = None
) -> Loaded:
    """Reads a backbone; nothing is guessed and nothing is left over.

    Each device reads its own part, one tensor at a time.

    Args:
        path: see `open_source`.
        config: the shape it must have; `param_dtype` is what leaves are stored as. None: its own.
        sharding: path and shape of a leaf (or of one of its layers) -> where it lies.

    Returns:
        Parameters and fingerprint.

    Raises:
        UserError: missing (-), extra (+) or reshaped (~) tensors, listed; a damaged file; numbers
            that are not finite.
    """
    source = open_source(path)
    config = config or source.config
    check(source, config)
    sharding = sharding or (lambda *_: SingleDeviceSharding(jax.devices()[0]))
    flat, digests = {}, {}
    for leaf in tree.leaves(config):
        for name, array in _leaf(source, leaf, config, sharding, digests).items():
            flat[(*leaf.path[:-1], name)] = array
    return Loaded(traverse_util.unflatten_dict(flat), fingerprint.combine(digests))


def check(source: Source, config: T5Config) -> None:
    """Refuses a source that is not exactly a backbone of this shape.

    Raises:
        UserError: every missing (-), extra (+) or reshaped (~) tensor, under the source's names.
    """
    expected = {name: leaf.shape for leaf in tree.leaves(config) for name in leaf.names}
    complaints = []
    for name, shape in expected.items():
        shown, wanted = source.own(name, shape)
        if name not in source.tensors:
            complaints.append(f"- {shown} {list(wanted)}")
        elif source.tensors[name].shape != shape:
            found = source.own(name, source.tensors[name].shape)[1]
            complaints.append(f"~ {shown} {list(found)}, expected {list(wanted)}")
    extra = {source.own(n, t.shape) for n, t in source.tensors.items() if n not in expected}
    for shown, shape in sorted({*extra, *source.unknown.items()}):
        complaints.append(f"+ {shown} {list(shape)}")
    if complaints:
        more = f"; and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
        shown = "; ".join(complaints[:_SHOWN]) + more
        raise UserError(f"{source.place}: its tensors are not those of T5Config: {shown}")
    for field in source.silent:
        there, here = getattr(source.config, field), getattr(config, field)
        if there != here:
            raise UserError(
                f"{source.place}/{hf.CONFIG}: says {field} = {there}, T5Config.{field} = {here}"
            )


def check_digests(source: Source, digests: Mapping[str, str]) -> None:
    """Refuses tensors that are not what was recorded when they were written.

    Args:
        source: where they were read.
        digests: canonical name -> digest of what was read.

    Raises:
        UserError: with the tensor's name.
    """
    for name, found in digests.items():
        if source.recorded and source.recorded.get(name) != found:
            shown, _ = source.own(name, ())
            raise UserError(
                f"{source.place}: {shown} is damaged: its numbers are not those that were "
                f"written ({folder.RECORD}); copy the folder anew"
            )


def read_fingerprint(source: Source) -> str:
    """The fingerprint of a stored backbone, one tensor in memory at a time.

    Raises:
        UserError: a damaged tensor.
    """
    check(source, source.config)
    digests = {n: fingerprint.of_array(t.whole()) for n, t in source.tensors.items()}
    check_digests(source, digests)
    return fingerprint.combine(digests)


def _leaf(
    source: Source, leaf: tree.Leaf, config: T5Config, sharding: Place, digests: dict
) -> dict[str, Array]:
    """One leaf as it is stored, in its shards; the digests of its tensors are added."""
    dtype, last = storage.stored_dtype(leaf.path, config), leaf.path[-1]
    whole = jax.ShapeDtypeStruct(leaf.full_shape, jnp.float32)
    stored = jax.eval_shape(lambda leaf: storage.store(last, leaf, dtype), whole)
    places = {n: sharding((*leaf.path[:-1], n), s.shape) for n, s in stored.items()}
    arrays = {n: jnp.zeros(s.shape, s.dtype, device=places[n]) for n, s in stored.items()}
    put, part = _put(last, dtype, tuple(places.items())), sharding(leaf.path, leaf.shape)
    for layer, name in enumerate(leaf.names):
        row = _read(source.tensors[name], part)
        arrays, sums, finite = put(arrays, row, jnp.int32(layer) if leaf.layers else None)
        if not finite:
            raise UserError(f"{source.place}: {source.own(name, ())[0]} holds NaN or infinity")
        digests[name] = fingerprint.digest(leaf.shape, np.asarray(sums))
        check_digests(source, {name: digests[name]})
    return arrays


def _read(tensor: Tensor, sharding: Sharding) -> Array:
    """A tensor whose parts each device has read for itself, in the dtype of the file."""
    parts: dict[str, np.ndarray] = {}  # devices that hold the same part share one read

    def part(index: Index) -> np.ndarray:
        if str(index) not in parts:
            bounds = zip(index, tensor.shape, strict=True)
            array = tensor.read(tuple(slice(*i.indices(size)) for i, size in bounds))
            parts[str(index)] = array.astype(np.float32) if array.dtype == np.float64 else array
        return parts[str(index)]

    return jax.make_array_from_callback(tensor.shape, sharding, part)


@functools.cache
def _put(last: str, dtype: str, places: tuple[tuple[str, Sharding], ...]):
    """Writes a tensor into its place of a leaf, as the leaf is stored.

    Returns also its sums as read, and whether what is written is finite.
    """

    def put(arrays: dict[str, Array], row: Array, layer: Array | None):
        low = storage.store(last, row, dtype)
        finite = jnp.stack([jnp.isfinite(part).all() for part in low.values()]).all()
        if layer is not None:
            low = {
                name: jax.lax.dynamic_update_index_in_dim(arrays[name], part, layer, 0)
                for name, part in low.items()
            }
        return low, fingerprint.sums(row), finite

    return jax.jit(put, donate_argnums=0, out_shardings=(dict(places), None, None))
