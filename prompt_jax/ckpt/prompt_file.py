"""A prompt as one safetensors file: trainable leaves by path, with what they belong to."""

import dataclasses
import hashlib
import io
import json

import numpy as np
from etils import epath
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from prompt_jax import __version__
from prompt_jax.errors import UserError

FORMAT = "1"
RECORD = "record.json"  # of the run in whose MODEL_DIR a prompt lies
_LARGEST = 1 << 30  # bytes of a prompt
ENCODER = "prompt/encoder"  # the one leaf of a plain prompt, [P, H]
FOLDED = "folded/encoder"  # the input vectors that other leaves fold into, [P, H]


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """A prompt and its metadata.

    Attributes:
        leaves: by path, float32: those of the method, and what they fold into, if they do.
        method: name of the method.
        length: P.
        backbone: fingerprint of the backbone it was trained on.
        vocabulary: fingerprint of the vocabulary.
        tasks: those that have P vectors each, one after the other; none: P for all.
    """

    leaves: dict[str, np.ndarray]
    method: str
    length: int
    backbone: str
    vocabulary: str
    tasks: tuple[str, ...] = ()

    @property
    def own(self) -> dict[str, np.ndarray]:
        """The leaves of the method."""
        return {path: leaf for path, leaf in self.leaves.items() if path != FOLDED}

    @property
    def vectors(self) -> np.ndarray | None:
        """The input vectors that say all, [P, H] or of N tasks [N P, H]; None: there is more."""
        plain = self.leaves[ENCODER] if {*self.leaves} == {ENCODER} else None
        return self.leaves.get(FOLDED, plain)


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
    if prompt.tasks:
        metadata["tasks"] = json.dumps(prompt.tasks)
    leaves = {path: np.asarray(leaf, order="C") for path, leaf in prompt.leaves.items()}
    metadata["digest"] = _digest(metadata, leaves)
    write_bytes(epath.Path(path), save_safetensors(leaves, metadata=metadata))


def load(path: str) -> PromptFile:
    """Reads a prompt file.

    Raises:
        UserError: no such file, damaged, or another format.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise UserError(f"prompt {path}: no such file")
    if file.stat().length > _LARGEST:
        raise UserError(f"prompt {path}: {file.stat().length} bytes are no prompt")
    data = file.read_bytes()
    try:
        leaves = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:
        raise UserError(f"prompt {path}: damaged or not a prompt file ({error})") from error
    metadata = header.get("__metadata__") or {}
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"prompt {path}: format {metadata.get('format')!r}, this version reads {FORMAT!r}"
        )
    if "digest" not in metadata:
        raise UserError(f"prompt {path}: was written by an older version, without a digest")
    if metadata.pop("digest") != _digest(metadata, leaves):
        raise UserError(f"prompt {path}: is damaged: it is not what was written; copy it anew")
    try:
        said = {name: metadata[name] for name in ("method", "backbone", "vocabulary")}
        tasks = tuple(json.loads(metadata.get("tasks", "[]")))
        return PromptFile(leaves=leaves, length=int(metadata["length"]), tasks=tasks, **said)
    except (KeyError, ValueError) as error:
        raise UserError(f"prompt {path}: its header is damaged ({error})") from error


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
                f"prompt {path} was trained on the {kind} {trained}, here is {here}; "
                "--force uses it all the same"
            )


def save_array(path: str, array: np.ndarray) -> None:
    """Writes `[P, H]` float32 to a `.npy` file, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, np.float32), allow_pickle=False)
    write_bytes(epath.Path(path), buffer.getvalue())


def load_array(path: str) -> np.ndarray:
    """Reads a `.npy` file; its header is checked against its size before anything is allocated.

    Raises:
        UserError: no such file, damaged, a pickle, or not what the run there has written.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise UserError(f"prompt {path}: no such file")
    if file.stat().length > _LARGEST:
        raise UserError(f"prompt {path}: {file.stat().length} bytes are no prompt")
    _check_record(file)
    data = io.BytesIO(file.read_bytes())
    try:
        version = np.lib.format.read_magic(data)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(data)
        stored = len(data.getbuffer()) - data.tell()
    except Exception as error:  # NumPy parses the header as Python: any of its errors
        raise UserError(f"prompt {path}: damaged or no .npy file ({error})") from error
    if not all(type(size) is int and size >= 0 for size in shape):
        raise UserError(f"prompt {path}: is damaged: shape {shape}")
    if dtype.hasobject:
        raise UserError(
            f"prompt {path}: holds pickled objects, which are never read; save a plain float32 "
            "array with numpy.save(FILE, array, allow_pickle=False)"
        )
    if dtype.kind != "f":
        raise UserError(f"prompt {path}: holds {dtype}, expected float32")
    if stored != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise UserError(f"prompt {path}: is damaged: {stored} bytes are not {list(shape)} {dtype}")
    data.seek(0)
    return np.load(data, allow_pickle=False)


def file_digest(file: epath.Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _check_record(file: epath.Path) -> None:
    """Refuses a file of a finished run that is not what the run's record names."""
    record = file.parent / RECORD
    if not record.exists():
        return
    try:
        expected = json.loads(record.read_text()).get("files", {}).get(file.name)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{record}: is damaged ({error})") from error
    if expected not in (None, file_digest(file)):
        raise UserError(
            f"prompt {file}: is not what the run wrote ({record}); copy it anew, or move it "
            "elsewhere to use it as it is"
        )


def _digest(metadata: dict[str, str], leaves: dict[str, np.ndarray]) -> str:
    """SHA-256 of everything the file says."""
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, leaf in sorted(leaves.items()):
        found.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
