"""A prompt as one safetensors file: trainable leaves by path, with what they belong to."""

import dataclasses
import json

import numpy as np
from etils import epath
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from prompt_jax import __version__
from prompt_jax.errors import UserError

FORMAT = "1"


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """A prompt and its metadata.

    Attributes:
        leaves: "prompt/encoder" -> float32 [P, H].
        method: name of the method.
        length: P.
        backbone: fingerprint of the backbone it was trained on.
        vocabulary: fingerprint of the vocabulary.
    """

    leaves: dict[str, np.ndarray]
    method: str
    length: int
    backbone: str
    vocabulary: str


def write_bytes(path: epath.Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.part"
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save(path: str, prompt: PromptFile) -> None:
    """Writes `prompt` to one safetensors file, atomically."""
    metadata = {
        "format": FORMAT,
        "method": prompt.method,
        "length": str(prompt.length),
        "dtype": "float32",
        "backbone": prompt.backbone,
        "vocabulary": prompt.vocabulary,
        "version": __version__,
    }
    leaves = {path: np.ascontiguousarray(leaf) for path, leaf in prompt.leaves.items()}
    write_bytes(epath.Path(path), save_safetensors(leaves, metadata=metadata))


def save_array(path: str, array: np.ndarray) -> None:
    """Writes `[P, H]` float32 to a `.npy` file, atomically."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, np.float32), allow_pickle=False)
    write_bytes(epath.Path(path), buffer.getvalue())


def load(path: str) -> PromptFile:
    """Reads a prompt file.

    Raises:
        UserError: no such file, damaged, or another format.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise UserError(f"prompt {path}: no such file")
    data = file.read_bytes()
    try:
        leaves = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:
        raise UserError(f"prompt {path}: damaged or not a prompt file ({error})") from error
    metadata = header.get("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"prompt {path}: format {metadata.get('format')!r}, this version reads {FORMAT!r}"
        )
    return PromptFile(
        leaves=leaves,
        method=metadata["method"],
        length=int(metadata["length"]),
        backbone=metadata["backbone"],
        vocabulary=metadata["vocabulary"],
    )


def check(path: str, prompt: PromptFile, backbone: str, vocabulary: str) -> None:
    """Refuses a prompt that was trained on another backbone or vocabulary.

    Raises:
        UserError: with both fingerprints.
    """
    for kind, trained, here in (
        ("backbone", prompt.backbone, backbone),
        ("vocabulary", prompt.vocabulary, vocabulary),
    ):
        if trained != here:
            raise UserError(
                f"prompt {path} was trained on the {kind} {trained}, this run has {here}"
            )
