"""What is switched off before a phase begins (XPrompt, Ma et al. 2022)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from prompt_jax.errors import UserError
from prompt_jax.parts.phases import Begin

Leaves = dict[str, Array]
LEAF = "prompt/encoder"  # of `bank.MaskedBank`


class Prune(Begin):
    """What both kinds have, beside `share`."""

    kind: ClassVar[str]

    def check(self, bank: Any) -> None:
        if not (bank and bank.masks):
            name = type(self).__name__
            raise UserError(f"{name} needs Method.bank = @MaskedBank(), not {type(bank).__name__}")
        number_off(self.share, {"tokens": bank.length, "pieces": bank.pieces}[self.kind], self.kind)

    def __call__(self, leaves: Leaves, fresh: Callable[[], Leaves]) -> Leaves:
        del fresh
        return prune(leaves, self.kind, self.share)


@dataclasses.dataclass(frozen=True)
class PruneTokens(Prune):
    """Switches off the tokens with the lowest scores, round(share P) of them; scores start anew.

    The others stay what they are: a phase of scores moves none of them, so the next phase goes on
    from the end of training ("rewinding").

    Attributes:
        share: of the tokens.
    """

    share: float

    kind: ClassVar = "tokens"


@dataclasses.dataclass(frozen=True)
class PrunePieces(Prune):
    """Switches off the pieces with the lowest scores, round(share k) of every token that is on.

    Attributes:
        share: of a token's pieces.
    """

    share: float

    kind: ClassVar = "pieces"


def number_off(share: float, size: int, kind: str) -> int:
    """round(share size).

    Raises:
        UserError: a share that leaves nothing, or is none.
    """
    count = round(share * size)
    if not 0 <= share < 1 or count == size:
        raise UserError(f"a share of {share} of {size} {kind} leaves none to prompt by")
    return count


def prune(leaves: Leaves, kind: str, share: float) -> Leaves:
    """The leaves with the mask of a kind set from its scores, and all scores 0."""
    score = np.asarray(leaves[f"{LEAF}_{kind}_score"])
    count = number_off(share, score.shape[-1], kind)
    order = np.argsort(score, axis=-1, kind="stable")
    mask = np.ones(score.shape, np.float32)
    np.put_along_axis(mask, order[..., :count], 0.0, axis=-1)
    if kind == "pieces":
        mask[np.asarray(leaves[f"{LEAF}_tokens_mask"]) == 0] = 1.0  # of tokens that are off: none
    zero = {path: jnp.zeros_like(leaf) for path, leaf in leaves.items() if path.endswith("_score")}
    return {**leaves, **zero, f"{LEAF}_{kind}_mask": jnp.asarray(mask)}
