"""What a step computes, moves and sends, by formula: per device, before anything is compiled.

Of a scanned layer the compiler counts one trip, so its own numbers are not a step's. Everything
here is a sum over the backbone's kernels [L, I, O], each of which sees `n` positions:

    forward 2 L I O n; the same again for the gradient of what goes in; the same again for the
    gradient of the kernel, if it trains; the same again if it is recomputed
    attention: 4 N D per pair of positions forward, twice that backward, once to recompute
"""

import dataclasses
import math

from prompt_jax.models.t5.attention import folds
from prompt_jax.models.t5.config import T5Config
from prompt_jax.parallel.rules import partition_spec


@dataclasses.dataclass(frozen=True)
class Batch:
    """The rows of a step, on all devices together.

    Attributes:
        rows: B.
        inputs: T, slots included.
        targets: U.
        examples: how many lie in the rows (BATCH_SIZE).
        assumed: how the rows were arrived at, in words.
    """

    rows: int
    inputs: int
    targets: int
    examples: int
    assumed: str = ""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the step is spread and what it recomputes: what `plan` may choose.

    Attributes:
        data: devices along the batch, over all slices.
        model: devices along heads, MLP width and vocabulary.
        over_data: frozen weights are split over `model` and the `data` of a slice.
        remat: of `T5Config`.
        slices: groups of devices, with a slow network between them.
    """

    data: int
    model: int
    over_data: bool
    remat: str
    slices: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """As `parallel.rules` takes it."""
        return {"data": self.data // self.slices, "model": self.model}


@dataclasses.dataclass(frozen=True)
class Cost:
    """One step on one device.

    Attributes:
        flops: of matrix products.
        moved: bytes to and from memory: weights, and what goes in and out of matrix products.
        sent: bytes over links.
        temporaries: bytes beside weights, state and batch; a rough estimate.
    """

    flops: float
    moved: float
    sent: float
    temporaries: float


def estimate(
    config: T5Config,
    frozen: dict,
    trainable: dict,
    batch: Batch,
    mesh: Mesh,
    microbatches: int = 1,
) -> Cost:
    """What one step costs one device.

    Args:
        config: the backbone.
        frozen: path -> shape and dtype of each leaf at rest.
        trainable: the same of what trains.
        batch: the rows.
        mesh: how it is spread.
        microbatches: parts computed one after the other.
    """
    wide = 2 if config.dtype in ("bfloat16", "float16") else 4
    flops = moved = 0.0
    for path, leaf in {**frozen, **trainable}.items():
        seen = _positions(path, config, batch) / mesh.data
        if not seen:
            continue
        passes = 2 + (path in trainable)
        # The last product of a layer need not be made again: no gradient asks for its result.
        if mesh.remat == "full" and "/layers/" in path and "/wo/" not in path:
            passes += 1
        rule = partition_spec(path, leaf.shape, mesh.sizes, False)
        split = [mesh.model if axis == "model" else 1 for axis in (*rule, *[None] * 3)]
        layers, (width_in, width_out) = math.prod(leaf.shape[:-2]), leaf.shape[-2:]
        halves = split[len(leaf.shape) - 2 : len(leaf.shape)]
        flops += passes * 2 * math.prod(leaf.shape) * seen / math.prod(halves)
        moved += passes * math.prod(leaf.shape) * leaf.dtype.itemsize / math.prod(halves)
        through = width_in / halves[0] + width_out / halves[1]
        moved += passes * layers * through * seen * wide
    pairs = _pairs(config, batch) / mesh.data
    pairs /= mesh.model if config.num_heads % mesh.model == 0 else 1
    flops += _ATTENTION * 4 * config.num_heads * config.head_dim * pairs
    moved += _ATTENTION * 2 * 4 * config.num_heads * pairs  # logits in float32, written and read
    flops += 2 * sum(
        math.prod(leaf.shape) * batch.rows * batch.inputs / mesh.data
        for path, leaf in trainable.items()
        if path.startswith("prompt/")
    )
    return Cost(
        flops,
        moved,
        _sent(config, frozen, trainable, batch, mesh, wide),
        _temporaries(config, frozen, batch, mesh, wide) / microbatches,
    )


_ATTENTION = 4  # forward, recomputed, and twice for the gradients of queries, keys and values


def _positions(path: str, config: T5Config, batch: Batch) -> int:
    """How many positions a kernel sees; 0 for a leaf that is no kernel."""
    if path == "backbone/token_embedder/embedding":
        return batch.rows * batch.targets if config.tied_head else 0
    if not path.endswith("/kernel"):
        return 0
    cross = any(f"encoder_decoder_attention/{part}" in path for part in ("key", "value"))
    encoded = "/encoder/" in path or (cross and not _folds(config, batch))
    return batch.rows * (batch.inputs if encoded else batch.targets)


def _folds(config: T5Config, batch: Batch) -> bool:
    """Whether cross attention goes without keys and values of all positions."""
    return folds(batch.targets, batch.inputs, config.head_dim)


def _pairs(config: T5Config, batch: Batch) -> float:
    """Pairs of positions in attention, all layers; those of folded heads are H wide, not D."""
    t, u = batch.inputs, batch.targets
    cross = u * t * (config.emb_dim / config.head_dim if _folds(config, batch) else 1)
    layers = config.num_encoder_layers * t * t + config.num_decoder_layers * (u * u + cross)
    return float(batch.rows * layers)


def _sent(config, frozen, trainable, batch, mesh, wide) -> float:
    """Bytes that a device sends: activations over `model`, weights and gradients over `data`."""
    sent = 0.0
    if mesh.model > 1:
        per_row = 2 * config.num_encoder_layers * batch.inputs
        per_row += 3 * config.num_decoder_layers * batch.targets
        passes = 3 if mesh.remat == "full" else 2
        reduced = passes * per_row * batch.rows / mesh.data * config.emb_dim * wide
        sent += 2 * (mesh.model - 1) / mesh.model * reduced
    if mesh.data > 1:
        share = (mesh.data - 1) / mesh.data
        if mesh.over_data:
            sent += 2 * share * sum(_held(frozen, mesh, False))
        sent += 2 * share * sum(_held(trainable, mesh, False))
    return sent


def _held(leaves: dict, mesh: Mesh, over_data: bool) -> list[float]:
    """Bytes of each leaf on one device."""
    held = []
    for path, leaf in leaves.items():
        spec = partition_spec(path, leaf.shape, mesh.sizes, over_data)
        parts = math.prod(mesh.sizes[axis] for axis in spec if axis)
        held.append(math.prod(leaf.shape) * leaf.dtype.itemsize / parts)
    return held


def _temporaries(config, frozen, batch, mesh, wide) -> float:
    """What the backward pass keeps, the largest layer's scratch, and gathered weights.

    Widths and shares are those of what libtpu was seen to keep: mostly within a third of its own
    numbers.
    """
    gates = 1 if config.activation == "relu" else 2
    heads, mlp = config.num_heads * config.head_dim / mesh.model, config.mlp_dim / mesh.model
    kept = {
        "none": (gates + 1) * mlp + 4 * heads + 6 * config.emb_dim,
        "minimal": gates * mlp + 3 * heads + 3 * config.emb_dim,
        "full": config.emb_dim,
    }[mesh.remat]
    rows = batch.rows / mesh.data
    depth = config.num_encoder_layers * batch.inputs + config.num_decoder_layers * batch.targets
    total = rows * depth * kept * wide
    split = mesh.model if config.num_heads % mesh.model == 0 else 1
    total += (rows + 1) * config.num_heads / split * batch.inputs**2 * 4
    total += 2 * rows * batch.targets * config.vocab_size / mesh.model * 4
    total += 3 * rows * batch.inputs * mlp * wide
    layers = {path: leaf for path, leaf in frozen.items() if "/layers/" in path}
    if mesh.model > 1 and not mesh.over_data:
        total += 0.2 * sum(_held(layers, mesh, False))  # kernels that are laid out anew
    if mesh.over_data and mesh.data > 1:
        gathered = sum(_held(layers, mesh, False)) / max(1, config.num_encoder_layers)
        outside = {path: leaf for path, leaf in frozen.items() if "/layers/" not in path}
        total += sum(_held(outside, mesh, False))
        total += 1.5 * gathered
    return total
