"""A run that changed kernels by factors, as a backbone of its own: W + (alpha / r) A B."""

import jax
from etils import epath

from prompt_jax.ckpt import folder, prompt_file, prompts
from prompt_jax.models.t5 import deltas, storage
from prompt_jax.predict import Predictor

CHANGES = "prompt/weights/"  # leaves of `parts.banks.weights`


def merges(run_dir: str) -> bool:
    """Whether a finished run, in a local folder, changed kernels and nothing else."""
    if ":" in run_dir:
        return False
    file = epath.Path(run_dir) / prompts.RUN
    if not file.exists():
        return False
    return all(path.startswith(CHANGES) for path in prompt_file.load(str(file)).leaves)


def merge(run_dir: str, to: str) -> dict[str, str]:
    """Writes the backbone that such a run amounts to, float32, as a Hugging Face folder.

    Args:
        run_dir: its MODEL_DIR.
        to: the folder.

    Returns:
        What was written.

    Raises:
        UserError: no finished run there, its backbone is gone or another, or `to` holds something
            else than a backbone.
    """
    predictor = Predictor.from_run(run_dir)
    context = predictor.context
    params = _whole(context.model.variables(predictor.params)["params"])
    vocabulary = getattr(context.opened.vocabulary, "path", None)  # bytes have no file
    folder.save(to, params, context.run.backbone.config, vocabulary)
    return {"from": run_dir, "to": to, "merged": context.run.method.name}


def _whole(params: dict) -> dict:
    """Weights as they compute, float32, changes added; layers lie along the first axis."""
    found = {}
    for name, leaf in params.items():
        if name == "layers":
            found[name] = jax.vmap(lambda layer: storage.fetch(deltas.add(layer), "float32"))(leaf)
        elif isinstance(leaf, dict):
            found[name] = _whole(leaf)
        else:
            found[name] = leaf
    return storage.fetch(found, "float32")
