"""How requests lie in batches: each once, few widths, little padding."""

import numpy as np
import pytest

from prompt_jax.data.layout import slot_ids
from prompt_jax.requests import WIDTHS, Request, batches

P = 5


def requests_of(lengths):
    """Requests whose tokens tell their number."""
    return [Request(np.full(n, 10 + i, np.int32), slot_ids(P)) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_each_request_lies_in_one_row_with_its_prompt(count):
    lengths = np.random.default_rng(count).integers(1, 90, count)
    seen = []
    for batch, group in batches(requests_of(lengths), 8, "prefix", 4):
        tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
        assert len(tokens) % 4 == 0 and len(group) <= len(tokens)
        assert not segments[len(group) :].any()
        for row, number in enumerate(group):
            own = tokens[row][segments[row] == 1]
            assert own.tolist() == [*slot_ids(P), *[10 + number] * lengths[number]]
        seen += group.tolist()
    assert sorted(seen) == list(range(count))


def test_few_widths_are_compiled_and_little_is_padding():
    """Lengths as of sentences: most are short, a few are long."""
    lengths = np.minimum(np.random.default_rng(0).geometric(0.06, 2000), 200)
    made = [
        batch["encoder_input_tokens"].shape
        for batch, _ in batches(requests_of(lengths), 32, "prefix")
    ]
    widths = {wide for _, wide in made}
    assert 1 < len(widths) <= WIDTHS and all(wide % 16 == 0 for wide in widths)
    positions = sum(rows * wide for rows, wide in made)
    real = int((lengths + P).sum())
    one_width = len(made) * 32 * max(widths)
    assert positions < 1.6 * real and positions < one_width / 4
