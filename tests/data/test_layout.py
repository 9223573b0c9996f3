"""Layout: loop-written twins and properties of packing, slots, truncation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.data import layout
from prompt_jax.errors import UserError
from prompt_jax.slots import SLOT0

SETTINGS = settings(max_examples=60, deadline=None)


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@st.composite
def examples(draw, most: int = 12):
    """Some (inputs, targets) pairs with EOS, of distinct random tokens."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairs = []
    for n, m in lengths:
        pair = [np.append(rng.integers(2, 1000, k), 1).astype(np.int32) for k in (n, m)]
        pairs.append(tuple(pair))
    return pairs


def test_truncate_keeps_eos():
    assert layout.truncate(tokens(5, 6, 7, 1), 4).tolist() == [5, 6, 7, 1]
    assert layout.truncate(tokens(5, 6, 7, 1), 3).tolist() == [5, 6, 1]
    assert layout.truncate(tokens(5, 6, 7, 8), 2).tolist() == [5, 6]  # none to keep
    assert layout.truncate(tokens(5, 1), 1).tolist() == [1]


def test_truncate_never_cuts_the_tasks_own_slots():
    own = tokens(SLOT0, 5, 6, SLOT0 + 1, 7, 1)
    assert layout.truncate(own, 3).tolist() == [SLOT0, 5, 6, SLOT0 + 1, 1]
    assert layout.truncate(tokens(5, 6, 1, SLOT0), 2).tolist() == [5, 1, SLOT0]


def test_write_slots():
    text, slots = tokens(5, 6, 1), layout.slot_ids(2, start=3)
    a, b = SLOT0 + 3, SLOT0 + 4
    assert layout.write_slots(text, slots, "prefix").tolist() == [a, b, 5, 6, 1]
    assert layout.write_slots(text, slots, "suffix_before_eos").tolist() == [5, 6, a, b, 1]
    assert layout.write_slots(text, slots, "suffix_after_eos").tolist() == [5, 6, 1, a, b]
    assert layout.write_slots(text, slots, "task").tolist() == [5, 6, 1]
    assert layout.write_slots(tokens(5, 6), slots, "suffix_before_eos").tolist() == [5, 6, a, b]


@SETTINGS
@given(examples(), st.integers(0, 5), st.sampled_from(layout.LAYOUTS[:3]))
def test_slots_strip_back(pairs, length, where):
    for text, _ in pairs:
        laid = layout.write_slots(text, layout.slot_ids(length), where)
        assert len(laid) == len(text) + length
        assert layout.strip_slots(laid).tolist() == text.tolist()


def test_unknown_layout_names_the_nearest():
    with pytest.raises(UserError, match="suffix_after_eos"):
        layout.check_layout("suffix_after")


def test_shift_right():
    shifted = layout.shift_right(np.array([[4, 5, 1], [6, 1, 0]], np.int32))
    assert shifted.tolist() == [[0, 4, 5], [0, 6, 1]]


def slow_first_fit(lengths, capacity):
    """Johnson's first-fit-decreasing, from its definition."""
    order = sorted(
        range(len(lengths)),
        key=lambda i: -max(lengths[i][0] / capacity[0], lengths[i][1] / capacity[1]),
    )
    rows = []
    for i in order:
        for row in rows:
            used = [sum(lengths[j][axis] for j in row) + lengths[i][axis] for axis in (0, 1)]
            if used[0] <= capacity[0] and used[1] <= capacity[1]:
                row.append(i)
                break
        else:
            rows.append([i])
    return rows


@SETTINGS
@given(examples(30), st.integers(10, 40), st.integers(5, 12))
def test_pack_is_first_fit_decreasing(pairs, wide, deep):
    lengths = np.array([[len(a), len(b)] for a, b in pairs], np.int64).reshape(-1, 2)
    rows = layout.pack(lengths, (wide, deep))
    assert sorted(i for row in rows for i in row) == list(range(len(pairs)))
    assert rows == slow_first_fit(lengths.tolist(), (wide, deep))


def test_pack_refuses_what_no_row_holds():
    with pytest.raises(UserError, match="PACKED_LENGTHS"):
        layout.pack(np.array([[9, 2]]), (8, 4))


def slow_assemble(inputs, targets, rows, shape):
    """The batch, position by position."""
    height, wide, deep = shape
    batch = {
        key: [[0] * (wide if key.startswith("encoder") else deep) for _ in range(height)]
        for key in (
            *("encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens"),
            *("decoder_target_tokens", "decoder_segment_ids", "decoder_loss_weights"),
        )
    }
    for r, row in enumerate(rows):
        t = u = 0
        for segment, example in enumerate(row, 1):
            for token in inputs[example]:
                batch["encoder_input_tokens"][r][t] = token
                batch["encoder_segment_ids"][r][t] = segment
                t += 1
            before = 0
            for token in targets[example]:
                batch["decoder_input_tokens"][r][u] = before
                batch["decoder_target_tokens"][r][u] = before = token
                batch["decoder_segment_ids"][r][u] = segment
                batch["decoder_loss_weights"][r][u] = 1
                u += 1
    return batch


@SETTINGS
@given(examples(), st.integers(0, 3), st.booleans())
def test_assemble_is_its_twin(pairs, spare, packed):
    lengths = np.array([[len(a), len(b)] for a, b in pairs], np.int64).reshape(-1, 2)
    rows = layout.pack(lengths, (24, 12)) if packed else [[i] for i in range(len(pairs))]
    shape = (len(rows) + spare, 24, 12)
    inputs, targets = [a for a, _ in pairs], [b for _, b in pairs]
    batch = layout.assemble(inputs, targets, rows, shape)
    for key, expected in slow_assemble(inputs, targets, rows, shape).items():
        width = shape[1] if key.startswith("encoder") else shape[2]
        assert batch[key].shape == (shape[0], width)
        assert batch[key].tolist() == expected, key
        assert batch[key].dtype == (np.float32 if key.endswith("weights") else np.int32)


def unpack(batch):
    """The examples of a batch, read off its segment ids alone."""
    found = []
    for r in range(len(batch["encoder_segment_ids"])):
        encoder, decoder = batch["encoder_segment_ids"][r], batch["decoder_segment_ids"][r]
        for segment in range(1, max(encoder.max(), decoder.max()) + 1):
            found.append(
                (
                    batch["encoder_input_tokens"][r][encoder == segment].tolist(),
                    batch["decoder_input_tokens"][r][decoder == segment].tolist(),
                    batch["decoder_target_tokens"][r][decoder == segment].tolist(),
                )
            )
    return sorted(found)


@SETTINGS
@given(examples())
def test_packed_and_unpacked_hold_the_same_examples(pairs):
    inputs, targets = [a for a, _ in pairs], [b for _, b in pairs]
    lengths = np.array([[len(a), len(b)] for a, b in pairs], np.int64).reshape(-1, 2)
    packed = layout.pack(lengths, (24, 12))
    alone = [[i] for i in range(len(pairs))]
    batches = [layout.assemble(inputs, targets, rows, (14, 24, 12)) for rows in (packed, alone)]
    assert unpack(batches[0]) == unpack(batches[1])
    assert len(unpack(batches[0])) == len(pairs)


def test_rows_beyond_the_largest_count_get_a_larger_one():
    shapes = layout.Shapes((128, 16), (8, 16), True, row_multiple=4)
    assert [shapes.rows_for(need) for need in (0, 8, 9, 16)] == [8, 8, 16, 16]
    assert [shapes.rows_for(need) for need in (17, 21)] == [20, 24]


def test_counts_compute_the_fewest_rows():
    assert layout.choose_sizes([9] * 50 + [10] * 45 + [12] * 5) == (9, 10, 12)
    assert layout.choose_sizes([7] * 20) == (7,)
    assert layout.choose_sizes([3, 5, 9], 4) == (4, 8, 12)


@SETTINGS
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.sampled_from([1, 2, 8]))
def test_counts_hold_the_worst_batch_and_divide(needs, multiple):
    counts = layout.choose_sizes(needs, multiple)
    assert counts == tuple(sorted(set(counts))) and len(counts) <= 3
    assert max(needs) <= counts[-1] < max(needs) + multiple
    assert all(count % multiple == 0 for count in counts)


def test_capacity_is_the_one_that_computes_least():
    # Rows of 64 hold one example of 40, rows of 160 hold four exactly; wider ones pay attention.
    batches = [np.stack([np.full(32, 40), np.full(32, 2)], 1)]
    assert layout.choose_capacity(batches, (40, 2)) == (160, 8)


def test_capacity_holds_the_longest_and_wastes_little():
    rng = np.random.default_rng(0)
    batches = [np.stack([rng.integers(20, 60, 32), np.full(32, 2)], 1) for _ in range(20)]
    wide, deep = layout.choose_capacity(batches, (60, 2))
    assert wide >= 60 and wide % 32 == 0 and deep % 8 == 0
    rows = sum(len(layout.pack(lengths, (wide, deep))) for lengths in batches)
    real = sum(int(lengths[:, 0].sum()) for lengths in batches)
    assert real / (rows * wide) > 0.8
