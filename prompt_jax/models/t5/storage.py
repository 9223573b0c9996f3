"""How weights lie in memory: as float32, bfloat16, or int8 with scales per output channel.

int8 is for frozen kernels of the layers: w_io = s_go q_io, s_go = max |w_io| / 127 over 64 inputs,
group g; embedding, head, norms and position biases are bfloat16 then. A layer is dequantised
just before its use.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from prompt_jax.models.t5.config import T5Config

SCALE = "_scale"  # "kernel" -> "kernel_scale"
GROUP = 64  # inputs that share a scale, of each output channel


def stored_dtype(path: tuple[str, ...], config: T5Config) -> str:
    """The dtype in which a leaf is stored.

    Args:
        path: in the tree, e.g. `("encoder", "layers", "mlp", "wo", "kernel")`.
        config: `param_dtype` decides.
    """
    quantised = config.param_dtype == "int8" and path[-1] == "kernel" and "layers" in path
    return "int8" if quantised else config.float_dtype


def quantise(
    kernel: Float[Array, "*layers I O"],
) -> tuple[Int8[Array, "*layers I O"], Float[Array, "*layers G O"]]:
    """(q, s): the nearest of 255 levels, per output channel and group of inputs.

    Args:
        kernel: weights of one layer, or of all.
    """
    *layers, inputs, outputs = kernel.shape
    groups = max(1, inputs // GROUP) if inputs % GROUP == 0 else 1
    wide = kernel.astype(jnp.float32).reshape(*layers, groups, -1, outputs)
    scale = jnp.max(jnp.abs(wide), axis=-2) / 127.0
    levels = jnp.round(wide / jnp.where(scale == 0, 1.0, scale)[..., None, :])
    return levels.astype(jnp.int8).reshape(kernel.shape), scale


def dequantise(
    levels: Int8[Array, "I O"], scale: Float[Array, "G O"], dtype: str
) -> Float[Array, "I O"]:
    """The kernel of one layer, in `dtype`."""
    groups, outputs = scale.shape
    # The first axis of 1 tells these arrays from activations: see `saveable`.
    wide = levels.reshape(1, groups, -1, outputs).astype(dtype)
    return (wide * scale[None, :, None].astype(dtype)).reshape(levels.shape)


def store(name: str, leaf: Array, dtype: str) -> dict[str, Array]:
    """A leaf as it is stored.

    Args:
        name: the last one of its path.
        leaf: floats, one layer or all.
        dtype: its `stored_dtype`.

    Returns:
        {name: array}, and the scales of an int8 leaf.
    """
    if dtype == "int8":
        levels, scale = quantise(leaf)
        return {name: levels, name + SCALE: scale}
    return {name: leaf.astype(dtype)}


def fetch(layer: dict, dtype: str) -> dict:
    """One layer's weights as it computes with them.

    Args:
        layer: nested dict of its leaves, as stored.
        dtype: of the computation; norm scales and position biases stay as they are (they are used
            in float32).

    Returns:
        The tree that the layer's modules know: kernels in `dtype`.
    """
    found = {}
    for name, leaf in layer.items():
        if isinstance(leaf, dict):
            found[name] = fetch(leaf, dtype)
        elif name + SCALE in layer:
            found[name] = dequantise(leaf, layer[name + SCALE], dtype)
        elif not name.endswith(SCALE):
            found[name] = leaf.astype(dtype) if name == "kernel" else leaf
    return found


def saveable(primitive, *inputs, **_) -> bool:
    """A rematerialisation policy: keep what depends on the batch, never weights alone.

    Activations have three axes or more and begin with the rows of the batch; what a kernel is made
    of has two, or begins with an axis of 1. Without it the backward pass would keep every layer's
    dequantised (cast, gathered) kernels, a backbone of floats.

    Args:
        primitive: what computes.
        inputs: shapes and dtypes that go in.
    """
    del primitive
    return any(getattr(aval, "ndim", 0) > 2 and aval.shape[0] > 1 for aval in inputs)
