"""The rows of a step without its data, and the cheapest mesh on which it fits."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from prompt_jax.data import layout
from prompt_jax.errors import UserError
from prompt_jax.plan import cost, lowering
from prompt_jax.plan.cost import Batch, Cost, Mesh
from prompt_jax.plan.lowering import Compiled
from prompt_jax.plan.topology import Topology, devices

TRIES = 4  # compilations of one plan at most: each may take two minutes
REMAT = ("none", "minimal", "full")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a machine.

    Attributes:
        machine: its name, chips and slices.
        parameters: numbers frozen, numbers that train.
        batch: the rows.
        mesh: how they are spread, and what is recomputed.
        flags: what the user has to add to get this mesh.
        cost: by formula.
        compiled: by the compiler.
        seconds: {"compute", "memory", "links", "network"}: the least that each takes a step.
        tried: meshes that the compiler, or else the formula, was asked about.
    """

    machine: Topology
    parameters: tuple[int, int]
    batch: Batch
    mesh: Mesh
    flags: tuple[str, ...]
    cost: Cost
    compiled: Compiled
    seconds: dict[str, float]
    tried: int = 1

    @property
    def roofline(self) -> float:
        """Seconds a step if everything overlaps and nothing is wasted."""
        return max(self.seconds.values())


def rows(run: Any, mesh_data: int, given: int | None = None) -> Batch:
    """The rows that a batch is assumed to take.

    Args:
        run: `train.Run`; its task is not opened.
        mesh_data: devices along the batch.
        given: the user's own number of rows.
    """
    data, slots = run.data, run.method.slots
    limits = data.task_feature_lengths
    inputs, targets = int(limits["inputs"]) + slots, int(limits["targets"])
    multiple = mesh_data * run.num_microbatches
    if data.packing and data.packed_lengths:
        wide, deep = int(data.packed_lengths["inputs"]), int(data.packed_lengths["targets"])
        if inputs > wide or targets > deep:
            raise UserError(
                f"PACKED_LENGTHS {dict(data.packed_lengths)}: an example of {inputs} inputs, its "
                f"prompt included, and {targets} targets does not fit a row"
            )
        need = max(-(-data.batch_size * inputs // wide), -(-data.batch_size * targets // deep))
        assumed = "full rows of examples as long as TASK_FEATURE_LENGTHS allows"
    else:
        # The granularity of a row's capacity in data.layout and data.loader.
        wide = layout.round_up(inputs, 32 if data.packing else 8)
        deep, need = layout.round_up(targets, 8), data.batch_size
        assumed = "one example a row, as long as TASK_FEATURE_LENGTHS allows"
    if given:
        need, assumed = given, "--rows"
    return Batch(layout.round_up(need, multiple), wide, deep, data.batch_size, assumed)


def candidates(run: Any, origins: dict[str, str], machine: Topology, frozen: bool) -> list[Mesh]:
    """The meshes to choose from; what the user has set stays.

    Args:
        run: `train.Run`.
        origins: where each value of the configuration comes from.
        machine: its devices are to be used, all of them.
        frozen: whether any weight is frozen.

    Raises:
        UserError: the user's mesh does not divide the machine.
    """
    count, parallel = machine.chips * machine.slices, run.parallel

    def unset(*keys):
        return all(origins.get(key, "default") == "default" for key in keys)

    remats = REMAT if unset("T5Config.remat") else (run.backbone.config.remat,)
    if not unset("Parallel.data", "Parallel.model", "Parallel.shard_frozen_over_data"):
        data = parallel.data or count // parallel.model
        if data * parallel.model != count:
            raise UserError(
                f"Parallel.data x Parallel.model = {data} x {parallel.model}, but "
                f"--topology={machine.name} has {count} devices"
            )
        over = parallel.shard_frozen_over_data
        return [Mesh(data, parallel.model, over, remat, machine.slices) for remat in remats]
    heads = run.backbone.config.num_heads
    models = [2**n for n in range(9) if count % 2**n == 0 and (heads % 2**n == 0)]
    meshes = []
    for model, over, remat in itertools.product(models, (False, True), remats):
        data = count // model
        # Weights are split over the devices of one slice: they never cross the slow network.
        useless = data == machine.slices or not frozen
        if data % machine.slices == 0 and not (over and useless):
            meshes.append(Mesh(data, model, over, remat, machine.slices))
    return meshes


def seconds(machine: Topology, cost_: Cost, collectives: tuple[dict, ...] | None) -> dict:
    """The least that computing, moving and sending take a step."""
    chip = machine.chip
    near, far = cost_.sent, 0.0
    if collectives is not None:
        near = sum(entry["sent"] for entry in collectives if not entry["crosses"])
        far = sum(entry["sent"] for entry in collectives if entry["crosses"])
    parts = {"compute": (cost_.flops, chip.flops), "memory": (cost_.moved, chip.bandwidth)}
    parts |= {"links": (near, chip.link), "network": (far, chip.network)}
    return {name: amount / rate if rate else 0.0 for name, (amount, rate) in parts.items()}


class _Option(NamedTuple):
    mesh: Mesh
    batch: Batch
    cost: Cost
    at_rest: int


def _estimated(option: _Option) -> Compiled:
    temporaries = int(option.cost.temporaries)
    needs = option.at_rest + temporaries
    return Compiled(True, needs, frozen=option.at_rest, temporaries=temporaries, estimated=True)


def make_plan(
    resolved: Any,
    machine: Topology,
    given_rows: int | None = None,
    compile_step: Callable[..., Compiled | None] = lowering.compile_step,
) -> Plan:
    """The cheapest mesh on which the step fits, compiled.

    Meshes that may fit by estimate are compiled in the order of their estimated time until one
    does; where none may, the one that needs least.

    Args:
        resolved: `config.Resolved`.
        machine: where the run would be.
        given_rows: rows of a batch, where the user knows better.
        compile_step: as `lowering.compile_step`; where it returns None, formulas have to do.

    Raises:
        UserError: the mesh asked for does not divide the machine.
    """
    run, there = resolved.run, devices(machine)
    held = lowering.leaves(run)
    options = []
    for mesh in candidates(run, resolved.origins, machine, bool(held.frozen)):
        batch = rows(run, mesh.data, given_rows)
        arguments = lowering.arguments(held, batch, lowering.shardings_of(mesh, there))
        guess = cost.estimate(
            run.backbone.config,
            held.frozen,
            held.trainable,
            batch,
            mesh,
            run.num_microbatches,
        )
        options.append(_Option(mesh, batch, guess, lowering.shard_bytes(arguments)))
    limit = machine.chip.memory or float("inf")

    def needs(option):
        return option.at_rest + option.cost.temporaries

    # Times are added up, as if nothing overlapped: of two meshes bound by the same thing the
    # lighter one comes first.
    hopeful = [option for option in options if needs(option) <= limit]
    hopeful.sort(key=lambda option: sum(seconds(machine, option.cost, None).values()))
    queue = list(dict.fromkeys((*hopeful[: TRIES - 1], min(options, key=needs))))
    tried = 0
    for option in queue:
        if option.at_rest > limit:
            compiled = Compiled(False, option.at_rest, limit, frozen=option.at_rest)
        else:
            tried += 1
            compiled = compile_step(run, option.batch, option.mesh, there, machine.slices)
            compiled = compiled or _estimated(option)
        if compiled.fits and compiled.needs <= limit:
            break
        compiled = dataclasses.replace(compiled, fits=False)
    compiled = dataclasses.replace(compiled, available=compiled.available or machine.chip.memory)
    sent = None if compiled.estimated else compiled.collectives
    spent = seconds(machine, option.cost, sent)
    flags = _flags(run, option.mesh)
    return Plan(
        machine,
        (lowering.count(held.frozen), lowering.count(held.trainable)),
        option.batch,
        option.mesh,
        flags,
        option.cost,
        compiled,
        spent,
        tried,
    )


def _flags(run: Any, mesh: Mesh) -> tuple[str, ...]:
    """`--gin.` flags that make the run what was planned."""
    flags = []
    if mesh.model != run.parallel.model:
        flags.append(f"--gin.Parallel.model={mesh.model}")
    if mesh.over_data != run.parallel.shard_frozen_over_data:
        flags.append(f"--gin.Parallel.shard_frozen_over_data={mesh.over_data}")
    if mesh.remat != run.backbone.config.remat:
        flags.append(f"--gin.T5Config.remat=\"'{mesh.remat}'\"")
    return tuple(flags)


def remembering(
    folder: str,
    versions: dict[str, str],
    compile_step: Callable[..., Compiled | None] = lowering.compile_step,
) -> Callable[..., Compiled | None]:
    """A `compile_step` that keeps what it found in `folder`, one JSON file each.

    Args:
        folder: made if it is not there.
        versions: of what compiles; others are compiled anew.
        compile_step: asked for what is not in `folder`.
    """

    def remembered(run, batch, mesh, there, slices=1):
        machine = (there[0].device_kind, len(there), str(there[-1]), slices)
        shape = (batch.rows, batch.inputs, batch.targets, run.num_microbatches)
        key = (run.backbone.config, run.method, shape, mesh, machine, versions)
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:20]
        file = pathlib.Path(folder) / f"{name}.json"
        if file.exists():
            kept = json.loads(file.read_text())["compiled"]
            return Compiled(**{**kept, "collectives": tuple(kept["collectives"])})
        compiled = compile_step(run, batch, mesh, there, slices)
        if compiled:
            file.parent.mkdir(parents=True, exist_ok=True)
            about = {"compiled": dataclasses.asdict(compiled), "of": [repr(part) for part in key]}
            file.write_text(json.dumps(about, indent=1))
        return compiled

    return remembered
