"""Trains the vocabulary of the embedded family: 3,996 sentencepiece pieces, 100 sentinels on top.

    PROMPT_JAX_CORPORA=FOLDER python tools/make_vocabulary.py [OUT.model]

Deterministic given the corpora. Lower case throughout (nmt_nfkc_cf): half of so small a vocabulary
would otherwise go to capitals. Label words and the generator's words become whole pieces by their
frequency. Takes about two minutes on two cores.
"""

import io
import pathlib
import sys
import tempfile

import sentencepiece

from prompt_jax.data.micro import corpora, instruct, sentiment, tasks, text
from prompt_jax.data.micro.lexicon import ALL

PIECES = 3996
SEED = 4096
SENTENCES = {"text": 60_000, "instruct": 60_000, "task": 4_000, "natural": 260_000}
ASCII = "".join(chr(code) for code in range(33, 127) if not chr(code).isupper())


def sentences() -> list[str]:
    """The seeded mixture of training sentences."""
    found = [e["text"] for e in text.examples("train", SEED, 0, SENTENCES["text"])]
    for example in instruct.examples("train", SEED, 0, SENTENCES["instruct"]):
        found.append(f"{example['inputs']} {example['targets']}")
    for name in tasks.NAMES:
        for example in tasks.examples(name, "train", SEED, 0, SENTENCES["task"]):
            found.append(f"{example['inputs']} {example['targets']}")
    found += [word for side in (0, 1) for word in ALL.every(side)] * 40
    found += list(sentiment.LABELS) * 2_000
    natural = corpora.text_examples("train", SEED, 0, SENTENCES["natural"])
    return found + [example["text"] for example in natural]


def main(out: str) -> None:
    """Trains the model and writes it to `out`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        vocab_size=PIECES,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        required_chars=ASCII,
        seed_sentencepiece_size=200_000,
        max_sentence_length=2_000,
        num_threads=2,
        minloglevel=1,
    )
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(model.getvalue())
    pathlib.Path(file.name).replace(path)
    path.chmod(0o644)


if __name__ == "__main__":
    default = "prompt_jax/assets/vocabulary/micro.model"
    main(sys.argv[1] if len(sys.argv) > 1 else default)
