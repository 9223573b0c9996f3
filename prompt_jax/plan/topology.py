"""Machines by name: `v5e:4x4`, `v5e-16`, `v4-8`, `gpu:h200x8`, `cpu:8`; their chips and devices."""

import contextlib
import dataclasses
import io
import math
import os
import re
import sys
import tempfile

import jax

from prompt_jax.errors import UserError, nearest

GB = 1e9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The vendor's numbers of one chip; zero where there is none.

    Attributes:
        name: as in a topology's name.
        flops: dense bfloat16 FLOP/s.
        memory: bytes of high-bandwidth memory; of a TPU, what libtpu leaves a program.
        bandwidth: bytes/s to and from that memory.
        link: bytes/s that one chip sends to its neighbours (half of the "bidirectional" number).
        network: bytes/s that one chip sends to other slices or hosts.
        dims: numbers in a slice's shape; 0 for what is not a TPU.
        cores: what the last number of "v4-8" counts, per chip.
        config: how libtpu is to see a chip; v4 has two cores that JAX uses as one device.
    """

    name: str
    flops: float = 0.0
    memory: int = 0
    bandwidth: float = 0.0
    link: float = 0.0
    network: float = 0.0
    dims: int = 0
    cores: int = 1
    config: str = "default"


# Google's and NVIDIA's pages (cloud.google.com/tpu/docs, nvidia.com data sheets; read 2026-11).
# v4's link is 6 x 50 GB/s of Jouppi et al. 2023; a network number is a host's, per chip.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, int(30.75 * GIB), 1228 * GB, 300 * GB, 6.25 * GB, 3, 2, "megacore"),
        Chip("v5e", 197e12, int(15.75 * GIB), 819 * GB, 200 * GB, 3.125 * GB, 2),
        Chip("v5p", 459e12, int(95.74 * GIB), 2765 * GB, 600 * GB, 6.25 * GB, 3, 2),
        Chip("v6e", 918e12, int(31.25 * GIB), 1638 * GB, 400 * GB, 12.5 * GB, 2),
        Chip("a100", 312e12, 80 * 10**9, 2039 * GB, 300 * GB, 25 * GB),
        Chip("h100", 989e12, 80 * 10**9, 3350 * GB, 450 * GB, 50 * GB),
        Chip("h200", 989e12, 141 * 10**9, 4800 * GB, 450 * GB, 50 * GB),
        Chip("cpu"),
    )
}
# How `v5e-16` and the like are laid out, by the number of chips.
SHAPES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
        512: "8x8x8", 1024: "8x8x16",
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine.

    Attributes:
        name: "v5e:4x4", "gpu:h200x8", "cpu:8".
        chip: of which kind all its chips are.
        chips: in one slice.
        slices: joined by the slow network.
    """

    name: str
    chip: Chip
    chips: int
    slices: int = 1

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu compiles for it; else the compiler of this machine's CPU does."""
        return self.chip.dims > 0


def parse(name: str, slices: int = 1) -> Topology:
    """The machine that a name stands for.

    Args:
        name: what the user wrote.
        slices: how many of it.

    Raises:
        UserError: no such machine; with the nearest one.
    """
    if slices < 1:
        raise UserError(f"--num_slices={slices}: must be at least 1")
    if match := re.fullmatch(r"cpu:([1-9]\d*)", name):
        return Topology(name, CHIPS["cpu"], int(match[1]), slices)
    if match := re.fullmatch(r"gpu:([a-z]\d+)x([1-9]\d*)", name):
        if match[1] in CHIPS:
            return Topology(name, CHIPS[match[1]], int(match[2]), slices)
    if match := re.fullmatch(r"(v\d[a-z]?)(?::(\d+(?:x\d+)+)|-(\d+))", name):
        chip = CHIPS.get(match[1])
        shape = match[2]
        if chip and match[3]:
            shape = SHAPES[chip.dims].get(int(match[3]) // chip.cores)
        if chip and shape and shape.count("x") == chip.dims - 1:
            sides = [int(side) for side in shape.split("x")]
            if all(sides):
                return Topology(f"{chip.name}:{shape}", chip, math.prod(sides), slices)
    raise UserError(f"--topology={name}: no such machine; {nearest(name, known())}")


def known() -> list[str]:
    """The names of the usual machines."""
    names = ["cpu:1", "cpu:8"]
    for chip in CHIPS.values():
        if chip.dims:
            names += [f"{chip.name}:{shape}" for shape in SHAPES[chip.dims].values()]
            names += [f"{chip.name}-{count * chip.cores}" for count in SHAPES[chip.dims]]
        elif chip.flops:
            names += [f"gpu:{chip.name}x{count}" for count in (1, 2, 4, 8)]
    return names


def smaller(topology: Topology) -> list[Topology]:
    """The usual machines of the same chip, the smallest first, up to `topology` itself."""
    chip, name = topology.chip, topology.name
    if chip.dims:
        names = [f"{chip.name}:{shape}" for shape in SHAPES[chip.dims].values()]
    else:
        kind = name.rstrip("0123456789")
        names = [f"{kind}{2**n}" for n in range(12)]
    usual = [parse(each, topology.slices) for each in names]
    return [each for each in usual if each.chips < topology.chips] + [topology]


def start(machines: list[Topology]) -> None:
    """Tells JAX to open this machine's CPU alone, as often as the largest of `machines` needs.

    Args:
        machines: all that this process will compile for.
    """
    wanted = max((m.chips * m.slices for m in machines if not m.is_tpu), default=1)
    with contextlib.suppress(RuntimeError):  # in use already: there are as many as there are
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", wanted)


def devices(topology: Topology) -> list:
    """The devices to compile for, slice after slice; none of them need be here.

    Raises:
        UserError: libtpu is not installed, or does not know the shape.
    """
    if topology.is_tpu:
        return _tpu_devices(topology)
    count, found = topology.chips * topology.slices, jax.devices("cpu")
    if len(found) < count:
        raise UserError(
            f"--topology={topology.name}: JAX has started with {len(found)} CPU devices, "
            f"{count} are needed; start a new process"
        )
    return found[:count]


# What libtpu would otherwise ask of a machine in Google's cloud, and where it would write.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is opened here that two could fight for
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def _tpu_devices(topology: Topology) -> list:
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            f"--topology={topology.name} needs libtpu, TPU's compiler, which runs without a TPU: "
            "pip install 'prompt_jax[plan]'"
        ) from None
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    chip = topology.chip
    sides = [int(side) for side in topology.name.partition(":")[2].split("x")]
    host = [min(side, 2) for side in sides] + [1] * (3 - len(sides))
    host[2] = 1
    options = {"chips_per_host_bounds": tuple(host), "num_slices": topology.slices}
    if chip.config != "default":
        options["chip_config_name"] = chip.config
    try:
        with _without_chatter():
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=topology.name, **options
            )
    except Exception as error:  # JaxRuntimeError, NotImplementedError: of libtpu's own making
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={topology.name}: libtpu refuses it: {reason}") from error
    return sorted(described.devices, key=lambda device: getattr(device, "slice_index", 0) or 0)


@contextlib.contextmanager
def _without_chatter():
    """Keeps libtpu's start-up lines, written below Python, off stderr."""
    try:
        number = sys.stderr.fileno()
    except (AttributeError, io.UnsupportedOperation):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(number)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), number)
        try:
            yield
        finally:
            os.dup2(kept, number)
            os.close(kept)
