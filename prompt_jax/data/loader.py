"""Batches as a pure function of (task, vocabulary, seed, batch size, step).

`Loader.batch(step)` computes any batch at once, so the data position of a run is one integer and
is the same for any number of processes: each plans the same global batch and builds its rows.
`BATCH_SIZE` counts examples, packed or not; packing only decides in how many rows they lie.
"""

import copy
import dataclasses
import functools
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from prompt_jax.data import layout as lay
from prompt_jax.errors import UserError
from prompt_jax.slots import SLOT0

# Below this Grain's index shuffle walks long cycles (1 ms an index); a permutation is cheap.
_SMALL = 1 << 13
_SIMULATED = 4096  # examples drawn to choose row capacity and row counts


@runtime_checkable
class Source(Protocol):
    """What the loader draws from: a TokenCache or any object in memory.

    `inputs(i)` may be None (text only: an objective makes the pair out of `targets(i)`). A method
    `lengths() -> int [n, 2]`, where there is one, saves reading the tokens to plan a batch; with
    `layout="task"` it needs `slot_counts() -> int [n]` beside it.
    """

    def __len__(self) -> int: ...
    def inputs(self, index: int) -> np.ndarray | None: ...
    def targets(self, index: int) -> np.ndarray: ...
    def example(self, index: int) -> dict: ...


@dataclass(frozen=True)
class Data:
    """What a run reads and how it lies in the batch.

    mixture_or_task_name, mixture_or_task_module: the seqio name; a dotted module or a .py file to
        import first (a program: it runs). split: the split to draw from.
    task_feature_lengths: an example's own tokens {"inputs", "targets"}, EOS included, slots not.
    batch_size: examples, packed or not. packing: several examples a row.
    packed_lengths: capacity of a row {"inputs", "targets"}; None: from the length histogram.
    layout: `prefix`, `suffix_before_eos`, `suffix_after_eos`, `task`.
    objective: makes (inputs, targets) of examples that are text only.
    mixture_period: K > 0: a mixture's batches are of one task, drawn anew every K steps (PAFT's
        schedule of templates); 0: every example's task is drawn.
    cache_dir: tokenised caches; None: PROMPT_JAX_CACHE, else ~/.cache/prompt_jax.
    """

    mixture_or_task_name: str = ""
    mixture_or_task_module: str | None = None
    split: str = "train"
    task_feature_lengths: Mapping[str, int] = field(
        default_factory=lambda: {"inputs": 256, "targets": 32}
    )
    batch_size: int = 32
    packing: bool = True
    packed_lengths: Mapping[str, int] | None = None
    layout: str = "prefix"
    seed: int = 0
    objective: Any = None
    mixture_period: int = 0
    cache_dir: str | None = None

    varies: ClassVar = ("mixture_or_task_name", "seed")


def _positions(number: int, length: int, seed: int):
    """An endless Grain dataset of (source, epoch, index), reshuffled every epoch."""
    import grain

    if length >= _SMALL:
        order = grain.MapDataset.range(length).seed(seed + number).shuffle().repeat()
        return order.map_with_index(lambda at, index: (number, at // length, index))

    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> list[int]:
        rng = np.random.default_rng([seed, number, epoch])
        return rng.permutation(length).tolist()

    def draw(at: int):
        epoch, place = divmod(at, length)
        return number, epoch, permutation(epoch)[place]

    return grain.MapDataset.range(sys.maxsize).map(draw)


class Loader:
    """Random access to the global batches of a run."""

    def __init__(
        self,
        data: Data,
        sources: Mapping[str, Source],
        *,
        slots: np.ndarray | Mapping[str, np.ndarray] | None = None,
        weights: Mapping[str, float] | None = None,
        vocabulary_size: int = 0,
        blocks: tuple[Sequence[int], int] = ((0,), 1),
        row_multiple: int = 1,
    ):
        """Plans the shapes of a run.

        Args:
            data: what to read.
            sources: task name -> examples; several make a mixture.
            slots: int32 [P] slot ids written into every example, or one such array per task.
            weights: mixing rate per task; None: by number of examples.
            vocabulary_size: for the objective's sentinels.
            blocks: the rows of a global batch are split into `blocks[1]` blocks; those that this
                process builds, in order.
            row_multiple: what the number of rows must divide by (microbatches, for one).

        Raises:
            UserError: an example with its prompt is longer than a row; an unknown layout.
        """
        lay.check_layout(data.layout)
        if not sources:
            raise UserError(f"task {data.mixture_or_task_name!r} has no examples")
        if data.mixture_period < 0:
            raise UserError(f"Data.mixture_period is {data.mixture_period}; 0 or a count of steps")
        if data.batch_size < 1:
            raise UserError(f"BATCH_SIZE is {data.batch_size}; it must be at least 1")
        self.data, self._blocks = data, (tuple(blocks[0]), blocks[1])
        self.names = tuple(sources)
        self._sources = tuple(sources.values())
        self._row_multiple = int(np.lcm(row_multiple, blocks[1]))
        self._vocabulary_size = vocabulary_size
        empty = np.zeros(0, np.int32)
        if not isinstance(slots, Mapping):
            slots = dict.fromkeys(self.names, empty if slots is None else slots)
        self._slots = tuple(np.asarray(slots[name], np.int32) for name in self.names)
        self._limits = tuple(int(data.task_feature_lengths[k]) for k in ("inputs", "targets"))
        for name, source in sources.items():
            if len(source) == 0:
                raise UserError(f"task {name!r} split {data.split!r} has no examples")
            if data.objective is None and source.inputs(0) is None:
                raise UserError(
                    f"task {name!r}: its examples have no 'inputs'; give Data.objective (span "
                    "corruption, prefix LM) or a task with inputs and targets"
                )
        self._weights = tuple(
            float(len(source) if weights is None else weights[name])
            for name, source in sources.items()
        )
        self._lengths = tuple(self._own_lengths(number) for number in range(len(self.names)))
        self.shapes = self._choose_shapes()

    # -- examples ---------------------------------------------------------------------------

    def _own_lengths(self, number: int) -> np.ndarray | None:
        """Laid-out lengths [n, 3] of a source that knows its token counts, else None.

        Columns: encoder positions (slots included), decoder positions, slots.
        """
        source, of_task = self._sources[number], self.data.layout == "task"
        known = source.lengths() if hasattr(source, "lengths") else None
        if known is None or (of_task and not hasattr(source, "slot_counts")):
            return None
        slots = source.slot_counts() if of_task else np.full(len(source), len(self._slots[number]))
        text = np.minimum(known[:, 0] - slots * of_task, self._limits[0])
        return np.stack([text + slots, np.minimum(known[:, 1], self._limits[1]), slots], axis=1)

    def _tokens(self, ref: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The laid-out tokens of one example: truncated, then slots written."""
        number, epoch, index = ref
        source = self._sources[number]
        inputs, targets = source.inputs(index), source.targets(index)
        if inputs is None:
            rng = np.random.default_rng([self.data.seed, number, epoch, index])
            text = targets[:-1] if len(targets) and targets[-1] == lay.EOS else targets
            inputs, targets = self.data.objective(text, rng, self._vocabulary_size)
        inputs = lay.truncate(inputs, self._limits[0])
        targets = lay.truncate(targets, self._limits[1])
        return lay.write_slots(inputs, self._slots[number], self.data.layout), targets

    def _measure(self, refs: list) -> tuple[np.ndarray, dict]:
        """Lengths [n, 3] of examples, and the tokens of those that had to be read."""
        lengths = np.empty((len(refs), 3), np.int64)
        read = {}
        for place, ref in enumerate(refs):
            known = self._lengths[ref[0]]
            if known is None:
                read[place] = self._tokens(ref)
                inputs, targets = read[place]
                lengths[place] = [len(inputs), len(targets), (inputs >= SLOT0).sum()]
            else:
                lengths[place] = known[ref[2]]
        return lengths, read

    # -- shapes -----------------------------------------------------------------------------

    def _longest(self) -> tuple[int, int]:
        """Encoder and decoder lengths that no example exceeds."""
        own = [
            np.array(self._limits) + [len(slots), 0] if known is None else known[:, :2].max(axis=0)
            for known, slots in zip(self._lengths, self._slots, strict=True)
        ]
        wide, deep = np.max(own, axis=0).tolist()
        return int(wide), int(deep)

    def _choose_shapes(self) -> lay.Shapes:
        """Row capacity and row counts, from the length histogram of the stream itself."""
        data, multiple = self.data, self._row_multiple
        longest = self._longest()
        given = data.packed_lengths if data.packing else None
        if given is not None:
            capacity = (int(given["inputs"]), int(given["targets"]))
            if longest[0] > capacity[0] or longest[1] > capacity[1]:
                raise UserError(
                    f"PACKED_LENGTHS {dict(given)}: an example of up to {longest[0]} inputs, its "
                    f"prompt included, and {longest[1]} targets does not fit a row; give at least "
                    f"{{'inputs': {longest[0]}, 'targets': {longest[1]}}}"
                )
        if not data.packing:
            rows = lay.round_up(data.batch_size, multiple)
            capacity = (lay.round_up(longest[0], 8), lay.round_up(longest[1], 8))
            return lay.Shapes(capacity, (rows,), False, multiple)
        if given is None:
            capacity = lay.choose_capacity(self._simulated, longest)
        return lay.Shapes(
            capacity, lay.choose_sizes(self._needs(capacity), multiple), True, multiple
        )

    def _needs(self, capacity: tuple[int, int]) -> list[int]:
        """Rows of this capacity that the simulated batches take."""
        return [len(lay.pack(lengths, capacity)) for lengths in self._simulated]

    def reseeded(self, seed: int) -> "Loader":
        """The same examples and shapes in the order of another seed."""
        other = copy.copy(self)
        other.data = dataclasses.replace(self.data, seed=seed)
        for made in ("_streams", "_mixed", "_simulated"):
            other.__dict__.pop(made, None)
        return other

    def in_shapes(self, shapes: lay.Shapes) -> "Loader":
        """The same batches in other rows (see `common_shapes`)."""
        other = copy.copy(self)
        other.shapes = shapes
        other.__dict__.pop("fingerprint", None)
        return other

    @functools.cached_property
    def _streams(self) -> list:
        """Each source's endless sequence of (source, epoch, index)."""
        lengths = map(len, self._sources)
        return [_positions(n, length, self.data.seed) for n, length in enumerate(lengths)]

    @functools.cached_property
    def _mixed(self):
        """The sequence that draws every example's source."""
        import grain

        if len(self._streams) == 1:
            return self._streams[0]
        return grain.MapDataset.mix(self._streams, weights=list(self._weights))

    def _refs(self, step: int) -> list[tuple[int, int, int]]:
        """Which examples make the global batch of a step."""
        size, period, stream = self.data.batch_size, self.data.mixture_period, self._mixed
        if period:
            rng = np.random.default_rng([self.data.seed, step // period])
            weights = np.array(self._weights, float)
            stream = self._streams[rng.choice(len(weights), p=weights / weights.sum())]
        return list(stream._getitems(range(step * size, (step + 1) * size)))

    @functools.cached_property
    def _simulated(self) -> list[np.ndarray]:
        """Lengths of the first batches of the stream of seed 0: no seed changes a shape."""
        if self.data.seed:
            return self.reseeded(0)._simulated
        count = max(2, min(64, _SIMULATED // self.data.batch_size))
        return [self._measure(self._refs(step))[0][:, :2] for step in range(count)]

    # -- batches ----------------------------------------------------------------------------

    def _build(self, refs: list) -> tuple[lay.Batch, lay.Accounting]:
        """This process's rows of a global batch, and the accounting of all of it."""
        lengths, tokens = self._measure(refs)
        rows = self.shapes.plan(lengths[:, :2])
        height = self.shapes.rows_for(len(rows))
        wide, deep = self.shapes.capacity
        parts = [rows[start:stop] for start, stop in self._own_rows(height)]
        for place in (example for part in parts for row in part for example in row):
            if place not in tokens:
                tokens[place] = self._tokens(refs[place])
        inputs = {place: pair[0] for place, pair in tokens.items()}
        targets = {place: pair[1] for place, pair in tokens.items()}
        made = [
            lay.assemble(inputs, targets, part, (stop - start, wide, deep))
            for part, (start, stop) in zip(parts, self._own_rows(height), strict=True)
        ]
        names = made[0] if len(made) > 1 else ()
        batch = {name: np.concatenate([one[name] for one in made]) for name in names} or made[0]
        return batch, self._account(refs, lengths, rows, height)

    def _own_rows(self, height: int) -> list[tuple[int, int]]:
        """[start, stop) of the runs of neighbouring rows that this process builds."""
        own, count = self._blocks
        runs: list[tuple[int, int]] = []
        for block in own:
            start, stop = block * height // count, (block + 1) * height // count
            if runs and runs[-1][1] == start:
                start = runs.pop()[0]
            runs.append((start, stop))
        return runs

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what the batches are drawn from, and of their shapes."""
        keys = [getattr(source, "key", str(len(source))) for source in self._sources]
        return f"{self.names} {keys} {self._weights} {self.shapes}"

    def _account(self, refs, lengths, rows, height: int) -> lay.Accounting:
        """The host's record of a global batch."""
        order = [place for row in rows for place in row]
        chosen = np.array([refs[place] for place in order], np.int64).reshape(-1, 3)
        encoder, decoder, slots = lengths.sum(axis=0).tolist()
        wide, deep = self.shapes.capacity
        return lay.Accounting(
            source=chosen[:, 0],
            index=chosen[:, 2],
            row=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
            segment=np.array([at + 1 for row in rows for at in range(len(row))], np.int64),
            text=encoder - slots,
            slots=slots,
            padding=height * wide - encoder,
            targets=decoder,
            target_padding=height * deep - decoder,
        )

    def batch(self, step: int) -> tuple[lay.Batch, lay.Accounting]:
        """The batch of a step.

        Args:
            step: number of the batch since the start of the run, from 0.

        Returns:
            This process's rows (see `layout.assemble`) and the global batch's Accounting.
        """
        return self._build(self._refs(step))

    def iterate(self, start_step: int = 0, threads: int = 1, ahead: int = 4) -> "Prefetch":
        """Batches from a step on, made ahead of time by background threads."""
        return Prefetch(self, start_step, threads, ahead)


def common_shapes(loaders: Sequence[Loader]) -> lay.Shapes:
    """Shapes in which every loader's batches fit: their own, where they are alike."""
    first, *others = [loader.shapes for loader in loaders]
    if all(shapes == first for shapes in others):
        return first
    capacities = [loader.shapes.capacity for loader in loaders]
    capacity = max(wide for wide, _ in capacities), max(deep for _, deep in capacities)
    if not first.packed:
        return dataclasses.replace(first, capacity=capacity)
    needs = [need for loader in loaders for need in loader._needs(capacity)]
    return dataclasses.replace(
        first, capacity=capacity, counts=lay.choose_sizes(needs, first.row_multiple)
    )


class Prefetch:
    """An iterator over what `loader.batch(step)` makes, ahead of time.

    `waited`: seconds that `next` spent waiting. `step`: the step that `next` will return.
    Close it (or use it in a `with`) to end its threads.
    """

    def __init__(self, loader: Any, start_step: int, threads: int = 1, ahead: int = 4):
        self.step, self.waited = start_step, 0.0
        self._loader = loader
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="data")
        self._ahead = max(1, ahead)
        self._pending = deque(
            self._pool.submit(loader.batch, start_step + k) for k in range(self._ahead)
        )

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        made = self._pending.popleft().result()
        self.waited += time.perf_counter() - began
        self._pending.append(self._pool.submit(self._loader.batch, self.step + self._ahead))
        self.step += 1
        return made

    def close(self) -> None:
        """Ends the threads; what they were about to make is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_) -> None:
        self.close()
