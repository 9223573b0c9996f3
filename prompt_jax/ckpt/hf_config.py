"""config.json of a Hugging Face T5 folder, read and written so that transformers 4 and 5 agree."""

from typing import Any

from prompt_jax.errors import UserError, nearest
from prompt_jax.models.t5.config import T5Config

FAMILIES = ("t5", "mt5", "umt5")
_MOST_LAYERS = 1000  # of a stack


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
    sizes = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    optional = ("num_decoder_layers", "relative_attention_num_buckets")
    optional += ("relative_attention_max_distance",)
    for name in (*sizes, *(name for name in optional if config.get(name) is not None)):
        value = config.get(name)
        most = _MOST_LAYERS if name.endswith("layers") else 1 << 31
        if name in config and (type(value) is not int or not 0 < value < most):
            raise UserError(f"{place}: {name} = {value!r}: expected a whole number below {most}")
    for name in ("layer_norm_epsilon", "dropout_rate"):
        if type(config.get(name, 0.0)) not in (int, float):
            raise UserError(f"{place}: {name} = {config[name]!r}: expected a number")
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
    if not umt5 and config.tied_head != config.scale_logits:
        raise UserError(
            f"T5Config.tied_head = {config.tied_head}, T5Config.scale_logits = "
            f"{config.scale_logits}: config.json cannot say it alike for transformers 4 and 5"
        )
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
