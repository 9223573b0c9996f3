"""From examples to arrays: truncation, prompt slots, packing, segment ids. NumPy only.

An example is a pair of int32 arrays (encoder tokens with slots, targets with EOS). A batch is a
dict of arrays [B, T] and [B, U], where a row holds one example or, packed, several. Segments are
contiguous, left to right; masks come from the segment ids and from nothing else.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from prompt_jax.errors import UserError, nearest
from prompt_jax.slots import SLOT0

LAYOUTS = ("prefix", "suffix_before_eos", "suffix_after_eos", "task")
PAD, EOS, START = 0, 1, 0

Tokens = Int32[np.ndarray, "_"]
Batch = dict[str, np.ndarray]
Examples = Mapping[int, Tokens] | Sequence[Tokens]  # by their number in the batch
Rows = list[list[int]]  # the examples of each row, left to right


def check_layout(layout: str) -> None:
    """Refuses an unknown layout.

    Raises:
        UserError: `layout` is none of LAYOUTS.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is unknown: {nearest(layout, LAYOUTS)}")


def slot_ids(length: int, start: int = 0) -> Tokens:
    """The ids SLOT0 + start ... SLOT0 + start + length - 1 of one prompt.

    Args:
        length: prompt length P.
        start: the prompt's first row in the bank.
    """
    return np.arange(SLOT0 + start, SLOT0 + start + length, dtype=np.int32)


def truncate(tokens: Tokens, length: int) -> Tokens:
    """Cuts an example's own tokens to `length` and keeps its EOS.

    Slots that the task itself wrote are not counted and never cut.

    Args:
        tokens: int32 [n].
        length: own tokens to keep, EOS included.

    Returns:
        int32 [at most length + slots].
    """
    own = tokens < SLOT0
    if int(own.sum()) <= length:
        return tokens
    keep = ~own | (np.cumsum(own) <= length)
    cut = tokens[keep]
    if tokens[own][-1] == EOS and length > 0:
        cut[np.flatnonzero(cut < SLOT0)[-1]] = EOS
    return cut


def write_slots(tokens: Tokens, slots: Tokens, layout: str) -> Tokens:
    """Writes a prompt's slots into an example (DESIGN decision 2).

    Args:
        tokens: int32 [n], truncated already, usually ending with EOS.
        slots: int32 [P], ids from SLOT0 on.
        layout: `prefix`, `suffix_before_eos`, `suffix_after_eos`, or `task`: the ids are there.

    Returns:
        int32 [n + P]; for `task` the tokens as they are.
    """
    if layout == "task" or len(slots) == 0:
        return tokens
    if layout == "prefix":
        return np.concatenate([slots, tokens])
    ends = len(tokens) > 0 and tokens[-1] == EOS
    if layout == "suffix_before_eos" and ends:
        return np.concatenate([tokens[:-1], slots, tokens[-1:]])
    return np.concatenate([tokens, slots])


def strip_slots(tokens: Tokens) -> Tokens:
    """The tokens without prompt slots, as text is decoded from them."""
    return tokens[tokens < SLOT0]


def shift_right(targets: Int32[np.ndarray, "*rows U"]) -> Int32[np.ndarray, "*rows U"]:
    """Decoder inputs of unpacked targets: y'[0] = START, y'[u] = y[u - 1]."""
    shifted = np.roll(targets, 1, axis=-1)
    shifted[..., 0] = START
    return shifted


def pack(lengths: Int[np.ndarray, "n 2"], capacity: tuple[int, int]) -> Rows:
    """First-fit-decreasing: examples into as few rows as the heuristic finds.

    Examples go, longest first (by the fuller of their two shares of a row), into the first row
    that still holds both their encoder and their decoder positions.

    Args:
        lengths: encoder positions (slots included) and decoder positions of each example.
        capacity: (T, U) of a row; every example must fit a row of its own.

    Returns:
        The examples of each row; ties keep the order of the batch.

    Raises:
        UserError: an example is longer than a row.

    Source: D. S. Johnson, "Near-optimal bin packing algorithms", 1973.
    """
    wide, deep = capacity
    if len(lengths) and (lengths[:, 0].max() > wide or lengths[:, 1].max() > deep):
        raise UserError(
            f"PACKED_LENGTHS: an example of {int(lengths[:, 0].max())} encoder positions (prompt "
            f"included) and {int(lengths[:, 1].max())} decoder positions does not fit a row of "
            f"{wide} and {deep}; raise the row or lower TASK_FEATURE_LENGTHS or PROMPT_LENGTH"
        )
    share = np.maximum(lengths[:, 0] / wide, lengths[:, 1] / deep)
    rows: Rows = []
    free: list[list[int]] = []  # encoder and decoder positions left in each row
    pairs = lengths.tolist()
    for example in np.argsort(-share, kind="stable").tolist():
        need_t, need_u = pairs[example]
        for row, room in zip(rows, free, strict=True):  # noqa: B007 - used after the loop
            if room[0] >= need_t and room[1] >= need_u:
                break
        else:
            row, room = [], [wide, deep]
            rows.append(row)
            free.append(room)
        row.append(example)
        room[0] -= need_t
        room[1] -= need_u
    return rows


@dataclass(frozen=True)
class Accounting:
    """What lies where in a global batch, and how much of it is real; the same in every process.

    source, index: which example (number of its source, number within it), in the order of rows
        and, within a row, of segments. row, segment: where it lies (segments count from 1).
    text, slots, padding: encoder positions of the global batch; targets, target_padding: decoder.
    """

    source: np.ndarray
    index: np.ndarray
    row: np.ndarray
    segment: np.ndarray
    text: int
    slots: int
    padding: int
    targets: int
    target_padding: int

    @property
    def examples(self) -> int:
        """Real examples in the global batch."""
        return len(self.index)

    @property
    def real(self) -> int:
        """Real tokens, encoder and decoder, without slots and padding."""
        return self.text + self.targets

    @property
    def padded(self) -> int:
        """Positions that hold nothing, encoder and decoder."""
        return self.padding + self.target_padding


def _scatter(parts: Examples, rows: Rows, shape: tuple[int, int]):
    """Flat tokens of `rows` with their places: (tokens, places, segments, starts)."""
    order = [example for row in rows for example in row]
    lengths = np.array([len(parts[example]) for example in order], np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    first = np.concatenate([[0], np.cumsum([len(row) for row in rows])])[:-1].astype(np.int64)
    segment = np.arange(len(order)) - first[row_of] + 1
    offset = starts - starts[first[row_of]]
    places = np.repeat(row_of * shape[1] + offset - starts, lengths) + np.arange(lengths.sum())
    tokens = np.concatenate([parts[example] for example in order])
    return tokens, places, np.repeat(segment, lengths).astype(np.int32), starts


def assemble(inputs: Examples, targets: Examples, rows: Rows, shape: tuple[int, int, int]) -> Batch:
    """Lays examples into the arrays of a batch.

    Args:
        inputs: encoder tokens of each example, slots written. Those of other rows may lack.
        targets: targets of each example, EOS included.
        rows: the examples of each row; may be fewer than B (the rest is padding).
        shape: (B, T, U).

    Returns:
        `encoder_input_tokens`, `encoder_segment_ids` int32 [B, T]; `decoder_input_tokens`,
        `decoder_target_tokens`, `decoder_segment_ids` int32 [B, U]; `decoder_loss_weights`
        float32 [B, U]. Segment 0 is padding.
    """
    height, wide, deep = shape
    batch = {
        "encoder_input_tokens": np.zeros((height, wide), np.int32),
        "encoder_segment_ids": np.zeros((height, wide), np.int32),
        "decoder_input_tokens": np.zeros((height, deep), np.int32),
        "decoder_target_tokens": np.zeros((height, deep), np.int32),
        "decoder_segment_ids": np.zeros((height, deep), np.int32),
        "decoder_loss_weights": np.zeros((height, deep), np.float32),
    }
    rows = [row for row in rows if row]
    if not rows:
        return batch
    tokens, places, segments, _ = _scatter(inputs, rows, (height, wide))
    batch["encoder_input_tokens"].reshape(-1)[places] = tokens
    batch["encoder_segment_ids"].reshape(-1)[places] = segments
    tokens, places, segments, starts = _scatter(targets, rows, (height, deep))
    previous = np.empty_like(tokens)
    previous[1:] = tokens[:-1]
    previous[starts[starts < len(tokens)]] = START
    batch["decoder_input_tokens"].reshape(-1)[places] = previous
    batch["decoder_target_tokens"].reshape(-1)[places] = tokens
    batch["decoder_segment_ids"].reshape(-1)[places] = segments
    batch["decoder_loss_weights"].reshape(-1)[places] = 1.0
    return batch


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `value` (and positive)."""
    return max(1, -(-value // multiple)) * multiple


@dataclass(frozen=True)
class Shapes:
    """The compiled shapes of a run: row capacity and a few row counts.

    capacity: (T, U). counts: increasing, each divisible by `row_multiple`. packed: several
    examples a row.
    """

    capacity: tuple[int, int]
    counts: tuple[int, ...]
    packed: bool
    row_multiple: int = 1

    def rows_for(self, need: int) -> int:
        """The compiled row count for a batch that needs `need` rows.

        A batch beyond the largest count gets the next multiple of an eighth of it: one more
        compilation, never a failure.
        """
        for count in self.counts:
            if count >= need:
                return count
        return round_up(round_up(need, max(1, self.counts[-1] // 8)), self.row_multiple)

    def plan(self, lengths: Int[np.ndarray, "n 2"]) -> Rows:
        """Which examples share a row."""
        if self.packed:
            return pack(lengths, self.capacity)
        return [[example] for example in range(len(lengths))]


def choose_capacity(
    batches: Sequence[Int[np.ndarray, "_ 2"]], longest: tuple[int, int], multiple: int = 32
) -> tuple[int, int]:
    """The row capacity that computes the fewest positions on simulated batches.

    Cost of a capacity T is rows * T * (1 + T / 1024): positions, with attention's share that
    grows with the width. U is what the rows' targets need in 95 of 100 rows, at least the
    longest target.

    Args:
        batches: lengths [n, 2] (encoder with slots, decoder) of each simulated batch.
        longest: (encoder, decoder) lengths that any example may have.
        multiple: granularity of T; U's is 8.

    Returns:
        (T, U).
    """
    least = round_up(longest[0], multiple)
    unbounded = 1 << 30
    best, best_cost, best_rows = least, float("inf"), []
    for wide in range(least, max(4 * least, 256) + 1, multiple):
        packed = [pack(lengths, (wide, unbounded)) for lengths in batches]
        cost = sum(len(rows) for rows in packed) * wide * (1 + wide / 1024)
        if cost < best_cost:
            best, best_cost, best_rows = wide, cost, packed
    sums = [
        sum(int(lengths[example, 1]) for example in row)
        for lengths, rows in zip(batches, best_rows, strict=True)
        for row in rows
    ]
    deep = max(longest[1], int(np.quantile(sums, 0.95)) if sums else 1)
    return best, round_up(deep, 8)


def choose_sizes(needs: Sequence[int], multiple: int = 1, most: int = 3) -> tuple[int, ...]:
    """The few sizes to compile (rows, or positions of a row) of which the least is computed.

    The largest holds the greatest need. A further size must save 1 % of the whole.

    Args:
        needs: what each batch needs.
        multiple: what every size must divide by.
        most: how many sizes at most.

    Returns:
        Increasing sizes.
    """
    rounded = np.array([round_up(int(need), multiple) for need in needs])
    marks = np.unique(rounded)
    # A dozen candidates are enough: with more, neighbours differ by little.
    marks = np.unique(marks[np.linspace(0, len(marks) - 1, 12).round().astype(int)])
    best, best_cost = (), float("inf")
    for extra in range(most):
        for lower in itertools.combinations(marks[:-1].tolist(), extra):
            counts = np.array([*lower, marks[-1]])
            cost = counts[np.searchsorted(counts, rounded)].sum()
            if cost < best_cost * (0.99 if len(counts) > len(best) else 1.0):
                best, best_cost = tuple(counts.tolist()), cost
    return best
