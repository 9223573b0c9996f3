"""Requests to a model, and how they lie in batches: one a row, each with a prompt of its own."""

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


WIDTHS = 4  # row widths that are compiled, at most


def batches(
    requests: Sequence[Request], batch_size: int, slot_layout: str, row_multiple: int = 1
) -> Iterator[tuple[layout.Batch, np.ndarray]]:
    """Requests of like length share a batch, the longest first; a few widths are compiled.

    Args:
        requests: in any order.
        batch_size: rows of a batch.
        slot_layout: `Data.layout`.
        row_multiple: what the rows must divide by (the data axis).

    Yields:
        (batch, the numbers of the requests in its first rows; the last batch's other rows are
        empty).
    """
    inputs = [layout.write_slots(r.inputs, r.slots, slot_layout) for r in requests]
    lengths = np.array([len(tokens) for tokens in inputs])
    order = np.argsort(-lengths, kind="stable")
    height = layout.round_up(min(batch_size, len(requests)), row_multiple)
    groups = [order[start : start + height] for start in range(0, len(order), height)]
    needs = [int(lengths[group[0]]) for group in groups]
    widths = layout.choose_sizes(needs, 16, WIDTHS)
    for group, need in zip(groups, needs, strict=True):
        wide = next(width for width in widths if width >= need)
        rows = [[i] for i in range(len(group))]
        nothing = [np.zeros(0, np.int32)] * len(group)
        own = [inputs[i] for i in group]
        arrays = layout.assemble(own, nothing, rows, (height, wide, 1))
        names = ("encoder_input_tokens", "encoder_segment_ids")
        yield {name: arrays[name] for name in names}, group
