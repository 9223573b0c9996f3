"""Requests to a model and how they lie in batches: one example a row, any prompt per row."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from prompt_jax.data import layout


@dataclasses.dataclass(frozen=True)
class Request:
    """One input for the model.

    Attributes:
        inputs: own tokens, EOS included, int32 [n].
        slots: slot ids of its prompt, int32 [P].
    """

    inputs: np.ndarray
    slots: np.ndarray


def batches(
    requests: Sequence[Request], batch_size: int, slot_layout: str, row_multiple: int = 1
) -> Iterator[tuple[layout.Batch, int]]:
    """Rows of one width for all requests; the last batch is filled up with empty rows.

    Args:
        requests: in order.
        batch_size: rows of a batch.
        slot_layout: `Data.layout`.
        row_multiple: what the rows must divide by (the data axis).

    Yields:
        (batch, how many of its rows are real).
    """
    inputs = [layout.write_slots(r.inputs, r.slots, slot_layout) for r in requests]
    nothing = [np.zeros(0, np.int32)] * len(requests)
    wide = layout.round_up(max(map(len, inputs)), 16)
    height = layout.round_up(min(batch_size, len(requests)), row_multiple)
    for start in range(0, len(requests), height):
        stop = min(start + height, len(requests))
        rows = [[i] for i in range(stop - start)]
        arrays = layout.assemble(inputs[start:stop], nothing, rows, (height, wide, 1))
        names = ("encoder_input_tokens", "encoder_segment_ids")
        yield {name: arrays[name] for name in names}, stop - start
