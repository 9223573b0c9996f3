"""Loss terms: pure functions of the outputs record. A term gives a sum; `weight` says of how many.

Sums are divided once, by the weight of the whole batch, so that accumulation, packing, sharding
and padding cannot change the number.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_jax.errors import UserError

Batch = dict[str, Array]
Outputs = dict[str, dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Token cross-entropy with z-loss: sum_u w_u (logsumexp(l_u) - l_u[y_u] + z logsumexp(l_u)^2).

    With label smoothing s the target is 1-s on y and s/(V-1) elsewhere, less that distribution's
    entropy, so that a perfect model still scores 0. As in T5X (losses.py), with its defaults.

    Attributes:
        z_loss: z, pulls the log-normaliser to 0.
        label_smoothing: s.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    reads: ClassVar = "tokens"

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """The number of target tokens that count."""
        return jnp.sum(batch["decoder_loss_weights"])

    def sum(self, outputs: Outputs, batch: Batch) -> Float[Array, ""]:
        """The weighted sum over the batch, in nats."""
        return jnp.sum(self.per_token(outputs["main"]) * batch["decoder_loss_weights"])

    def per_token(self, numbers: dict[str, Array]) -> Float[Array, "B U"]:
        """Loss of each position, unweighted, from the numbers of the LM head."""
        log_z = numbers["log_z"]
        loss = log_z - numbers["target_logit"]
        if self.label_smoothing:
            s, v = self.label_smoothing, numbers["vocab_size"]
            low = s / (v - 1)
            entropy = -((1 - s) * jnp.log(1 - s) + (v - 1) * low * jnp.log(low + 1e-20))
            others = v * (log_z - numbers["mean_logit"]) - loss
            loss = (1 - s) * loss + low * others - entropy
        return loss + self.z_loss * jnp.square(log_z)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How far the logits l are from those that another prompt gives: s w sum_u mean_v (l - t)_uv^2.

    The other prompt is the leaf "prompt/NAME" of the same bank; its logits t carry no gradient and
    know no dropout. w is the leaf "prompt/NAME_weight" where there is one (PANDA's similarity of
    source and target), else 1. With the LM head alone, whose logits are linear in the states.

    Attributes:
        strength: s.
        teacher: NAME.
    """

    strength: float = 1.0
    teacher: str = "teacher"
    reads: ClassVar = "tokens"

    @property
    def passes(self) -> tuple[str, ...]:
        """Passes beside "main"."""
        return (self.teacher,)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """The number of target tokens that count."""
        return jnp.sum(batch["decoder_loss_weights"])

    def sum(self, outputs: Outputs, batch: Batch) -> Float[Array, ""]:
        """The weighted sum over the batch, in squared logits."""
        other = outputs[self.teacher]
        found = jnp.sum(other["distance"] * batch["decoder_loss_weights"])
        return self.strength * other["weight"] * found


class OfClasses:
    """A term that reads a number for each label; it counts examples, not tokens."""

    reads: ClassVar = "classes"

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """The number of examples."""
        return jnp.sum(first_positions(batch["decoder_segment_ids"]))


@dataclasses.dataclass(frozen=True)
class ClassCrossEntropy(OfClasses):
    """-sum_c y_c log softmax(l)_c / sum_c y_c of each example, for one label of C."""

    def sum(self, outputs: Outputs, batch: Batch) -> Float[Array, ""]:
        """The sum over the batch's examples, in nats."""
        main = outputs["main"]
        classes = main["classes"] / jnp.maximum(main["classes"].sum(-1, keepdims=True), 1.0)
        each = -jnp.sum(classes * jax.nn.log_softmax(main["class_logits"]), axis=-1)
        return jnp.sum(each * main["counted"])


@dataclasses.dataclass(frozen=True)
class ClassHinge(OfClasses):
    """sum_c (1 - y_c) max(0, l_c - l_y + margin) of each example, for one label of C.

    l_y is the label's own logit (the mean of several labels'). BBT's other loss (Sun et al. 2022).

    Attributes:
        margin: by which a label must lie above the others.
    """

    margin: float = 2.0

    def sum(self, outputs: Outputs, batch: Batch) -> Float[Array, ""]:
        """The sum over the batch's examples, in logits."""
        main = outputs["main"]
        logits, classes = main["class_logits"], main["classes"]
        count = jnp.maximum(classes.sum(-1, keepdims=True), 1.0)
        own = jnp.sum(classes * logits, axis=-1, keepdims=True) / count
        above = jnp.maximum(logits - own + self.margin, 0.0)
        each = jnp.sum((1 - classes) * above, axis=-1)
        return jnp.sum(each * main["counted"])


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy(OfClasses):
    """-mean_c (w_c y_c log sigma(l_c) + (1 - y_c) log sigma(-l_c)) of each example.

    Buchner et al. 2024 take w_c = max_k n_k / n_c, n the labels' counts in the training split.

    Attributes:
        positive: w, a number for each label; (): 1.
    """

    positive: tuple[float, ...] = ()

    def sum(self, outputs: Outputs, batch: Batch) -> Float[Array, ""]:
        """The sum over the batch's examples, in nats."""
        main = outputs["main"]
        logits, classes = main["class_logits"], main["classes"]
        ups = jnp.asarray(self.positive or 1.0) * classes * jax.nn.log_sigmoid(logits)
        each = -jnp.mean(ups + (1 - classes) * jax.nn.log_sigmoid(-logits), axis=-1)
        return jnp.sum(each * main["counted"])


def first_positions(segment_ids: Int[Array, "B U"]) -> Float[Array, "B U"]:
    """1 where an example of a row begins."""
    begins = jnp.diff(segment_ids, axis=1, prepend=0) != 0
    return (begins & (segment_ids > 0)).astype(jnp.float32)


def check(terms: tuple, head: Any) -> None:
    """Refuses terms that read what a head does not give.

    Raises:
        UserError: with the term and the head.
    """
    for term in terms:
        if term.reads != head.gives:
            raise UserError(
                f"{type(term).__name__} reads numbers of {term.reads}, {type(head).__name__} gives "
                f"those of {head.gives}"
            )
        given = len(getattr(term, "positive", ()))
        if given and given != len(head.labels):
            raise UserError(
                f"BinaryCrossEntropy.positive has {given} weights for {len(head.labels)} labels"
            )


def passes(terms: tuple) -> tuple[str, ...]:
    """The passes that terms need beside "main", each once."""
    return tuple(dict.fromkeys(name for term in terms for name in getattr(term, "passes", ())))


def weights(terms: tuple, batch: Batch) -> tuple[Float[Array, ""], ...]:
    """The weight of each term over `batch`, before any pass is computed."""
    return tuple(term.weight(batch) for term in terms)


def total(
    terms: tuple, outputs: Outputs, batch: Batch, whole: tuple[Float[Array, ""], ...]
) -> Float[Array, ""]:
    """The training loss of (a part of) a batch: sum_i sum_i / weight_i.

    Args:
        terms: loss terms.
        outputs: a record per pass (`main`, ...) of this part of the batch.
        batch: this part of the batch.
        whole: each term's weight over the whole batch, from `weights`.

    Returns:
        The part's share of the loss; parts add up to the loss of the batch, in nats.
    """
    shares = [
        term.sum(outputs, batch) / jnp.maximum(weight, 1.0)
        for term, weight in zip(terms, whole, strict=True)
    ]
    return sum(shares[1:], shares[0])


def counts(outputs: Outputs, batch: Batch) -> dict[str, Float[Array, ""]]:
    """Sums for the log: tokens or examples that the head says rightly, and how many there are."""
    main = outputs["main"]
    counted = main["counted"] if "counted" in main else batch["decoder_loss_weights"]
    return {"correct": jnp.sum(main["hit"] * counted), "targets": jnp.sum(counted)}
