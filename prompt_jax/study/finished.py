"""The records of a study's runs that have ended: OUT/ledger/ID.json, `ok` or `failed`."""

import json
import os
import pathlib
from typing import Any

from etils import epath

from prompt_jax import ledger
from prompt_jax.ckpt.prompt_file import write_bytes

OK, FAILED, MISSING = "ok", "failed", "missing"


class Finished:
    """What has ended, read anew when it is asked for; other launchers write here too."""

    def __init__(self, out: str):
        """Looks nowhere yet.

        Args:
            out: OUT, the study's folder.
        """
        self._folder = pathlib.Path(out) / "ledger"
        self._kept = pathlib.Path(out) / "failed"
        self._read: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    def records(self) -> dict[str, dict[str, Any]]:
        """Id -> record."""
        found = {}
        for entry in os.scandir(self._folder) if self._folder.exists() else ():
            name, _, ending = entry.name.partition(".")
            if ending != "json":
                continue
            try:
                stamp = (entry.stat().st_mtime_ns, entry.stat().st_size)
                if self._read.get(name, (None,))[0] != stamp:
                    self._read[name] = (stamp, json.loads(pathlib.Path(entry.path).read_text()))
            except FileNotFoundError:  # set aside to be run again
                continue
            found[name] = self._read[name][1]
        return found

    def status(self) -> dict[str, str]:
        """Id -> `ok` or `failed`."""
        return {name: record["status"] for name, record in self.records().items()}

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Writes a record, whole or not at all."""
        write_bytes(
            epath.Path(self._folder) / f"{name}.json", json.dumps(record, indent=1).encode()
        )

    def set_aside(self, name: str) -> None:
        """Takes a failed run's record away, so that it is run again; OUT/failed keeps the last."""
        self._kept.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{name}.json").replace(self._kept / f"{name}.json")


def failed_record(member: Any, reason: str) -> dict[str, Any]:
    """The record of a run that failed: what it wrote itself before, or that it never began.

    Args:
        member: `study.Member`.
        reason: in a line.
    """
    run, resolved = member.run, member.resolved
    record = ledger.Record(
        run=member.id,
        method=run.method.name,
        mixture=run.data.mixture_or_task_name,
        backbone={"path": run.backbone.checkpoint, "fingerprint": None, "parameters": None},
        trainable_parameters=0,
        config=resolved.flat(),
        config_hash=resolved.hash,
        seed=run.random_seed,
    ).as_dict()
    file = pathlib.Path(run.model_dir) / "record.json"
    if file.exists() and (own := json.loads(file.read_text()))["config_hash"] == resolved.hash:
        record |= own
    return {**record, "status": FAILED, "reason": reason}
