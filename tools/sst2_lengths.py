"""The lengths of SST-2's train split in T5's vocabulary, for `prompt-jax bench`: no text.

    PROMPT_JAX_DATA=DATA python tools/sst2_lengths.py --vocabulary FILE.model

DATA/sst2/train.tsv holds the rows, FILE.model is T5's `cc_all.32000`. Written once, by this
command; the benchmark draws examples of these lengths, so it needs neither rows nor vocabulary.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np

from prompt_jax.data import cache
from prompt_jax.data.vocabulary import load_vocabulary

ASSET = pathlib.Path(__file__).parent.parent / "prompt_jax" / "assets" / "sst2_lengths.json"


def count(vocabulary_file: str) -> dict:
    """What the asset says: how many examples have how many tokens, EOS included."""
    vocabulary = load_vocabulary(vocabulary_file)
    with tempfile.TemporaryDirectory() as folder:
        lengths = cache.build("sst2", "train", vocabulary, folder).lengths()
    pairs, counts = np.unique(lengths, axis=0, return_counts=True)
    return {
        "task": "sst2",
        "split": "train",
        "vocabulary": vocabulary.fingerprint,
        "columns": ["inputs", "targets", "examples"],
        "counts": np.column_stack([pairs, counts]).tolist(),
    }


def main() -> None:
    """Counts and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocabulary", required=True, metavar="FILE")
    parser.add_argument("--out", default=ASSET, type=pathlib.Path)
    args = parser.parse_args()
    args.out.write_text(json.dumps(count(args.vocabulary)) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
