"""Prompts in any of their four forms: ours, `.npy`, a T5X variable, a PEFT adapter."""

import dataclasses
import logging
import os
from collections.abc import Callable

import numpy as np

from prompt_jax.ckpt import folder as folders
from prompt_jax.ckpt import peft, prompt_file, t5x
from prompt_jax.ckpt.paths import PathLike, resolve_path
from prompt_jax.ckpt.prompt_file import PromptFile
from prompt_jax.ckpt.source import Tensor
from prompt_jax.errors import UserError

log = logging.getLogger("prompt_jax")
RUN = "prompt.safetensors"  # in a MODEL_DIR
_SUFFIXES = (".npy", ".safetensors")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Input vectors, wherever they came from.

    Attributes:
        array: float32 [P, H].
        path: the file or folder.
        file: what our own format says beside them; None for the others.
    """

    array: np.ndarray
    path: str
    file: PromptFile | None = None


def is_prompt(path: PathLike) -> bool:
    """Whether `read` would take it for a prompt, by its name and the files in it."""
    text, place = os.fspath(path), resolve_path(path)
    if place.suffix in _SUFFIXES or text.startswith("peft:"):
        return True
    if "://" in text or text.startswith("hf:"):
        return False
    if (place / RUN).exists() or place.name == f"target.{t5x.PROMPT.replace('/', '.')}":
        return True
    return peft.is_adapter(place) or t5x.is_checkpoint(place) and t5x.is_prompt(place)


def read(path: PathLike) -> Prompt:
    """Reads a prompt.

    Args:
        path: `.npy`, `.safetensors` (ours), a PEFT adapter's folder, a T5X checkpoint that holds
            `target/encoder/prompt/prompt/prompt` or that variable's own folder, or a MODEL_DIR.

    Returns:
        The prompt in float32; what is lost in the cast, if anything, is logged.

    Raises:
        UserError: nothing readable there; damaged; a method that does not fold into inputs.
    """
    place, file = resolve_path(path), None
    if (place / RUN).exists():
        place = place / RUN
    if place.suffix == ".npy":
        stored = prompt_file.load_array(str(place))
    elif place.suffix == ".safetensors":
        file = prompt_file.load(str(place))
        stored = input_vectors(str(place), file)
        if file.tasks:
            raise UserError(
                f"prompt {path}: holds the prompts of {len(file.tasks)} tasks; take one of "
                f"{[task_array(task) for task in file.tasks]} beside it"
            )
    elif peft.is_adapter(place):
        stored = peft.read(place)
    elif t5x.is_checkpoint(place) or (place / ".zarray").exists():
        stored = t5x.read_prompt(place)
    else:
        raise UserError(
            f"prompt {path}: no .npy or .safetensors file, PEFT adapter or T5X checkpoint"
        )
    if stored.ndim != 2 or not stored.size:
        raise UserError(f"prompt {path}: shape {list(stored.shape)}, expected [P, H]")
    if stored.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
        raise UserError(f"prompt {path}: holds {stored.dtype}, expected float32")
    array = np.asarray(stored, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"prompt {path}: holds numbers that are not finite in float32")
    lost = float(np.abs(array - stored.astype(np.float64)).max())
    if lost:
        log.info("prompt %s: %s to float32, largest difference %.1e", path, stored.dtype, lost)
    return Prompt(array, str(place), file)


def task_array(task: str) -> str:
    """The file in a MODEL_DIR that holds one task's vectors."""
    return f"prompt.{task}.npy"


def input_vectors(path: PathLike, file: PromptFile) -> np.ndarray:
    """The `[P, H]` array of a prompt file; `[N P, H]` of one that holds those of N tasks.

    Raises:
        UserError: it does not fold into input vectors, or has not as many rows as it says.
    """
    array = file.vectors
    if array is None:
        raise UserError(
            f"prompt {path}: {file.method} is more than input vectors (it holds "
            f"{sorted(file.leaves)}); use the run's folder, --model_dir"
        )
    if array.shape[:1] != (file.length * max(1, len(file.tasks)),):
        raise UserError(f"prompt {path}: says length {file.length}, holds {list(array.shape)}")
    return array


def write_peft(path: PathLike, prompt: Prompt, base_model: str | None) -> None:
    """Writes a PEFT adapter's folder."""
    fill: Callable = lambda fresh: peft.write(fresh, prompt.array, base_model)  # noqa: E731
    folders.replace(path, fill, peft.is_ours)


def write_t5x(path: PathLike, prompt: Prompt) -> None:
    """Writes a T5X checkpoint that holds `target/encoder/prompt/prompt/prompt` alone."""
    array = prompt.array
    tensor = Tensor(array.shape, array.dtype, lambda index: array[index])
    tensors = {t5x.PROMPT: tensor}
    fill: Callable = lambda fresh: t5x.write(fresh, tensors)  # noqa: E731
    folders.replace(path, fill, lambda there: t5x.is_ours(there, tensors))


def write_npy(path: PathLike, prompt: Prompt) -> None:
    """Writes a `.npy` file."""
    prompt_file.save_array(str(path), prompt.array)


def write_ours(path: PathLike, prompt: Prompt, backbone: str, vocabulary: str) -> None:
    """Writes our prompt file.

    Args:
        path: `.safetensors`.
        prompt: what to write.
        backbone: fingerprint of the backbone it belongs to.
        vocabulary: fingerprint of the vocabulary.
    """
    method = prompt.file.method if prompt.file else "prompt_tuning"
    leaves = {prompt_file.ENCODER: prompt.array}
    prompt_file.save(str(path), PromptFile(leaves, method, len(prompt.array), backbone, vocabulary))
