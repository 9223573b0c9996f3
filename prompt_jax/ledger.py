"""One JSON record per run: what it was, what it cost, what came out."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import resource
import subprocess
import time
from typing import Any

import jax
from etils import epath

from prompt_jax import __version__
from prompt_jax.ckpt.prompt_file import write_bytes

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "seqio", "grain", "numpy")


def code_version() -> str:
    """The package's version, with the commit when it runs from a checkout."""
    root = pathlib.Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__
    ask = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    found = subprocess.run(ask, capture_output=True, text=True, check=False)
    return f"{__version__}+{found.stdout.strip()}" if found.returncode == 0 else __version__


def versions() -> dict[str, str]:
    """Versions of the libraries that decide numbers."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def peak_rss_mb() -> float:
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_memory_mb() -> float | None:
    """The most memory that the first device has held, in MB; None: it keeps no account (a CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    return round(stats["peak_bytes_in_use"] / 2**20, 1) if stats else None


def folder_bytes(path: str | os.PathLike) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = epath.Path(path)
    if path.is_dir():
        return sum(map(folder_bytes, path.iterdir()))
    return path.stat().length if path.exists() else 0


class Clock:
    """Seconds by purpose: total, compile, train, eval, data_wait."""

    def __init__(self):
        self.started = time.monotonic()
        self.seconds = {"compile": 0.0, "train": 0.0, "eval": 0.0, "data_wait": 0.0}
        self.earlier: dict[str, float] = {}  # of the processes whose work this one goes on with

    def add(self, purpose: str, seconds: float) -> None:
        """Adds to one purpose."""
        self.seconds[purpose] += seconds

    def compiles(self, function):
        """Wraps a jitted function: its first call with new shapes counts as compilation."""
        seen = set()

        def call(*args):
            shapes = tuple(getattr(leaf, "shape", leaf) for leaf in jax.tree.leaves(args))
            if shapes in seen:
                return function(*args)
            seen.add(shapes)
            began = time.monotonic()
            out = jax.block_until_ready(function(*args))
            self.add("compile", time.monotonic() - began)
            return out

        return call

    def all(self) -> dict[str, float]:
        """Every purpose, and the total since the start, of all processes of a run."""
        seconds = {"total": time.monotonic() - self.started, **self.seconds}
        return {k: round(v + self.earlier.get(k, 0.0), 3) for k, v in seconds.items()}


@dataclasses.dataclass
class Record:
    """What a run was, cost and gave; metrics are fractions 0..1, `files` are SHA-256.

    `seconds` are its share of its fleet's; `bytes`, of its checkpoints and of what it leaves.
    """

    run: str
    method: str
    mixture: str
    backbone: dict[str, Any]
    config: dict[str, Any]
    config_hash: str
    seed: int
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    vocabulary: str = ""
    data: str = ""
    trainable_parameters: int = 0
    fleet: dict[str, Any] = dataclasses.field(default_factory=dict)
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    steps: int = 0
    examples: int = 0
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_rss_mb: float = 0.0
    metrics: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] | None = None
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)
    prompt_file: str | None = None
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    status: str = "ok"
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with code version, library versions, devices and the time."""
        return {
            **dataclasses.asdict(self),
            "code_version": code_version(),
            "versions": versions(),
            "devices": {
                "kind": jax.devices()[0].device_kind,
                "count": jax.device_count(),
                "processes": jax.process_count(),
            },
            "device_memory_mb": device_memory_mb(),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def write(self, path: str) -> dict[str, Any]:
        """Writes the record, atomically, and returns it."""
        written = self.as_dict()
        write_bytes(epath.Path(path), json.dumps(written, indent=1).encode())
        return written


def read(path: str) -> dict[str, Any]:
    """Reads a record back."""
    return json.loads(epath.Path(path).read_text())
