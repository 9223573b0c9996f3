"""What a run shows while it works: the log, the curve, TensorBoard events, the closing table."""

import contextlib
import json
import logging
import math
import signal
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from prompt_jax import ledger
from prompt_jax.errors import RunFailed

log = logging.getLogger("prompt_jax")

# Positions of the encoder and the decoder that a record tells apart; real = text + targets.
COUNTED = ("real", "padded", "text", "slots", "padding", "targets", "target_padding")

# A prompt that has moved less than this share of its norm after so many steps is not learning.
MOVED_SHARE, MOVED_STEPS = 0.01, 100


class Signals(contextlib.AbstractContextManager):
    """Remembers SIGTERM and Ctrl-C until the loop can save; a second Ctrl-C ends at once."""

    def __init__(self):
        self.received: int | None = None

    def __enter__(self) -> "Signals":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        del frame
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number


class Profile(contextlib.AbstractContextManager):
    """Writes a profiler trace of some steps to `MODEL_DIR/profile`, on the first process."""

    def __init__(self, model_dir: str, steps: tuple[int, int] | None):
        """Plans it.

        Args:
            model_dir: MODEL_DIR.
            steps: (first, count); None: no trace.
        """
        wanted = steps is not None and jax.process_index() == 0
        first, count = steps if wanted else (0, 0)
        self._folder = f"{model_dir}/profile"
        self._steps, self._running = range(first, first + count), False

    def before(self, step: int, state: Any) -> None:
        """Starts or ends the trace; `state` is what the step before has made."""
        if self._running == (step in self._steps):
            return
        jax.block_until_ready(state)
        if self._running:
            self._stop()
        else:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        log.info("profiler trace in %s (tensorboard --logdir %s)", self._folder, self._folder)

    def __exit__(self, *_) -> None:
        if self._running:
            self._stop()


class Pace:
    """How fast a fleet goes: seconds and the share of waiting for data since the last row."""

    def __init__(self, clock: ledger.Clock, start_step: int, steps: int):
        """Starts to count.

        Args:
            clock: where seconds are added.
            start_step: the step to go on from.
            steps: the last step.
        """
        self._clock, self._start_step, self._steps = clock, start_step, steps
        self._begin = time.monotonic()
        self._waited = self._waited_before = 0.0
        self.reset()

    def reset(self) -> None:
        """A window begins now: what came before (an evaluation) is nobody's."""
        self._since, self._waited_before = time.monotonic(), self._waited

    def waited(self, seconds: float) -> None:
        """Says for how long data was waited for so far."""
        self._waited = self._clock.seconds["data_wait"] = seconds

    def close(self) -> tuple[float, float]:
        """(seconds, share of them spent waiting for data) of the window, which ends."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        waited = self._waited - self._waited_before
        self._clock.add("train", seconds)
        self.reset()
        return seconds, waited / seconds

    def left(self, step: int) -> float:
        """Seconds until the last step, at the pace so far."""
        each = (time.monotonic() - self._begin) / max(step - self._start_step, 1)
        return each * (self._steps - step)


class Progress(contextlib.AbstractContextManager):
    """Turns the numbers of a run's steps into rows of its curve.

    Rows hold: step, loss (nats per target token), token_accuracy, grad_norm, moved (share of the
    prompt's first norm), examples_per_second, tokens_per_second (real ones), data_wait (share).
    """

    def __init__(
        self, model_dir: str, start_step: int, start: dict[str, np.ndarray], done: dict[str, Any]
    ):
        """Opens the curve; rows after `start_step`, left by a killed process, are dropped.

        Args:
            model_dir: MODEL_DIR.
            start_step: the step to go on from.
            start: the prompt's first values.
            done: examples and tokens of earlier processes of this run.
        """
        self.examples = done.get("examples", 0)
        self.tokens = {**dict.fromkeys(COUNTED, 0), **done.get("tokens", {})}
        self._dir = epath.Path(model_dir)
        self._file = self._dir / "curve.jsonl"
        self._start = start
        first = jax.process_index() == 0 and self._file.exists()  # it rewrites the file
        rows = self._file.read_text().splitlines() if first else []
        self.curve = [row for row in map(json.loads, rows) if row["step"] <= start_step]
        self.step = start_step
        self._warned = start_step >= MOVED_STEPS
        self._reset()

    def __enter__(self) -> "Progress":
        from tensorboardX import SummaryWriter

        self._events = None
        if jax.process_index() == 0:
            self._dir.mkdir(parents=True, exist_ok=True)
            self._rewrite()
            self._events = SummaryWriter(str(self._dir / "tensorboard"))
        return self

    def __exit__(self, *_) -> None:
        if self._events:
            with contextlib.suppress(OSError):  # events are a copy; the curve is the record
                self._events.close()

    def _rewrite(self) -> None:
        self._file.write_text("".join(json.dumps(row) + "\n" for row in self.curve))

    def _reset(self) -> None:
        self._window = {"loss": 0.0, "grad_norm": 0.0, "correct": 0.0, "targets": 0.0, "steps": 0}
        self._seen = {"examples": 0, "tokens": 0}

    def add(self, step: int, accounting) -> None:
        """Counts what a step that was just dispatched reads."""
        self.step = step
        self.examples += accounting.examples
        for name in COUNTED:
            self.tokens[name] += getattr(accounting, name)
        self._seen["examples"] += accounting.examples
        self._seen["tokens"] += accounting.real

    def settle(self, step: int, numbers: dict[str, float]) -> None:
        """Takes the numbers of a step that is done, and checks them.

        Raises:
            RunFailed: the loss is not finite.
        """
        numbers = dict(numbers)
        if not math.isfinite(numbers["loss"] + numbers.pop("norm")):
            raise RunFailed(
                f"the loss ({numbers['loss']}) or what it moved is not finite at step {step}; "
                "try a lower learning rate or float32 compute"
            )
        for name, value in numbers.items():
            self._window[name] += value
        self._window["steps"] += 1
        self._loss = numbers["loss"]

    def write(
        self, step: int, trainable: dict, seconds: float, data_wait: float
    ) -> dict[str, float | int]:
        """Closes a window of steps: a row of the curve, events.

        Args:
            step: the last of them, settled.
            trainable: leaves, as they are now.
            seconds: that the window took.
            data_wait: share of them spent waiting for data.

        Returns:
            The row.
        """
        window = self._window
        row = {
            "step": step,
            "loss": self._loss,
            "token_accuracy": window["correct"] / max(window["targets"], 1.0),
            "grad_norm": window["grad_norm"] / window["steps"],
            "moved": self._moved(trainable),
            "examples_per_second": self._seen["examples"] / seconds,
            "tokens_per_second": self._seen["tokens"] / seconds,
            "data_wait": data_wait,
        }
        row = {name: value for name, value in row.items() if value is not None}
        self._append(row)
        self._warn_if_still(step, row)
        self._reset()
        return row

    @property
    def open(self) -> bool:
        """Whether steps were settled since the last row."""
        return self._window["steps"] > 0

    def _append(self, row: dict[str, Any]) -> None:
        self.curve.append(row)
        if self._events:
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(f"train/{name}", value, row["step"])

    def _moved(self, trainable: dict) -> float | None:
        if not self._start:
            return None
        moved = sum(
            float(np.sum(np.square(np.asarray(trainable[path])[: len(first)] - first)))
            for path, first in self._start.items()
        )
        norm = sum(float(np.sum(np.square(first))) for first in self._start.values())
        return math.sqrt(moved / norm) if norm else None  # a start of zeros is no measure

    def _warn_if_still(self, step: int, row: dict[str, Any]) -> None:
        if self._warned or step < MOVED_STEPS or "moved" not in row:
            return
        self._warned = True
        if row["moved"] < MOVED_SHARE:
            log.warning(
                "%s: the prompt has moved %.2g of its norm in %d steps: the learning rate is too "
                "low (prompts want about 0.3 with Adafactor), or no slot reaches the model "
                "(gradient norm %.2g; check Data.layout), or the init is far larger than the "
                "embeddings",
                self._dir.name,
                row["moved"],
                step,
                row["grad_norm"],
            )

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the numbers of an evaluation to the last row, and to the events."""
        if self._events:
            for name, value in metrics.items():
                self._events.add_scalar(f"eval/{name}", value, step)
        self.curve[-1].update({f"eval/{name}": value for name, value in metrics.items()})
        if self._events:
            self._rewrite()

    @property
    def done(self) -> dict[str, Any]:
        """Examples and tokens so far, those of earlier processes included."""
        return {"examples": self.examples, "tokens": dict(self.tokens)}

    def fill(self, record: ledger.Record) -> None:
        """Writes what the run did so far into its record."""
        record.steps, record.curve = self.step, self.curve
        record.examples, record.tokens = self.examples, self.tokens
        record.peak_rss_mb = round(ledger.peak_rss_mb(), 1)


def span(values: Sequence[float], form: str) -> str:
    """A number of one run, or the least and the greatest of several."""
    shown = sorted({format(value, form) for value in values}, key=float)
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def step_line(rows: Sequence[dict[str, Any]], steps: int, left: float) -> str:
    """A line of the log.

    Args:
        rows: of the runs that still train.
        steps: the last step.
        left: seconds until then.
    """
    of = {name: [row[name] for row in rows] for name in rows[0]}
    runs = f"{len(rows)} runs  " if len(rows) > 1 else ""
    moved = f"moved {span(of['moved'], '.2f')}  " if "moved" in of else ""
    return (
        f"step {rows[0]['step']}/{steps}  {runs}loss {span(of['loss'], '.4f')}  "
        f"token acc {span(of['token_accuracy'], '.3f')}  "
        f"grad {span(of['grad_norm'], '.2e')}  {moved}"
        f"{sum(of['examples_per_second']):.0f} ex/s  "
        f"{sum(of['tokens_per_second']):.0f} tok/s  "
        f"data {rows[0]['data_wait']:.0%}  {left:.0f} s left"
    )


def summary(record: ledger.Record, model_dir: str) -> str:
    """The short table that ends a run, and the paths of what it wrote."""
    lines = [f"{record.run}: {record.method} on {record.mixture}, {record.status}"]
    for split, metrics in record.metrics.items():
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        lines.append(f"  {split:<12} {shown}")
    seconds = record.seconds
    lines.append(
        f"  {record.steps} steps, {record.examples:,} examples, {seconds['total']:.0f} s "
        f"(compile {seconds['compile']:.0f}, train {seconds['train']:.0f}, "
        f"eval {seconds['eval']:.0f}), {record.trainable_parameters:,} trainable parameters"
    )
    lines.append(f"  wrote {model_dir}/record.json, {record.prompt_file}")
    return "\n".join(lines)
