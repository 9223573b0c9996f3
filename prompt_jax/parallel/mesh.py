"""The device mesh (`slice`, `data`, `model`) and the shardings that follow from it.

One device is 1 x 1 x 1. Rows of a batch lie over `slice` and `data`; frozen weights over `data` and
`model`, so that they never cross the slow network between slices.
"""

import dataclasses
import functools

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from prompt_jax.errors import UserError
from prompt_jax.parallel.rules import partition_spec

AXES = ("slice", "data", "model")
ROWS = PartitionSpec(("slice", "data"))


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How a run is spread over devices.

    Attributes:
        data: devices along the batch, over all slices; 0 means all that `model` leaves.
        model: devices along heads, MLP width and vocabulary.
        shard_frozen_over_data: frozen weights are also split over the `data` of a slice; every
            layer is gathered just before its use.
        num_slices: groups of devices with a slow network between them; 0: as the devices say.
    """

    data: int = 0
    model: int = 1
    shard_frozen_over_data: bool = False
    num_slices: int = 0

    def mesh(self, devices: list | None = None) -> Mesh:
        """The mesh, in the order of the network's topology.

        Raises:
            UserError: the devices do not divide into slices x `data` x `model`, or a process
                would have none.
        """
        devices = list(devices or jax.devices())
        reported = len({getattr(device, "slice_index", 0) for device in devices})
        slices = self.num_slices or reported
        data = self.data or len(devices) // self.model
        asked = f"Parallel.data x Parallel.model = {data} x {self.model}"
        if data * self.model > len(devices) or not data:
            raise UserError(f"{asked}, but there are {len(devices)} devices")
        if data % slices or len(devices) % slices:
            raise UserError(
                f"{asked} on {len(devices)} devices do not divide into {slices} slices; with "
                "Parallel.num_slices=1 the network between them is not treated as slow"
            )
        used = devices[: data * self.model]
        left_out = {d.process_index for d in devices} - {d.process_index for d in used}
        if left_out or (len(used) < len(devices) and jax.process_count() > 1):
            raise UserError(
                f"{asked} leave devices of a process unused: there are {len(devices)} of "
                f"{jax.process_count()} processes"
            )
        shape = (1, data // slices, self.model)
        if len(used) < len(devices) or slices != reported:
            grid = np.asarray(used).reshape(slices, *shape[1:])
        elif slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                shape, (slices, 1, 1), used, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, used, allow_split_physical_axes=True)
        return Mesh(grid, AXES)


def on_host(array: jax.Array) -> np.ndarray:
    """The whole array on every process; where parts lie on other ones, all must call."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@dataclasses.dataclass(frozen=True)
class Shardings:
    """Where each array of a run lives.

    Attributes:
        mesh: the devices.
        over_data: frozen weights are split over both `data` and `model`.
    """

    mesh: Mesh
    over_data: bool = False

    @functools.cached_property
    def replicated(self) -> NamedSharding:
        """The same on every device: prompts, optimizer state, counters."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def rows(self) -> NamedSharding:
        """Batches: rows over `slice` and `data`."""
        return NamedSharding(self.mesh, ROWS)

    @functools.cached_property
    def row_shards(self) -> int:
        """Into how many blocks the rows of a batch are split."""
        return self.mesh.shape["slice"] * self.mesh.shape["data"]

    @functools.cached_property
    def own_blocks(self) -> tuple[int, ...]:
        """The blocks of rows that this process's devices hold, in order.

        Where `model` spans processes, several hold the same block.
        """
        index = self.rows.addressable_devices_indices_map((self.row_shards,)).values()
        return tuple(sorted({rows.indices(self.row_shards)[0] for (rows,) in index}))

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
        """Host rows -> device arrays, each process giving those of its `own_blocks`."""
        place = {block: at for at, block in enumerate(self.own_blocks)}

        def put(array):
            height = len(array) // len(place)

            def block(index):
                at = place[(index[0].start or 0) // height] * height
                return array[at : at + height]

            shape = (height * self.row_shards, *array.shape[1:])
            return jax.make_array_from_callback(shape, self.rows, block)

        return {name: put(array) for name, array in batch.items()}

    def put_whole(self, tree):
        """Host arrays that every process holds -> the same on every device."""
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(
                np.shape(x), self.replicated, np.asarray(x).__getitem__
            ),
            tree,
        )

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
