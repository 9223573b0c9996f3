"""What a finished run leaves for its user: a prompt, or a whole backbone."""

import numpy as np
from etils import epath

from prompt_jax.assemble import Model, Tree, unflatten
from prompt_jax.ckpt import load, prompt_file


def save(folder: str, model: Model, opened, best: Tree, last: Tree) -> str:
    """Writes what the run has learned.

    Args:
        folder: MODEL_DIR.
        model: the assembled model.
        opened: the `backbone.Opened` it was trained on.
        best: trainable leaves of the best checkpoint.
        last: trainable leaves of the last step.

    Returns:
        The prompt file, or, where weights of the backbone moved, the backbone folder.
    """
    if any(path.startswith("backbone/") for path in best):
        params = {**opened.params, **best}
        return save_backbone(folder, model, params, opened.vocabulary.path)
    fingerprints = (opened.fingerprint, opened.vocabulary.fingerprint)
    return save_prompt(folder, model, fingerprints, best, last)


def save_prompt(
    folder: str, model: Model, fingerprints: tuple[str, str], best: Tree, last: Tree
) -> str:
    """Writes `prompt.safetensors`, `prompt.npy` (best) and `prompt_last.npy`.

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
    path = f"{folder}/prompt.safetensors"
    leaves = {name: np.asarray(leaf, np.float32) for name, leaf in best.items()}
    prompt_file.save(path, prompt_file.PromptFile(leaves, method.name, method.slots, *fingerprints))
    for name, tree in (("prompt.npy", best), ("prompt_last.npy", last)):
        array = method.bank.prompts(unflatten(dict(tree))["prompt"])
        prompt_file.save_array(f"{folder}/{name}", np.asarray(array))
    return path


def save_backbone(folder: str, model: Model, params: Tree, vocabulary_file: str) -> str:
    """Writes `backbone/`, an HF T5 folder with the weights of the best checkpoint.

    Args:
        folder: MODEL_DIR.
        model: the assembled model.
        params: "backbone/..." -> array.
        vocabulary_file: sentencepiece model to put beside them.

    Returns:
        The path of the backbone folder.
    """
    path = str(epath.Path(folder) / "backbone")
    own = {name: leaf for name, leaf in params.items() if name.startswith("backbone/")}
    tree = unflatten(own)["backbone"]
    load.save_backbone(path, tree, model.network.config, vocabulary_file)
    return path
