"""Path -> PartitionSpec: which dimension of which leaf is split over which mesh axis."""

import re

from jax.sharding import PartitionSpec

# (pattern, dimension split over `model`, dimension split over the `data` of a slice (or None) when
# frozen weights are sharded over both axes); dimensions count from the end, so stacked layers need
# no rule of their own. First match wins; what no pattern matches is replicated (norms, biases,
# prompts).
RULES = (
    (r"backbone/token_embedder/embedding", -2, -1),
    (r"backbone/decoder/logits_dense/kernel", -1, -2),
    (r".*/(query|key|value)/kernel", -1, -2),
    (r".*/out/kernel", -2, -1),
    (r".*/wi(_0|_1)?/kernel", -1, -2),
    (r".*/wo/kernel", -2, -1),
    (r".*/(query|key|value|wi(_0|_1)?)/kernel_scale", -1, None),
)


def partition_spec(
    path: str, shape: tuple[int, ...], mesh_shape: dict[str, int], over_data: bool
) -> PartitionSpec:
    """The split of one leaf.

    Args:
        path: "backbone/encoder/layers/mlp/wo/kernel".
        shape: the leaf's shape.
        mesh_shape: devices along each axis, {"data": ..., "model": ...}.
        over_data: also split over `data` (each layer is then gathered before its use).

    Returns:
        One entry per dimension; a dimension that does not divide stays whole.
    """
    rule = next((rule for rule in RULES if re.fullmatch(rule[0], path)), None)
    if rule is None:
        return PartitionSpec()
    _, model_dim, data_dim = rule
    entries: list[str | None] = [None] * len(shape)
    wanted = [("model", model_dim)] + ([("data", data_dim)] if over_data and data_dim else [])
    for axis, dim in wanted:
        if mesh_shape[axis] > 1 and shape[dim] % mesh_shape[axis] == 0:
            entries[dim] = axis
    return PartitionSpec(*entries)


def undivided(paths: dict[str, tuple[int, ...]], mesh_shape: dict[str, int]) -> list[str]:
    """Paths that a rule would split over `model` but whose dimension does not divide."""
    whole = []
    for path, shape in paths.items():
        for pattern, model_dim, _ in RULES:
            if re.fullmatch(pattern, path):
                if mesh_shape["model"] > 1 and shape[model_dim] % mesh_shape["model"]:
                    whole.append(path)
                break
    return whole
