"""T5X checkpoints (version 3): a msgpack file `checkpoint` and a zarr folder per large array.

Layers may be scanned (one array for all of them, stacked along axis 0 or 1) or not. Arrays are read
in parts; the optimizer's state is not read. Source: t5x/checkpoints.py and
t5x/examples/{t5,scalable_t5}/network.py.
"""

import pathlib
import re
from collections.abc import Iterable

import numpy as np
from etils import epath

from prompt_jax.ckpt import fingerprint, t5x_file, tree, zarr
from prompt_jax.ckpt.source import Index, Source, Tensor
from prompt_jax.errors import UserError
from prompt_jax.models.t5.config import T5Config

FILE = t5x_file.NAME
PROMPT = "encoder/prompt/prompt/prompt"  # where google-research/prompt-tuning keeps its prompt


def is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder looks like a T5X checkpoint.

    Raises:
        UserError: a bucket that cannot be read.
    """
    return t5x_file.exists(folder)


def is_prompt(folder: epath.Path) -> bool:
    """Whether a checkpoint holds a prompt and no backbone."""
    stored = _open_arrays(folder)
    return PROMPT in stored and tree.EMBEDDING not in stored


def is_ours(folder: epath.Path, tensors: Iterable[str]) -> bool:
    """Whether a folder holds what `write` would write for these tensors and nothing else."""
    names = {_folder_of(name) for name in tensors}
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
        if len(tensor.shape) <= axis:
            raise UserError(f"{folder}: {name} has shape {list(tensor.shape)}: no axis of layers")
        for layer in range(tensor.shape[axis]):
            each = name.replace("/layers/", f"/layers_{layer}/")
            if each in stored:
                raise UserError(f"{folder}: holds both {name} and {each}")
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
    if (folder / zarr.HEADER).exists():
        return zarr.Arrays().open(folder, folder.name).whole()
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
    places, digests = {}, {}
    for name, tensor in tensors.items():
        path, array = _folder_of(name), tensor.whole()
        metadata = zarr.write(folder / path, array)
        digests[name] = fingerprint.of_array(array)
        places[name] = {
            "driver": "zarr",
            "dtype": array.dtype.name,
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": {key: metadata[key] for key in ("chunks", "compressor", "shape")},
        }
    t5x_file.write(folder, places)
    return digests


def _open_arrays(folder: epath.Path) -> dict[str, Tensor]:
    """Every array under `target`, by its path there."""
    arrays, found = zarr.Arrays(), {}
    for name, place in t5x_file.open_target(folder).items():
        if isinstance(place, dict):
            if place["driver"] != "zarr":
                raise UserError(f"{folder / FILE}: {name}: driver {place['driver']!r}, not 'zarr'")
            path = _inside(folder, name, str(place["kvstore"]["path"]).rstrip("/"))
            stated = {**place.get("metadata", {}), "dtype": place.get("dtype")}
            found[name] = arrays.open(path, name, stated)
        else:
            found[name] = place
    return found


def _inside(folder: epath.Path, name: str, path: str) -> epath.Path:
    """The folder of an array, as its path in the msgpack file names it."""
    if pathlib.PurePath(path).name != path or path in (".", ".."):
        raise UserError(f"{folder / FILE}: {name}: the path {path!r} leaves the folder")
    if path != _folder_of(name):
        raise UserError(f"{folder / FILE}: {name}: the path {path!r} is another array's")
    return folder / path


def _folder_of(name: str) -> str:
    return f"target.{name.replace('/', '.')}"


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
