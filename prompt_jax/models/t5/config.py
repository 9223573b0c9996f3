"""Shape and dtype of a T5: every public variant is one set of these fields."""

import dataclasses

from prompt_jax.errors import UserError, nearest

CHOICES = {
    "activation": ("gated-gelu", "relu"),
    "param_dtype": ("float32", "bfloat16", "int8"),
    "dtype": ("float32", "bfloat16"),
    "attention": ("auto", "xla", "cudnn"),
    "remat": ("none", "minimal", "full"),
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5's sizes and switches (Raffel et al. 2020, section 2.1; names as in T5X).

    Attributes:
        vocab_size: V, rows of the embedding table (padding rows included).
        emb_dim: H.
        num_heads: N.
        head_dim: D.
        mlp_dim: F.
        num_encoder_layers: L of the encoder.
        num_decoder_layers: L of the decoder.
        activation: "gated-gelu" (T5 1.1 and later) or "relu" (T5 1.0).
        tied_head: the LM head is the embedding table.
        scale_logits: decoder states are multiplied by H^-0.5 before the head (tied T5 1.0).
        per_layer_position_bias: every layer has its own relative bias (umT5).
        position_buckets: buckets of the relative position bias.
        position_max_distance: distances beyond share the last bucket.
        norm_epsilon: added to the mean square in RMS norm.
        dropout_rate: one mask along the length, as in T5X.
        param_dtype: storage dtype of the weights: "float32", "bfloat16", or "int8" (frozen kernels
            of the layers with scales per output channel; all else bfloat16).
        dtype: compute dtype; norms, softmax and logits stay float32.
        attention: "xla", "cudnn" (flash attention on GPUs, half precision), "auto" picks.
        remat: "none", "full" (recompute each layer) or "minimal" (keep matrix products).
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    activation: str = "gated-gelu"
    tied_head: bool = False
    scale_logits: bool = False
    per_layer_position_bias: bool = False
    position_buckets: int = 32
    position_max_distance: int = 128
    norm_epsilon: float = 1e-6
    dropout_rate: float = 0.1
    param_dtype: str = "float32"
    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                found = getattr(self, field)
                raise UserError(f"T5Config.{field} = {found!r}: {nearest(str(found), choices)}")

    @property
    def float_dtype(self) -> str:
        """The dtype in which weights are drawn, and in which those lie that are no int8."""
        return "bfloat16" if self.param_dtype == "int8" else self.param_dtype
