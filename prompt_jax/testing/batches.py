"""Small batches for tests, packed and unpacked, of the same examples."""

import numpy as np

from prompt_jax.data import layout


def examples(count: int, vocab_size: int, seed: int = 0, longest: int = 9):
    """Random (inputs, targets) pairs of unequal length, EOS at their ends.

    Args:
        count: how many.
        vocab_size: V.
        seed: of the draw.
        longest: own tokens of an input at most.
    """
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        length = int(rng.integers(low, high + 1))
        return np.append(rng.integers(2, vocab_size, length - 1), layout.EOS).astype(np.int32)

    return [(tokens(3, longest), tokens(2, 4)) for _ in range(count)]


def lay_out(pairs, slots, packed: bool, capacity=(32, 12), row_multiple=1):
    """The batch of `pairs`, with a prompt's slots in front of each.

    Args:
        pairs: from `examples`.
        slots: P, or slot ids for each pair.
        packed: several examples a row, or one.
        capacity: (T, U) of a row.
        row_multiple: what the number of rows must divide by.

    Returns:
        Arrays of `data.layout.assemble`.
    """
    each = [layout.slot_ids(slots)] * len(pairs) if isinstance(slots, int) else slots
    inputs = [layout.write_slots(p[0], ids, "prefix") for p, ids in zip(pairs, each, strict=True)]
    targets = [pair[1] for pair in pairs]
    lengths = np.array([[len(i), len(t)] for i, t in zip(inputs, targets, strict=True)])
    shapes = layout.Shapes(capacity, (1,), packed, row_multiple)
    rows = shapes.plan(lengths)
    height = layout.round_up(len(rows), row_multiple)
    return layout.assemble(inputs, targets, rows, (height, *capacity))
