"""PEFT prompt-tuning adapters: a folder of adapter_config.json and adapter_model.safetensors.

PEFT's default for a T5 stores 2P rows (`num_transformer_submodules` 2) and uses the first P alone.
"""

import json

import numpy as np
from etils import epath
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from prompt_jax.ckpt import hf
from prompt_jax.errors import UserError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TENSOR = "prompt_embeddings"


def is_adapter(folder: epath.Path) -> bool:
    """Whether a folder looks like a PEFT adapter."""
    return (folder / CONFIG).exists()


def is_ours(folder: epath.Path) -> bool:
    """Whether a folder holds what `write` writes and nothing else."""
    return {file.name for file in folder.iterdir()} <= {CONFIG, WEIGHTS}


def read(folder: epath.Path) -> np.ndarray:
    """The prompt that PEFT puts before the encoder's input.

    Args:
        folder: an adapter.

    Returns:
        [P, H], as stored.

    Raises:
        UserError: another kind of adapter, a pickle, a damaged file, shapes that disagree.
    """
    fields = hf.read_json(folder / CONFIG)
    kind, task = fields.get("peft_type"), fields.get("task_type")
    if kind != "PROMPT_TUNING" or task not in (None, "SEQ_2_SEQ_LM"):
        raise UserError(
            f"{folder / CONFIG}: peft_type {kind!r}, task_type {task!r}: only PROMPT_TUNING of a "
            "SEQ_2_SEQ_LM is a prompt for T5"
        )
    if not (folder / WEIGHTS).exists():
        if (folder / PICKLE).exists():
            raise UserError(
                f"{folder / PICKLE}: is a pickle, which is never read; load the adapter in PEFT "
                "and save it again with save_pretrained(FOLDER, safe_serialization=True)"
            )
        raise UserError(f"{folder / WEIGHTS}: no such file")
    try:
        tensors = load_safetensors((folder / WEIGHTS).read_bytes())
    except Exception as error:  # an unknown dtype is a KeyError
        raise UserError(f"{folder / WEIGHTS}: is no safetensors file: {error}") from error
    length, width = fields.get("num_virtual_tokens"), fields.get("token_dim")
    parts = fields.get("num_transformer_submodules") or 1
    if type(length) is not int or length < 1 or parts not in (1, 2):
        raise UserError(
            f"{folder / CONFIG}: num_virtual_tokens {length!r}, "
            f"num_transformer_submodules {parts!r}"
        )
    shapes = {name: array.shape for name, array in tensors.items()}
    if shapes != {TENSOR: (length * parts, width)}:
        raise UserError(
            f"{folder / WEIGHTS}: holds {shapes}, {CONFIG} says {TENSOR} "
            f"[{length} x {parts}, {width}]"
        )
    return tensors[TENSOR][:length]


def write(folder: epath.Path, prompt: np.ndarray, base_model: str | None) -> None:
    """Fills a folder that PEFT loads onto a T5.

    Args:
        folder: new and empty.
        prompt: [P, H] float32.
        base_model: what `base_model_name_or_path` names; None where it is not known.
    """
    length, width = prompt.shape
    fields = {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_transformer_submodules": 1,  # the encoder's input alone
        "num_virtual_tokens": length,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": "SEQ_2_SEQ_LM",
        "token_dim": width,
        "tokenizer_name_or_path": None,
    }
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
    tensors = {TENSOR: np.ascontiguousarray(prompt, np.float32)}
    (folder / WEIGHTS).write_bytes(save_safetensors(tensors, metadata={"format": "pt"}))
