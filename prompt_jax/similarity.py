"""How vectors lie to each other: a prompt's slots, the embedding table, other prompts.

NumPy only. A cosine with a vector of zeros is 0.
"""

import numpy as np
from jaxtyping import Float, Float32, Int

TOP = 5  # neighbours per slot, as in Lester et al. 2021, section 7
# Slots closer than this (2.6 degrees) are one vector for the model. Pieces of a trained table are
# never so close, and slots that have drifted together are seldom equal to the bit.
DUPLICATE = 0.999
_BLOCK = 4096  # rows of the table in float32 at a time: 64 MB at width 4096


def neighbours(
    prompt: Float[np.ndarray, "P H"], table: Float[np.ndarray, "V H"], count: int = TOP
) -> tuple[Int[np.ndarray, "P top"], Float32[np.ndarray, "P top"]]:
    """The rows of the table that each slot points at most: `cos(p, e) = p.e / (|p| |e|)`.

    Args:
        prompt: the slots.
        table: in any float dtype; only a few thousand rows at a time become float32.
        count: how many; less where the table has fewer rows.

    Returns:
        (rows, cosines), both [P, min(count, V)], best first.

    Source: Lester et al. 2021, section 7.
    """
    slots = _directions(prompt).astype(np.float32)
    rows = np.zeros((len(slots), 0), np.int64)
    cosines = np.zeros((len(slots), 0), np.float32)
    for start in range(0, len(table), _BLOCK):
        block = _directions(table[start : start + _BLOCK], np.float32)
        found = np.broadcast_to(np.arange(start, start + len(block)), (len(slots), len(block)))
        rows = np.concatenate([rows, found], axis=1)
        cosines = np.concatenate([cosines, slots @ block.T], axis=1)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        rows, cosines = (np.take_along_axis(each, best, axis=1) for each in (rows, cosines))
    return rows, np.clip(cosines, -1, 1)


def duplicates(
    prompt: Float[np.ndarray, "P H"], threshold: float = DUPLICATE
) -> list[tuple[int, int]]:
    """Pairs of slots that point the same way: `cos(p_i, p_j) >= threshold`, i < j.

    Args:
        prompt: the slots.
        threshold: of the cosine.

    Returns:
        The pairs in order.
    """
    slots = _directions(prompt)
    alike = np.triu(slots @ slots.T >= threshold, k=1)
    return [(int(i), int(j)) for i, j in np.argwhere(alike)]


def shared(nearest: Int[np.ndarray, "P"]) -> dict[int, list[int]]:
    """The slots that have their nearest row in common, as long prompts do (section 7).

    Args:
        nearest: the nearest row of each slot.

    Returns:
        Row -> its slots, where it has two or more.
    """
    groups: dict[int, list[int]] = {}
    for slot, row in enumerate(nearest):
        groups.setdefault(int(row), []).append(slot)
    return {row: slots for row, slots in groups.items() if len(slots) > 1}


def similarity_average(a: Float[np.ndarray, "P H"], b: Float[np.ndarray, "Q H"]) -> float:
    """`cos(mean_i a_i, mean_j b_j)`: SPoT's cosine similarity of average tokens.

    Args:
        a: one prompt.
        b: another; its length may differ.

    Returns:
        -1 to 1; 1 for a prompt with itself.

    Source: Vu et al. 2022 (SPoT), arXiv 2110.07904, prompts as task embeddings.
    """
    return float(_directions(a.mean(0, np.float64)) @ _directions(b.mean(0, np.float64)))


def similarity_per_token(a: Float[np.ndarray, "P H"], b: Float[np.ndarray, "Q H"]) -> float:
    """`1/(P Q) sum_i sum_j cos(a_i, b_j)`: SPoT's per-token average cosine similarity.

    The double sum is the product of two means: `mean_i a_i/|a_i| . mean_j b_j/|b_j|`.

    Args:
        a: one prompt.
        b: another; its length may differ.

    Returns:
        -1 to 1; below 1 for a prompt with itself, unless all its slots point the same way.

    Source: Vu et al. 2022 (SPoT), arXiv 2110.07904, prompts as task embeddings.
    """
    return float(_directions(a).mean(0) @ _directions(b).mean(0))


def cosines(a: Float[np.ndarray, "P H"], b: Float[np.ndarray, "P H"]) -> Float[np.ndarray, "P"]:
    """`cos(a_i, b_i)` of each row."""
    return np.clip((_directions(a) * _directions(b)).sum(-1), -1, 1)


def mean_norm(table: Float[np.ndarray, "V H"]) -> float:
    """`mean_i |e_i|`, a few thousand rows in float32 at a time."""
    blocks = (table[at : at + _BLOCK] for at in range(0, len(table), _BLOCK))
    norms = [np.linalg.norm(block.astype(np.float32), axis=-1) for block in blocks]
    return float(np.concatenate(norms).mean(dtype=np.float64))


def _directions(x: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """Vectors of length 1 along the last axis; zeros stay zeros."""
    x = x.astype(dtype)
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms == 0, 1, norms)
