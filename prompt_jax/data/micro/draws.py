"""A fast stream of draws from numpy's PCG64: the same on every platform."""

import typing
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
BLOCK = 256
_CHUNK = 2048


@typing.no_type_check  # called a million times: no run-time checks
class Draws:
    """Choices drawn from one stream of uniform numbers, made in chunks (20 times faster)."""

    def __init__(self, name: str, *numbers: int):
        """Seeds the stream from a name and integers."""
        entropy = [zlib.crc32(name.encode()), *numbers]
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        self.uniform: Callable[[], float] = _stream(generator).__next__

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[int(self.uniform() * len(items))]

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self.uniform() * count)

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.uniform() < probability

    def two(self, items: Sequence[Item]) -> tuple[Item, Item]:
        """Two different items."""
        first = int(self.uniform() * len(items))
        second = int(self.uniform() * (len(items) - 1))
        return items[first], items[second + (second >= first)]

    def other(self, items: Sequence[Item], item: Item) -> Item:
        """One of the items, not this one."""
        found = item
        while found == item:
            found = items[int(self.uniform() * len(items))]
        return found

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """Different items, in random order."""
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            chosen[int(self.uniform() * len(items))] = None
        return [items[index] for index in chosen]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All items in random order (Fisher-Yates)."""
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = int(self.uniform() * (last + 1))
            items[last], items[other] = items[other], items[last]
        return items


def _stream(generator: np.random.Generator) -> Iterator[float]:
    while True:
        yield from generator.random(_CHUNK).tolist()


def blocks(
    name: str, split: str, seed: int, start: int, count: int, make: Callable[[Draws, int], dict]
) -> list[dict]:
    """Examples start .. start+count of a source.

    Args:
        name: of the source; seeds its stream.
        split: likewise.
        seed: likewise.
        start: index of the first example.
        count: how many.
        make: (draws, index) -> example. Draws are seeded once per block of 256 examples.

    Returns:
        `count` examples; any range of indices gives the same examples.
    """
    found: list[dict] = []
    for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
        draws = Draws(f"{name}/{split}", seed, block)
        found += [make(draws, index) for index in range(block * BLOCK, (block + 1) * BLOCK)]
    offset = start % BLOCK
    return found[offset : offset + count]


def in_split(text: str, split: str) -> bool:
    """Whether a text belongs to a split: by its hash, so that no text lies in two splits."""
    bucket = zlib.crc32(text.encode()) % 4
    return bucket == 0 if split == "test" else bucket == 1 if split == "validation" else bucket > 1
