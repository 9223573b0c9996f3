"""One device and eight give the same numbers; the compiled program gathers weights, not batches."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from prompt_jax.assemble import Method, assemble
from prompt_jax.errors import UserError
from prompt_jax.models.t5.config import T5Config
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.parallel.rules import partition_spec, undivided
from prompt_jax.parts.bank import PromptBank
from prompt_jax.parts.init import UniformInit, Vocabulary
from prompt_jax.parts.inject import EncoderSlots
from prompt_jax.step import loss_and_grads
from prompt_jax.testing.batches import examples, lay_out

P, ROWS = 4, 8
CONFIG = T5Config(
    vocab_size=64,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)
METHOD = Method("prompt_tuning", bank=PromptBank(P, UniformInit()), inject=EncoderSlots())
BATCH = lay_out(examples(ROWS, CONFIG.vocab_size, seed=5), P, False, capacity=(40, 12))


def compiled(parallel, config=CONFIG):
    """(compiled gradient step, its arguments) on a mesh."""
    shardings = Shardings(parallel.mesh(), parallel.shard_frozen_over_data)
    model = assemble(config, METHOD, shardings.fetch_layer)
    backbone = model.init_backbone(jax.random.key(0))
    vocabulary = Vocabulary(config.emb_dim, lambda ids: None, lambda text: [], 60)
    prompt = model.init_prompt(jax.random.key(1), vocabulary)
    frozen = {k: jax.device_put(v, shardings.frozen(k, v.shape)) for k, v in backbone.items()}
    prompt = {k: jax.device_put(v, shardings.replicated) for k, v in prompt.items()}
    args = (prompt, frozen, shardings.put_batch(BATCH))
    step = jax.jit(lambda t, f, b: loss_and_grads(model, t, f, b, None)[:2])
    return step.lower(*args).compile(), args


@pytest.fixture(scope="module")
def one_device():
    step, args = compiled(Parallel(data=1, model=1))
    loss, grads = step(*args)
    return float(loss), np.asarray(grads["prompt/encoder"])


@pytest.mark.parametrize(
    "parallel",
    [
        Parallel(data=2, model=4),
        Parallel(data=8, model=1),
        Parallel(data=2, model=4, shard_frozen_over_data=True),
        Parallel(data=8, model=1, shard_frozen_over_data=True),
        Parallel(data=4, model=2, shard_frozen_over_data=True, num_slices=2),
    ],
    ids=["2x4", "8x1", "2x4-over-data", "8x1-over-data", "2-slices"],
)
def test_eight_devices_give_the_loss_and_gradient_of_one(parallel, one_device):
    step, args = compiled(parallel)
    loss, grads = step(*args)
    np.testing.assert_allclose(float(loss), one_device[0], rtol=1e-5)
    grad = np.asarray(grads["prompt/encoder"])
    assert np.linalg.norm(grad - one_device[1]) < 1e-5 * np.linalg.norm(one_device[1])


def collectives(step):
    """kind -> shapes of every collective in the compiled program."""
    found = re.findall(
        r"= (?:\()?(\w+)\[([\d,]*)\][^=]*? (all-reduce|all-gather|reduce-scatter|all-to-all)",
        step.as_text(),
    )
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for _, dims, kind in found:
        shapes.setdefault(kind, []).append(tuple(int(d) for d in dims.split(",") if d))
    return shapes


def test_data_parallel_exchanges_little_more_than_the_prompt():
    step, _ = compiled(Parallel(data=8, model=1))
    shapes = collectives(step)
    assert set(shapes) == {"all-reduce"}
    numbers = sum(int(np.prod(shape)) for shape in shapes["all-reduce"])
    assert P * CONFIG.emb_dim <= numbers <= P * CONFIG.emb_dim + 8


def test_weights_split_over_data_are_gathered_and_activations_are_not():
    step, args = compiled(Parallel(data=8, model=1, shard_frozen_over_data=True))
    frozen = args[1]
    kernel = frozen["backbone/encoder/layers/mlp/wo/kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    gathered = collectives(step)["all-gather"]
    weights = {leaf.shape[-2:] for leaf in frozen.values() if leaf.ndim >= 2}
    assert gathered
    for shape in gathered:
        assert tuple(d for d in shape if d != 1)[-2:] in weights, shape
    t = BATCH["encoder_input_tokens"].shape[1]
    for kind, found in collectives(step).items():
        assert all(t not in shape for shape in found), (kind, found)


@pytest.mark.parametrize(
    "parallel",
    [
        Parallel(data=2, model=4, shard_frozen_over_data=True),
        Parallel(data=8, model=1, shard_frozen_over_data=True),
    ],
    ids=["2x4-over-data", "8x1-over-data"],
)
def test_int8_weights_are_gathered_as_int8(parallel):
    """Two groups of 64 inputs a kernel; the numbers are those of one device."""
    config = dataclasses.replace(CONFIG, emb_dim=128, mlp_dim=128, param_dtype="int8")
    alone, args = compiled(Parallel(data=1, model=1), config)
    loss, grads = alone(*args)
    step, args = compiled(parallel, config)
    found, theirs = step(*args)
    np.testing.assert_allclose(float(found), float(loss), rtol=1e-5)
    grad, expected = (np.asarray(tree["prompt/encoder"]) for tree in (theirs, grads))
    assert np.linalg.norm(grad - expected) < 1e-5 * np.linalg.norm(expected)
    gathered = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather", step.as_text())
    assert {dtype for dtype, dims in gathered if dims.startswith("1,")} == {"s8"}  # of a layer


def groups(line):
    """The devices that a collective joins, from the forms of `replica_groups` in a program."""
    numbers = lambda text: [int(n) for n in re.findall(r"\d+", text)]  # noqa: E731
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, dims = numbers(found[1]), numbers(found[2])
        order = numbers(found[3]) if found[3] else None
        return np.arange(np.prod(dims)).reshape(dims).transpose(order).reshape(shape)
    if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        joined = re.findall(r"'(\w+)'", found[2])
        dims = [int(size) for size in sizes.values()]
        order = [*(n for n, axis in enumerate(sizes) if axis not in joined)]
        order += [list(sizes).index(axis) for axis in joined]
        grid = np.arange(np.prod(dims)).reshape(dims).transpose(order)
        return grid.reshape(-1, np.prod([int(sizes[axis]) for axis in joined]))
    found = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line)
    return [numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]


def test_between_slices_goes_little_more_than_the_prompt():
    """Weights are gathered, and activations reduced, inside a slice of four devices."""
    step, _ = compiled(Parallel(data=4, model=2, shard_frozen_over_data=True, num_slices=2))
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    inside, across = set(), 0
    for line in step.as_text().splitlines():
        if found := re.search(rf" = (.*?) ({kinds})(?:-start)?\(", line):
            if all(len({device // 4 for device in group}) == 1 for group in groups(line)):
                inside.add(found[2])
                continue
            for dims in re.findall(r"\w\[([\d,]*)\]", found[1]):
                across += int(np.prod([int(n) for n in dims.split(",") if n]))
    assert "all-gather" in inside
    assert P * CONFIG.emb_dim <= across <= P * CONFIG.emb_dim + 8


def test_a_rule_splits_heads_width_and_vocabulary():
    mesh = {"data": 2, "model": 4}

    def spec(path, shape, over_data=False):
        return tuple(partition_spec(path, shape, mesh, over_data))

    assert spec("backbone/encoder/layers/attention/query/kernel", (2, 32, 64)) == (
        None,
        None,
        "model",
    )
    assert spec("backbone/decoder/layers/mlp/wo/kernel", (2, 64, 32), True) == (
        None,
        "model",
        "data",
    )
    assert spec("backbone/token_embedder/embedding", (64, 32)) == ("model", None)
    assert spec("prompt/encoder", (4, 32)) == ()
    assert spec("backbone/token_embedder/embedding", (63, 32)) == (None, None)
    assert undivided({"backbone/token_embedder/embedding": (63, 32)}, mesh) == [
        "backbone/token_embedder/embedding"
    ]


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(UserError, match="16 x 1.*8 devices"):
        Parallel(data=16).mesh()
    with pytest.raises(UserError, match="8 x 1 on 8 devices do not divide into 3 slices"):
        Parallel(num_slices=3).mesh()
    assert Parallel(num_slices=2).mesh().devices[1, 0, 0].id == 4
    assert dict(Parallel(model=4).mesh().shape) == {"slice": 1, "data": 2, "model": 4}
