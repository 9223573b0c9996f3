"""Search without gradients: an optimizer that asks for losses of candidates, and is told them.

CMA-ES itself is evosax's, imported where it is used.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_jax.errors import UserError

Tree = dict[str, Array]
WORST = 1e9  # the loss of a candidate whose own is not finite


@dataclasses.dataclass(frozen=True)
class CMAES:
    """CMA-ES (Hansen 2016), in the place of an optimizer: `phases.Search` asks and tells.

    It searches the rows of its one leaf [..., d] in turn, a generation of one row a step, each with
    a mean, step and covariance of its own (BBTv2's divide and conquer, Sun et al. 2022). A row
    becomes the mean of what was found, or the best candidate ever.

    Attributes:
        population: candidates of a generation: the passes over the batch of a step.
        sigma: the first step.
        keep: "mean", or "best": for batches that are the whole training set, as in the paper;
            of others a lucky one would decide.
    """

    population: int = 20
    sigma: float = 1.0
    keep: str = "mean"

    kind: ClassVar = "search"
    varies: ClassVar = ("sigma",)
    pads: ClassVar = False

    def build(self, live: float = 1.0) -> "Evolution":
        """The search, with its functions `init`, `ask` and `tell`."""
        del live
        if self.population < 4 or self.sigma <= 0:
            raise UserError(
                f"CMAES.population = {self.population}, sigma = {self.sigma}: 4 or more, positive"
            )
        if self.keep not in ("mean", "best"):
            raise UserError(f"CMAES.keep = {self.keep!r}: 'mean' or 'best'")
        return Evolution(self.population, self.sigma, self.keep)


@dataclasses.dataclass(frozen=True)
class Evolution:
    """A search that has been built; see `CMAES`."""

    population: int
    sigma: float
    keep: str

    def _strategy(self, size: int):
        from evosax.algorithms import CMA_ES

        strategy = CMA_ES(population_size=self.population, solution=jnp.zeros(size))
        return strategy, strategy.default_params.replace(std_init=jnp.float32(self.sigma))

    def init(self, trainable: Tree) -> dict[str, Any]:
        """The state: of each row its own strategy's, and the number of generations."""
        rows = _rows(trainable)
        strategy, params = self._strategy(rows.shape[1])
        key = jax.random.key(0)  # nothing is drawn
        states = jax.vmap(lambda row: strategy.init(key, row, params))(rows)
        return {"rows": jax.tree.map(jnp.asarray, states), "turn": jnp.zeros((), jnp.int32)}

    def ask(self, key: Array, state: dict, trainable: Tree) -> tuple[Tree, Array, dict]:
        """(candidates, leaves [population, ...]; the row of each, [population, d]; next state)."""
        rows = _rows(trainable)
        strategy, params = self._strategy(rows.shape[1])
        at = state["turn"] % len(rows)
        own = jax.tree.map(lambda leaf: leaf[at], state["rows"])
        with jax.default_matmul_precision("highest"):
            found, own = strategy.ask(key, own, params)
        candidates = jax.vmap(lambda row: _put(trainable, rows.at[at].set(row)))(found)
        return candidates, found, {**state, "rows": _set(state["rows"], at, own)}

    def tell(
        self, key: Array, found: Array, losses: Float[Array, " n"], state: dict, trainable: Tree
    ) -> tuple[Tree, dict]:
        """(leaves with the row as it is now, next state)."""
        rows = _rows(trainable)
        strategy, params = self._strategy(rows.shape[1])
        at = state["turn"] % len(rows)
        own = jax.tree.map(lambda leaf: leaf[at], state["rows"])
        finite = jnp.isfinite(losses)
        losses = jnp.where(finite, losses, WORST)

        def learn(own):
            with jax.default_matmul_precision("highest"):
                return strategy.tell(key, found, losses, own, params)[0]

        # A generation of which nothing is known teaches nothing.
        own = jax.lax.cond(jnp.any(finite), learn, lambda own: own, own)
        best = jnp.where(jnp.isfinite(own.best_fitness), own.best_solution, rows[at])
        row = own.mean if self.keep == "mean" else best
        state = {"rows": _set(state["rows"], at, own), "turn": state["turn"] + 1}
        return _put(trainable, rows.at[at].set(row)), state


def _rows(trainable: Tree) -> Float[Array, "n d"]:
    if len(trainable) != 1:
        raise UserError(f"CMAES searches one leaf, but {sorted(trainable)} train")
    (leaf,) = trainable.values()
    return leaf.reshape(-1, leaf.shape[-1])


def _put(trainable: Tree, rows: Float[Array, "n d"]) -> Tree:
    return {path: rows.reshape(leaf.shape) for path, leaf in trainable.items()}


def _set(states: Any, at: Array, own: Any) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[at].set(new), states, own)
