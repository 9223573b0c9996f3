"""The real step, lowered and compiled for devices that need not be here, without one weight."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_jax.assemble import assemble
from prompt_jax.data import layout
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.plan import hlo
from prompt_jax.plan.cost import Batch, Mesh
from prompt_jax.step import init_state, jit_train_step

Shapes = dict[str, Any]  # path -> shape and dtype


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one device.

    Attributes:
        fits: whether it was compiled, that is: whether its memory suffices.
        needs: bytes, all told; of what was refused, as far as the compiler says.
        available: bytes that the compiler has to give; 0 where it sets no limit.
        frozen: bytes of frozen weights at rest.
        state: bytes of trainable leaves, optimizer state and counters.
        batch: bytes of the rows.
        temporaries: bytes of activations and scratch.
        program: bytes of code.
        collectives: by kind and reach: what is sent a step.
        lower_seconds: to trace and lower.
        compile_seconds: to compile, or to be refused.
        estimated: nothing was compiled; `needs` and `temporaries` are formulas'.
    """

    fits: bool
    needs: int
    available: int = 0
    frozen: int = 0
    state: int = 0
    batch: int = 0
    temporaries: int = 0
    program: int = 0
    collectives: tuple[dict, ...] = ()
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    estimated: bool = False


@dataclasses.dataclass(frozen=True)
class Leaves:
    """Shapes of all that a run holds, wherever it will lie.

    Attributes:
        frozen: by path, in the storage dtype.
        trainable: by path, float32.
        optimizer: over `trainable`.
        state: before the first step.
    """

    frozen: Shapes
    trainable: Shapes
    optimizer: Any
    state: Any


def leaves(run: Any) -> Leaves:
    """What a run holds.

    Args:
        run: `train.Run`.
    """
    model = assemble(run.backbone.config, run.method)
    params = {**model.backbone_shapes(), **model.prompt_shapes()}
    frozen, trainable, buffers = run.method.trainable.split(params)
    trainable = {k: jax.ShapeDtypeStruct(v.shape, jnp.float32) for k, v in trainable.items()}
    optimizer = run.method.trainable.build(trainable)
    fresh = lambda own, still: init_state(own, optimizer, 0, still)  # noqa: E731
    state = jax.eval_shape(fresh, trainable, buffers)
    return Leaves(frozen, trainable, optimizer, state)


def arguments(held: Leaves, batch: Batch, shardings: Shardings) -> tuple[Any, Shapes, Shapes]:
    """The step's arguments (state, frozen, batch), each shape with the place `train` gives it."""

    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    frozen = {k: placed(v, shardings.frozen(k, v.shape)) for k, v in held.frozen.items()}
    state = jax.tree.map(placed, held.state, shardings.state(held.state, held.trainable))
    arrays = layout.assemble([], [], [], (batch.rows, batch.inputs, batch.targets))
    return state, frozen, {k: placed(v, shardings.rows) for k, v in arrays.items()}


def shardings_of(mesh: Mesh, devices: list) -> Shardings:
    """Where arrays go on a mesh over `devices`."""
    parallel = Parallel(mesh.data, mesh.model, mesh.over_data, mesh.slices)
    return Shardings(parallel.mesh(devices), mesh.over_data)


def compile_step(run: Any, batch: Batch, mesh: Mesh, devices: list, slices: int = 1) -> Compiled:
    """Compiles the run's training step for `devices`.

    Args:
        run: `train.Run`.
        batch: the rows.
        mesh: how they are spread, and what is recomputed.
        devices: slice after slice.
        slices: how many there are.

    Returns:
        The compiler's account; `fits=False` where it refuses for lack of memory.
    """
    began = time.perf_counter()
    shardings = shardings_of(mesh, devices)
    config = dataclasses.replace(run.backbone.config, remat=mesh.remat)
    model = assemble(config, run.method, shardings.fetch_layer)
    held = leaves(run)
    state, frozen, rows = arguments(held, batch, shardings)
    step = jit_train_step(model, held.optimizer, run.num_microbatches)
    lowered = step.lower(state, frozen, rows)
    lower_seconds = time.perf_counter() - began
    began = time.perf_counter()
    parts = {"frozen": shard_bytes(frozen), "state": shard_bytes(state)}
    parts["batch"] = shard_bytes(rows)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs, available = refusal(str(error), sum(parts.values()))
        seconds = time.perf_counter() - began
        clock = {"lower_seconds": lower_seconds, "compile_seconds": seconds}
        return Compiled(False, needs, available, **parts, **clock)
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    parts["temporaries"] = memory.temp_size_in_bytes
    parts["program"] = memory.generated_code_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        True,
        sum(parts.values()) + fresh,
        **parts,
        collectives=summary(compiled.as_text(), len(devices), slices),
        lower_seconds=lower_seconds,
        compile_seconds=seconds,
    )


def count(tree: Shapes) -> int:
    """How many numbers the leaves hold."""
    return sum(int(np.prod(leaf.shape)) for leaf in tree.values())


def shard_bytes(tree: Any) -> int:
    """Bytes on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def summary(text: str, devices: int, slices: int) -> tuple[dict, ...]:
    """Collectives of a program, summed by kind and by whether they cross slices."""
    per_slice = devices // slices if slices > 1 else 0
    sums: dict[tuple[str, bool], dict] = {}
    for each in hlo.collectives(text, devices, per_slice):
        zero = {"kind": each.kind, "crosses": each.crosses, "calls": 0, "bytes": 0, "sent": 0.0}
        entry = sums.setdefault((each.kind, each.crosses), zero)
        entry["calls"] += each.times
        entry["bytes"] += each.bytes * each.times
        entry["sent"] += each.sent
    return tuple(sorted(sums.values(), key=lambda entry: -entry["sent"]))


def refusal(message: str, held: int) -> tuple[int, int]:
    """(bytes needed, bytes there) from the compiler's refusal.

    Args:
        message: the compiler's.
        held: bytes of weights, state and batch, which some of its messages leave out.
    """
    size = r"([\d.]+)([KMGT]?)"
    temporaries = re.search(rf"temporaries \({size}\) exceeds available HBM \({size}\)", message)
    match = temporaries or re.search(rf"[Uu]sed {size} of {size} hbm", message)
    if match is None:
        return held, 0
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needs, available = (int(float(match[n]) * units[match[n + 1]]) for n in (1, 3))
    return needs + (held if temporaries else 0), available
