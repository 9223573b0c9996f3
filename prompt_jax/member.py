"""One run of a fleet: what is its own. Its curve, best step, record and files."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from prompt_jax import evaluate, ledger
from prompt_jax.assemble import Model, Tree
from prompt_jax.backbone import Opened
from prompt_jax.ckpt import save_result
from prompt_jax.errors import Interrupted, RunFailed, UserError, nearest
from prompt_jax.fleet import Fleet, first_state, trim
from prompt_jax.progress import Pace, Progress, log, span, step_line, summary
from prompt_jax.stages import Stage
from prompt_jax.step import INIT, TrainState, purpose_key


class Member:
    """A run among those that train together."""

    def __init__(self, resolved, model: Model, context: evaluate.Context, start: dict, length: int):
        """A run that has not begun.

        Args:
            resolved: its configuration.
            model: backbone and its own method.
            context: of its evaluations.
            start: first values of the method's own leaves, on the host.
            length: rows of its bank in the fleet.
        """
        self.run, self.model, self.context, self.start = resolved.run, model, context, start
        self._length = length
        self.record = new_record(resolved, context.opened)
        self.best: dict[str, Any] | None = None
        self.stale = 0
        self.failure: RunFailed | None = None
        groups = self.run.method.trainable.labels(start)
        self._moving = {path: leaf for path, leaf in start.items() if groups[path]}
        self.progress = Progress(self.run.model_dir, 0, self._moving, {})

    def describe(self, data: str, trainable: Tree) -> None:
        """Says in the record what the run reads (a fingerprint) and how many numbers it trains."""
        self.record.data = data
        leaves = trim(self.run.method, trainable).values()
        self.record.trainable_parameters = sum(leaf.size for leaf in leaves)

    def go_on(self, step: int, said: dict[str, Any]) -> None:
        """Takes up what a checkpoint says of this run."""
        self.best, self.stale = said["best"], said["stale"]
        self.failure = RunFailed(said["failure"]) if said["failure"] else None
        self.progress = Progress(self.run.model_dir, step, self._moving, said["done"])

    def enter(self, stage: Stage, state: TrainState) -> tuple[Any, TrainState]:
        """Begins a stage: (its optimizer, its state), from the state that the one before left."""
        run, opened = self.run, self.context.opened
        key = purpose_key(jax.random.key(run.random_seed), stage.number, INIT)
        fresh = lambda: self.model.init_prompt(key, opened.init_vocabulary(self.model))  # noqa: E731
        begin = stage.phase.begin
        leaves = begin(state.leaves, fresh) if begin else state.leaves
        _, trainable, buffers = run.method.trainable.split(leaves)
        place = self.context.shardings
        optimizer, new = first_state(run, trainable, buffers, place, self._length)
        self.best, self.stale = None, 0
        return optimizer, dataclasses.replace(new, step=state.step)

    def said(self) -> dict[str, Any]:
        """What a checkpoint says of this run; the data position is the step itself."""
        return {
            "best": self.best,
            "stale": self.stale,
            "failure": str(self.failure) if self.failure else None,
            "done": self.progress.done,
        }

    @property
    def learning(self) -> bool:
        """Whether more steps are to come: it has not failed, nor run out of patience."""
        out_of_patience = self.run.patience and self.stale >= self.run.patience
        return not (self.failure or out_of_patience)

    def evaluate(self, step: int, leaves: Tree, clock: ledger.Clock, final: bool) -> float | None:
        """Evaluates on the split that chooses the best step.

        Args:
            step: the last one.
            leaves: its own, as they are now.
            clock: where the seconds go.
            final: in the last phase; in others no step is the best.

        Returns:
            The metric that chooses, in the last phase.
        """
        metrics = evaluate.run(self.context, leaves, self.run.eval_split, clock)
        self.progress.evaluated(step, metrics)
        self.record.metrics[self.run.eval_split] = metrics
        value = best_value(metrics, self.run)
        if not final:
            return None
        self.stale = 0 if self.best is None or value > self.best["value"] else self.stale + 1
        if self.best is None or value >= self.best["value"]:  # of equals the store keeps the last
            self.best = {"step": step, "metric": self.run.best_metric, "value": value}
        return value

    def finish(self, best: Tree, last: Tree, clock: ledger.Clock) -> None:
        """Evaluates the best leaves, and writes what a user takes away.

        Args:
            best: trainable leaves of the best step.
            last: those of the last.
            clock: where the seconds go.
        """
        run, record = self.run, self.record
        mine = [trim(run.method, leaves) for leaves in (best, last)]
        record.prompt_file = save_result.save(run.model_dir, self.model, self.context.opened, *mine)
        if jax.process_index() == 0:
            record.files = save_result.digests(run.model_dir)
            left = record.prompt_file  # "": nothing was learned
            record.bytes["result"] = ledger.folder_bytes(left) if left else 0
        for split in (run.eval_split, *run.final_splits):
            record.metrics[split] = evaluate.run(self.context, best, split, clock)
        for task in run.transfer_tasks:
            there = evaluate.on_task(self.context, task)
            metrics = evaluate.run(there, best, run.eval_split, clock)
            record.metrics[f"{task}/{run.eval_split}"] = metrics

    def fill(self, seconds: dict[str, float], error: BaseException | None) -> None:
        """Brings the record up to date.

        Args:
            seconds: its share of the fleet's.
            error: why the fleet ends early.
        """
        record, reason = self.record, self.failure or error
        if reason is not None:
            record.status = "interrupted" if isinstance(reason, Interrupted) else "failed"
            record.reason = str(reason) or type(reason).__name__
        record.best, record.seconds = self.best, seconds
        self.progress.fill(record)


class Members(contextlib.ExitStack):
    """The runs of a fleet, in its order."""

    def __init__(self, fleet: Fleet, members: Sequence[Member], last_good: Callable[[], str]):
        """Takes the runs.

        Args:
            fleet: how they lie side by side.
            members: the runs.
            last_good: names the newest checkpoint, for failures.
        """
        super().__init__()
        self.fleet, self.all, self._last_good = fleet, list(members), last_good
        self._pending: tuple | None = None

    def __enter__(self) -> "Members":
        for member in self.all:
            self.enter_context(member.progress)
        return self

    @property
    def learning(self) -> np.ndarray:
        """Which runs still train, bool [R]."""
        return np.array([member.learning for member in self.all])

    def add(self, step: int, numbers: Any, accounts: Sequence[Any]) -> None:
        """Takes a step that was just dispatched; reads the numbers of the one before."""
        learning = self.learning  # of the step that was dispatched
        self.settle()
        self._pending = step, numbers, learning
        for member, account, learns in zip(self.all, accounts, learning, strict=True):
            if learns:
                member.progress.add(step, account)

    def settle(self) -> None:
        """Waits for the last step's numbers and checks them.

        A run whose loss is not finite has failed; the others go on.

        Raises:
            RunFailed: of all runs, none is left.
        """
        if self._pending is None:
            return
        (step, numbers, learning), self._pending = self._pending, None
        found = self.fleet.numbers(numbers)
        for member, mine, learns in zip(self.all, found, learning, strict=True):
            if not (learns and member.learning):
                continue
            try:
                member.progress.settle(step, mine)
            except RunFailed as failure:
                member.failure = failure = RunFailed(f"{failure}; {self._last_good()}")
                log.warning("%s: %s", member.record.run, failure)
        if all(member.failure for member in self.all):
            raise self.all[0].failure

    def write(self, step: int, state: Any, pace: Pace) -> None:
        """Closes a window of steps: rows of the curves, a line in the log."""
        self.settle()
        writing = [m for m in self.all if m.progress.open and m.learning]
        if not writing:
            return
        seconds, data_wait = pace.close()
        rows = []
        for run, member in enumerate(self.all):
            if member in writing:
                leaves = self.fleet.take(state, run).trainable
                rows.append(member.progress.write(step, leaves, seconds, data_wait))
        log.info("%s", step_line(rows, self.all[0].run.train_steps, pace.left(step)))

    def enter(self, stage: Stage, state: Any) -> tuple[Any, Any]:
        """Begins a stage for all runs: (optimizer, state as a step takes it)."""
        begun = [each.enter(stage, self.fleet.take(state, at)) for at, each in enumerate(self.all)]
        return begun[0][0], self.fleet.join([own for _, own in begun])

    def evaluate(self, step: int, state: Any, clock: ledger.Clock, final: bool) -> dict[int, float]:
        """Evaluates every run that still trains.

        Returns:
            run -> the metric that chooses its best step; nothing before the last phase.
        """
        values, shown = {}, {}
        for run, member in enumerate(self.all):
            if member.learning:
                leaves = self.fleet.take(state, run).leaves
                value = member.evaluate(step, leaves, clock, final)
                values.update({run: value} if final else {})
                metrics = member.record.metrics[member.run.eval_split]
                for name, value in metrics.items():
                    shown.setdefault(name, []).append(value)
        line = "  ".join(f"{name} {span(own, '.4f')}" for name, own in shown.items())
        log.info("eval at step %d: %s", step, line)
        return values

    def write_records(
        self, clock: ledger.Clock, error: BaseException | None, checkpoints: str
    ) -> list[dict[str, Any]]:
        """Writes every run's record; of an interrupted fleet as far as the disk lets it.

        Args:
            clock: of the fleet.
            error: why it ended early, or None.
            checkpoints: the fleet's folder of them.
        """
        size = self.fleet.size
        seconds = {name: round(value / size, 3) for name, value in clock.all().items()}
        # After an error a save may still be under way: files come and go.
        whole = jax.process_index() == 0 and not error
        held = ledger.folder_bytes(checkpoints) // size if whole else 0
        written = []
        for at, member in enumerate(self.all):
            member.fill(seconds, error)
            member.record.fleet = {"size": size, "index": at, "map": self.fleet.map}
            member.record.bytes["checkpoints"] = held
            told = member.record.as_dict()
            if jax.process_index() == 0:
                with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                    told = member.record.write(f"{member.run.model_dir}/record.json")
                if not error and size == 1:
                    print(summary(member.record, member.run.model_dir))
            written.append(told)
        return written


def best_value(metrics: dict[str, float], run: Any) -> float:
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


def new_record(resolved, opened: Opened) -> ledger.Record:
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
        vocabulary=opened.vocabulary.fingerprint,
        config=resolved.flat(),
        origins=resolved.origins,
        config_hash=resolved.hash,
        seed=run.random_seed,
    )
