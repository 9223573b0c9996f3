"""GLUE. SST-2: is a sentence of a film review positive or negative? (Socher et al. 2013.)"""

import functools
import os

from prompt_jax.data.preprocess import cast_text, read_tsv, text_task, verbalize
from prompt_jax.errors import UserError


def _files(split: str) -> list[str]:
    """The TSV file of a split under PROMPT_JAX_DATA, if there is one."""
    folder = os.environ.get("PROMPT_JAX_DATA", "")
    path = os.path.join(folder, "sst2", f"{split}.tsv")
    return [path] if folder and os.path.isfile(path) else []


def _read(split: str) -> list[dict]:
    """Rows with `sentence`, `label` and `idx`, from the TSV file, else from TFDS."""
    if files := _files(split):
        return [{**row, "idx": number} for number, row in enumerate(read_tsv(files[0]))]
    try:
        import tensorflow_datasets as tfds

        rows = list(tfds.as_numpy(tfds.load("glue/sst2", split=split)))
    except Exception as error:  # TFDS raises whatever its downloader met
        raise UserError(
            f"sst2 {split!r} is not here: allow TFDS to download glue/sst2, or set PROMPT_JAX_DATA "
            f"to a folder that holds sst2/{split}.tsv ({type(error).__name__})"
        ) from error
    return [
        {"sentence": row["sentence"], "label": str(row["label"]), "idx": int(row["idx"])}
        for row in rows
    ]


text_task(
    "sst2",
    _read,
    files=_files,
    preprocessors=[
        functools.partial(cast_text, inputs="{sentence}"),
        functools.partial(verbalize, words={"0": "negative", "1": "positive"}),
    ],
)
