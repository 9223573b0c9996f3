"""The map between our parameter tree and a Hugging Face T5 folder: names, shapes, config.json."""

import dataclasses
from typing import Any

from prompt_jax.errors import UserError, nearest
from prompt_jax.models.t5.config import T5Config

Path = tuple[str, ...]

# Copies of `shared.weight` that some writers store; allowed when they are equal to it.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Written by early T5 1.0 exports and read by no implementation.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
HEAD, SHARED = "lm_head.weight", "shared.weight"
FAMILIES = ("t5", "mt5", "umt5")

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of our tree and the tensors that make it.

    Attributes:
        path: in our tree, e.g. `("encoder", "layers", "mlp", "wo", "kernel")`.
        names: HF tensors; one per layer for a stacked leaf, else a single one.
        shape: of one tensor in our orientation, without the layer axis.
        stacked: the leaf has a leading layer axis.
        transposed: the HF tensor is the transpose (PyTorch stores [out, in]).
    """

    path: Path
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the leaf, layer axis included."""
        return (len(self.names), *self.shape) if self.stacked else self.shape

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of one HF tensor."""
        return self.shape[::-1] if self.transposed else self.shape


def leaves(config: T5Config) -> list[Leaf]:
    """Every leaf of the backbone's tree.

    Args:
        config: sizes and switches.

    Returns:
        Leaves in a fixed order.
    """
    c = config
    found = [_single(("token_embedder", "embedding"), SHARED, (c.vocab_size, c.emb_dim))]
    for stack, count in (("encoder", c.num_encoder_layers), ("decoder", c.num_decoder_layers)):
        found += _stack(c, stack, count)
    if not c.tied_head:
        path = ("decoder", "logits_dense", "kernel")
        found.append(_single(path, HEAD, (c.emb_dim, c.vocab_size), transposed=True))
    return found


def _single(path: Path, name: str, shape: tuple, transposed: bool = False) -> Leaf:
    return Leaf(path, (name,), shape, False, transposed)


def _stack(c: T5Config, stack: str, count: int) -> list[Leaf]:
    found = []

    def stacked(path: Path, name: str, shape: tuple, transposed: bool) -> None:
        names = tuple(f"{stack}.block.{i}.layer.{name}.weight" for i in range(count))
        found.append(Leaf((stack, "layers", *path), names, shape, True, transposed))

    attentions = [("attention", "pre_attention_layer_norm", "SelfAttention")]
    if stack == "decoder":
        attentions = [
            ("self_attention", "pre_self_attention_layer_norm", "SelfAttention"),
            ("encoder_decoder_attention", "pre_cross_attention_layer_norm", "EncDecAttention"),
        ]
    width = c.num_heads * c.head_dim
    for place, (ours, norm, theirs) in enumerate(attentions):
        stacked((norm, "scale"), f"{place}.layer_norm", (c.emb_dim,), False)
        for part, letter in _ATTENTION.items():
            shape = (width, c.emb_dim) if part == "out" else (c.emb_dim, width)
            stacked((ours, part, "kernel"), f"{place}.{theirs}.{letter}", shape, True)
    last = len(attentions)
    stacked(("pre_mlp_layer_norm", "scale"), f"{last}.layer_norm", (c.emb_dim,), False)
    for part in ("wi", "wo") if c.activation == "relu" else ("wi_0", "wi_1", "wo"):
        shape = (c.mlp_dim, c.emb_dim) if part == "wo" else (c.emb_dim, c.mlp_dim)
        stacked(("mlp", part, "kernel"), f"{last}.DenseReluDense.{part}", shape, True)
    bias, shape = "0.SelfAttention.relative_attention_bias", (c.num_heads, c.position_buckets)
    if c.per_layer_position_bias:
        stacked(("relpos_bias", "rel_embedding"), bias, shape, True)
    else:
        path = (stack, "relpos_bias", "rel_embedding")
        found.append(_single(path, f"{stack}.block.0.layer.{bias}.weight", shape, True))
    norm = (stack, f"{stack}_norm", "scale")
    found.append(_single(norm, f"{stack}.final_layer_norm.weight", (c.emb_dim,)))
    return found


def canonical_names(path: Path, layers: int) -> list[str]:
    """T5X's unstacked names of a leaf, e.g. `encoder/layers_0/attention/query/kernel`.

    Args:
        path: in our tree.
        layers: size of the layer axis; ignored for leaves outside `layers`.

    Returns:
        One name per layer, or the single name.
    """
    if "layers" not in path:
        return ["/".join(path)]
    at = path.index("layers")
    return ["/".join((*path[:at], f"layers_{i}", *path[at + 1 :])) for i in range(layers)]


def from_hf(config: dict[str, Any], *, tied_head: bool, place: str) -> T5Config:
    """Reads config.json's fields.

    Whether the head is tied cannot be told from the file (transformers 5 writes
    `tie_word_embeddings: true` for every T5); it is told by the tensors.

    Args:
        config: the parsed file.
        tied_head: no `lm_head.weight` of its own is stored.
        place: shown in errors.

    Returns:
        The shape; `dtype` and `remat` at their defaults, `param_dtype` float32.

    Raises:
        UserError: not a T5, or an activation no public T5 has.
    """
    family = config.get("model_type", "t5")
    if family not in FAMILIES:
        raise UserError(f"{place}: model_type {family!r}: {nearest(str(family), FAMILIES)}")
    activation = config.get("feed_forward_proj", "relu")
    if activation not in ("relu", "gated-gelu"):
        valid = nearest(str(activation), ("relu", "gated-gelu"))
        raise UserError(f"{place}: feed_forward_proj {activation!r}: {valid}")
    # T5 says it by a field of its own, or (published files) scales what is tied. mT5 never
    # scales; umT5 as T5X has it does not, transformers 5 does: T5Config.scale_logits decides.
    implied = family == "t5" and config.get("tie_word_embeddings", True) is not False
    try:
        return T5Config(
            vocab_size=config["vocab_size"],
            emb_dim=config["d_model"],
            num_heads=config["num_heads"],
            head_dim=config["d_kv"],
            mlp_dim=config["d_ff"],
            num_encoder_layers=config["num_layers"],
            num_decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
            activation=activation,
            tied_head=tied_head,
            scale_logits=bool(config.get("scale_decoder_outputs", implied)),
            per_layer_position_bias=family == "umt5",
            position_buckets=config.get("relative_attention_num_buckets", 32),
            position_max_distance=config.get("relative_attention_max_distance", 128),
            norm_epsilon=config.get("layer_norm_epsilon", 1e-6),
            dropout_rate=config.get("dropout_rate", 0.1),
        )
    except KeyError as error:
        raise UserError(f"{place}: the field {error} is missing") from error


def to_hf(config: T5Config) -> dict[str, Any]:
    """What config.json must say so that transformers 4 and 5 read the same model.

    Args:
        config: the shape.

    Returns:
        JSON fields; `tie_word_embeddings` tells transformers 4 and `scale_decoder_outputs`
        tells transformers 5 (where a stored `lm_head.weight` decides about tying).
    """
    umt5 = config.per_layer_position_bias
    return {
        "architectures": [f"{'UMT5' if umt5 else 'T5'}ForConditionalGeneration"],
        "model_type": "umt5" if umt5 else "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": config.activation,
        "tie_word_embeddings": config.tied_head,
        "scale_decoder_outputs": config.scale_logits,
        "relative_attention_num_buckets": config.position_buckets,
        "relative_attention_max_distance": config.position_max_distance,
        "layer_norm_epsilon": config.norm_epsilon,
        "dropout_rate": config.dropout_rate,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": config.param_dtype,
    }
