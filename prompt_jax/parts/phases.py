"""In what order a run proceeds: what each part of its steps trains, on what, and how it begins.

A run's phases share its TRAIN_STEPS. Before the first step of a phase its `begin` makes the leaves
out of those that the phase before has left; the optimizer starts anew. The last phase chooses the
best step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from prompt_jax.errors import UserError

Leaves = dict[str, Any]  # by path: "prompt/encoder"


class Begin:
    """What the `begin` of a phase has."""

    def check(self, bank: Any) -> None:
        """Refuses settings of its own, or a bank that it is not for, before anything is trained.

        Raises:
            UserError: with the setting and what would do.
        """
        del bank

    def __call__(self, leaves: Leaves, fresh: Callable[[], Leaves]) -> Leaves:
        """The leaves at the start of the phase, of those that are there and how to draw anew."""
        raise NotImplementedError


class Phase:
    """What every phase has; each also has a `name`, `kind`, `steps`, `task` and `losses`."""

    begin: Begin | None = None

    def check(self, bank: Any) -> None:
        """As of `Begin`."""
        if self.begin:
            self.begin.check(bank)


@dataclasses.dataclass(frozen=True)
class Gradient(Phase):
    """Steps along the gradient.

    Attributes:
        name: shown in the log and kept in the checkpoint.
        steps: how many: a count, or a share (0 to 1) of TRAIN_STEPS; 0: all that are left.
        task: to train on, instead of the run's.
        losses: terms instead of the method's.
        begin: makes the leaves of its start; None keeps those that are there.
    """

    name: str = "train"
    steps: int | float = 0
    task: str = ""
    losses: tuple | None = None
    begin: Begin | None = None

    kind: ClassVar = "gradient"


@dataclasses.dataclass(frozen=True)
class Search(Phase):
    """Generations of a search without gradients: passes forward alone, by `evolution.CMAES`.

    A step is one generation: as many passes over its batch as there are candidates, without
    dropout.

    Attributes:
        name: shown in the log and kept in the checkpoint.
        steps: as of `Gradient`.
        task: as of `Gradient`.
        begin: as of `Gradient`.
    """

    name: str = "search"
    steps: int | float = 0
    task: str = ""
    begin: Begin | None = None

    kind: ClassVar = "search"
    losses: ClassVar = None


@dataclasses.dataclass(frozen=True)
class Score(Phase):
    """Steps that move nothing: the bank's scores of its own parts add up in its buffers.

    Attributes:
        name: shown in the log and kept in the checkpoint.
        steps: as of `Gradient`.
        begin: as of `Gradient`.
    """

    name: str = "score"
    steps: int | float = 0
    begin: Begin | None = None

    kind: ClassVar = "score"
    task: ClassVar = ""
    losses: ClassVar = None

    def check(self, bank: Any) -> None:
        super().check(bank)
        if not (bank and bank.masks):
            raise UserError(
                f"phase {self.name!r} scores what may be switched off: it needs Method.bank = "
                f"@MaskedBank(), not {type(bank).__name__}"
            )
