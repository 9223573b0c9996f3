"""Kernels of a layer that are more than what is stored: W + A B.

The factors travel with the layer's weights, so that one layer at a time is gathered, dequantised
and changed; A and B lie beside the kernel under the names `FACTORS`.
"""

from collections.abc import Callable

import jax.numpy as jnp

from prompt_jax.models.t5 import storage

FACTORS = ("kernel_left", "kernel_right")  # [I, r] and [r, O] of one layer


def adding(fetch_layer: Callable[[dict], dict] | None) -> Callable[[dict], dict]:
    """The hook `fetch_layer` with factors multiplied and added, in float32.

    Args:
        fetch_layer: how a layer's weights are brought in; None leaves them where they are.
    """

    def fetch(layer: dict) -> dict:
        return add(fetch_layer(layer) if fetch_layer else layer)

    return fetch


def add(layer: dict) -> dict:
    """One layer's weights with their factors added.

    Args:
        layer: nested dict of its leaves, as stored.

    Returns:
        The same without factors; a kernel that had some is float32 and no longer quantised.
    """
    left, right = FACTORS
    found = {name: add(leaf) if isinstance(leaf, dict) else leaf for name, leaf in layer.items()}
    if left in found:
        delta = jnp.matmul(found.pop(left), found.pop(right), precision="highest")
        stored = {name: leaf for name, leaf in found.items() if name.startswith("kernel")}
        found = {name: leaf for name, leaf in found.items() if name not in stored}
        found["kernel"] = storage.fetch(stored, "float32")["kernel"] + delta
    return found
