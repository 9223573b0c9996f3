"""What a finished run leaves for its user: a prompt, or a whole backbone."""

import jax
import numpy as np
from etils import epath

from prompt_jax.assemble import Model, Tree, unflatten
from prompt_jax.ckpt import folder as backbone_folder
from prompt_jax.ckpt import prompt_file, prompts
from prompt_jax.parallel.mesh import on_host

BACKBONE, PROMPT = "backbone", "prompt.safetensors"
INIT = "prompt_init.npy"  # the first values, which `inspect` measures distances to


def save(folder: str, model: Model, opened, best: Tree, last: Tree) -> str:
    """Writes what the run has learned: the first of several processes does, all of them call.

    Args:
        folder: MODEL_DIR.
        model: the assembled model.
        opened: the `backbone.Opened` it was trained on.
        best: trainable leaves of the best checkpoint.
        last: trainable leaves of the last step.

    Returns:
        The prompt file; where weights of the backbone moved, the backbone folder; or nothing.
    """
    first = jax.process_index() == 0
    if any(path.startswith("backbone/") for path in best):
        # Parts that lie on other processes are fetched; the rest is read as it is written.
        params = {
            path: leaf if leaf.is_fully_addressable else on_host(leaf)
            for path, leaf in {**opened.params, **best}.items()
        }
        if first:
            vocabulary = getattr(opened.vocabulary, "path", None)  # bytes have no file
            save_backbone(folder, model, params, vocabulary)
        return f"{folder}/{BACKBONE}"
    if not best:
        return ""  # nothing was learned: the backbone answers as it is
    fingerprints = (opened.fingerprint, opened.vocabulary.fingerprint)
    if first:
        save_prompt(folder, model, fingerprints, best, last)
    return f"{folder}/{PROMPT}"


def save_init(folder: str, model: Model, start: dict[str, np.ndarray]) -> None:
    """Writes `prompt_init.npy`, once: a run that goes on keeps the file of its first process.

    A method that does not fold into input vectors, or has those of several tasks, leaves none.

    Args:
        folder: MODEL_DIR.
        model: the assembled model.
        start: the first values of the prompt's leaves; none where the method has no bank.
    """
    if not model.method.folds or model.method.tasks or (epath.Path(folder) / INIT).exists():
        return
    prompt_file.save_array(f"{folder}/{INIT}", model.method.folded(start))


def save_prompt(
    folder: str, model: Model, fingerprints: tuple[str, str], best: Tree, last: Tree
) -> str:
    """Writes `prompt.safetensors`, `prompt.npy` (best) and `prompt_last.npy`.

    The first holds the method's leaves, and the input vectors that they fold into; the others are
    written only where they do. Of a method with tasks, `prompt.TASK.npy` of each instead.

    Args:
        folder: MODEL_DIR.
        model: the assembled model.
        fingerprints: of the backbone and of the vocabulary.
        best: trainable leaves of the best checkpoint.
        last: trainable leaves of the last step.

    Returns:
        The path of the prompt file.
    """
    method = model.method
    path = f"{folder}/{PROMPT}"
    leaves = {name: np.asarray(leaf, np.float32) for name, leaf in best.items()}
    length, arrays = method.slots, {}
    if method.folds:
        whole = method.folded(best)
        parts = np.split(whole, len(method.tasks) or 1)
        length, names = len(parts[0]), [prompts.task_array(task) for task in method.tasks]
        arrays = dict(zip(names or ["prompt.npy"], parts, strict=True))
        if not method.tasks:
            arrays["prompt_last.npy"] = method.folded(last)
        if {*leaves} != {prompt_file.ENCODER}:
            leaves[prompt_file.FOLDED] = whole
    said = method.name, length, *fingerprints, method.tasks
    prompt_file.save(path, prompt_file.PromptFile(leaves, *said))
    for name, array in arrays.items():
        prompt_file.save_array(f"{folder}/{name}", array)
    return path


def digests(folder: str) -> dict[str, str]:
    """SHA-256 of the prompts that a run has written, for its record."""
    files = sorted(epath.Path(folder).glob("prompt*"))
    return {file.name: prompt_file.file_digest(file) for file in files}


def save_backbone(folder: str, model: Model, params: Tree, vocabulary_file: str | None) -> str:
    """Writes `backbone/`, an HF T5 folder with the weights of the best checkpoint.

    Args:
        folder: MODEL_DIR.
        model: the assembled model.
        params: "backbone/..." -> array.
        vocabulary_file: sentencepiece model to put beside them; None: of bytes.

    Returns:
        The path of the backbone folder.
    """
    path = str(epath.Path(folder) / BACKBONE)
    own = {name: leaf for name, leaf in params.items() if name.startswith("backbone/")}
    tree = unflatten(own)["backbone"]
    backbone_folder.save(path, tree, model.network.config, vocabulary_file)
    return path
