"""What a run shows while it works: the log, the curve, TensorBoard events, the closing table."""

import contextlib
import json
import logging
import math
import signal
import time
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


class Progress(contextlib.AbstractContextManager):
    """Turns the numbers of steps into rows of the curve.

    Rows hold: step, loss (nats per target token), token_accuracy, grad_norm, moved (share of the
    prompt's first norm), examples_per_second, tokens_per_second (real ones), data_wait (share).
    """

    def __init__(
        self,
        model_dir: str,
        steps: int,
        start_step: int,
        clock: ledger.Clock,
        start: dict[str, np.ndarray],
        done: dict[str, Any],
    ):
        """Opens the curve; rows after `start_step`, left by a killed process, are dropped.

        Args:
            model_dir: MODEL_DIR.
            steps: the last step.
            start_step: the step to go on from.
            clock: where seconds are added.
            start: the prompt's first values.
            done: examples, tokens and seconds of earlier processes of this run.
        """
        self.examples = done.get("examples", 0)
        self.tokens = {**dict.fromkeys(COUNTED, 0), **done.get("tokens", {})}
        self._earlier = done.get("seconds", {})
        self._dir = epath.Path(model_dir)
        self._file = self._dir / "curve.jsonl"
        self._steps, self._start_step, self._clock, self._start = steps, start_step, clock, start
        first = jax.process_index() == 0 and self._file.exists()  # it rewrites the file
        rows = self._file.read_text().splitlines() if first else []
        self.curve = [row for row in map(json.loads, rows) if row["step"] <= start_step]
        self.step = start_step
        self._pending: tuple | None = None
        self._warned = start_step >= MOVED_STEPS

    def __enter__(self) -> "Progress":
        from tensorboardX import SummaryWriter

        self._events = None
        if jax.process_index() == 0:
            self._rewrite()
            self._events = SummaryWriter(str(self._dir / "tensorboard"))
        self._begin = time.monotonic()
        self._reset()
        return self

    def __exit__(self, *_) -> None:
        if self._events:
            with contextlib.suppress(OSError):  # events are a copy; the curve is the record
                self._events.close()

    def _rewrite(self) -> None:
        self._file.write_text("".join(json.dumps(row) + "\n" for row in self.curve))

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._window = {"loss": 0.0, "grad_norm": 0.0, "correct": 0.0, "targets": 0.0, "steps": 0}
        self._seen = {"examples": 0, "tokens": 0, "waited": 0.0}

    def add(self, step: int, numbers: dict[str, Any], accounting, waited: float) -> None:
        """Takes the numbers of a step that was just dispatched; reads those of the one before."""
        self.settle()
        self._pending = (step, numbers)
        self.step = step
        self.examples += accounting.examples
        for name in COUNTED:
            self.tokens[name] += getattr(accounting, name)
        self._seen["examples"] += accounting.examples
        self._seen["tokens"] += accounting.real
        self._seen["waited"] += waited - self._clock.seconds["data_wait"]
        self._clock.seconds["data_wait"] = waited

    def settle(self) -> None:
        """Waits for the last step's numbers and checks them.

        Raises:
            RunFailed: the loss is not finite.
        """
        if self._pending is None:
            return
        step, numbers = self._pending
        self._pending = None
        numbers = {name: float(value) for name, value in jax.device_get(numbers).items()}
        if not math.isfinite(numbers["loss"] + numbers.pop("norm")):
            raise RunFailed(
                f"the loss ({numbers['loss']}) or what it moved is not finite at step {step}; "
                f"last good checkpoint: "
                f"{self._last_checkpoint()}; try a lower learning rate or float32 compute"
            )
        for name, value in numbers.items():
            self._window[name] += value
        self._window["steps"] += 1
        self._loss = numbers["loss"]

    def _last_checkpoint(self) -> str:
        folder = self._dir / "checkpoints"
        found = folder.iterdir() if folder.exists() else []
        steps = sorted(int(path.name) for path in found if path.name.isdigit())
        return str(folder / str(steps[-1])) if steps else "none"

    def write(self, step: int, trainable: dict) -> None:
        """Closes a window of steps: a row of the curve, a line in the log, events."""
        self.settle()
        window, seconds = self._window, max(time.monotonic() - self._since, 1e-9)
        if not window["steps"]:
            return
        self._clock.add("train", seconds)
        row = {
            "step": step,
            "loss": self._loss,
            "token_accuracy": window["correct"] / max(window["targets"], 1.0),
            "grad_norm": window["grad_norm"] / window["steps"],
            "moved": self._moved(trainable),
            "examples_per_second": self._seen["examples"] / seconds,
            "tokens_per_second": self._seen["tokens"] / seconds,
            "data_wait": self._seen["waited"] / seconds,
        }
        row = {name: value for name, value in row.items() if value is not None}
        self._append(row)
        log.info("%s", self._line(row))
        self._warn_if_still(step, row)
        self._reset()

    def _append(self, row: dict[str, Any]) -> None:
        self.curve.append(row)
        if self._events:
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(f"train/{name}", value, row["step"])

    def _line(self, row: dict[str, Any]) -> str:
        done = row["step"] - self._start_step
        left = (time.monotonic() - self._begin) / max(done, 1) * (self._steps - row["step"])
        moved = f"moved {row['moved']:.2f}  " if "moved" in row else ""
        return (
            f"step {row['step']}/{self._steps}  loss {row['loss']:.4f}  "
            f"token acc {row['token_accuracy']:.3f}  grad {row['grad_norm']:.2e}  {moved}"
            f"{row['examples_per_second']:.0f} ex/s  {row['tokens_per_second']:.0f} tok/s  "
            f"data {row['data_wait']:.0%}  {left:.0f} s left"
        )

    def _moved(self, trainable: dict) -> float | None:
        if not self._start:
            return None
        moved = sum(
            float(np.sum(np.square(np.asarray(trainable[path]) - first)))
            for path, first in self._start.items()
        )
        norm = sum(float(np.sum(np.square(first))) for first in self._start.values())
        return math.sqrt(moved / max(norm, 1e-30))

    def _warn_if_still(self, step: int, row: dict[str, Any]) -> None:
        if self._warned or step < MOVED_STEPS or "moved" not in row:
            return
        self._warned = True
        if row["moved"] < MOVED_SHARE:
            log.warning(
                "the prompt has moved %.2g of its norm in %d steps: the learning rate is too low "
                "(prompts want about 0.3 with Adafactor), or no slot reaches the model (gradient "
                "norm %.2g; check Data.layout), or the init is far larger than the embeddings",
                row["moved"],
                step,
                row["grad_norm"],
            )

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Shows the numbers of an evaluation."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.info("eval at step %d: %s", step, shown)
        if self._events:
            for name, value in metrics.items():
                self._events.add_scalar(f"eval/{name}", value, step)
        self.curve[-1].update({f"eval/{name}": value for name, value in metrics.items()})
        if self._events:
            self._rewrite()
        self._reset()

    @property
    def done(self) -> dict[str, Any]:
        """Examples, tokens and seconds so far, those of earlier processes included."""
        seconds = self._clock.all()
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "seconds": {k: round(v + self._earlier.get(k, 0.0), 3) for k, v in seconds.items()},
        }

    def fill(self, record: ledger.Record) -> None:
        """Writes what the run did so far into its record."""
        record.steps = self.step
        done = self.done
        record.examples, record.tokens, record.seconds = (
            done[name] for name in ("examples", "tokens", "seconds")
        )
        record.peak_rss_mb = round(ledger.peak_rss_mb(), 1)
        record.curve = self.curve


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
