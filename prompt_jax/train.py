"""run(): build, restore, loop, evaluate, save, as labelled sections."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from prompt_jax import checks, evaluate, ledger
from prompt_jax.assemble import Method, Model, assemble
from prompt_jax.backbone import Backbone, Opened, open_backbone
from prompt_jax.ckpt import save_result
from prompt_jax.ckpt.store import Store
from prompt_jax.data.loader import Data, Loader, Prefetch
from prompt_jax.data.open import open_loader
from prompt_jax.errors import Interrupted, UserError
from prompt_jax.fleet import Fleet, FleetLoader, first_state, make_fleet, pad
from prompt_jax.member import Member, Members
from prompt_jax.parallel import multihost
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.parallel.rules import undivided
from prompt_jax.progress import Pace, Profile, Signals, log
from prompt_jax.stages import Stage, stage_of, stages_of
from prompt_jax.step import INIT, purpose_key


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, as gin configures it.

    Attributes:
        backbone: the T5 and where it comes from.
        method: the parts.
        data: task, batch, layout.
        model_dir: everything the run writes (MODEL_DIR).
        train_steps: steps of this run (TRAIN_STEPS), 0 to evaluate the start; a pretrained
            backbone's are not counted.
        eval_period: steps between evaluations (EVAL_PERIOD).
        eval_steps: batches per evaluation, 0 for all (EVAL_STEPS).
        checkpoint_period: steps between checkpoints (CHECKPOINT_PERIOD).
        log_period: steps between lines of the log.
        num_microbatches: parts of a batch computed one after the other (NUM_MICROBATCHES).
        random_seed: of inits, dropout and data order (RANDOM_SEED).
        eval_split: the split that chooses the best checkpoint.
        final_splits: splits on which the best checkpoint is evaluated at the end.
        transfer_tasks: other tasks on which it is evaluated too, without training on them: their
            `eval_split`, in the record under "TASK/SPLIT".
        best_metric: the name of the metric that chooses; higher is better.
        patience: evaluations without a better metric before the run stops, 0 for never.
        evaluators: what an evaluation computes.
        parallel: how the run is spread over devices.
        distributed: the processes that make the run.
        profile_steps: (first, count): a profiler trace of these steps in MODEL_DIR/profile
            (PROFILE_STEPS).
        keep_latest: newest checkpoints kept.
        keep_best: best checkpoints kept.
    """

    backbone: Backbone
    method: Method
    data: Data
    model_dir: str
    train_steps: int
    eval_period: int = 1000
    eval_steps: int = 0
    checkpoint_period: int = 1000
    log_period: int = 10
    num_microbatches: int = 1
    random_seed: int = 0
    eval_split: str = "validation"
    final_splits: tuple[str, ...] = ()
    transfer_tasks: tuple[str, ...] = ()
    best_metric: str = "accuracy"
    patience: int = 0
    evaluators: tuple = (evaluate.TaskMetrics(),)
    parallel: Parallel = Parallel()
    distributed: multihost.Distributed = multihost.Distributed()
    profile_steps: tuple[int, int] | None = None
    keep_latest: int = 2
    keep_best: int = 1

    varies: ClassVar = ("model_dir", "random_seed", "final_splits", "transfer_tasks", "best_metric")


def run(resolved) -> dict[str, Any]:
    """Trains, evaluates and saves one run; starting it again continues where it stopped.

    Args:
        resolved: `config.Resolved`: the typed `run`, its flat config, hash and text.

    Returns:
        The ledger record, as written to `MODEL_DIR/record.json`.

    Raises:
        UserError: something asked for is wrong; nothing has been computed.
        RunFailed: a loss that is not finite, a save that failed, a process that is missing.
        Interrupted: SIGTERM or Ctrl-C, to any process; the state is saved.
    """
    return run_fleet([resolved], resolved.run.model_dir)[0]


def run_fleet(runs: Sequence, folder: str, how: str = "auto") -> list[dict[str, Any]]:
    """The same for several runs that share backbone and shapes, as one program.

    Each writes its record, curve and prompt into its own MODEL_DIR.

    Args:
        runs: `config.Resolved` of each.
        folder: of the fleet: its checkpoints.
        how: "loop", "vmap", or "auto" (see `fleet`).

    Returns:
        The records. A run whose loss is not finite is one with the status `failed`.

    Raises:
        UserError, Interrupted: as `run` does.
        RunFailed: as `run` does, where no run is left.
    """
    for each in runs:
        checks.check(each.run)
    checks.check_alike([each.run for each in runs])
    lead = runs[0]
    with multihost.joined(lead.run.distributed, checks.facts(lead)) as hosts:
        return train(runs, folder, how, hosts)


def train(runs: Sequence, folder: str, how: str, hosts: multihost.Hosts) -> list[dict[str, Any]]:
    """What `run_fleet` does, once all processes are there."""
    run, clock, first = runs[0].run, ledger.Clock(), jax.process_index() == 0

    # --- model, weights, data ---------------------------------------------------------------
    mesh = run.parallel.mesh()
    shardings = Shardings(mesh, run.parallel.shard_frozen_over_data)
    fleet = make_fleet(len(runs), how, shardings)
    checks.check_mesh(run, shardings, fleet.size)
    multihost.check_shared(run.model_dir)
    lengths = fleet.length([each.run.method for each in runs])
    model = assemble(run.backbone.config, run.method, shardings.fetch_layer)
    opened = open_backbone(run.backbone, model, shardings)
    stages = stages_of(run.method.phases, run.train_steps)
    loaders = [open_loaders(runs, opened, fleet, stage.phase) for stage in stages]
    loader = FleetLoader(loaders, stages, fleet)
    for each in runs:
        checks.check_tasks(each.run, opened.vocabulary)
    multihost.same_on_all(
        {
            "backbone": opened.fingerprint,
            "vocabulary": opened.vocabulary.fingerprint,
            "data": " ".join(own.fingerprint for part in loader.loaders for own in part),
        }
    )
    log.info("%s", banner(runs, opened, fleet, loader))
    shapes = {path: leaf.shape for path, leaf in opened.params.items()}
    for path in undivided(shapes, dict(mesh.shape)):
        log.info("%s %s does not divide over `model` and stays whole", path, shapes[path])

    # --- state: fresh, or where the last process stopped --------------------------------------
    store = Store(f"{folder}/checkpoints", run.keep_latest, run.keep_best, fleet.size)
    hosts.on_end(store.last_good)
    begun = zip(runs, loader.loaders[-1], lengths, fleet.places, strict=True)
    optimizer, state, frozen, own = begin(begun, fleet, model, opened)
    for each in runs if first else ():
        checks.claim(each)  # only now: a start that fails above leaves MODEL_DIR free
    members = Members(fleet, own, store.last_good)
    step = store.latest_step or 0
    stage = stage_of(stages, step)
    said = store.said(step) if step else None
    if said:
        checks.check_restored(said, opened, run, stage.phase.name)
    for passed in stages[1 : stage.number + 1]:
        optimizer, state = members.enter(passed, state)
    if said:
        state, clock.earlier = store.restore(step, state).state, said["seconds"]
        for member, theirs in zip(members.all, said["runs"], strict=True):
            member.go_on(step, theirs)
        log.info("continuing at step %d of %d", step, run.train_steps)
    for member in members.all if first else ():
        save_result.save_init(member.run.model_dir, member.model, member.start)

    # --- loop: step n is dispatched before the numbers of step n - 1 are read ----------------
    compiled = functools.partial(step_of, run, model, fleet, clock)
    step_fn = compiled(stage.phase, optimizer)
    pace = Pace(clock, step, run.train_steps)
    profile, error = Profile(run.model_dir, run.profile_steps), None
    try:
        with Signals() as signals, Prefetch(loader, step) as batches, members, profile:
            while step < run.train_steps and members.learning.any():
                while step == stage.last:
                    stage = stages[stage.number + 1]
                    members.settle()
                    optimizer, state = members.enter(stage, state)
                    step_fn = compiled(stage.phase, optimizer)
                profile.before(step + 1, state)
                batch = next(batches)
                state, numbers = step_fn(state, frozen, batch.rows, members.learning)
                step += 1
                members.add(step, numbers, batch.accounts)
                pace.waited(batches.waited)
                evaluates = step % run.eval_period == 0 or step == stage.last
                if evaluates or step % run.log_period == 0:
                    members.write(step, state, pace)
                values = {}
                if evaluates:
                    values = members.evaluate(step, state, clock, stage is stages[-1])
                    pace.reset()
                stop = hosts.agree(step, signals.received)
                if evaluates or step % run.checkpoint_period == 0 or stop:
                    members.settle()
                    store.save(step, state, extra(opened, stage, clock, members), values)
                if stop:
                    store.wait()
                    raise Interrupted(stop, f"saved step {step}; the same command goes on")

        # --- finish: each best step, its numbers, the files a user takes away -----------------
        store.wait()
        at_step = {step: state}
        for number, member in enumerate(members.all):
            if member.failure:
                continue
            best = member.best["step"] if member.best else step
            if best not in at_step:
                at_step[best] = store.restore(best, state).state
            leaves = [fleet.take(at_step[at], number).leaves for at in (best, step)]
            member.finish(*leaves, clock)
    except BaseException as raised:
        error = raised
        if isinstance(error, OSError):  # a full disk, a lost mount
            raise store.failure(step, error) from error
        raise
    finally:
        records = members.write_records(clock, error, f"{folder}/checkpoints")
    store.close()
    return records


def step_of(run: Run, model: Model, fleet: Fleet, clock: ledger.Clock, phase, optimizer):
    """A phase's step, compiled (see `Fleet.step`)."""
    during = dataclasses.replace(model, method=model.method.during(phase))
    return fleet.step(during, optimizer, run.num_microbatches, clock.compiles, phase.kind)


def open_loaders(runs: Sequence, opened: Opened, fleet: Fleet, phase: Any) -> list[Loader]:
    """Each run's loader in a phase; runs that differ in their seed alone share what it read."""
    shardings, made = fleet.shardings, {}
    blocks, rows = ((0,), 1), runs[0].run.num_microbatches
    if fleet.size == 1:  # runs of a fleet are on a device each
        blocks = shardings.own_blocks, shardings.row_shards
        rows *= shardings.row_shards
    loaders = []
    for run in (each.run for each in runs):
        task = phase.task or run.data.mixture_or_task_name
        data = dataclasses.replace(run.data, mixture_or_task_name=task)
        key = repr(dataclasses.replace(data, seed=0)), run.method.slots
        if key not in made:
            slots = run.method.slots, blocks, rows, run.method.first_slot
            made[key] = open_loader(data, opened.vocabulary, *slots)
        loaders.append(made[key].reseeded(data.seed))
    return loaders


def begin(runs: Iterable[tuple], fleet: Fleet, model: Model, opened: Opened):
    """The fleet before the first step.

    Args:
        runs: of each its configuration, its loader, the rows of its bank and its place.
        fleet: how they lie side by side.
        model: the backbone, and a method like theirs.
        opened: the backbone.

    Returns:
        (optimizer, state as `Fleet.join` makes it, frozen leaves where each run is trained, its
        members).

    Raises:
        UserError: an init that does not fit.
    """
    states, members, frozen = [], [], {}
    for each, reads, length, place in runs:
        own = Model(model.network, each.run.method, model.fetch)
        optimizer, state, frozen, start = init(each.run, own, opened, place, length)
        context = evaluate.Context(each.run, model, opened, place, {})
        members.append(Member(each, own, context, start, length))
        members[-1].describe(reads.fingerprint, state.trainable)
        states.append(state)
    copies, made = fleet.copies(frozen), {}
    for member, leaves in zip(members, copies, strict=True):
        # What evaluations compile is shared by the runs of a place.
        member.context.frozen = leaves
        member.context.made = made.setdefault(member.context.shardings.mesh, {})
    return optimizer, fleet.join(states), copies, members


def init(run: Run, model: Model, opened: Opened, shardings: Shardings, length: int = 0):
    """The state before the first step.

    Args:
        run: what to train.
        model: backbone and the run's method.
        opened: the backbone.
        shardings: where leaves live.
        length: rows of the bank, where the fleet's longest prompt has more; 0: the run's own.

    Returns:
        (optimizer, state, frozen leaves, the prompt's first values on the host).
    """
    length = length or run.method.slots
    key = purpose_key(jax.random.key(run.random_seed), 0, INIT)
    prompt = model.init_prompt(key, opened.init_vocabulary(model))
    params = {**opened.params, **prompt}
    frozen, trainable, buffers = run.method.trainable.split(params)
    if not trainable and run.train_steps:
        raise UserError("Trainable.rules leave nothing to train; TRAIN_STEPS=0 evaluates")
    trainable = pad(run.method, _copy(trainable), length)
    optimizer, state = first_state(run, trainable, _copy(buffers), shardings, length)
    start = {path: np.asarray(leaf) for path, leaf in prompt.items()}
    return optimizer, state, frozen, start


@jax.jit
def _copy(tree):
    return {path: jnp.array(leaf, jnp.float32) for path, leaf in tree.items()}


def extra(opened: Opened, stage: Stage, clock: ledger.Clock, members: Members) -> dict[str, Any]:
    """What a checkpoint says beside its arrays."""
    return {
        "backbone": {"path": opened.path, "fingerprint": opened.fingerprint},
        "vocabulary": opened.vocabulary.fingerprint,
        "phase": stage.phase.name,
        "seconds": clock.all(),
        "runs": [member.said() for member in members.all],
    }


def banner(runs: Sequence, opened: Opened, fleet: Fleet, loader: FleetLoader) -> str:
    """What is about to run, in one line."""
    run, mesh = runs[0].run, fleet.shardings.mesh
    sizes = " x ".join(f"{n} {axis}" for axis, n in mesh.shape.items())
    shapes, shards = loader.loaders[-1][0].shapes, fleet.shardings.row_shards
    (t, u), counts = shapes.capacity, shapes.counts
    several = f"{fleet.size} runs ({fleet.map}) of " if fleet.size > 1 else ""
    mixtures = dict.fromkeys(each.run.data.mixture_or_task_name for each in runs)
    each = "" if several else f", {'/'.join(str(count // shards) for count in counts)} a device"
    return (
        f"{several}{run.method.name} on {', '.join(mixtures)}: {opened.path} "
        f"({opened.parameters:,} parameters, {opened.fingerprint[:12]}), "
        f"{jax.process_count()} process(es), {jax.device_count()} {jax.devices()[0].platform} "
        f"device(s), mesh {sizes}, {run.data.batch_size} examples a batch in "
        f"{'/'.join(map(str, counts))} rows of {t} + {u}{each}"
    )
