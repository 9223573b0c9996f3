"""Every kind of step. Gradients, accumulators and optimizer state have `trainable`'s structure."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from prompt_jax import losses
from prompt_jax.assemble import Model, Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes; what a checkpoint holds.

    Attributes:
        step: steps done, int32 [].
        trainable: leaves that move, by path.
        buffers: leaves of the method that no gradient moves, by path.
        opt_state: optax state over `trainable`.
        key: the run's key; every use folds in (step, purpose).
    """

    # Untyped for the run-time checker: tree maps also put shapes and shardings in these places.
    step: Any
    trainable: Any
    buffers: Any
    opt_state: Any
    key: Any

    @property
    def leaves(self) -> dict[str, Any]:
        """All that is the run's own: what moves, and its buffers."""
        return {**self.buffers, **self.trainable}


DROPOUT = 1  # purposes of keys: folded in after the step
INIT = 2
SEARCH = 3


def purpose_key(key: Array, step: Array | int, purpose: int) -> Array:
    """One key per (seed, step, purpose)."""
    return jax.random.fold_in(jax.random.fold_in(key, step), purpose)


def init_state(
    trainable: Tree,
    optimizer: Any,
    seed: int,
    buffers: Tree | None = None,
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        buffers=buffers or {},
        opt_state=optimizer.init(trainable),
        key=jax.random.key_data(jax.random.key(seed)),
    )


def microbatches(batch: dict[str, Array], count: int) -> dict[str, Array]:
    """[B, ...] -> [count, B/count, ...]; microbatch m holds the rows i with i % count == m.

    Interleaving keeps each device's block of rows on that device.
    """

    def split(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def loss_and_grads(
    model: Model,
    trainable: Tree,
    frozen: Tree,
    batch: dict[str, Array],
    key: Array | None,
    num_microbatches: int = 1,
) -> tuple[Array, Tree, dict[str, Array]]:
    """Loss of a batch, its gradient over `trainable`, and counts.

    Sums over microbatches are exact: each part's loss is divided by the weight of the whole batch.

    Args:
        model: assembled functions.
        trainable: leaves that move.
        frozen: the others.
        batch: rows [B, ...].
        key: dropout key; None turns dropout off.
        num_microbatches: parts computed one after the other; must divide B.

    Returns:
        (loss in nats [], gradient tree, {"correct": [], "targets": []}).
    """
    terms = model.method.losses
    whole = losses.weights(terms, batch)

    def part_loss(trainable, part, key):
        outputs = model.outputs({**frozen, **trainable}, part, key)
        return losses.total(terms, outputs, part, whole), losses.counts(outputs, part)

    grad_of = jax.value_and_grad(part_loss, has_aux=True)
    if num_microbatches == 1:
        (loss, counts), grads = grad_of(trainable, batch, key)
        return loss, grads, counts

    def add(carry, indexed):
        index, part = indexed
        part_key = None if key is None else jax.random.fold_in(key, index)
        (loss, counts), grads = grad_of(trainable, part, part_key)
        return jax.tree.map(jnp.add, carry, (loss, grads, counts)), None

    zero = jnp.zeros((), jnp.float32)
    start = (zero, jax.tree.map(jnp.zeros_like, trainable), {"correct": zero, "targets": zero})
    parts = (jnp.arange(num_microbatches), microbatches(batch, num_microbatches))
    (loss, grads, counts), _ = jax.lax.scan(add, start, parts)
    return loss, grads, counts


def train_step(
    model: Model,
    optimizer: Any,
    num_microbatches: int,
    state: TrainState,
    frozen: Tree,
    batch: dict[str, Array],
) -> tuple[TrainState, dict[str, Array]]:
    """One gradient step.

    Returns:
        The next state, and what the log wants: loss [], correct [], targets [], and the
        norms of the gradient and of the new leaves.
    """
    key = None
    if model.network.config.dropout_rate:
        key = purpose_key(jax.random.wrap_key_data(state.key), state.step, DROPOUT)
    loss, grads, counts = loss_and_grads(
        model, state.trainable, {**frozen, **state.buffers}, batch, key, num_microbatches
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    new = dataclasses.replace(
        state,
        step=state.step + 1,
        trainable=optax.apply_updates(state.trainable, updates),
        opt_state=opt_state,
    )
    norms = {"grad_norm": optax.tree.norm(grads), "norm": optax.tree.norm(new.trainable)}
    return new, {"loss": loss, **norms, **counts}


def score_step(
    model: Model,
    optimizer: Any,
    num_microbatches: int,
    state: TrainState,
    frozen: Tree,
    batch: dict[str, Array],
) -> tuple[TrainState, dict[str, Array]]:
    """Adds a batch's share to the scores among the buffers; nothing moves, and no dropout.

    Returns:
        As `train_step` does.
    """
    del optimizer
    still = {**frozen, **state.buffers}
    loss, grads, counts = loss_and_grads(
        model, state.trainable, still, batch, None, num_microbatches
    )
    buffers = {**state.buffers, **model.method.scored(state.leaves, grads)}
    norms = {"grad_norm": optax.tree.norm(grads), "norm": optax.tree.norm(state.trainable)}
    new = dataclasses.replace(state, step=state.step + 1, buffers=buffers)
    return new, {"loss": loss, **norms, **counts}


def search_step(
    model: Model,
    optimizer: Any,
    num_microbatches: int,
    state: TrainState,
    frozen: Tree,
    batch: dict[str, Array],
) -> tuple[TrainState, dict[str, Array]]:
    """One generation of a search: a pass forward for each candidate, no gradient, no dropout.

    Candidates share the batch; NUM_MICROBATCHES parts of them are computed one after the other.

    Returns:
        As `train_step` does: means over the candidates, and no norm of a gradient.
    """
    still, terms = {**frozen, **state.buffers}, model.method.losses
    whole = losses.weights(terms, batch)
    key = purpose_key(jax.random.wrap_key_data(state.key), state.step, SEARCH)
    candidates, found, asked = optimizer.ask(key, state.opt_state, state.trainable)

    def measure(candidate):
        outputs = model.outputs({**still, **candidate}, batch)
        return losses.total(terms, outputs, batch, whole), losses.counts(outputs, batch)

    together = -(-len(found) // num_microbatches)
    values, counts = jax.lax.map(measure, candidates, batch_size=together)
    trainable, opt_state = optimizer.tell(key, found, values, asked, state.trainable)
    new = dataclasses.replace(state, step=state.step + 1, trainable=trainable, opt_state=opt_state)
    norms = {"grad_norm": jnp.zeros(()), "norm": optax.tree.norm(trainable)}
    return new, {"loss": jnp.mean(values), **norms, **jax.tree.map(jnp.mean, counts)}


KINDS = {"gradient": train_step, "score": score_step, "search": search_step}  # of phases


def jit_train_step(
    model: Model,
    optimizer: Any,
    num_microbatches: int,
    kind: str = "gradient",
):
    """`step(state, frozen, batch)` of a kind of phase, compiled; the state's memory is reused."""

    def step(state, frozen, batch):
        return KINDS[kind](model, optimizer, num_microbatches, state, frozen, batch)

    return jax.jit(step, donate_argnums=0)


def train_step_at_once(
    model: Model,
    optimizer: Any,
    num_microbatches: int,
    state: TrainState,
    frozen: Tree,
    batch: dict[str, Array],
    learning: Array,
    kind: str = "gradient",
) -> tuple[TrainState, dict[str, Array]]:
    """A step of R runs at once (`vmap`).

    Args:
        model: assembled functions.
        optimizer: one for all; rates lie in its state.
        num_microbatches: as in `loss_and_grads`.
        state: leaves [R, ...].
        frozen: the leaves that are the same for all.
        batch: rows [R, B, ...].
        learning: bool [R]; the state of the others stays.
        kind: of the phase, one of KINDS.

    Returns:
        The next states, and what the log wants of each run, [R].
    """

    def one(state, batch, learns):
        new, numbers = KINDS[kind](model, optimizer, num_microbatches, state, frozen, batch)
        return jax.tree.map(lambda new, old: jnp.where(learns, new, old), new, state), numbers

    return jax.vmap(one)(state, batch, learning)
