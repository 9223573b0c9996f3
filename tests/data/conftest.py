"""A small sentencepiece model."""

import io

import numpy as np
import pytest

WORDS = (
    "the a film movie plot actor was is good bad dull bright very not and but with without "
    "story scene ending music camera watch again never always funny sad long short"
).split()


@pytest.fixture(scope="session")
def spm_path(tmp_path_factory):
    """A sentencepiece model of 200 pieces with T5's special ids and no sentinels."""
    import sentencepiece

    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 9)) + "." for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=200,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    path = tmp_path_factory.mktemp("spm") / "toy.model"
    path.write_bytes(model.getvalue())
    return str(path)
