"""How a method's own numbers are stored: trained leaves -> vectors by name.

A bank gives vectors by name and an inject takes them by name:

    encoder          [P, H]            for the slots of the encoder's input
    encoder_layers   [L, P, H]         for the same slots, before every layer
    encoder_prefix   two of [L, P, W]  keys and values that the encoder's self attention also sees
    decoder_prefix   two of [L, P, W]  likewise in the decoder
    memory           [N, H]            rows to retrieve from
    offset           [T, H]            added to the embeddings of an example's own T first tokens
    generators       leaves of [L, ...]  make the slots' vectors before every layer, from the input
    weights          by kernel, [L, I, r] and [L, r, O]: factors of what is added to it

The leaves lie under "prompt/"; the name of each begins with that of the vectors it makes. Those
that no rule of `Trainable` moves are buffers: a run's own, checkpointed with it.
"""

import dataclasses
import math
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.errors import UserError, nearest
from prompt_jax.parts.init import SampledVocabulary, Vocabulary

Leaves = dict[str, Array]  # by path below "prompt/"
SLOTTED = ("encoder", "encoder_layers", "generators")  # vectors that fill slots


class Bank:
    """What every bank has; each also has a `name` and `length`, the rows of its vectors."""

    pads: ClassVar = False  # whether rows without a slot may be appended to its leaves
    tasks: ClassVar = ()  # those that have slots of their own, in the order of the rows

    def first_slot(self, task: str) -> int:
        """The row of the vectors that the first slot of a task's example shows.

        Raises:
            UserError: there are tasks, and not this one.
        """
        if not self.tasks:
            return 0
        if task not in self.tasks:
            raise UserError(f"TASKS has no prompt for task {task!r}: {nearest(task, self.tasks)}")
        return self.tasks.index(task) * self.length

    @property
    def slots(self) -> int:
        """P: slots that the data layer writes into each example's input for these vectors."""
        return self.length if self.name in SLOTTED else 0

    @property
    def most_tokens(self) -> int | None:
        """The most own tokens that an example may have; None: any number."""
        return self.length if self.name == "offset" else None

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        """Fresh leaves, float32.

        Raises:
            UserError: a size that cannot be, or an init that does not fit.
        """
        raise NotImplementedError

    def prompts(self, params: Leaves) -> dict[str, Any]:
        """The vectors that its leaves make, by name."""
        raise NotImplementedError

    def scored(self, params: Leaves, gradient: Leaves) -> Leaves:
        """Those of its buffers in which scores add up, with a batch's share (`phases.Score`).

        Raises:
            UserError: this bank has none.
        """
        raise UserError(f"{type(self).__name__} has no scores: phase Score needs a bank that has")


@dataclasses.dataclass(frozen=True)
class PromptBank(Bank):
    """One matrix [P, H], trained as it is (Lester et al. 2021, section 2).

    Attributes:
        length: P.
        init: where the vectors start: `init(key, length, vocabulary) -> [P, H]`.
        name: of its vectors.
    """

    length: int
    init: Any = SampledVocabulary()
    name: str = "encoder"

    varies: ClassVar = ("length", "init")
    pads: ClassVar = True

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        return {self.name: self.init(key, self.length, vocabulary)}

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "P H"]]:
        return {self.name: params[self.name]}

    def pad(self, leaf: Float[Array, "P H"], length: int) -> Float[Array, "Q H"]:
        """The leaf as the first rows of `length`; the others are zero and have no slot."""
        return jnp.pad(leaf, ((0, length - self.length), (0, 0)))

    def trim(self, leaf: Float[Array, "Q H"]) -> Float[Array, "P H"]:
        """The rows of its own."""
        return leaf[: self.length]


@dataclasses.dataclass(frozen=True)
class LowRankBank(Bank):
    """A product of two thin matrices: P = scale A B, A [P, r], B [r, H].

    r (P + H) numbers instead of P H. DPT (Xiao et al. 2023): both factors uniform in +-0.5; LoPT-1
    (Guo et al. 2024) is the same function. DePT's offset (Shi and Lipani 2024): B starts at 0, so
    that nothing is added at first.

    Attributes:
        length: P.
        rank: r.
        left: A ~ U(-left, left).
        right: B ~ U(-right, right).
        init: instead of both: A B is the best product of rank r for `init(key, P, vocabulary)`,
            from its singular vectors, the singular values shared evenly.
        scale: of the product.
        name: of its vectors.
    """

    length: int
    rank: int
    left: float = 0.5
    right: float = 0.5
    init: Any = None
    scale: float = 1.0
    name: str = "encoder"

    varies: ClassVar = ("left", "right", "init")

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if self.rank < 1:
            raise UserError(f"LowRankBank.rank = {self.rank}: must be at least 1")
        if self.init is not None:
            left, right = self._factors(self.init(key, self.length, vocabulary))
        else:
            keys = jax.random.split(key)
            shapes = (self.length, self.rank), (self.rank, vocabulary.width)
            scales = self.left, self.right
            left, right = (
                jax.random.uniform(k, shape, jnp.float32, -scale, scale)
                for k, shape, scale in zip(keys, shapes, scales, strict=True)
            )
        return {f"{self.name}_left": left, f"{self.name}_right": right}

    def _factors(self, whole: Float[Array, "P H"]) -> tuple[Array, Array]:
        if self.rank > min(whole.shape):
            raise UserError(
                f"LowRankBank.rank = {self.rank}: a start of shape {list(whole.shape)} has no more "
                f"than {min(whole.shape)} singular values; without LowRankBank.init any rank goes"
            )
        left, values, right = jnp.linalg.svd(whole / self.scale, full_matrices=False)
        roots = jnp.sqrt(values[: self.rank])
        return left[:, : self.rank] * roots, roots[:, None] * right[: self.rank]

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "P H"]]:
        left, right = params[f"{self.name}_left"], params[f"{self.name}_right"]
        return {self.name: self.scale * jnp.matmul(left, right, precision="highest")}


@dataclasses.dataclass(frozen=True)
class TaskBank(Bank):
    """One matrix for all tasks, and for each a change of rank one: P_k = P * (u_k v_k^T).

    P [P, H] is shared, u_k [P] and v_k [H] are the task's and start at 1 (MPT, Wang et al. 2023,
    section 3.1): P H + N (P + H) numbers. The vectors of the N tasks lie one after the other, and
    the data layer writes the slots of an example's own task.

    Attributes:
        length: P.
        tasks: names of the N tasks.
        init: of the shared matrix.
        name: of its vectors.
    """

    length: int
    tasks: tuple[str, ...]
    init: Any = SampledVocabulary()
    name: str = "encoder"

    varies: ClassVar = ("init",)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if not self.tasks or len({*self.tasks}) < len(self.tasks):
            raise UserError(f"TASKS = {self.tasks}: the names of one task or more, each once")
        return {
            f"{self.name}_shared": self.init(key, self.length, vocabulary),
            f"{self.name}_rows": jnp.ones((len(self.tasks), self.length)),
            f"{self.name}_columns": jnp.ones((len(self.tasks), vocabulary.width)),
        }

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "K H"]]:
        shared, rows, columns = (
            params[f"{self.name}_{leaf}"] for leaf in ("shared", "rows", "columns")
        )
        each = shared * rows[:, :, None] * columns[:, None, :]
        return {self.name: each.reshape(-1, shared.shape[-1])}


@dataclasses.dataclass(frozen=True)
class MaskedBank(Bank):
    """A matrix of which tokens, and pieces of tokens, are switched off (XPrompt, Ma et al. 2022).

    P_ie = gamma_i zeta_ie p_ie for token i and piece e, of k pieces of H / k numbers. The masks are
    0 or 1 and are buffers, and so are the scores that choose them: the sum over batches of
    |dL/dgamma_i| = |<dL/dp_i, p_i>| and of |dL/dzeta_ie| likewise, at masks as they are.

    Attributes:
        length: P.
        pieces: k, divides H.
        init: where the vectors start.
        name: of its vectors.
    """

    length: int
    pieces: int = 16
    init: Any = SampledVocabulary()
    name: str = "encoder"

    varies: ClassVar = ("init",)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if self.pieces < 1 or vocabulary.width % self.pieces:
            raise UserError(
                f"MaskedBank.pieces = {self.pieces} does not divide the width {vocabulary.width}"
            )
        shapes = {"tokens": (self.length,), "pieces": (self.length, self.pieces)}
        leaves = {self.name: self.init(key, self.length, vocabulary)}
        for kind, shape in shapes.items():
            leaves[f"{self.name}_{kind}_mask"] = jnp.ones(shape)
            leaves[f"{self.name}_{kind}_score"] = jnp.zeros(shape)
        return leaves

    def _split(self, whole: Float[Array, "P H"]) -> Float[Array, "P k h"]:
        return whole.reshape(len(whole), self.pieces, -1)

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "P H"]]:
        whole = params[self.name]
        mask = params[f"{self.name}_tokens_mask"][:, None] * params[f"{self.name}_pieces_mask"]
        return {self.name: (self._split(whole) * mask[..., None]).reshape(whole.shape)}

    def scored(self, params: Leaves, gradient: Leaves) -> Leaves:
        """The scores with a batch's share added."""
        pieces = jnp.sum(self._split(params[self.name] * gradient[self.name]), axis=-1)
        found = {"tokens": jnp.abs(jnp.sum(pieces, axis=-1)), "pieces": jnp.abs(pieces)}
        names = {kind: f"{self.name}_{kind}_score" for kind in found}
        return {name: params[name] + found[kind] for kind, name in names.items()}


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class BottleneckBank(Bank):
    """A start that stays, mapped through a trained bottleneck: P = f(X U) V (LoPT-2).

    X [P, H] is the start, U [H, r] and V [r, H] are trained: 2 r H numbers, whatever P. X is a
    buffer: rule ("prompt/encoder_start", None). U ~ N(0, 1/H), V ~ N(0, s^2/r), s the standard
    deviation of X's numbers (Guo et al. 2024; the inits are ours).

    Attributes:
        length: P.
        rank: r.
        activation: f, one of ACTIVATIONS.
        init: X: `init(key, length, vocabulary) -> [P, H]`.
        name: of its vectors.
    """

    length: int
    rank: int
    activation: str = "gelu"
    init: Any = SampledVocabulary()
    name: str = "encoder"

    varies: ClassVar = ("init",)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        if self.rank < 1:
            raise UserError(f"BottleneckBank.rank = {self.rank}: must be at least 1")
        if self.activation not in ACTIVATIONS:
            said = nearest(self.activation, ACTIVATIONS)
            raise UserError(f"BottleneckBank.activation = {self.activation!r}: {said}")
        start = self.init(key, self.length, vocabulary)
        down, up = jax.random.split(jax.random.fold_in(key, 1))
        width = vocabulary.width
        return {
            f"{self.name}_start": start,
            f"{self.name}_down": jax.random.normal(down, (width, self.rank)) / math.sqrt(width),
            f"{self.name}_up": jax.random.normal(up, (self.rank, width))
            * (jnp.std(start) / math.sqrt(self.rank)),
        }

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "P H"]]:
        start, down, up = (params[f"{self.name}_{leaf}"] for leaf in ("start", "down", "up"))
        hidden = ACTIVATIONS[self.activation](jnp.matmul(start, down, precision="highest"))
        return {self.name: jnp.matmul(hidden, up, precision="highest")}


@dataclasses.dataclass(frozen=True)
class LayersBank(Bank):
    """Vectors of their own for every layer of the encoder, [L, P, H] ("deep" prompts).

    Attributes:
        length: P.
        init: where each layer's vectors start, drawn anew for each.
        name: of its vectors.
    """

    length: int
    init: Any = SampledVocabulary()
    name: str = "encoder_layers"

    varies: ClassVar = ("init",)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        layers = vocabulary.kernel("encoder/layers/mlp/wo")[0]
        # The first layer's are those of a plain prompt of this seed.
        keys = [key, *(jax.random.fold_in(key, layer) for layer in range(1, layers))]
        return {self.name: jnp.stack([self.init(k, self.length, vocabulary) for k in keys])}

    def prompts(self, params: Leaves) -> dict[str, Float[Array, "L P H"]]:
        return {self.name: params[self.name]}


@dataclasses.dataclass(frozen=True)
class PrefixBank(Bank):
    """Keys and values of P positions that are not there, for every layer, [L, P, W] each.

    W = N D. Li and Liang 2021, without their reparameterisation, as in P-tuning v2.

    Attributes:
        length: P.
        scale: of the start, U(-scale, scale).
        name: "encoder_prefix" or "decoder_prefix".
    """

    length: int
    scale: float = 0.5
    name: str = "encoder_prefix"

    varies: ClassVar = ("scale",)
    attentions: ClassVar = {"encoder": "attention", "decoder": "self_attention"}

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        stack = self.name.partition("_")[0]
        layers, _, wide = vocabulary.kernel(f"{stack}/layers/{self.attentions[stack]}/key")
        shape = layers, self.length, wide
        return {
            f"{self.name}_{kind}": jax.random.uniform(
                jax.random.fold_in(key, at), shape, jnp.float32, -self.scale, self.scale
            )
            for at, kind in enumerate(("key", "value"))
        }

    def prompts(self, params: Leaves) -> dict[str, tuple[Array, Array]]:
        return {self.name: (params[f"{self.name}_key"], params[f"{self.name}_value"])}


# p(x) / (1 + |q(x)|) that is GELU within 0.006 on [-4, 4]: a least-squares fit.
NUMERATOR = (0.0002, 0.5, 0.3955, 0.3193, 0.1953, 0.0541, 0.0053)  # x^0 ... x^6
DENOMINATOR = (0.0001, 0.6384, 0.0, 0.1082, 0.0)  # x^1 ... x^5


@dataclasses.dataclass(frozen=True)
class GeneratorBank(Bank):
    """A prompt generator for every layer of the encoder (IAPT, Zhu et al. 2024).

    "down" [L, H, m], "pool" [L, m, P], "up" [L, m, H], and coefficients of a rational activation,
    7 and 5: L (2 H m + m P + 12) numbers. The activation starts as GELU. `inject.Generated` says
    what they compute.

    Attributes:
        length: P.
        hidden: m.
        scale: standard deviation of "up" at the start (and of "pool", times 1 / sqrt(m)).
        name: of its vectors.
    """

    length: int
    hidden: int = 64
    scale: float = 0.01
    name: str = "generators"

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        check_length(self.length)
        layers, width = vocabulary.kernel("encoder/layers/mlp/wo")[0], vocabulary.width
        shapes = {
            "down": ((width, self.hidden), 1 / math.sqrt(width)),
            "pool": ((self.hidden, self.length), 1 / math.sqrt(self.hidden)),
            "up": ((self.hidden, width), self.scale),
        }
        leaves = {
            f"{self.name}_{leaf}": scale
            * jax.random.normal(jax.random.fold_in(key, at), (layers, *shape))
            for at, (leaf, (shape, scale)) in enumerate(shapes.items())
        }
        for leaf, start in (("numerator", NUMERATOR), ("denominator", DENOMINATOR)):
            leaves[f"{self.name}_{leaf}"] = jnp.tile(jnp.array(start, jnp.float32), (layers, 1))
        return leaves

    def prompts(self, params: Leaves) -> dict[str, dict[str, Array]]:
        names = ("down", "pool", "up", "numerator", "denominator")
        return {self.name: {name: params[f"{self.name}_{name}"] for name in names}}


@dataclasses.dataclass(frozen=True)
class WeightsBank(Bank):
    """Factors of a change of kernels: W + (alpha / r) A B, A [L, I, r], B [L, r, O] (LoRA).

    A ~ U(-1, 1) sqrt(3 / I), B = 0: nothing changes at first. r (I + O) numbers a kernel and layer
    (Hu et al. 2022, section 4).

    Attributes:
        rank: r.
        alpha: of the scale.
        kernels: regular expression for whole paths of kernels in the layers, without "/kernel".
        name: of its factors.
    """

    rank: int
    alpha: float = 16.0
    kernels: str = r".*/(query|value)"
    name: str = "weights"
    length: ClassVar = 0

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        if self.rank < 1:
            raise UserError(f"WeightsBank.rank = {self.rank}: must be at least 1")
        known = {
            path.removesuffix("/kernel"): shape
            for path, shape in vocabulary.shapes.items()
            if path.endswith("/kernel") and "/layers/" in path
        }
        chosen = [path for path in sorted(known) if re.fullmatch(self.kernels, path)]
        if not chosen:
            raise UserError(
                f"WeightsBank.kernels = {self.kernels!r} matches none of {sorted(known)}"
            )
        leaves = {}
        for at, path in enumerate(chosen):
            layers, inputs, outputs = known[path]
            bound = math.sqrt(3 / inputs)
            shape = layers, inputs, self.rank
            own = jax.random.fold_in(key, at)
            left = jax.random.uniform(own, shape, jnp.float32, -bound, bound)
            leaves[f"{self.name}/{path}/left"] = left
            leaves[f"{self.name}/{path}/right"] = jnp.zeros((layers, self.rank, outputs))
        return leaves

    def prompts(self, params: Leaves) -> dict[str, dict[str, tuple[Array, Array]]]:
        before = f"{self.name}/"
        lefts = [path for path in params if path.startswith(before) and path.endswith("/left")]
        factors = {}
        for path in lefts:
            kernel = path.removesuffix("/left")
            scaled = params[path] * (self.alpha / self.rank)
            factors[kernel.removeprefix(before)] = scaled, params[f"{kernel}/right"]
        return {self.name: factors}


@dataclasses.dataclass(frozen=True)
class Banks(Bank):
    """Several banks of different names."""

    parts: tuple

    @property
    def slots(self) -> int:
        return sum(part.slots for part in self.parts)

    @property
    def most_tokens(self) -> int | None:
        return min((part.most_tokens for part in self.parts if part.most_tokens), default=None)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        names = [part.name for part in self.parts]
        if len({*names}) < len(names):
            raise UserError(f"Banks.parts have names {names}: each needs its own")
        leaves = {}
        for at, part in enumerate(self.parts):  # the first starts as it would alone
            own = jax.random.fold_in(key, at) if at else key
            leaves.update(part.init_params(own, vocabulary))
        return leaves

    def prompts(self, params: Leaves) -> dict[str, Any]:
        return {
            name: vectors for part in self.parts for name, vectors in part.prompts(params).items()
        }


def check_length(length: int) -> None:
    """Refuses a prompt without a vector.

    Raises:
        UserError: `length` is not positive.
    """
    if length < 1:
        raise UserError(f"PROMPT_LENGTH = {length}: a prompt has at least one vector")
