"""What a run refuses before it costs anything, each with one line that says what to do."""

import json
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from prompt_jax import ledger, losses
from prompt_jax.alike import common, difference
from prompt_jax.backbone import Opened
from prompt_jax.ckpt import tree
from prompt_jax.data import cache
from prompt_jax.data.open import open_tokens
from prompt_jax.data.vocabulary import Vocabulary
from prompt_jax.errors import UserError, nearest
from prompt_jax.parallel.mesh import Shardings
from prompt_jax.progress import log

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


def facts(resolved) -> dict[str, Any]:
    """What must be the same on all processes of a run, before a device is opened."""
    own = ("Run.distributed", "Distributed.")
    flat = {key: value for key, value in resolved.flat().items() if not key.startswith(own)}
    return {**flat, "prompt_jax": ledger.code_version(), "jax": jax.__version__}


def check(run) -> None:
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
    most, asked = run.method.bank and run.method.bank.most_tokens, run.data.task_feature_lengths
    if most and asked.get("inputs", 0) > most:
        raise UserError(
            f"OFFSET_LENGTH = {most}: {run.method.name} has no row for token {most + 1} of an "
            f"input; TASK_FEATURE_LENGTHS = {asked}"
        )
    for phase in run.method.phases:
        losses.check(run.method.during(phase).losses, run.method.head)
        phase.check(run.method.bank)
    kinds = {phase.kind for phase in run.method.phases} - {"score"}
    for group, optimizer in run.method.trainable.used().items():
        optimizer.build()  # it refuses its own numbers
        if run.train_steps and kinds != {optimizer.kind}:
            raise UserError(
                f"{type(optimizer).__name__} of group {group!r} is for phases of {optimizer.kind}, "
                f"but Method.phases are {[type(phase).__name__ for phase in run.method.phases]}"
            )
    if not (run.method.bank or run.method.head.folds):
        raise UserError(f"{type(run.method.head).__name__} needs a prompt: Method.bank is None")
    run.method.select.check(run.method.bank)
    for evaluator in run.evaluators:
        if hasattr(evaluator, "decoding"):
            evaluator.decoding.check(run.method)
    if bool(run.method.bank) != bool(run.method.inject):
        raise UserError("Method.bank and Method.inject go together: set both, or neither")


def check_alike(runs: Sequence) -> None:
    """Refuses runs that one program cannot train.

    Raises:
        UserError: with the first value that differs where it may not.
    """
    first = common(runs[0])
    for other in map(common, runs[1:]):
        if other != first:
            name, mine, theirs = difference(first, other)
            raise UserError(f"runs of one fleet differ in {name}: {mine!r} and {theirs!r}")


def check_mesh(run, shardings: Shardings, size: int) -> None:
    """Refuses devices that would have nothing of their own to do, before anything is compiled.

    Raises:
        UserError: with the numbers that do not go together.
    """
    model, config = run.parallel.model, run.backbone.config
    sizes = {name: getattr(config, name) for name in ("num_heads", "mlp_dim", "vocab_size")}
    if all(size % model for size in sizes.values()):
        shown = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise UserError(f"Parallel.model = {model} divides none of {shown}")
    if size == 1 and run.data.batch_size < shardings.row_shards:
        raise UserError(
            f"BATCH_SIZE = {run.data.batch_size} gives some of {shardings.row_shards} devices "
            "along the batch no example; lower Parallel.data, or raise Parallel.model"
        )


def check_tasks(run, vocabulary: Vocabulary) -> None:
    """Reads all that a run will evaluate, so that nothing of it fails after hours of training.

    Raises:
        UserError: a metric that the evaluators do not give; a split or task that is not here, has
            no labels, no `inputs`, or no prompt.
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
            run.method.first_slot(task)
            tokens = open_tokens(data, task, split, vocabulary)
            if name in run.transfer_tasks and tokens.text_only:
                raise UserError(f"Run.transfer_tasks: task {task!r} has no `inputs`")
    for evaluator in run.evaluators:
        if hasattr(evaluator, "decoding"):
            most = data.task_feature_lengths["targets"]
            evaluator.decoding.check_labels(vocabulary.encode, most)
    check_labels(run, vocabulary, evaluated)


def check_labels(run, vocabulary: Vocabulary, evaluated: Sequence[tuple[str, str]]) -> None:
    """Reads every target of a run whose head knows labels: one that is none would teach nothing.

    Raises:
        UserError: a target that is no label, or is cut by TASK_FEATURE_LENGTHS.
    """
    data, head = run.data, run.method.head
    if not head.labels:
        return
    trained = [(phase.task or data.mixture_or_task_name) for phase in run.method.phases]
    splits = dict.fromkeys([*((name, data.split) for name in trained), *evaluated])
    most = data.task_feature_lengths["targets"]
    for name, split in splits:
        for task in cache.get_tasks(name, data.mixture_or_task_module)[0]:
            tokens = open_tokens(data, task, split, vocabulary)
            targets = {tuple(map(int, tokens.targets(at))) for at in range(len(tokens))}
            longest = max(map(len, targets), default=0)
            if longest > most:
                raise UserError(
                    f"task {task!r} split {split!r}: a target has {longest} tokens; "
                    f"TASK_FEATURE_LENGTHS = {data.task_feature_lengths} would cut its labels"
                )
            head.check(vocabulary.encode, sorted(targets))


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


def check_restored(there: dict, opened: Opened, run, phase: str) -> None:
    """Refuses to go on with another backbone, or in another phase, than the run was in.

    Args:
        there: what the checkpoint says beside its arrays.
        opened: the backbone.
        run: `train.Run`.
        phase: the name of that which its step is in now.

    Raises:
        UserError: with both.
    """
    if there["phase"] != phase:
        raise UserError(
            f"MODEL_DIR {run.model_dir} stopped in phase {there['phase']!r}; with TRAIN_STEPS = "
            f"{run.train_steps} that step is in phase {phase!r}: go on with the steps it began with"
        )
    began = there["backbone"]
    if began["fingerprint"] != opened.fingerprint:
        raise UserError(
            f"MODEL_DIR {run.model_dir} was begun on {began['path']} "
            f"(fingerprint {began['fingerprint']}), INITIAL_CHECKPOINT_PATH is now {opened.path} "
            f"({opened.fingerprint})"
        )
