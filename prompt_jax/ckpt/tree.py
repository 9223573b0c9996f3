"""The backbone's parameter tree: every leaf, its shape, and the canonical names of its tensors.

Canonical names are T5X's, unstacked: `encoder/layers_0/attention/query/kernel`.
"""

import dataclasses

from prompt_jax.models.t5.config import T5Config

Path = tuple[str, ...]
EMBEDDING = "token_embedder/embedding"
HEAD = "decoder/logits_dense/kernel"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of the tree and the tensors that make it.

    Attributes:
        path: in the tree, e.g. `("encoder", "layers", "mlp", "wo", "kernel")`.
        shape: of one tensor, without the layer axis.
        layers: size of the leading layer axis; 0: the leaf has none.
    """

    path: Path
    shape: tuple[int, ...]
    layers: int = 0

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the leaf, layer axis included."""
        return (self.layers, *self.shape) if self.layers else self.shape

    @property
    def names(self) -> list[str]:
        """Canonical names of its tensors, one per layer, or the single one."""
        return canonical_names(self.path, self.layers)


def canonical_names(path: Path, layers: int) -> list[str]:
    """The canonical names of a leaf's tensors.

    Args:
        path: in the tree.
        layers: size of the layer axis; ignored for leaves outside `layers`.

    Returns:
        One name per layer, or the single name.
    """
    if "layers" not in path:
        return ["/".join(path)]
    at = path.index("layers")
    return ["/".join((*path[:at], f"layers_{i}", *path[at + 1 :])) for i in range(layers)]


def leaves(config: T5Config) -> list[Leaf]:
    """Every leaf of the backbone's tree.

    Args:
        config: sizes and switches.

    Returns:
        Leaves in a fixed order.
    """
    c = config
    found = [Leaf(("token_embedder", "embedding"), (c.vocab_size, c.emb_dim))]
    found += _stack(c, "encoder", c.num_encoder_layers)
    found += _stack(c, "decoder", c.num_decoder_layers)
    if not c.tied_head:
        found.append(Leaf(("decoder", "logits_dense", "kernel"), (c.emb_dim, c.vocab_size)))
    return found


def _stack(c: T5Config, stack: str, count: int) -> list[Leaf]:
    """The leaves of the encoder or the decoder."""
    attentions = {"attention": "pre_attention_layer_norm"}
    if stack == "decoder":
        attentions = {
            "self_attention": "pre_self_attention_layer_norm",
            "encoder_decoder_attention": "pre_cross_attention_layer_norm",
        }
    width = c.num_heads * c.head_dim
    shapes: dict[Path, tuple[int, ...]] = {}
    for attention, norm in attentions.items():
        shapes[norm, "scale"] = (c.emb_dim,)
        for part in ("query", "key", "value"):
            shapes[attention, part, "kernel"] = (c.emb_dim, width)
        shapes[attention, "out", "kernel"] = (width, c.emb_dim)
    shapes["pre_mlp_layer_norm", "scale"] = (c.emb_dim,)
    for part in ("wi",) if c.activation == "relu" else ("wi_0", "wi_1"):
        shapes["mlp", part, "kernel"] = (c.emb_dim, c.mlp_dim)
    shapes["mlp", "wo", "kernel"] = (c.mlp_dim, c.emb_dim)
    bias, bias_shape = ("relpos_bias", "rel_embedding"), (c.num_heads, c.position_buckets)
    if c.per_layer_position_bias:
        shapes[bias] = bias_shape
    found = [Leaf((stack, "layers", *path), shape, count) for path, shape in shapes.items()]
    if not c.per_layer_position_bias:
        found.append(Leaf((stack, *bias), bias_shape))
    found.append(Leaf((stack, f"{stack}_norm", "scale"), (c.emb_dim,)))
    return found
