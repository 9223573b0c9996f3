"""Fingerprints: of every number and its place, free of storage, mesh and format."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from prompt_jax.ckpt import fingerprint, load
from prompt_jax.testing.tiny import tiny_config, tiny_params

TINY = pathlib.Path(__file__).parent.parent / "fixtures" / "t5v11_tiny"


def mix(x):
    """The hash in Python's unbounded integers."""
    mask = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)


def test_sums_are_those_of_whole_numbers():
    for shape in ((15,), (3, 5), (2, 3, 5)):
        tensor = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        totals = [0, 0]
        for index, bits in enumerate(tensor.reshape(-1).view(np.uint32).tolist()):
            hashed = mix(bits ^ mix((index + 0x9E3779B9) & 0xFFFFFFFF))
            totals[0] += hashed
            totals[1] += mix((hashed + 1) & 0xFFFFFFFF)
        expected = [total & 0xFFFFFFFF for total in totals]
        np.testing.assert_array_equal(fingerprint.sums(jnp.asarray(tensor)), expected)


def test_the_smallest_bfloat16_is_not_zero():
    """A flipped low bit in a stored zero must show: no arithmetic that flushes it away."""
    zero, smallest = (jnp.asarray(np.array([b], np.uint16).view(jnp.bfloat16)) for b in (0, 1))
    assert fingerprint.sums(zero).tolist() != fingerprint.sums(smallest).tolist()


def changed_at(params, path, change):
    flat = traverse_util.flatten_dict(params)
    flat[path] = jnp.asarray(change(np.array(flat[path])))
    return traverse_util.unflatten_dict(flat)


def test_fingerprint_sees_every_element_and_its_place():
    params = tiny_params(tiny_config())
    seen = {fingerprint.of_tree(params)}
    rng = np.random.default_rng(0)
    paths = list(traverse_util.flatten_dict(params))
    for path in paths:

        def nudge(array):
            at = tuple(rng.integers(0, size) for size in array.shape)
            array[at] = np.nextafter(array[at], np.float32(9))
            return array

        def swap(array):
            row = array[-1] if array.ndim > 1 else array
            row.reshape(-1)[:2] = row.reshape(-1)[1::-1][:2]
            return array

        def flip_layers(array):
            return array[::-1]

        for change in (nudge, swap, flip_layers):
            seen.add(fingerprint.of_tree(changed_at(params, path, change)))
    assert len(seen) == 1 + 3 * len(paths)


def test_fingerprint_knows_names():
    params = tiny_params(tiny_config())
    layers = params["encoder"]["layers"]["attention"]
    swapped = changed_at(
        params,
        ("encoder", "layers", "attention", "key", "kernel"),
        lambda _: layers["value"]["kernel"],
    )
    swapped = changed_at(
        swapped,
        ("encoder", "layers", "attention", "value", "kernel"),
        lambda _: layers["key"]["kernel"],
    )
    assert fingerprint.of_tree(swapped) != fingerprint.of_tree(params)


def test_fingerprint_is_free_of_storage():
    low = tiny_params(tiny_config(param_dtype="bfloat16"))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    arrays = jax.tree.map(np.asarray, wide)
    assert fingerprint.of_tree(low) == fingerprint.of_tree(wide) == fingerprint.of_tree(arrays)
    assert fingerprint.of_tree(low) != fingerprint.of_tree(tiny_params(tiny_config()))


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
def test_fingerprint_is_free_of_the_mesh(shape):
    mesh = jax.make_mesh(shape, ("data", "model"))
    params = tiny_params(tiny_config())

    def put(x):
        spec = [None] * x.ndim
        if x.ndim > 1:
            spec[-1], spec[-2] = "model", "data"
        sizes = dict(zip(("data", "model"), shape, strict=True))
        fits = [s if s and n % sizes[s] == 0 else None for s, n in zip(spec, x.shape, strict=True)]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*fits)))

    assert fingerprint.of_tree(jax.tree.map(put, params)) == fingerprint.of_tree(params)


def test_fingerprint_of_the_fixture_is_what_it_was():
    """Records name backbones by it: it may never change."""
    loaded = load.load_backbone(TINY)
    assert loaded.fingerprint == fingerprint.of_tree(loaded.params) == "d13a832c573b13b6"
