"""run(): build, restore, loop, evaluate, save, as labelled sections."""

import contextlib
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from prompt_jax import evaluate, ledger
from prompt_jax.assemble import Method, Model, Tree, assemble
from prompt_jax.backbone import Backbone, Opened, open_backbone
from prompt_jax.ckpt import save_result, tree
from prompt_jax.ckpt.store import Store
from prompt_jax.data import cache
from prompt_jax.data.loader import Data
from prompt_jax.data.open import open_loader, open_tokens
from prompt_jax.data.vocabulary import Vocabulary
from prompt_jax.errors import Interrupted, UserError, nearest
from prompt_jax.parallel import multihost
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.parallel.rules import undivided
from prompt_jax.progress import Profile, Progress, Signals, log, summary
from prompt_jax.step import INIT, init_state, jit_train_step, purpose_key


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


# What may differ when a run is started again in its MODEL_DIR: none of it changes a number.
RESTARTABLE = (
    "Run.train_steps",
    "Run.checkpoint_period",
    "Run.log_period",
    "Run.final_splits",
    "Run.transfer_tasks",
    "Run.keep_latest",
    "Run.keep_best",
    "Run.model_dir",
    "Run.distributed",
    "Run.profile_steps",
    "Parallel.",
    "Distributed.",
)


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
    check(resolved.run)
    with multihost.joined(resolved.run.distributed, facts(resolved)) as hosts:
        return train(resolved, hosts)


def train(resolved, hosts: multihost.Hosts) -> dict[str, Any]:
    """What `run` does, once all processes are there."""
    run, clock, first = resolved.run, ledger.Clock(), jax.process_index() == 0

    # --- model, weights, data ---------------------------------------------------------------
    mesh = run.parallel.mesh()
    shardings = Shardings(mesh, run.parallel.shard_frozen_over_data)
    check_mesh(run, shardings)
    multihost.check_shared(run.model_dir)
    model = assemble(run.backbone.config, run.method, shardings.fetch_layer)
    opened = open_backbone(run.backbone, model, shardings)
    blocks = shardings.own_blocks, shardings.row_shards
    rows = shardings.row_shards * run.num_microbatches
    loader = open_loader(run.data, opened.vocabulary, run.method.slots, blocks, rows)
    check_tasks(run, opened.vocabulary)
    multihost.same_on_all(
        {
            "backbone": opened.fingerprint,
            "vocabulary": opened.vocabulary.fingerprint,
            "data": loader.fingerprint,
        }
    )
    if first:
        claim(resolved)  # only now: a start that fails above leaves MODEL_DIR free
    log.info("%s", banner(run, opened, shardings, loader))
    shapes = {path: leaf.shape for path, leaf in opened.params.items()}
    for path in undivided(shapes, dict(mesh.shape)):
        log.info("%s %s does not divide over `model` and stays whole", path, shapes[path])

    # --- state: fresh, or where the last process stopped --------------------------------------
    optimizer, state, frozen, start = init(run, model, opened, shardings)
    store = Store(f"{run.model_dir}/checkpoints", run.keep_latest, run.keep_best)
    hosts.on_end(store.last_good)
    best, stale, done = None, 0, {}
    if store.latest_step is not None:
        restored = store.restore(store.latest_step, state)
        check_restored(restored.extra, opened, run)
        state, best, stale = restored.state, restored.extra["best"], restored.extra["stale"]
        done = restored.extra["done"]
        log.info("continuing at step %d of %d", int(state.step), run.train_steps)
    if first:
        save_result.save_init(run.model_dir, model, start)
    context = evaluate.Context(run, model, opened, shardings, frozen)
    record = new_record(resolved, opened, state.trainable)

    # --- loop: step n is dispatched before the numbers of step n - 1 are read ----------------
    step_fn = clock.compiles(jit_train_step(model, optimizer, run.num_microbatches))
    step = int(state.step)
    progress = Progress(run.model_dir, run.train_steps, step, clock, start, done)
    profile = Profile(run.model_dir, run.profile_steps)
    try:
        with Signals() as signals, loader.iterate(step) as batches, progress, profile:
            while step < run.train_steps and not (run.patience and stale >= run.patience):
                profile.before(step + 1, state)
                batch, accounting = next(batches)
                state, numbers = step_fn(state, frozen, shardings.put_batch(batch))
                step += 1
                last = step == run.train_steps
                progress.add(step, numbers, accounting, batches.waited)
                value = None
                if step % run.log_period == 0 or last:
                    progress.write(step, state.trainable)
                if step % run.eval_period == 0 or last:
                    progress.write(step, state.trainable)
                    metrics = evaluate.run(context, state.trainable, run.eval_split, clock)
                    value = best_value(metrics, run)
                    stale = 0 if best is None or value > best["value"] else stale + 1
                    if best is None or value >= best["value"]:  # of equals the store keeps the last
                        best = {"step": step, "metric": run.best_metric, "value": value}
                    progress.evaluated(step, metrics)
                    record.metrics[run.eval_split] = metrics
                stop = hosts.agree(step, signals.received)
                if value is not None or step % run.checkpoint_period == 0 or stop:
                    progress.settle()
                    store.save(step, state, extra(opened, run, best, stale, progress.done), value)
                if stop:
                    store.wait()
                    raise Interrupted(stop, f"saved step {step}; the same command goes on")

        # --- finish: the best checkpoint, its numbers, the files a user takes away ------------
        store.wait()
        last_trainable = state.trainable
        if best is not None and best["step"] != step:
            state = store.restore(best["step"], state).state
        record.prompt_file = save_result.save(
            run.model_dir, model, opened, state.trainable, last_trainable
        )
        record.files = save_result.digests(run.model_dir) if first else {}
        for split in (run.eval_split, *run.final_splits):
            record.metrics[split] = evaluate.run(context, state.trainable, split, clock)
        for task in run.transfer_tasks:
            there = evaluate.on_task(context, task)
            metrics = evaluate.run(there, state.trainable, run.eval_split, clock)
            record.metrics[f"{task}/{run.eval_split}"] = metrics
    except BaseException as error:
        record.status = "interrupted" if isinstance(error, Interrupted) else "failed"
        record.reason = str(error) or type(error).__name__
        if isinstance(error, OSError):  # a full disk, a lost mount
            raise store.failure(step, error) from error
        raise
    finally:
        record.best = best
        progress.fill(record)
        with contextlib.nullcontext() if record.status == "ok" else contextlib.suppress(OSError):
            if first:
                written = record.write(f"{run.model_dir}/record.json")
    store.close()
    if first:
        print(summary(record, run.model_dir))
    return written if first else record.as_dict()


def facts(resolved) -> dict[str, Any]:
    """What must be the same on all processes of a run, before a device is opened."""
    own = ("Run.distributed", "Distributed.")
    flat = {key: value for key, value in resolved.flat().items() if not key.startswith(own)}
    return {**flat, "prompt_jax": ledger.code_version(), "jax": jax.__version__}


def check(run: Run) -> None:
    """Refuses what cannot work, before anything is opened.

    Raises:
        UserError: periods, counts or parts that contradict each other.
    """
    if run.train_steps < 0:
        raise UserError(f"TRAIN_STEPS = {run.train_steps}: 0 evaluates the start, else a count")
    for name in ("eval_period", "checkpoint_period", "log_period"):
        if getattr(run, name) < 1:
            raise UserError(f"Run.{name} = {getattr(run, name)}: must be at least 1")
    if run.num_microbatches < 1:
        raise UserError(f"NUM_MICROBATCHES = {run.num_microbatches}: must be at least 1")
    if run.train_steps > 1_000_000 and run.backbone.checkpoint:
        log.warning(
            "TRAIN_STEPS = %d counts this run's steps alone (T5X's count includes pretraining)",
            run.train_steps,
        )
    if run.num_microbatches > run.data.batch_size:
        raise UserError(
            f"NUM_MICROBATCHES = {run.num_microbatches} of BATCH_SIZE = {run.data.batch_size}: "
            "some would hold no example"
        )
    if run.profile_steps is not None and min(run.profile_steps) < 1:
        raise UserError(f"PROFILE_STEPS = {run.profile_steps}: (first, count), from step 1")
    if run.backbone.config.param_dtype == "int8":
        paths = ["/".join(("backbone", *leaf.path)) for leaf in tree.leaves(run.backbone.config)]
        moved = [path for path, group in run.method.trainable.labels(paths).items() if group]
        if moved:
            raise UserError(
                "T5Config.param_dtype = 'int8' is for frozen weights, but "
                f"{run.method.name} trains {moved[0]}; use 'bfloat16' or 'float32'"
            )
    if bool(run.method.bank) != bool(run.method.inject):
        raise UserError("Method.bank and Method.inject go together: set both, or neither")


def check_mesh(run: Run, shardings: Shardings) -> None:
    """Refuses devices that would have nothing of their own to do, before anything is compiled.

    Raises:
        UserError: with the numbers that do not go together.
    """
    model, config = run.parallel.model, run.backbone.config
    sizes = {name: getattr(config, name) for name in ("num_heads", "mlp_dim", "vocab_size")}
    if all(size % model for size in sizes.values()):
        shown = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise UserError(f"Parallel.model = {model} divides none of {shown}")
    if run.data.batch_size < shardings.row_shards:
        raise UserError(
            f"BATCH_SIZE = {run.data.batch_size} gives some of {shardings.row_shards} devices "
            "along the batch no example; lower Parallel.data, or raise Parallel.model"
        )


def check_tasks(run: Run, vocabulary: Vocabulary) -> None:
    """Reads all that will be evaluated, so that nothing of it fails after hours of training.

    Raises:
        UserError: a metric that the evaluators do not give; a split or task that is not here, has
            no labels, or no `inputs`.
    """
    data = run.data
    names = [each.metric_names(run) for each in run.evaluators if hasattr(each, "metric_names")]
    known = [name for found in names for name in found or ()]
    if len(names) == len(run.evaluators) and None not in names and run.best_metric not in known:
        raise UserError(
            f"Run.best_metric = {run.best_metric!r} is not among the metrics of "
            f"{data.mixture_or_task_name}: {nearest(run.best_metric, known)}"
        )
    evaluated = [(data.mixture_or_task_name, s) for s in (run.eval_split, *run.final_splits)]
    evaluated += [(name, run.eval_split) for name in run.transfer_tasks]
    for name, split in evaluated:
        for task in cache.get_tasks(name, data.mixture_or_task_module)[0]:
            tokens = open_tokens(data, task, split, vocabulary)
            if name in run.transfer_tasks and tokens.text_only:
                raise UserError(f"Run.transfer_tasks: task {task!r} has no `inputs`")


def claim(resolved) -> None:
    """Writes `MODEL_DIR/config.gin`, or checks that the run there is this one.

    Raises:
        UserError: MODEL_DIR holds a run with another config; the differing values are shown.
    """
    folder = epath.Path(resolved.run.model_dir)
    flat_file = folder / "config.json"
    flat = json.loads(json.dumps(resolved.flat()))
    if flat_file.exists():
        there = json.loads(flat_file.read_text())
        keys = sorted({*there, *flat})
        changed = [
            f"{key}: {there.get(key)!r} there, {flat.get(key)!r} here"
            for key in keys
            if there.get(key) != flat.get(key) and not key.startswith(RESTARTABLE)
        ]
        if changed:
            raise UserError(
                f"MODEL_DIR {folder} holds a run with another config ({'; '.join(changed[:5])}); "
                "choose another MODEL_DIR or remove that one"
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.gin").write_text(resolved.text)
    flat_file.write_text(json.dumps(flat, indent=1))


def init(run: Run, model: Model, opened: Opened, shardings: Shardings):
    """The state before the first step.

    Returns:
        (optimizer, state, frozen leaves, the prompt's first values on the host).
    """
    key = purpose_key(jax.random.key(run.random_seed), 0, INIT)
    prompt = model.init_prompt(key, opened.init_vocabulary())
    frozen, trainable = run.method.trainable.split({**opened.params, **prompt})
    if not trainable and run.train_steps:
        raise UserError("Trainable.rules leave nothing to train; TRAIN_STEPS=0 evaluates")
    places = {path: shardings.trainable(path, leaf.shape) for path, leaf in trainable.items()}
    copy = lambda tree: {k: jnp.array(leaf, jnp.float32) for k, leaf in tree.items()}  # noqa: E731
    trainable = jax.jit(copy, out_shardings=places)(trainable)
    optimizer = run.method.trainable.build(trainable)
    state = jax.jit(init_state, static_argnums=(1, 2))(trainable, optimizer, run.random_seed)
    state = jax.device_put(state, shardings.state(state, trainable))
    start = {path: np.asarray(leaf) for path, leaf in prompt.items()}
    return optimizer, state, frozen, start


def extra(
    opened: Opened, run: Run, best: dict | None, stale: int, done: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint says beside its arrays; the data position is the step itself."""
    return {
        "backbone": {"path": opened.path, "fingerprint": opened.fingerprint},
        "vocabulary": opened.vocabulary.fingerprint,
        "phase": run.method.phases[0].name,
        "best": best,
        "stale": stale,
        "done": done,
    }


def check_restored(there: dict, opened: Opened, run: Run) -> None:
    """Refuses to go on with another backbone than the one the run began with.

    Raises:
        UserError: with both fingerprints.
    """
    began = there["backbone"]
    if began["fingerprint"] != opened.fingerprint:
        raise UserError(
            f"MODEL_DIR {run.model_dir} was begun on {began['path']} "
            f"(fingerprint {began['fingerprint']}), INITIAL_CHECKPOINT_PATH is now {opened.path} "
            f"({opened.fingerprint})"
        )


def best_value(metrics: dict[str, float], run: Run) -> float:
    """The metric that chooses the best checkpoint.

    Raises:
        UserError: no evaluator computed it.
    """
    if run.best_metric not in metrics:
        raise UserError(
            f"Run.best_metric = {run.best_metric!r} is not among the metrics: "
            f"{nearest(run.best_metric, metrics)}"
        )
    return metrics[run.best_metric]


def new_record(resolved, opened: Opened, trainable: Tree) -> ledger.Record:
    """The ledger record of a run that has not begun."""
    run = resolved.run
    return ledger.Record(
        run=epath.Path(run.model_dir).name,
        method=run.method.name,
        mixture=run.data.mixture_or_task_name,
        backbone={
            "path": opened.path,
            "fingerprint": opened.fingerprint,
            "parameters": opened.parameters,
        },
        trainable_parameters=sum(leaf.size for leaf in trainable.values()),
        config=resolved.flat(),
        config_hash=resolved.hash,
        seed=run.random_seed,
    )


def banner(run: Run, opened: Opened, shardings: Shardings, loader) -> str:
    """What is about to run, in one line."""
    mesh = " x ".join(f"{n} {axis}" for axis, n in shardings.mesh.shape.items())
    t, u = loader.shapes.capacity
    counts = loader.shapes.counts
    return (
        f"{run.method.name} on {run.data.mixture_or_task_name}: {opened.path} "
        f"({opened.parameters:,} parameters, {opened.fingerprint[:12]}), "
        f"{jax.process_count()} process(es), {jax.device_count()} {jax.devices()[0].platform} "
        f"device(s), mesh {mesh}, {run.data.batch_size} examples a batch in "
        f"{'/'.join(map(str, counts))} rows of {t} + {u}, "
        f"{'/'.join(str(count // shardings.row_shards) for count in counts)} a device"
    )
