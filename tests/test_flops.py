"""FLOPs by formula against the products in the program and against XLA's own count."""

import math

import jax
import jax.numpy as jnp
import pytest

from prompt_jax import flops, step
from prompt_jax.assemble import Method, assemble, flatten
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.inject import EncoderSlots
from prompt_jax.testing.batches import examples, lay_out
from prompt_jax.testing.tiny import tiny_config, tiny_params

P, ROWS, T, U = 5, 3, 32, 16  # targets long enough for keys and values of all positions
WORK = flops.rows(ROWS, T, U)


def products(jaxpr) -> int:
    """Two FLOPs per multiply and add of every `dot_general`, a loop's body as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(products(each) for each in inner if hasattr(each, "eqns"))
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            contracted = math.prod(shape[axis] for axis in left)
            total += 2 * contracted * math.prod(equation.outvars[0].aval.shape)
    return total


def position_bias(config) -> int:
    """The one other product: the table of buckets, by distance, in both stacks."""
    copies = config.num_encoder_layers if config.per_layer_position_bias else 1
    others = config.num_decoder_layers if config.per_layer_position_bias else 1
    per_position = 2 * config.num_heads * config.position_buckets * 2
    return per_position * (copies * T + others * U)


def built(config):
    method = Method("prompt_tuning", bank=PromptBank(P), inject=EncoderSlots())
    model = assemble(config, method)
    params = flatten({"backbone": tiny_params(config)})
    params["prompt/encoder"] = jnp.ones((P, config.emb_dim))
    return model, *method.trainable.split(params)[:2]


def batch(config):
    pairs = examples(ROWS, config.vocab_size)
    return lay_out(pairs, P, packed=False, capacity=(T, U))


@pytest.mark.parametrize("variant", ["t5_1_1", "t5_1_0", "umt5"])
def test_forward_is_the_products_of_the_program(variant):
    config = tiny_config(variant, num_encoder_layers=3)
    model, frozen, trainable = built(config)
    program = jax.make_jaxpr(lambda p, b: model.outputs(p, b)["main"]["log_z"])
    found = products(program({**frozen, **trainable}, batch(config)).jaxpr)
    assert found == flops.forward(config, WORK) + position_bias(config)


@pytest.mark.parametrize("variant", ["t5_1_1", "t5_1_0"])
def test_training_is_the_products_of_the_program(variant):
    """And the prompt's one-hot product, and what `attend` computes again in the backward pass."""
    config = tiny_config(variant, num_encoder_layers=3)
    model, frozen, trainable = built(config)
    program = jax.make_jaxpr(lambda t, f, b: step.loss_and_grads(model, t, f, b, None))
    found = products(program(trainable, frozen, batch(config)).jaxpr)
    prompt = 2 * ROWS * T * P * config.emb_dim
    again = flops.attention(config, WORK)
    expected = flops.training(config, WORK) + prompt + again + position_bias(config)
    assert found == expected


def test_xla_counts_the_same():
    """XLA counts a loop's body once, whatever its length: one layer of each stack."""
    config = tiny_config(num_encoder_layers=1, num_decoder_layers=1, emb_dim=128, mlp_dim=256)
    model, frozen, trainable = built(config)
    run = jax.jit(lambda p, b: model.outputs(p, b)["main"]["log_z"])
    compiled = run.lower({**frozen, **trainable}, batch(config)).compile()
    found = compiled.cost_analysis()["flops"]
    assert 1.0 < found / flops.forward(config, WORK) < 1.08
