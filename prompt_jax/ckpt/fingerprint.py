"""The fingerprint of weights: the same for any storage of the same numbers, on any mesh.

Per canonical unstacked tensor, two wrapping sums of a hash of (float32 bits, index): free of order,
so shards add up without moving. bfloat16 counts as the float32 it stands for. The numbers are
those of the files: they are summed before any cast to another storage dtype.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, UInt32

from prompt_jax.ckpt.tree import canonical_names


def of_tree(params: dict) -> str:
    """The fingerprint of a parameter tree in memory.

    Args:
        params: the backbone's tree, layers stacked.

    Returns:
        16 hexadecimal digits.
    """
    found = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        rows = np.asarray(_stacked_sums(leaf) if "layers" in path else sums(leaf)[None])
        shape = leaf.shape[1:] if "layers" in path else leaf.shape
        names = canonical_names(path, leaf.shape[0])
        found |= {name: digest(shape, row) for name, row in zip(names, rows, strict=True)}
    return combine(found)


def of_state(state: Any) -> str:
    """The fingerprint of any tree of arrays, sharded or not: of a run's state.

    Args:
        state: floats and 32-bit integers.

    Returns:
        16 hexadecimal digits.
    """
    groups: dict[Any, dict[str, Array]] = {}  # runs of a fleet may lie on devices of their own
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        groups.setdefault(frozenset(leaf.devices()), {})[jax.tree_util.keystr(path)] = leaf
    return combine(
        {
            name: digest(leaves[name].shape, np.asarray(row))
            for leaves in groups.values()
            for name, row in _all_sums(leaves).items()
        }
    )


@jax.jit
def _all_sums(leaves: dict[str, Array]) -> dict[str, Array]:
    return {name: sums(leaf) for name, leaf in leaves.items()}


def digest(shape: tuple[int, ...], sums_: np.ndarray) -> str:
    """A tensor's line: its shape and its two sums."""
    return f"{tuple(shape)} {sums_[0]:08x}{sums_[1]:08x}"


def of_array(array: np.ndarray) -> str:
    """The line of a tensor in host memory."""
    return digest(array.shape, np.asarray(sums(jnp.asarray(array))))


def combine(digests: Mapping[str, str]) -> str:
    """The fingerprint of all tensors.

    Args:
        digests: canonical name -> `digest`.

    Returns:
        16 hexadecimal digits.
    """
    lines = sorted(f"{name} {line}" for name, line in digests.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@jax.jit
def sums(tensor: Array) -> UInt32[Array, "2"]:
    """Two wrapping sums over one tensor: `sum_i h(bits_i ^ h(i + c))`, and of `h(that + 1)`."""
    bits, index, stride = _bits(tensor), jnp.zeros(tensor.shape, jnp.uint32), 1
    for axis in range(bits.ndim - 1, -1, -1):
        place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index, stride = index + place * np.uint32(stride % 2**32), stride * bits.shape[axis]
    mixed = _mix(bits ^ _mix(index + np.uint32(0x9E3779B9)))
    return jnp.stack([jnp.sum(h, dtype=jnp.uint32) for h in (mixed, _mix(mixed + np.uint32(1)))])


@jax.jit
def _stacked_sums(leaf: Array) -> UInt32[Array, "L 2"]:
    return jax.vmap(sums)(leaf)


def _bits(x: Array) -> Array:
    """The float32 bits of a number; a bfloat16 is the upper half of one. Integers are bits."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(jnp.uint32)
    if x.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def _mix(x: Array) -> Array:
    """A bijection of 32 bits with good avalanche (xor-shift-multiply)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
