"""Floating-point operations of a T5 by formula: matrix products alone, two per multiply and add.

Norms, softmax, position biases and the embedding lookup are left out, as in any count of model
FLOPs; so is what is computed twice (rematerialisation). N is the number of weights that a position
passes, so the numbers can be held against `4 N positions` of a frozen backbone and `6 N` of a
trained one. Cross attention of short targets goes without keys and values of its own
(`models.t5.layers.Attention.folded`); they count here all the same, as in any other T5.
"""

import dataclasses

from prompt_jax.models.t5.config import T5Config


@dataclasses.dataclass(frozen=True)
class Work:
    """What a batch asks of a T5, in positions and in (query, key) pairs.

    Attributes:
        encoder: positions of the encoder, slots included.
        decoder: positions of the decoder.
        encoder_pairs: pairs of its self attention.
        decoder_pairs: pairs of its self attention, hidden ones included (as they are computed).
        cross_pairs: decoder position and encoder position.
    """

    encoder: int
    decoder: int
    encoder_pairs: int
    decoder_pairs: int
    cross_pairs: int


def rows(count: int, encoder: int, decoder: int) -> Work:
    """The work of whole rows: every position attends to all of its row, as it is computed.

    Args:
        count: B, rows of the batch.
        encoder: T, positions of a row.
        decoder: U, positions of a row.
    """
    return Work(
        encoder=count * encoder,
        decoder=count * decoder,
        encoder_pairs=count * encoder * encoder,
        decoder_pairs=count * decoder * decoder,
        cross_pairs=count * encoder * decoder,
    )


def examples(lengths) -> Work:
    """The work of examples alone, each attending to itself: neither padding nor neighbours.

    Args:
        lengths: (encoder positions, slots included; decoder positions) of each example.
    """
    return Work(
        encoder=sum(int(t) for t, _ in lengths),
        decoder=sum(int(u) for _, u in lengths),
        encoder_pairs=sum(int(t) * int(t) for t, _ in lengths),
        decoder_pairs=sum(int(u) * int(u) for _, u in lengths),
        cross_pairs=sum(int(t) * int(u) for t, u in lengths),
    )


def weights(config: T5Config) -> tuple[int, int]:
    """N: weights that each encoder position and each decoder position is multiplied with.

    Keys and values of cross attention belong to the decoder's layers, but it is the encoder's
    positions that pass them; the head is the decoder's. The embedding table is looked up.

    Returns:
        (N of an encoder position, N of a decoder position).
    """
    c = config
    projection = c.emb_dim * c.num_heads * c.head_dim
    mlp = (3 if c.activation == "gated-gelu" else 2) * c.emb_dim * c.mlp_dim
    encoder = c.num_encoder_layers * (4 * projection + mlp)
    encoder += c.num_decoder_layers * 2 * projection
    decoder = c.num_decoder_layers * (6 * projection + mlp) + c.emb_dim * c.vocab_size
    return encoder, decoder


def products(config: T5Config, work: Work) -> int:
    """FLOPs of the products with weights in a forward pass: 2 N positions."""
    encoder, decoder = weights(config)
    return 2 * (encoder * work.encoder + decoder * work.decoder)


def attention(config: T5Config, work: Work) -> int:
    """FLOPs of attention's two products in a forward pass: 4 N_heads D a pair and layer."""
    pairs = config.num_encoder_layers * work.encoder_pairs
    pairs += config.num_decoder_layers * (work.decoder_pairs + work.cross_pairs)
    return 4 * config.num_heads * config.head_dim * pairs


def forward(config: T5Config, work: Work) -> int:
    """FLOPs of a forward pass."""
    return products(config, work) + attention(config, work)


def training(config: T5Config, work: Work, frozen: bool = True) -> int:
    """FLOPs of a training step: the forward pass, and the gradient back to the input.

    A product with a weight costs the same again for the gradient of its input, and once more for
    that of the weight, which a frozen one has none of: 4 N positions instead of 6 N. Both sides
    of attention's products are activations: three times the forward pass.

    Args:
        config: sizes.
        work: of the batch.
        frozen: only a prompt trains; else every weight.
    """
    return (2 if frozen else 3) * products(config, work) + 3 * attention(config, work)
