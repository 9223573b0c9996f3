"""Scale studies of prompt tuning in JAX/Flax.

Axes, the same letter everywhere:

    B  examples or rows in a batch    T  encoder positions of a row, slots included
    U  decoder positions of a row     S  segments (examples) in a packed row
    P  prompt length                  H  model width
    V  rows of the embedding table    N  attention heads
    D  width of one head              F  MLP width
    L  layers                         R  runs trained together (a fleet)
    K  attention keys                 Q  attention queries

The Python API is `load(run_dir).predict(texts)`.
"""

import pathlib

__version__ = "0.1.0"

# In a checkout `tasks/` and `gin/` lie beside the package; a wheel holds them inside it.
_PACKAGE = pathlib.Path(__file__).resolve().parent
if not (_PACKAGE / "tasks").is_dir():
    __path__.append(str(_PACKAGE.parent))


def load(run_dir: str):
    """Opens a finished run for prediction.

    Args:
        run_dir: the `MODEL_DIR` of a run.

    Returns:
        A `prompt_jax.predict.Predictor`: `predict(texts)` gives one record per text.

    Raises:
        prompt_jax.errors.UserError: the folder holds no finished run.
    """
    from prompt_jax.predict import Predictor

    return Predictor.from_run(run_dir)
