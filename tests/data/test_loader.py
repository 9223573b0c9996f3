"""The loader: batches are a pure function of the step, whoever builds them."""

import collections

import numpy as np
import pytest

from prompt_jax.data import layout
from prompt_jax.data.loader import Data, Loader
from prompt_jax.data.objectives import PrefixLM
from prompt_jax.errors import UserError
from prompt_jax.slots import SLOT0

LENGTHS = {"inputs": 32, "targets": 8}


class Memory:
    """Examples in memory; knows its lengths if `measured`."""

    def __init__(self, pairs, measured=True):
        self.pairs = pairs
        if measured:
            self.lengths = lambda: np.array([[len(a), len(b)] for a, b in pairs], np.int64)

    def __len__(self):
        return len(self.pairs)

    def inputs(self, index):
        return self.pairs[index][0]

    def targets(self, index):
        return self.pairs[index][1]

    def example(self, index):
        return {"idx": index}


def make_pairs(count: int, seed: int = 0, longest: int = 20):
    """(inputs, targets) whose first input token is unlike any other example's."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        text = rng.integers(2, 500, rng.integers(0, longest))
        targets = rng.integers(2, 500, rng.integers(1, 3))
        pairs.append(
            (
                np.array([1000 + number, *text, 1], np.int32),
                np.array([*targets, 1], np.int32),
            )
        )
    return pairs


def data(**changes) -> Data:
    return Data(**{"task_feature_lengths": LENGTHS, "batch_size": 8, "seed": 3, **changes})


def loader(
    pairs=None, measured=True, slots=4, blocks=((0,), 1), row_multiple=1, **changes
) -> Loader:
    source = Memory(make_pairs(40) if pairs is None else pairs, measured)
    return Loader(
        data(**changes),
        {"a": source},
        slots=layout.slot_ids(slots),
        vocabulary_size=600,
        blocks=blocks,
        row_multiple=row_multiple,
    )


def same(one, other) -> bool:
    return all(np.array_equal(one[key], other[key]) for key in one)


def test_batch_is_a_pure_function_of_the_step():
    first, second = loader(), loader()
    for step in (5, 0, 3, 5):
        assert same(first.batch(step)[0], second.batch(step)[0])
    assert not same(first.batch(0)[0], loader(seed=4).batch(0)[0])


@pytest.mark.parametrize("count", [40, 9000])  # a permutation of ours, Grain's shuffle
def test_every_epoch_has_each_example_once_in_a_new_order(count):
    pairs = [(np.array([5, 1], np.int32),) * 2] * count
    epochs = loader(pairs, batch_size=count // 4)
    orders = []
    for epoch in (0, 1):
        drawn = [ref for step in range(4) for ref in epochs._refs(4 * epoch + step)]
        assert {ref[1] for ref in drawn} == {epoch}
        orders.append([ref[2] for ref in drawn])
        assert sorted(orders[-1]) == list(range(count))
    assert orders[0] != orders[1] != sorted(orders[1])


def test_accounting_says_where_each_example_lies():
    made = loader()
    pairs = make_pairs(40)
    for step in range(6):
        batch, account = made.batch(step)
        assert account.examples == 8
        for index, row, segment in zip(account.index, account.row, account.segment, strict=True):
            where = batch["encoder_segment_ids"][row] == segment
            laid = batch["encoder_input_tokens"][row][where]
            assert laid.tolist() == [*range(SLOT0, SLOT0 + 4), *pairs[index][0]]
            where = batch["decoder_segment_ids"][row] == segment
            assert batch["decoder_target_tokens"][row][where].tolist() == pairs[index][1].tolist()
        encoder, decoder = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
        assert account.padding == (encoder == 0).sum()
        assert account.slots == (batch["encoder_input_tokens"] >= SLOT0).sum() == 8 * 4
        assert account.text == (encoder > 0).sum() - account.slots
        assert account.targets == (decoder > 0).sum() == batch["decoder_loss_weights"].sum()
        assert account.target_padding == (decoder == 0).sum()
        assert account.real == account.text + account.targets


def test_packing_changes_rows_and_not_examples():
    packed, alone = loader(packing=True), loader(packing=False)
    sizes = np.zeros(2)
    for step in range(5):
        (small, one), (large, other) = packed.batch(step), alone.batch(step)
        assert sorted(one.index) == sorted(other.index)
        assert (one.text, one.slots, one.targets) == (other.text, other.slots, other.targets)
        sizes += [batch["encoder_input_tokens"].size for batch in (small, large)]
        assert large["encoder_input_tokens"].shape == (8, 32)  # 21 tokens and 4 slots, by 8
    assert sizes[0] < sizes[1]


def test_no_seed_changes_a_shape():
    first = loader(seed=3)
    assert {loader(seed=seed).shapes for seed in range(6)} == {first.shapes}
    other = first.reseeded(5)
    assert same(other.batch(2)[0], loader(seed=5).batch(2)[0])
    assert not same(other.batch(2)[0], first.batch(2)[0])


def test_reading_tokens_plans_the_same_as_knowing_lengths():
    changes = {"task_feature_lengths": {"inputs": 15, "targets": 8}}
    known = loader(**changes)
    capacity = dict(zip(("inputs", "targets"), known.shapes.capacity, strict=True))
    read = loader(measured=False, packed_lengths=capacity, **changes)
    for step in range(4):
        assert same(known.batch(step)[0], read.batch(step)[0])


@pytest.mark.parametrize("packing", [True, False])
def test_processes_build_their_rows_of_one_global_batch(packing):
    whole = loader(packing=packing, row_multiple=4)
    parts = [loader(packing=packing, row_multiple=4, blocks=((rank,), 4)) for rank in range(4)]
    for step in range(4):
        batch, account = whole.batch(step)
        made = [part.batch(step) for part in parts]
        for key in batch:
            assert np.array_equal(batch[key], np.concatenate([rows[key] for rows, _ in made]))
        assert all(other.text == account.text for _, other in made)
        assert len(batch["encoder_input_tokens"]) % 4 == 0


@pytest.mark.parametrize("own", [(0, 1), (1, 2), (0, 3), (0, 1, 3)], ids=str)
def test_a_process_may_own_any_blocks_of_rows(own):
    """As a mesh in the order of the network gives them; two may own the same."""
    whole, part = loader(row_multiple=4, packing=False), loader(blocks=(own, 4), packing=False)
    for step in range(3):
        batch, account = whole.batch(step)
        rows, other = part.batch(step)
        for key in batch:
            blocks = np.split(batch[key], 4)
            assert np.array_equal(rows[key], np.concatenate([blocks[block] for block in own]))
        assert np.array_equal(account.index, other.index)


def test_truncation_keeps_eos_and_comes_before_the_slots():
    pairs = [
        (np.arange(10, 30, dtype=np.int32),) * 2,
        (np.array([*range(10, 30), 1], np.int32),) * 2,
    ]
    made = loader(pairs, task_feature_lengths={"inputs": 6, "targets": 3}, batch_size=2)
    batch, account = made.batch(0)
    laid = {}
    for index, row, segment in zip(account.index, account.row, account.segment, strict=True):
        chosen = batch["encoder_segment_ids"][row] == segment
        laid[int(index)] = batch["encoder_input_tokens"][row][chosen].tolist()
    prompt = list(range(SLOT0, SLOT0 + 4))
    assert laid[1] == [*prompt, 10, 11, 12, 13, 14, 1]
    assert laid[0] == [*prompt, 10, 11, 12, 13, 14, 15]


def test_mixture_follows_its_rates_and_slots():
    sources = {"a": Memory(make_pairs(30, 1)), "b": Memory(make_pairs(5, 2), measured=False)}
    slots = {"a": layout.slot_ids(2), "b": layout.slot_ids(3, start=2)}
    mixed = Loader(data(), sources, slots=slots, weights={"a": 3.0, "b": 1.0})
    counts = collections.Counter()
    for step in range(50):
        batch, account = mixed.batch(step)
        counts.update(account.source.tolist())
        for number, row, segment in zip(account.source, account.row, account.segment, strict=True):
            laid = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == segment]
            expected = list(slots.values())[number]
            assert laid[: len(expected)].tolist() == expected.tolist()
            assert laid[len(expected)] < SLOT0
    assert counts[0] == pytest.approx(300, abs=8)


def test_prefetch_yields_the_same_and_counts_waiting():
    made = loader()
    with made.iterate(start_step=7, threads=2) as batches:
        for step in range(7, 15):
            assert batches.step == step
            assert same(next(batches)[0], made.batch(step)[0])
        assert batches.waited > 0


def test_prefetch_hands_on_an_error():
    made = loader()
    made._sources[0].inputs = lambda index: 1 / 0
    with made.iterate() as batches, pytest.raises(ZeroDivisionError):
        next(batches)


def test_objective_is_drawn_from_seed_epoch_and_index():
    text = [(None, np.arange(2, 40, dtype=np.int32)) for _ in range(4)]

    def drawn(**changes):
        made = loader(text, measured=False, batch_size=4, objective=PrefixLM(30), **changes)
        return [made.batch(step)[0]["encoder_input_tokens"] for step in range(3)]

    one, again, other = drawn(), drawn(), drawn(seed=9)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])
    made = loader(text, measured=False, objective=PrefixLM(30))
    first, second = made._tokens((0, 0, 2)), made._tokens((0, 1, 2))
    assert first[0].tolist() != second[0].tolist()
    reseeded = loader(text, measured=False, objective=PrefixLM(30), seed=9)._tokens((0, 0, 2))
    assert first[0].tolist() != reseeded[0].tolist()


def test_task_layout_keeps_the_tasks_own_slots():
    class Slotted(Memory):
        def slot_counts(self):
            return np.array([(a >= SLOT0).sum() for a, _ in self.pairs])

    pairs = [
        (np.array([7, SLOT0 + i, 8, 9, 1], np.int32), b) for i, (_, b) in enumerate(make_pairs(9))
    ]
    changes = {"layout": "task", "task_feature_lengths": {"inputs": 3, "targets": 8}}
    made = Loader(data(**changes), {"a": Slotted(pairs)})
    read = Loader(data(**changes), {"a": Memory(pairs, measured=False)})
    batch, account = made.batch(0)
    assert account.slots == 8 and account.text == 8 * 3
    assert np.array_equal(made._lengths[0][:, 0], [4] * 9)
    long = {**changes, "task_feature_lengths": {"inputs": 9, "targets": 8}}
    uncut = Loader(data(**long), {"a": Slotted(pairs)})
    assert np.array_equal(uncut._lengths[0][:, 0], [5] * 9)
    assert read._tokens((0, 0, 4))[0].tolist() == [7, SLOT0 + 4, 8, 1]
    assert same(batch, made.batch(0)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed_lengths": {"inputs": 20, "targets": 8}, "slots": 12}, "PACKED_LENGTHS"),
        ({"pairs": []}, "no examples"),
        ({"layout": "sufix_after_eos"}, "suffix_after_eos"),
        ({"batch_size": 0}, "BATCH_SIZE"),
        ({"pairs": [(None, np.array([4, 1], np.int32))], "measured": False}, "no 'inputs'"),
    ],
)
def test_bad_input_is_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        loader(**changes)
    assert "\n" not in str(caught.value)


def test_position_is_found_at_once():
    made = loader()
    assert same(made.batch(10**9)[0], loader().batch(10**9)[0])
