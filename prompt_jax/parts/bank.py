"""How a method's own numbers are stored: trained leaves -> vectors by name.

A bank gives vectors by name and an inject takes them by name:

    encoder          [P, H]            for the slots of the encoder's input
    encoder_on       [P]               which of them are on, 0 or 1
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
    masks: ClassVar = False  # whether it says which of its vectors are on
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
class Banks(Bank):
    """Several banks of different names; those that fill slots fill the same ones."""

    parts: tuple

    @property
    def slots(self) -> int:
        return max(part.slots for part in self.parts)

    @property
    def tasks(self) -> tuple[str, ...]:
        return next((part.tasks for part in self.parts if part.tasks), ())

    @property
    def masks(self) -> bool:
        return any(part.masks for part in self.parts)

    def first_slot(self, task: str) -> int:
        found = next((part for part in self.parts if part.tasks), self.parts[0])
        return found.first_slot(task)

    def scored(self, params: Leaves, gradient: Leaves) -> Leaves:
        found = next((part for part in self.parts if part.masks), self.parts[0])
        return found.scored(params, gradient)

    @property
    def most_tokens(self) -> int | None:
        return min((part.most_tokens for part in self.parts if part.most_tokens), default=None)

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        names = [part.name for part in self.parts]
        if len({*names}) < len(names):
            raise UserError(f"Banks.parts have names {names}: each needs its own")
        lengths = {part.slots for part in self.parts if part.slots}
        if len(lengths) > 1:
            raise UserError(f"Banks.parts fill the same slots, but are {sorted(lengths)} long")
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
