"""What a stored backbone is to its readers, whatever its format: named tensors, read in parts."""

import dataclasses
from collections.abc import Callable

import numpy as np
from etils import epath

from prompt_jax.models.t5.config import T5Config

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One stored tensor, in the tree's orientation (kernels `[in, out]`).

    Attributes:
        shape: of the whole.
        dtype: as stored.
        read: a part by its index; only that part is held in memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    def whole(self) -> np.ndarray:
        """All of it."""
        return self.read(tuple(slice(0, size) for size in self.shape))


@dataclasses.dataclass(frozen=True)
class Source:
    """A stored backbone, opened: headers are read and checked, values are not.

    Attributes:
        place: where it is, for messages.
        tensors: canonical name -> tensor.
        unknown: tensors without a place in the tree, their own name -> shape.
        config: sizes and switches that the files themselves tell.
        silent: fields of `config` that no shape shows and that the files state.
        own: canonical name and shape -> the file's own name and shape, for messages.
        vocabulary: a sentencepiece model beside the weights, if any.
        recorded: canonical name -> digest, where they were recorded when it was written.
    """

    place: str
    tensors: dict[str, Tensor]
    unknown: dict[str, tuple[int, ...]]
    config: T5Config
    silent: tuple[str, ...] = ()
    own: Callable[[str, tuple[int, ...]], tuple[str, tuple[int, ...]]] = lambda n, s: (n, s)
    vocabulary: epath.Path | None = None
    recorded: dict[str, str] = dataclasses.field(default_factory=dict)
