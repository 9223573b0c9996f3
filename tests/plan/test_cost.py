"""Formulas against products counted in the traced step, and against the unrolled program."""

import dataclasses
import functools
import math

import jax
import jax.extend.core
import pytest

from prompt_jax.config import resolve
from prompt_jax.models.t5 import stacks
from prompt_jax.plan import choose, command, cost, lowering
from prompt_jax.plan.cost import Mesh
from prompt_jax.step import jit_train_step

SMALL = (
    "T5Config.vocab_size=1024",
    "T5Config.emb_dim=256",
    "T5Config.num_heads=8",
    "T5Config.head_dim=32",
    "T5Config.mlp_dim=512",
    "BATCH_SIZE=8",
    "TASK_FEATURE_LENGTHS={'inputs': 108, 'targets': 32}",
)


def resolved(method="prompt", layers=(2, 3), *more):
    """A small run, with its configuration."""
    depth = [f"T5Config.num_{s}coder_layers={n}" for s, n in zip(("en", "de"), layers, strict=True)]
    length = ["PROMPT_LENGTH=20"] if method == "prompt" else []
    files = [f"methods/{method}_tuning.gin", f"runs/{method}_tune.gin"]
    return resolve(files, [*SMALL, *depth, *length, *more], unset=command.UNSET)


ONE = Mesh(1, 1, False, "none")


def step_of(run, mesh=ONE):
    """(the formula's account, the jitted step, its abstract arguments)."""
    held, batch = lowering.leaves(run), choose.rows(run, mesh.data)
    guess = cost.estimate(run.backbone.config, held.frozen, held.trainable, batch, mesh)
    shardings = lowering.shardings_of(mesh, jax.devices())
    config = dataclasses.replace(run.backbone.config, remat=mesh.remat)
    model = lowering.assemble(config, run.method, shardings.fetch_layer)
    step = jit_train_step(model, held.optimizer, run.num_microbatches)
    return guess, step, lowering.arguments(held, batch, shardings)


def product_flops(jaxpr) -> int:
    """FLOPs of every matrix product, a scan's body once a trip."""
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "dot_general":
            left, (contracted, _) = equation.invars[0].aval, params["dimension_numbers"][0]
            inner = math.prod(left.shape[i] for i in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        trips = params["length"] if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(list(params.values())):
            if isinstance(value, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr):
                total += trips * product_flops(getattr(value, "jaxpr", value))
    return total


@pytest.mark.parametrize("method", ["prompt", "model"])
@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_flops_are_those_of_the_traced_step(method, remat):
    """Attention in a recomputed layer stands there twice; the compiler makes it once."""
    run = resolved(method).run
    guess, step, arguments = step_of(run, Mesh(1, 1, False, remat))
    counted = product_flops(step.trace(*arguments).jaxpr.jaxpr)
    twice = remat == "full" or (remat, method) == ("minimal", "model")
    attention = 4 * 8 * 32 * 8 * (2 * 128 * 128 + 3 * (32 * 32 + 32 * 128))
    assert guess.flops == pytest.approx(counted - twice * attention, rel=1e-3)


def test_flops_are_those_of_the_unrolled_program(monkeypatch):
    """The compiler counts a loop's body once; without loops it counts what the formula says."""
    run = resolved("model", (2, 2)).run
    guess, step, arguments = step_of(run)
    scanned = step.lower(*arguments).compile().cost_analysis()["flops"]
    monkeypatch.setattr(stacks.nn, "scan", functools.partial(stacks.nn.scan, unroll=2))
    _, step, _ = step_of(run)
    unrolled = step.lower(*arguments).compile().cost_analysis()["flops"]
    assert unrolled == pytest.approx(guess.flops, rel=0.03)
    assert scanned < 0.6 * unrolled


def test_a_mesh_divides_the_work():
    run = resolved().run
    held = lowering.leaves(run)

    def of(*mesh):
        batch = choose.rows(run, mesh[0])
        return cost.estimate(run.backbone.config, held.frozen, held.trainable, batch, Mesh(*mesh))

    one, eight = of(1, 1, False, "none"), of(2, 4, False, "none")
    prompts = 2 * 20 * 256 * 8 * 128  # the prompt's own gradient is not split over `model`
    assert eight.flops == pytest.approx((one.flops - prompts) / 8 + prompts / 2)
    assert one.sent == 0 < eight.sent
    assert of(8, 1, False, "none").sent == 2 * 7 / 8 * 20 * 256 * 4  # the prompt, and no more
    assert of(8, 1, True, "full").sent > 100 * of(8, 1, False, "full").sent
    keeps = [of(8, 1, False, remat).temporaries for remat in ("full", "minimal", "none")]
    assert keeps == sorted(keeps)


def test_bytes_moved_by_hand():
    """One layer of each stack, one row: every kernel read, and both sides of each product."""
    run = resolved("prompt", (1, 1)).run
    held, batch = lowering.leaves(run), dataclasses.replace(choose.rows(run, 1), rows=1)
    found = cost.estimate(run.backbone.config, held.frozen, held.trainable, batch, ONE)
    h, f, v, t, u, heads = 256, 512, 1024, 128, 32, 8
    encoder, decoder = 4 * (h * h) + 3 * h * f, 8 * (h * h) + 3 * h * f
    sides_t = 4 * 2 * h + 3 * (h + f) + 2 * 2 * h  # cross attention's keys and values are of T
    sides_u = 6 * 2 * h + 3 * (h + f) + (h + v)
    kernels = encoder + decoder + h * v
    logits = 4 * 2 * heads * (t * t + u * u + u * t)
    assert found.moved == 2 * 4 * (kernels + sides_t * t + sides_u * u) + 4 * logits
