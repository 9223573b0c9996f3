"""Where prompt vectors start (Lester et al. 2021, section 3.2 and appendix B.2)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prompt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a bank and its init may ask of the backbone.

    Attributes:
        width: H.
        rows: token ids -> their embeddings, float32 [n, H].
        encode: text -> token ids, no EOS.
        pieces: the number of real pieces, sentinels and padding rows excluded.
        read_prompt: path of a stored prompt, and whether one of another backbone is welcome ->
            its vectors, float32 [P, H].
        shapes: of the backbone's leaves, by path; those of layers are stacked.
        deviations: measures the standard deviation of the states that enter each layer of the
            encoder, [L].
    """

    width: int
    rows: Callable[[list[int]], np.ndarray]
    encode: Callable[[str], list[int]]
    pieces: int
    read_prompt: Callable[[str, bool], np.ndarray] | None = None
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    deviations: Callable[[], np.ndarray] | None = None

    def kernel(self, path: str) -> tuple[int, ...]:
        """(L, I, O) of a stack's kernels, e.g. "encoder/layers/attention/key"."""
        return self.shapes[f"{path}/kernel"]


@dataclasses.dataclass(frozen=True)
class UniformInit:
    """x ~ U(-scale, scale)."""

    scale: float = 0.5

    def __call__(self, key: Array, length: int, vocabulary: Vocabulary) -> Float[Array, "P H"]:
        shape = (length, vocabulary.width)
        return jax.random.uniform(key, shape, jnp.float32, -self.scale, self.scale)


@dataclasses.dataclass(frozen=True)
class SampledVocabulary:
    """Embeddings of tokens drawn without repeats from the `first` most common pieces."""

    first: int = 5000

    def __call__(self, key: Array, length: int, vocabulary: Vocabulary) -> Float[Array, "P H"]:
        limit = min(self.first, vocabulary.pieces)
        if length > limit:
            raise UserError(
                f"SampledVocabulary: a prompt of {length} needs {length} different pieces, "
                f"but SampledVocabulary.first and the vocabulary leave {limit}"
            )
        ids = jax.random.choice(key, limit, (length,), replace=False)
        return jnp.asarray(vocabulary.rows([int(i) for i in ids]), jnp.float32)


@dataclasses.dataclass(frozen=True)
class CommonVocabulary:
    """Embeddings of the most common pieces, in their order, after the first `skip`."""

    skip: int = 3

    def __call__(self, key: Array, length: int, vocabulary: Vocabulary) -> Float[Array, "P H"]:
        del key
        if self.skip + length > vocabulary.pieces:
            raise UserError(
                f"CommonVocabulary: {length} pieces after the first {self.skip}; there are "
                f"{vocabulary.pieces}"
            )
        ids = list(range(self.skip, self.skip + length))
        return jnp.asarray(vocabulary.rows(ids), jnp.float32)


@dataclasses.dataclass(frozen=True)
class ClassLabels:
    """One slot per label: the mean of its pieces' embeddings; the slots left over are `rest`."""

    labels: tuple[str, ...]
    rest: SampledVocabulary | UniformInit = SampledVocabulary()

    def __call__(self, key: Array, length: int, vocabulary: Vocabulary) -> Float[Array, "P H"]:
        if not self.labels:
            raise UserError("CLASS_LABELS is empty, e.g. ('positive', 'negative')")
        vectors = [
            np.mean(vocabulary.rows(vocabulary.encode(label)), axis=0)
            for label in self.labels[:length]
        ]
        heads = jnp.asarray(np.stack(vectors), jnp.float32)
        left = length - len(vectors)
        return jnp.concatenate([heads, self.rest(key, left, vocabulary)]) if left else heads


@dataclasses.dataclass(frozen=True)
class TextInit:
    """The embeddings of `text`'s pieces, in order; cut to P, or filled up by `rest`."""

    text: str
    rest: SampledVocabulary | UniformInit = SampledVocabulary()

    def __call__(self, key: Array, length: int, vocabulary: Vocabulary) -> Float[Array, "P H"]:
        ids = vocabulary.encode(self.text)[:length]
        if not ids:
            raise UserError("TextInit.text is empty")
        heads = jnp.asarray(vocabulary.rows(ids), jnp.float32)
        left = length - len(ids)
        return jnp.concatenate([heads, self.rest(key, left, vocabulary)]) if left else heads


@dataclasses.dataclass(frozen=True)
class FileInit:
    """The vectors of a stored prompt: `.npy`, ours, a PEFT adapter, T5X, or another run's.

    force: also one whose file names another backbone or vocabulary.
    """

    path: str
    force: bool = False

    def __call__(self, key: Array, length: int, vocabulary: Vocabulary) -> Float[Array, "P H"]:
        del key
        array = vocabulary.read_prompt(self.path, self.force)
        expected = (length, vocabulary.width)
        if array.shape != expected:
            raise UserError(
                f"PROMPT_FILE {self.path}: shape {array.shape}, this run needs {expected} "
                "(PROMPT_LENGTH, width of the backbone)"
            )
        return jnp.asarray(array, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Several stored prompts of equal length, one after the other: the bank of an ensemble.

    Attributes:
        paths: N of them, each as `FileInit.path`; the bank has N P rows, `layout.slot_ids(P, i P)`
            are those of prompt i.
        force: also those whose files name another backbone or vocabulary.
    """

    paths: tuple[str, ...]
    force: bool = False

    def rows_of_file(self, length: int) -> int:
        """P, of a bank of `length` rows.

        Raises:
            UserError: they are not N times anything.
        """
        if not self.paths or length % len(self.paths):
            raise UserError(
                f"Prompts: {len(self.paths)} prompts do not fill PROMPT_LENGTH = {length} rows "
                "evenly"
            )
        return length // len(self.paths)

    def __call__(self, key: Array, length: int, vocabulary: Vocabulary) -> Float[Array, "P H"]:
        del key
        expected = self.rows_of_file(length), vocabulary.width
        arrays = [vocabulary.read_prompt(path, self.force) for path in self.paths]
        for path, array in zip(self.paths, arrays, strict=True):
            if array.shape != expected:
                raise UserError(
                    f"Prompts: {path}: shape {array.shape}, each of {len(arrays)} prompts needs "
                    f"{expected} (PROMPT_LENGTH / {len(arrays)}, width of the backbone)"
                )
        return jnp.asarray(np.concatenate(arrays), jnp.float32)
