"""Runs that are trained as one program: R of them side by side, on one copy of the backbone.

A single run is a fleet of one. `loop` takes a step of one run after the other, with one compiled
step for all: the numbers are those of single runs, to the bit. On several devices each has its
share of the runs, and a copy of the backbone. `vmap` takes a step of all runs at once: what they
own is stacked along a first axis, prompts and rows are as wide as the widest.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_jax.assemble import OWN, Method, Model, Tree
from prompt_jax.data import layout
from prompt_jax.data.loader import Loader, common_shapes
from prompt_jax.errors import UserError, nearest
from prompt_jax.parallel.mesh import AXES, ROWS, Shardings
from prompt_jax.stages import Stage, stage_of
from prompt_jax.step import TrainState, init_state, jit_train_step, train_step_at_once

MAPS = ("auto", "loop", "vmap")


class Batches(NamedTuple):
    """A step's batches: what `Fleet.step` reads, and the accounting of each run's."""

    rows: Any
    accounts: list[layout.Accounting]


@dataclasses.dataclass(frozen=True)
class Fleet:
    """How R runs lie side by side, one after the other: a tuple of their states.

    Attributes:
        size: R.
        shardings: of the whole mesh.
    """

    size: int
    shardings: Shardings

    map = "loop"

    @functools.cached_property
    def places(self) -> list[Shardings]:
        """Where each run is trained: one alone has the whole mesh, others a group of `model`."""
        if self.size == 1:
            return [self.shardings]
        groups = self.shardings.mesh.devices.reshape(-1, 1, 1, self.shardings.mesh.shape["model"])
        own = [Shardings(Mesh(group, AXES)) for group in groups]
        return [own[run % len(own)] for run in range(self.size)]

    def loaders(self, loaders: Sequence[Loader]) -> list[Loader]:
        """The runs' loaders, in the shapes that a step takes."""
        return list(loaders)

    def batches(self, made: Sequence[tuple[layout.Batch, layout.Accounting]]) -> Batches:
        """The runs' batches together."""
        return Batches([rows for rows, _ in made], [account for _, account in made])

    def length(self, methods: Sequence[Method]) -> list[int]:
        """Rows of each run's bank."""
        return [method.slots for method in methods]

    def join(self, states: Sequence[TrainState]) -> Any:
        """The runs' states as what a step takes and a checkpoint holds."""
        return tuple(states)

    def take(self, state: Any, run: int) -> TrainState:
        """One run's state."""
        return state[run]

    def copies(self, frozen: Tree) -> list[Tree]:
        """The frozen leaves where each run is trained; runs of a place share them."""
        made: dict[Mesh, Tree] = {self.shardings.mesh: frozen}
        for place in self.places:
            if place.mesh not in made:
                where = {path: place.frozen(path, leaf.shape) for path, leaf in frozen.items()}
                made[place.mesh] = jax.device_put(frozen, where)
        return [made[place.mesh] for place in self.places]

    def step(
        self, model: Model, optimizer, num_microbatches: int, timed: Callable, kind: str
    ) -> Callable:
        """`(state, frozen, rows, learning) -> (state, numbers)`, compiled.

        `frozen` is what `copies` returned; the state of runs that are not `learning` stays.

        Args:
            model: assembled functions, the same for all runs.
            optimizer: likewise; rates lie in its state.
            num_microbatches: as in `step.loss_and_grads`.
            timed: wraps the compiled function (see `ledger.Clock.compiles`).
            kind: of the phase, one of `step.KINDS`.
        """
        one = timed(jit_train_step(model, optimizer, num_microbatches, kind))

        def step(state, frozen, rows, learning):
            states, numbers = list(state), [None] * self.size
            for run in np.flatnonzero(learning):
                batch = self.places[run].put_batch(rows[run])
                states[run], numbers[run] = one(states[run], frozen[run], batch)
            return tuple(states), numbers

        return step

    def numbers(self, numbers: Any) -> list[dict[str, float] | None]:
        """A step's numbers on the host, of each run that took it; waits for the step."""
        found = jax.device_get(numbers)
        return [own and {name: float(value) for name, value in own.items()} for own in found]


@dataclasses.dataclass(frozen=True)
class AtOnce(Fleet):
    """R runs at once: trees stacked along a first axis, which lies over the devices."""

    map = "vmap"

    @functools.cached_property
    def places(self) -> list[Shardings]:
        """All on the whole mesh."""
        return [self.shardings] * self.size

    @functools.cached_property
    def _height(self) -> int:
        """R, filled up so that each device has as many runs."""
        return layout.round_up(self.size, self.shardings.row_shards)

    @functools.cached_property
    def _along(self) -> NamedSharding:
        return NamedSharding(self.shardings.mesh, ROWS)

    def loaders(self, loaders: Sequence[Loader]) -> list[Loader]:
        shapes = common_shapes(loaders)
        return [loader.in_shapes(shapes) for loader in loaders]

    def batches(self, made: Sequence[tuple[layout.Batch, layout.Accounting]]) -> Batches:
        tall = max(len(batch["encoder_segment_ids"]) for batch, _ in made)
        rows = {
            name: np.zeros((self._height, tall, *array.shape[1:]), array.dtype)
            for name, array in made[0][0].items()
        }
        for run, (batch, _) in enumerate(made):
            for name, array in batch.items():
                rows[name][run, : len(array)] = array
        return Batches(rows, [account for _, account in made])

    def length(self, methods: Sequence[Method]) -> list[int]:
        """Rows of each run's bank: the longest prompt's.

        Raises:
            UserError: lengths differ, and an optimizer would count rows that are not its own.
        """
        parts = {tuple(part.length for part in getattr(m.bank, "parts", ())) for m in methods}
        if len(parts) > 1:
            raise UserError(
                f"banks of {sorted(parts)} rows cannot be trained at once; set Fleets.map = 'loop'"
            )
        longest = max(method.slots for method in methods)
        for method in methods:
            optimizers = (method.trainable.optimizer, *method.trainable.groups.values())
            if method.slots == longest:
                continue
            why = "factored moments and parameter scale count the rows of the longest"
            if not method.bank.pads or len(method.phases) > 1:
                why = f"the leaves of {method.name} cannot be filled up"
            elif all(each.pads for each in optimizers):
                continue
            raise UserError(
                f"prompts of {method.slots} and {longest} vectors cannot be trained at once: "
                f"{why}; set Fleets.map = 'loop'"
            )
        return [longest] * len(methods)

    def join(self, states: Sequence[TrainState]) -> Any:
        filled = [*states, *[states[-1]] * (self._height - self.size)]
        stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *filled)
        return jax.device_put(stacked, self._along)

    def take(self, state: Any, run: int) -> TrainState:
        return _take(state, run)

    def copies(self, frozen: Tree) -> list[Tree]:
        return [frozen] * self.size

    def step(
        self, model: Model, optimizer, num_microbatches: int, timed: Callable, kind: str
    ) -> Callable:
        several = functools.partial(
            train_step_at_once, model, optimizer, num_microbatches, kind=kind
        )
        if self.shardings.row_shards > 1:
            several = jax.shard_map(
                several,
                mesh=self.shardings.mesh,
                in_specs=(ROWS, PartitionSpec(), ROWS, ROWS),
                out_specs=ROWS,
                axis_names={"slice", "data"},
                check_vma=False,
            )
        together = timed(jax.jit(several, donate_argnums=0))

        def step(state, frozen, rows, learning):
            awake = np.zeros(self._height, bool)
            awake[: self.size] = learning
            rows, awake = jax.device_put((rows, awake), self._along)
            return together(state, frozen[0], rows, awake)

        return step

    def numbers(self, numbers: Any) -> list[dict[str, float] | None]:
        found = jax.device_get(numbers)
        runs = range(self.size)
        return [{name: float(values[run]) for name, values in found.items()} for run in runs]


class FleetLoader:
    """The batches of all runs of a fleet, step by step."""

    def __init__(self, loaders: Sequence[Sequence[Loader]], stages: Sequence[Stage], fleet: Fleet):
        """Takes each run's loader in each of the stages."""
        self.loaders, self._stages = [fleet.loaders(own) for own in loaders], stages
        self._fleet = fleet

    def batch(self, step: int) -> Batches:
        """Every run's batch of the step that follows `step` others."""
        last = self._stages[-1].last  # a prefetch looks further
        own = self.loaders[stage_of(self._stages, min(step + 1, last)).number]
        return self._fleet.batches([loader.batch(step) for loader in own])


def make_fleet(size: int, how: str, shardings: Shardings) -> Fleet:
    """The fleet of R runs.

    Args:
        size: R.
        how: "loop", "vmap", or "auto": a loop on a CPU, where it is the faster one.
        shardings: of the mesh.

    Raises:
        UserError: an unknown `how`; several processes, or frozen weights split over `data`, with
            more than one run.
    """
    if how not in MAPS:
        raise UserError(f"Fleets.map = {how!r}: {nearest(how, MAPS)}")
    if size > 1 and jax.process_count() > 1:
        raise UserError(
            f"a fleet of {size} runs on {jax.process_count()} processes: fleets are of one "
            "process; start the study once on each host"
        )
    if size > 1 and shardings.over_data and shardings.row_shards > 1:
        raise UserError(
            f"Parallel.shard_frozen_over_data with a fleet of {size} runs: each device trains "
            "runs of its own; set Fleets.size = 1"
        )
    at_once = how == "vmap" or (how == "auto" and jax.default_backend() != "cpu")
    return AtOnce(size, shardings) if at_once and size > 1 else Fleet(size, shardings)


@jax.jit
def _take(tree, run):
    return jax.tree.map(lambda leaf: leaf[run], tree)


def pad(method: Method, leaves: Tree, length: int) -> Tree:
    """A run's leaves with its bank filled up to `length` rows."""
    if method.slots == length:
        return leaves
    path = f"{OWN}{method.bank.name}"
    return {**leaves, path: method.bank.pad(leaves[path], length)}


def trim(method: Method, leaves: Tree) -> Tree:
    """The inverse of `pad`."""
    path = f"{OWN}{method.bank.name}" if method.bank and method.bank.pads else None
    if path not in leaves:  # it need not train
        return leaves
    return {**leaves, path: method.bank.trim(leaves[path])}


def first_state(
    run: Any, trainable: Tree, buffers: Tree, shardings: Shardings, length: int
) -> tuple[Any, TrainState]:
    """A run's optimizer and its state before the first step with these leaves.

    Args:
        run: `train.Run`.
        trainable: leaves that move, padded.
        buffers: its other leaves.
        shardings: where they live.
        length: rows of the bank.
    """
    places = {path: shardings.trainable(path, leaf.shape) for path, leaf in trainable.items()}
    trainable = jax.device_put(trainable, places)
    optimizer = run.method.trainable.build(trainable, live(run.method, length))
    fresh = jax.jit(init_state, static_argnums=(1, 2))
    state = fresh(trainable, optimizer, run.random_seed, buffers)
    return optimizer, jax.device_put(state, shardings.state(state, trainable))


def live(method: Method, length: int) -> float:
    """The share of a bank of `length` rows that is a method's own."""
    return method.slots / length if length else 1.0
