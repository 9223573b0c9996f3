"""Run state on disk: Orbax, asynchronous; the latest and the best steps are kept independently.

Orbax is imported where it is used: `prompt-jax explain` must not pay its two seconds.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

import jax
from etils import epath

from prompt_jax.ckpt import fingerprint
from prompt_jax.errors import RunFailed, UserError


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
        state: a tree with the structure, shapes and shardings of the template.
        extra: the JSON saved beside it (data position, phase, fingerprints, best so far).
    """

    state: Any
    extra: dict


class Store:
    """The checkpoints of a fleet of runs (one, mostly), `FOLDER/checkpoints/STEP`."""

    def __init__(self, directory: str, keep_latest: int = 2, keep_best: int = 1, runs: int = 1):
        """Opens or creates the folder; unfinished saves of a killed process are removed.

        Args:
            directory: `MODEL_DIR/checkpoints`, local or gs://.
            keep_latest: how many of the newest steps stay.
            keep_best: how many of the best steps of each run stay, whatever their age.
            runs: R.

        Raises:
            UserError: a damaged checkpoint is there.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as managers

        best = [
            managers.BestN(
                get_metric_fn=lambda metrics, run=str(run): metrics.get(run, float("-inf")),
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            for run in range(runs)
        ]
        self._args = ocp.args
        # Orbax takes absolute paths only.
        remote = "://" in directory
        self.directory = epath.Path(directory if remote else os.path.abspath(directory))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(
                [managers.LatestN(keep_latest), *best]
            ),
            best_fn=lambda metrics: max(metrics.values()),  # the policy decides; this turns it on
            cleanup_tmp_directories=True,
            save_root_metadata=False,
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("state", "extra")
            )
        except ValueError as error:  # the metrics of a step are no JSON
            raise UserError(
                f"{self.directory}: the metrics of a checkpoint are damaged ({error}); remove its "
                "folder to go on from the others"
            ) from error

    @property
    def latest_step(self) -> int | None:
        """The newest finished step."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, extra: dict, values: dict[int, float] | None = None):
        """Starts a save; it becomes visible only when it is complete.

        Args:
            step: its name.
            state: tree of arrays.
            extra: JSON beside it.
            values: run -> the metric by which its best is kept; a run without one does not ask
                for this step.

        Raises:
            RunFailed: this or the previous save could not be written.
        """
        metrics = {str(run): float(value) for run, value in (values or {}).items()}
        extra = {**extra, "state_digest": fingerprint.of_state(state), "values": metrics}
        extra["digest"] = _digest(extra)
        extra = json.loads(json.dumps(extra))  # it is written later, as it is now
        try:
            self._manager.save(
                step,
                args=self._args.Composite(
                    state=self._args.StandardSave(state), extra=self._args.JsonSave(extra)
                ),
                metrics=metrics or None,
                force=True,
            )
        except Exception as error:
            raise self.failure(step, error) from error

    def wait(self) -> None:
        """Blocks until every save is on disk.

        Raises:
            RunFailed: one could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self.failure(None, error) from error

    def said(self, step: int) -> dict:
        """The JSON beside a step's arrays.

        Raises:
            UserError: it is damaged: not what was saved.
        """
        return self._extra(step)[0]

    def restore(self, step: int, template: Any) -> Restored:
        """Reads a step into the shapes, dtypes and shardings of `template`.

        Raises:
            UserError: it is damaged: not what was saved.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template
        )
        extra, digest = self._extra(step)
        state = self._read(step, "state", self._args.StandardRestore(abstract))
        if digest != fingerprint.of_state(state):
            raise self._damaged(step, "")
        return Restored(state, extra)

    def _extra(self, step: int) -> tuple[dict, str]:
        """(JSON beside a step's arrays, digest of those)."""
        extra = dict(self._read(step, "extra", self._args.JsonRestore()))
        if extra.pop("digest", None) != _digest(extra):
            raise self._damaged(step, "")
        digest, values = extra.pop("state_digest"), extra.pop("values")
        if values != (self._manager.metrics(step) or {}):
            raise self._damaged(step, "")
        return extra, digest

    def _read(self, step: int, item: str, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._args.Composite(**{item: args}))[item]
        except Exception as error:
            raise self._damaged(step, f" ({str(error).splitlines()[0][:200]})") from error

    def _damaged(self, step: int, why: str) -> UserError:
        return UserError(
            f"{self.directory / str(step)}: is damaged: not what was saved{why}; "
            "remove that folder to go on from the checkpoint before it"
        )

    def close(self) -> None:
        """Waits for saves and stops Orbax's threads."""
        self.wait()
        self._manager.close()

    def failure(self, step: int | None, error: Exception) -> RunFailed:
        """What to raise when the run could not write: says what, and the last good checkpoint."""
        at = "" if step is None else f" at step {step}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        return RunFailed(
            f"writing to {self.directory.parent} failed{at}: {reason}; {self.last_good()}"
        )

    def last_good(self) -> str:
        """Names the newest whole checkpoint."""
        found = self.directory.iterdir() if self.directory.exists() else []
        steps = sorted(int(path.name) for path in found if path.name.isdigit())
        if not steps:
            return "there is no earlier checkpoint"
        return f"last good checkpoint: {self.directory / str(steps[-1])}"


def _digest(extra: dict) -> str:
    """SHA-256 of the JSON beside a state."""
    return hashlib.sha256(json.dumps(extra, sort_keys=True).encode()).hexdigest()
