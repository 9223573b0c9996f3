"""Runs that are trained as one program: R of them side by side, on one copy of the backbone.

A single run is a fleet of one, whose arrays have no axis of runs. Of several, every array that a
run owns (leaves, optimizer state, key, batch) is stacked along a first axis; `loop` maps the step
over it one run after the other (the numbers of single runs, to the bit), `vmap` all at once.
On several devices the axis is split: each device trains its share of the runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prompt_jax.assemble import Method, Model, Tree
from prompt_jax.data import layout
from prompt_jax.data.loader import Loader, common_shapes
from prompt_jax.errors import UserError, nearest
from prompt_jax.parallel.mesh import ROWS, Shardings
from prompt_jax.step import fleet_step, jit_train_step

MAPS = ("auto", "loop", "vmap")


def choose_map(asked: str) -> str:
    """`loop` on a CPU, where it is the faster one, else `vmap`; or what is asked for.

    Raises:
        UserError: it is none of MAPS.
    """
    if asked not in MAPS:
        raise UserError(f"Fleets.map = {asked!r}: {nearest(asked, MAPS)}")
    if asked != "auto":
        return asked
    return "loop" if jax.default_backend() == "cpu" else "vmap"


def common_method(methods: Sequence[Method]) -> Method:
    """The method whose prompt is the longest; shorter prompts use the first rows of its bank.

    Raises:
        UserError: lengths differ, and a method's optimizer would see rows that are not its own.
    """
    longest = max(methods, key=lambda method: method.slots)
    for method in methods:
        optimizers = (method.trainable.optimizer, *method.trainable.groups.values())
        if method.slots != longest.slots and not all(each.pads for each in optimizers):
            raise UserError(
                f"prompts of {method.slots} and {longest.slots} vectors cannot share a fleet: "
                "factored moments and parameter scale count the rows of the longest"
            )
    return longest


class Batches(NamedTuple):
    """A step's batches.

    rows: arrays [R, B, ...], or those of the only run. height: rows that each run's batch takes.
    accounts: of each run.
    """

    rows: layout.Batch
    height: list[int]
    accounts: list[layout.Accounting]


class FleetLoader:
    """The batches of all runs of a fleet, step by step; all lie in the same shapes."""

    def __init__(self, loaders: Sequence[Loader], fleet: "Fleet"):
        """Takes each run's loader."""
        self.shapes = common_shapes(loaders)
        self.loaders = [loader.in_shapes(self.shapes) for loader in loaders]
        self.heights = list(self.shapes.counts)
        self._fleet = fleet

    def batch(self, step: int) -> Batches:
        """Every run's batch of a step, run r's in `rows[r]`."""
        made = [loader.batch(step) for loader in self.loaders]
        accounts = [account for _, account in made]
        if self._fleet.size == 1:
            return Batches(made[0][0], [0], accounts)
        heights = [len(batch["encoder_segment_ids"]) for batch, _ in made]
        self.heights = sorted({*self.heights, *heights})
        tall = self.heights[-1] if self._fleet.map == "loop" else max(heights)
        places = self._fleet.places
        rows = {
            name: np.zeros((places, tall, *array.shape[1:]), array.dtype)
            for name, array in made[0][0].items()
        }
        for at, (batch, _) in enumerate(made):
            for name, array in batch.items():
                rows[name][at, : len(array)] = array
        return Batches(rows, heights, accounts)


@dataclasses.dataclass(frozen=True)
class Fleet:
    """How R runs lie side by side.

    Attributes:
        size: R.
        map: "loop" or "vmap".
        shardings: of the mesh.
    """

    size: int
    map: str
    shardings: Shardings

    @functools.cached_property
    def places(self) -> int:
        """R, filled up so that each device has as many runs."""
        return 1 if self.size == 1 else layout.round_up(self.size, self.shardings.row_shards)

    @functools.cached_property
    def _along(self) -> NamedSharding:
        return NamedSharding(self.shardings.mesh, ROWS)

    def check(self) -> None:
        """Refuses what a fleet of several runs cannot do.

        Raises:
            UserError: several processes, or frozen weights split over `data`.
        """
        if self.size == 1:
            return
        if jax.process_count() > 1:
            raise UserError(
                f"a fleet of {self.size} runs on {jax.process_count()} processes: fleets are of "
                "one process; start the study once on each host"
            )
        if self.shardings.over_data and self.shardings.row_shards > 1:
            raise UserError(
                f"Parallel.shard_frozen_over_data with a fleet of {self.size} runs: each device "
                "trains runs of its own; set Fleets.size = 1"
            )

    def stack(self, trees: Sequence[Any]) -> Any:
        """The runs' trees as one; of a single run its own."""
        if self.size == 1:
            return trees[0]
        filled = [*trees, *[trees[-1]] * (self.places - self.size)]
        stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *filled)
        return jax.device_put(stacked, self._along)

    def take(self, tree: Any, run: int) -> Any:
        """One run's tree."""
        return tree if self.size == 1 else _take(tree, run)

    def numbers(self, numbers: dict[str, Any]) -> list[dict[str, float]]:
        """A step's numbers on the host, a dict for each run; waits for the step."""
        found = {name: np.atleast_1d(value) for name, value in jax.device_get(numbers).items()}
        return [
            {name: float(each[run]) for name, each in found.items()} for run in range(self.size)
        ]

    def step(self, model: Model, optimizer, num_microbatches: int, timed: Callable):
        """`(state, frozen, batches, learning, heights) -> (state, numbers)`, compiled.

        `learning` says which runs still train: the state of the others stays. `timed` wraps the
        compiled function (see `ledger.Clock.compiles`).
        """
        if self.size == 1:
            alone = timed(jit_train_step(model, optimizer, num_microbatches))

            def step(state, frozen, batches, learning, heights):
                del learning, heights
                return alone(state, frozen, self.shardings.put_batch(batches.rows))

            return step
        at_once = self.map == "vmap"
        several = functools.partial(fleet_step, model, optimizer, num_microbatches, at_once)
        together = timed(self._jit(several))

        def step(state, frozen, batches, learning, heights):
            choice = np.zeros(self.places, np.int32)
            for run in np.flatnonzero(learning):
                choice[run] = 1 + heights.index(batches.height[run])
            rows, choice = jax.device_put((batches.rows, choice), self._along)
            heights = tuple(heights) if self.map == "loop" else ()
            return together(heights, state, frozen, rows, choice)

        return step

    def _jit(self, several):
        """Compiles a step of several runs; on several devices each takes its share of them."""

        @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
        def step(heights, *args):
            mapped = functools.partial(several, heights)
            if self.shardings.row_shards > 1:
                mapped = jax.shard_map(
                    mapped,
                    mesh=self.shardings.mesh,
                    in_specs=(ROWS, PartitionSpec(), ROWS, ROWS),
                    out_specs=ROWS,
                    axis_names={"slice", "data"},
                    check_vma=False,
                )
            return mapped(*args)

        return step


@jax.jit
def _take(tree, run):
    return jax.tree.map(lambda leaf: leaf[run], tree)


def pad(method: Method, leaves: Tree, length: int) -> Tree:
    """A run's leaves with its bank filled up to the fleet's longest prompt."""
    if method.slots == length:
        return leaves
    return {k: method.bank.pad(leaf, length) if _of_bank(k) else leaf for k, leaf in leaves.items()}


def trim(method: Method, leaves: Tree) -> Tree:
    """The inverse of `pad`."""
    if not method.bank:
        return leaves
    return {k: method.bank.trim(leaf) if _of_bank(k) else leaf for k, leaf in leaves.items()}


def _of_bank(path: str) -> bool:
    return path.startswith("prompt/")


def live(method: Method, length: int) -> float:
    """The share of a bank of `length` rows that is a method's own."""
    return method.slots / length if length else 1.0
