"""The device mesh (`data`, `model`) and the shardings that follow from it. One device is 1 x 1."""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from prompt_jax.errors import UserError
from prompt_jax.parallel.rules import partition_spec


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How a run is spread over devices.

    Attributes:
        data: devices along the batch; 0 means all that `model` leaves.
        model: devices along heads, MLP width and vocabulary.
        shard_frozen_over_data: frozen weights are also split over `data`; every layer is
            gathered just before its use.
    """

    data: int = 0
    model: int = 1
    shard_frozen_over_data: bool = False

    def mesh(self, devices: list | None = None) -> Mesh:
        """The mesh.

        Raises:
            UserError: the devices do not divide into `data` x `model`.
        """
        devices = list(devices or jax.devices())
        data = self.data or len(devices) // self.model
        if data * self.model > len(devices) or not data:
            raise UserError(
                f"Parallel.data x Parallel.model = {data} x {self.model}, "
                f"but there are {len(devices)} devices"
            )
        grid = np.asarray(devices[: data * self.model]).reshape(data, self.model)
        return Mesh(grid, ("data", "model"))


@dataclasses.dataclass(frozen=True)
class Shardings:
    """Where each array of a run lives.

    Attributes:
        mesh: the devices.
        over_data: frozen weights are split over both axes.
    """

    mesh: Mesh
    over_data: bool = False

    @functools.cached_property
    def replicated(self) -> NamedSharding:
        """The same on every device: prompts, optimizer state, counters."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def rows(self) -> NamedSharding:
        """Batches: rows over `data`."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def leaf(self, path: str, shape: tuple[int, ...], over_data: bool) -> NamedSharding:
        """A parameter by its path."""
        shape_of = dict(self.mesh.shape)
        return NamedSharding(self.mesh, partition_spec(path, shape, shape_of, over_data))

    def frozen(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """A frozen parameter at rest."""
        return self.leaf(path, shape, self.over_data)

    def trainable(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """A parameter that moves: split over `model`, the same along `data`."""
        return self.leaf(path, shape, False)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Host rows -> device arrays, each process giving its own rows."""
        return {
            name: jax.make_array_from_process_local_data(self.rows, array)
            for name, array in batch.items()
        }

    def put_same(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Host rows -> device arrays, every process holding all rows."""
        return {
            name: jax.make_array_from_callback(array.shape, self.rows, array.__getitem__)
            for name, array in batch.items()
        }

    def state(self, state, trainable: dict):
        """The place of each leaf of a train state.

        Leaves under the path and with the shape of a leaf of `trainable` (moments of an optimizer)
        lie as that leaf does; all others are replicated.

        Args:
            state: arrays or shapes.
            trainable: path -> array or shape.

        Returns:
            The structure of `state` with shardings for leaves.
        """

        def place(keys, leaf):
            path = next((k.key for k in reversed(keys) if isinstance(k, DictKey)), None)
            like = trainable.get(path)
            if like is None or like.shape != leaf.shape:
                return self.replicated
            return self.trainable(path, leaf.shape)

        return jax.tree_util.tree_map_with_path(place, state)

    @property
    def fetch_layer(self):
        """How a layer's weights are brought in: gathered over `data`, or left as they are."""
        return self._gather if self.over_data and self.mesh.shape["data"] > 1 else None

    def _gather(self, layer: dict) -> dict:
        """Gathers one layer's weights over `data`, keeping their split over `model`.

        Rules alone would make the compiler move activations instead.
        """

        def constrain(path, leaf):
            name = "/".join(("backbone", *(key.key for key in path)))
            return jax.lax.with_sharding_constraint(leaf, self.leaf(name, leaf.shape, False))

        return jax.tree_util.tree_map_with_path(constrain, layer)
