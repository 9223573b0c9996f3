"""A tiny run of an embedded task on random weights, as gin resolves it."""

import contextlib
import signal
from collections.abc import Iterator

from prompt_jax.config import Resolved, resolve
from prompt_jax.progress import Progress

TINY = {
    "MIXTURE_OR_TASK_NAME": "'micro_sentiment'",
    "TASK_FEATURE_LENGTHS": "{'inputs': 48, 'targets': 4}",
    "Backbone.random_weights": "True",
    "Backbone.vocabulary": "'prompt_jax:vocabulary/micro.model'",
    "T5Config.emb_dim": "16",
    "T5Config.num_heads": "2",
    "T5Config.head_dim": "8",
    "T5Config.mlp_dim": "32",
    "T5Config.num_encoder_layers": "1",
    "T5Config.num_decoder_layers": "1",
    "BATCH_SIZE": "8",
    "TRAIN_STEPS": "12",
    "EVAL_PERIOD": "6",
    "EVAL_STEPS": "1",
    "CHECKPOINT_PERIOD": "3",
    "Run.log_period": "1",
    "Parallel.data": "1",
}


def configure(
    folder, method: str = "prompt_tuning", run: str = "prompt_tune", **changes: str
) -> Resolved:
    """The tiny run with `changes`, gin values by name (`__` for a dot)."""
    values = {**TINY, "MODEL_DIR": f"'{folder}'"}
    if method == "prompt_tuning":
        values["PROMPT_LENGTH"] = "4"
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    files = ["models/micro_xs.gin", f"methods/{method}.gin", f"runs/{run}.gin"]
    return resolve(files, [f"{name}={value}" for name, value in values.items()])


@contextlib.contextmanager
def sigterm_at(step: int) -> Iterator[None]:
    """Sends this process a SIGTERM as soon as it has dispatched a step."""
    add = Progress.add

    def stop(self, at, accounting):
        if at == step:
            signal.raise_signal(signal.SIGTERM)
        add(self, at, accounting)

    Progress.add = stop
    try:
        yield
    finally:
        Progress.add = add
