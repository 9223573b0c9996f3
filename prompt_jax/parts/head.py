"""How the answer is read from the decoder's states."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from prompt_jax import label_tokens, likelihood, losses
from prompt_jax.errors import UserError
from prompt_jax.parts.init import Vocabulary

Leaves = dict[str, Array]  # by path below "prompt/"
EOS = 1


class Head:
    """What every head has."""

    gives: ClassVar[str]  # the kind of numbers that losses find (see `losses`)
    folds: ClassVar = True  # whether it trains nothing
    labels: ClassVar[tuple[str, ...]] = ()  # the answers, where it has a number for each

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        """Fresh leaves of its own, float32."""
        del key, vocabulary
        return {}

    def check(self, encode: Callable[[str], list[int]], targets: list[tuple[int, ...]]) -> None:
        """Refuses targets that it cannot learn.

        Args:
            encode: text -> tokens, no EOS.
            targets: tokens of some, EOS included.

        Raises:
            UserError: with the first.
        """


@dataclasses.dataclass(frozen=True)
class LMHead(Head):
    """Text: the backbone's own language-model head on every decoder state.

    Attributes:
        limit_mb: most megabytes of float32 logits at a time.
    """

    limit_mb: float = likelihood.LIMIT_MB
    gives: ClassVar = "tokens"

    def __call__(
        self,
        own: Leaves,
        states: Float[Array, "B U H"],
        batch: dict[str, Array],
        logits_of: Callable[[Array], Array],
        vocab_size: int,
    ) -> dict[str, Array]:
        """Its share of the outputs record: `likelihood.token_numbers`, and V."""
        del own
        targets = batch["decoder_target_tokens"]
        numbers = likelihood.token_numbers(logits_of, states, targets, vocab_size, self.limit_mb)
        return {**numbers, "vocab_size": jnp.float32(vocab_size)}

    def distance(
        self,
        logits_of: Callable[[Array], Array],
        states: Float[Array, "B U H"],
        others: Float[Array, "B U H"],
        vocab_size: int,
    ) -> Float[Array, "B U"]:
        """Mean squared difference of the logits of two passes, position by position."""
        between = states.astype(jnp.float32) - others.astype(jnp.float32)
        return likelihood.mean_square(logits_of, between, vocab_size, self.limit_mb)


@dataclasses.dataclass(frozen=True)
class ClassifierHead(Head):
    """A number for each of C labels: W h, W [C, H], h the decoder's state at the start token.

    PTEC (Buchner et al. 2024), for an encoder-decoder: the start token's state sees the whole
    input and nothing of the target. Which labels an example has is read from its target: one label,
    or several with a separator between them, in any order. W ~ U(-1, 1) / sqrt(H). The labels'
    tokens are buffers.

    Attributes:
        labels: the C answers, as text.
        separator: between the labels of an example; "": one label each.
        most_tokens: of a label, and of the separator.
    """

    labels: tuple[str, ...]
    separator: str = ""
    most_tokens: int = 16

    gives: ClassVar = "classes"
    folds: ClassVar = False

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        if len({*self.labels}) < max(2, len(self.labels)):
            raise UserError(f"CLASS_LABELS = {self.labels}: two labels or more, each once")
        shape = len(self.labels), vocabulary.width
        weights = jax.random.uniform(key, shape, jnp.float32, -1, 1) / math.sqrt(vocabulary.width)
        between = label_tokens.between(self.labels[0], self.separator, vocabulary.encode)
        return {
            "classifier": weights,
            "classifier_labels": self._table([vocabulary.encode(text) for text in self.labels]),
            "classifier_separator": self._table([between])[0],
        }

    def _table(self, rows: list[list[int]]) -> Float[Array, "n K"]:
        table = np.zeros((len(rows), self.most_tokens), np.float32)
        for row, tokens in zip(table, rows, strict=True):
            if len(tokens) > self.most_tokens:
                raise UserError(
                    f"ClassifierHead.most_tokens = {self.most_tokens}: one of {self.labels} has "
                    f"{len(tokens)} tokens"
                )
            row[: len(tokens)] = tokens
        return jnp.asarray(table)

    def check(self, encode: Callable[[str], list[int]], targets: list[tuple[int, ...]]) -> None:
        tokens, between = label_tokens.tokens_of(self.labels, self.separator, encode)
        own = dict(zip(self.labels, map(tuple, tokens), strict=True))
        known = {*own.values()}
        if len(known) < len(own):
            raise UserError(f"CLASS_LABELS = {self.labels}: two of them are the same tokens")
        for target in targets:
            if not {*split(target, tuple(between))} <= known:
                raise UserError(
                    f"a target of tokens {[*target]} is none of CLASS_LABELS = {own} with "
                    f"EOS after it (separator {self.separator!r}: {between})"
                )

    def __call__(
        self,
        own: Leaves,
        states: Float[Array, "B U H"],
        batch: dict[str, Array],
        logits_of: Callable[[Array], Array],
        vocab_size: int,
    ) -> dict[str, Array]:
        """Its share of the outputs record, all [B, U, ...] and read where an example begins.

        "class_logits" and "classes" [B, U, C], 1 for an example's labels; "hit", 1 where the answer
        would be right; "counted", 1 where an example begins.
        """
        del vocab_size
        scores = self.scores(own, states, logits_of)
        tables = own["classifier_labels"], own["classifier_separator"]
        tokens, segments = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
        classes = find_labels(tokens, segments, *tables)
        right = jnp.all(self.answers(scores) == (classes > 0), axis=-1)
        return {
            "class_logits": scores,
            "classes": classes,
            "hit": right.astype(jnp.float32),
            "counted": losses.first_positions(segments),
        }

    def scores(
        self, own: Leaves, states: Float[Array, "*n H"], logits_of: Callable | None = None
    ) -> Float[Array, "*n C"]:
        """W h, float32."""
        del logits_of
        return states.astype(jnp.float32) @ own["classifier"].T

    def answers(self, scores: Float[Array, "*n C"]) -> Bool[Array, "*n C"]:
        """The labels that are said: the one of the highest score; with a separator, all above 0."""
        if self.separator:
            return scores > 0
        best = jnp.argmax(scores, axis=-1)
        return jax.nn.one_hot(best, len(self.labels), dtype=bool)

    def texts(self, scores: Float[np.ndarray, "n C"]) -> list[tuple[str, float]]:
        """(answer, its log-probability in nats) of each example: sigmoids where labels are several,
        else a softmax."""
        said = np.asarray(self.answers(jnp.asarray(scores)))
        if self.separator:
            logs = jax.nn.log_sigmoid(jnp.where(said, scores, -scores)).sum(-1)
        else:
            logs = jax.nn.log_softmax(scores).max(-1)
        texts = [self.separator.join(np.array(self.labels, object)[row].tolist()) for row in said]
        return list(zip(texts, np.asarray(logs).tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class VerbalizerHead(ClassifierHead):
    """A number for each of C labels: the language model's logit of the label's first token.

    At the decoder's first position; no other token of the vocabulary competes. One label an
    example; nothing of it trains.
    """

    folds: ClassVar = True

    def init_params(self, key: Array, vocabulary: Vocabulary) -> Leaves:
        if self.separator:
            raise UserError("VerbalizerHead.separator: an example has one label, set it to ''")
        leaves = super().init_params(key, vocabulary)
        del leaves["classifier"]
        return leaves

    def check(self, encode: Callable[[str], list[int]], targets: list[tuple[int, ...]]) -> None:
        super().check(encode, targets)
        first = [encode(label)[0] for label in self.labels]
        if len({*first}) < len(first):
            raise UserError(
                f"VerbalizerHead: two of CLASS_LABELS = {self.labels} begin with the same token"
            )

    def scores(
        self, own: Leaves, states: Float[Array, "*n H"], logits_of: Callable | None = None
    ) -> Float[Array, "*n C"]:
        """The logits of the labels' first tokens, float32."""
        first = own["classifier_labels"][:, 0].astype(jnp.int32)
        return jnp.take(logits_of(states), first, axis=-1)


def split(target: tuple[int, ...], separator: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The tokens of a target's labels; EOS must end it, or its last label is none."""
    parts, start, wide = [], 0, len(separator)
    for at in range(len(target) if wide else 0):
        if at >= start and target[at : at + wide] == separator:
            parts.append(target[start:at])
            start = at + wide
    last = target[start:]
    return [*parts, last[:-1] if last[-1:] == (EOS,) else (*last, EOS)]


def find_labels(
    tokens: Array, segment_ids: Array, labels: Float[Array, "C K"], separator: Float[Array, " K"]
) -> Float[Array, "B U C"]:
    """1 for each label that stands anywhere in the target of a position's example.

    A label begins at the example's start or after a separator, and EOS or a separator follows it.
    """
    wide = labels.shape[1]
    before = jnp.pad(tokens, ((0, 0), (wide, 0)))
    after = jnp.pad(tokens, ((0, 0), (0, 2 * wide)))
    length = tokens.shape[1]
    ahead = jnp.stack([after[:, k : k + length] for k in range(2 * wide)], axis=-1)  # [B, U, 2K]
    back = jnp.stack([before[:, wide - k : wide - k + length] for k in range(1, wide + 1)], -1)
    same = (labels == 0) | (ahead[:, :, None, :wide] == labels)
    sizes, gap = jnp.sum(labels > 0, axis=1), jnp.sum(separator > 0)
    places = sizes[:, None] + jnp.arange(wide)
    behind = jnp.take(ahead, places, axis=-1)  # [B, U, C, K], after each label
    parts = jnp.all((separator == 0) | (behind == separator), axis=-1) & (gap > 0)
    ends = (behind[..., 0] == EOS) | parts
    turned = jnp.roll(separator[::-1], gap)  # backwards, from the position before
    begins = jnp.all((turned == 0) | (back == turned), axis=-1) & (gap > 0)
    begins |= losses.first_positions(segment_ids) > 0
    found = jnp.all(same, axis=-1) & ends & begins[..., None] & (segment_ids > 0)[..., None]
    together = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.any(together[..., None] & found[:, None], axis=2).astype(jnp.float32)
