"""Hugging Face T5 folders: the map to their tensors' names, and opening one.

Folders are read tensor by tensor with safetensors; nothing is unpickled.
"""

import contextlib
import json
import pathlib
import re
import tempfile

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from prompt_jax.ckpt import hf_config, tree
from prompt_jax.ckpt.source import Index, Source, Tensor
from prompt_jax.errors import UserError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
VOCABULARY = "spiece.model"
# Copies of `shared.weight` that some writers store; allowed when they are equal to it.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Written by early T5 1.0 exports and read by no implementation.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
HEAD, SHARED = "lm_head.weight", "shared.weight"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_OUTSIDE = {tree.EMBEDDING: SHARED, tree.HEAD: HEAD}
_LETTERS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_ENCODER = {
    "pre_attention_layer_norm/scale": "0.layer_norm",
    "attention": "0.SelfAttention",
    "relpos_bias/rel_embedding": "0.SelfAttention.relative_attention_bias",
    "pre_mlp_layer_norm/scale": "1.layer_norm",
    "mlp": "1.DenseReluDense",
}
_DECODER = {
    "pre_self_attention_layer_norm/scale": "0.layer_norm",
    "self_attention": "0.SelfAttention",
    "relpos_bias/rel_embedding": "0.SelfAttention.relative_attention_bias",
    "pre_cross_attention_layer_norm/scale": "1.layer_norm",
    "encoder_decoder_attention": "1.EncDecAttention",
    "pre_mlp_layer_norm/scale": "2.layer_norm",
    "mlp": "2.DenseReluDense",
}


def hf_name(name: str) -> str:
    """The HF tensor of a canonical one.

    Args:
        name: e.g. `encoder/layers_0/attention/query/kernel`.

    Returns:
        e.g. `encoder.block.0.layer.0.SelfAttention.q.weight`.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    stack, rest = name.split("/", 1)
    if rest == f"{stack}_norm/scale":
        return f"{stack}.final_layer_norm.weight"
    parts = {"encoder": _ENCODER, "decoder": _DECODER}[stack]
    layer = re.match(r"layers_(\d+)/", rest)
    rest = rest[layer.end() :] if layer else rest
    if rest not in parts:  # a kernel: its module, then its own name
        module, kernel, _ = rest.split("/")
        rest = f"{parts[module]}.{_LETTERS.get(kernel, kernel)}"
    else:
        rest = parts[rest]
    return f"{stack}.block.{layer[1] if layer else 0}.layer.{rest}.weight"


def transposed(name: str) -> bool:
    """PyTorch stores kernels `[out, in]` and position biases `[buckets, heads]`."""
    return not name.endswith("/scale") and name != tree.EMBEDDING


def own(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """HF's name and shape of a canonical tensor."""
    return hf_name(name), shape[::-1] if transposed(name) else shape


def open_folder(folder: epath.Path) -> Source:
    """Opens a folder of config.json and safetensors.

    Args:
        folder: local or `gs://` (weights are then staged in a temporary folder).

    Returns:
        Its tensors under canonical names.

    Raises:
        UserError: a missing or damaged file, a path that leaves the folder, a pickle, not a T5.
    """
    fields = read_json(folder / CONFIG)
    files = _Files(folder)
    ours = HEAD in files.where
    if not ours and False in (
        fields.get("tie_word_embeddings"),
        fields.get("scale_decoder_outputs"),
    ):
        raise UserError(f"{folder}: its tensors are not those of its {CONFIG}: - {HEAD}")
    if ours and fields.get("tie_word_embeddings") is not False:
        ours = not files.equal(HEAD, SHARED)
    config = hf_config.from_hf(fields, tied_head=not ours, place=str(folder / CONFIG))
    names = {hf_name(name): name for leaf in tree.leaves(config) for name in leaf.names}
    found = {names[own]: files.tensor(own, names[own]) for own in files.where if own in names}
    copies = (*ALIASES, HEAD) if config.tied_head else ALIASES
    unknown = {
        name: files.shape(name)
        for name in sorted(set(files.where) - set(names) - set(UNUSED))
        if name not in copies or not files.equal(name, SHARED)
    }
    vocabulary = folder / VOCABULARY
    # transformers 4 and 5 disagree on umT5's scale: there T5Config alone decides.
    silent = ("scale_logits",) if fields.get("model_type") != "umt5" else ()
    return Source(
        place=str(folder),
        tensors=found,
        unknown=unknown,
        config=config,
        silent=(*silent, "position_max_distance", "norm_epsilon"),
        own=own,
        vocabulary=vocabulary if vocabulary.exists() else None,
    )


def read_json(file: epath.Path) -> dict:
    """A JSON object.

    Raises:
        UserError: no such file, or something else in it.
    """
    if not file.exists():
        raise UserError(f"{file}: no such file")
    try:
        fields = json.loads(file.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{file}: is no JSON object")
    return fields


class _Files:
    """The safetensors files of a folder: headers are checked at once, values read on demand."""

    def __init__(self, folder: epath.Path):
        self.folder = folder
        self._staged, self.index = None, None
        self.local, self.where = {}, {}
        for file in self._names():
            self.local[file] = self._stage(folder / file)
            with self._open(file) as tensors:
                for name in tensors.keys():
                    if name in self.where:
                        raise UserError(f"{folder / file}: {name} is in {self.where[name]} too")
                    self.where[name] = file
        if self.index is not None and self.index != self.where:
            odd = sorted({n for n, _ in self.index.items() ^ self.where.items()})
            raise UserError(f"{folder / INDEX}: is not what the files hold: {', '.join(odd[:5])}")

    def _names(self) -> list[str]:
        index = self.folder / INDEX
        if index.exists():
            if (self.folder / WEIGHTS).exists():
                raise UserError(f"{self.folder}: holds both {WEIGHTS} and {INDEX}; remove one")
            self.index = read_json(index).get("weight_map")
            if not isinstance(self.index, dict) or not self.index:
                raise UserError(f"{index}: has no weight_map")
            files = {str(file) for file in self.index.values()}
            for file in files:
                if pathlib.PurePath(file).name != file or file in ("", ".", ".."):
                    raise UserError(f"{index}: the path {file!r} leaves the folder")
            return sorted(files)
        if (self.folder / WEIGHTS).exists():
            return [WEIGHTS]
        pickles = [p.name for p in self.folder.glob("*.bin")] if self.folder.exists() else []
        if pickles:
            raise UserError(
                f"{self.folder / sorted(pickles)[0]}: is a pickle, which is never read, and there "
                "are no safetensors; write them with transformers: "
                "T5ForConditionalGeneration.from_pretrained(FOLDER).save_pretrained(OTHER)"
            )
        raise UserError(f"{self.folder}: holds neither {WEIGHTS} nor {INDEX}")

    def _stage(self, file: epath.Path) -> str:
        if not file.exists():
            raise UserError(f"{file}: is in the index but not in the folder")
        if "://" not in str(file):
            return str(file)
        self._staged = self._staged or tempfile.TemporaryDirectory()
        return str(file.copy(epath.Path(self._staged.name) / file.name))

    @contextlib.contextmanager
    def _open(self, file: str):
        """Opened for one read and closed again: mapped pages would count as memory."""
        try:
            with safe_open(self.local[file], "numpy") as tensors:
                yield tensors
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.folder / file}: is no safetensors file: {error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        return self.header(name)[0]

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype."""
        with self._open(self.where[name]) as tensors:
            part = tensors.get_slice(name)
            return tuple(part.get_shape()), part.get_dtype()

    def read(self, name: str, index: Index) -> np.ndarray:
        with self._open(self.where[name]) as tensors:
            return tensors.get_slice(name)[index]

    def tensor(self, name: str, canonical: str) -> Tensor:
        shape, dtype = self.header(name)
        if dtype not in DTYPES:
            place = self.folder / self.where[name]
            raise UserError(f"{place}: ~ {name} is {dtype}, expected {' or '.join(DTYPES)}")
        if not transposed(canonical):
            return Tensor(shape, DTYPES[dtype], lambda index: self.read(name, index))
        turned = lambda index: self.read(name, index[::-1]).T  # noqa: E731
        return Tensor(shape[::-1], DTYPES[dtype], turned)

    def equal(self, one: str, other: str, rows: int = 4096) -> bool:
        """The same numbers, compared some rows at a time."""
        if other not in self.where or self.header(one) != self.header(other):
            return False
        height, *rest = self.shape(one)
        columns = tuple(slice(0, size) for size in rest)
        parts = ((slice(i, min(i + rows, height)), *columns) for i in range(0, height, rows))
        return all(np.array_equal(self.read(one, p), self.read(other, p)) for p in parts)
