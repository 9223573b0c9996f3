"""The contract of all methods: one row a method, the same checks for each."""

import dataclasses
import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.assemble import assemble
from prompt_jax.config import gin_folder
from prompt_jax.parallel.mesh import Parallel, Shardings
from prompt_jax.step import jit_train_step, loss_and_grads
from prompt_jax.testing.contract import CONFIG, INPUTS, begin, method_of, stirred

ROOT = pathlib.Path(__file__).parents[2]
H, F, W = CONFIG.emb_dim, CONFIG.mlp_dim, CONFIG.num_heads * CONFIG.head_dim
LE, LD = CONFIG.num_encoder_layers, CONFIG.num_decoder_layers
P = 5
PLAIN = {"PROMPT_LENGTH": P, "PromptBank.init": "@UniformInit()"}
ONE_LAYER = dataclasses.replace(CONFIG, num_encoder_layers=1)


@dataclasses.dataclass(frozen=True)
class Case:
    """A method's row.

    Attributes:
        settings: gin values.
        count: numbers that train, by the formula of its card.
        still: leaves without a gradient at the first step.
        like: another method, its settings and ours under which both are the same function at the
            start, and the backbone's sizes.
    """

    settings: dict
    count: int
    still: tuple = ()
    like: tuple | None = None


METHODS = {
    "prompt_tuning": Case(PLAIN, P * H),
    "low_rank_prompt": Case(
        {"PROMPT_LENGTH": P, "RANK": 3},
        3 * (P + H),
        like=("prompt_tuning", PLAIN, {"RANK": P, "LowRankBank.init": "@UniformInit()"}, CONFIG),
    ),
    "bottleneck_prompt": Case({"PROMPT_LENGTH": P, "RANK": 3}, 2 * 3 * H),
    "dept": Case(
        {**PLAIN, "OFFSET_LENGTH": INPUTS, "RANK": 3},
        P * H + 3 * (INPUTS + H),
        still=("prompt/offset_left",),
        like=("prompt_tuning", PLAIN, {}, CONFIG),
    ),
    "xprompt": Case(
        {"PROMPT_LENGTH": P, "PIECES": 4, "MaskedBank.init": "@UniformInit()"},
        P * H,
        like=("prompt_tuning", PLAIN, {}, CONFIG),
    ),
    "panda": Case(
        {**PLAIN, "SOURCE_TASK": "'micro_boolq'"},
        P * H,
        like=("prompt_tuning", PLAIN, {}, CONFIG),
    ),
    "multitask_prompt": Case(
        {"PROMPT_LENGTH": P, "TASKS": "('a', 'b')", "TaskBank.init": "@UniformInit()"},
        P * H + 2 * (P + H),
        like=("prompt_tuning", PLAIN, {"TASKS": "('a',)"}, CONFIG),
    ),
    "spt": Case(
        {**PLAIN, "RETRIEVED": 3, "MEMORY": 40},
        P * H,
        like=("prompt_tuning", PLAIN, {"RETRIEVED": 0}, CONFIG),
    ),
    "deep_prompts": Case(
        {"PROMPT_LENGTH": P, "LayersBank.init": "@UniformInit()"},
        LE * P * H,
        like=("prompt_tuning", PLAIN, {}, ONE_LAYER),
    ),
    "prefix_tuning": Case({"PROMPT_LENGTH": P}, 2 * (LE + LD) * P * W),
    "iapt": Case({"PROMPT_LENGTH": P, "HIDDEN": 6}, LE * (2 * H * 6 + 6 * P + 12)),
    "residual_prompt": Case(
        {"PROMPT_LENGTH": P, "HIDDEN": 20, "ResidualBank.init": "@UniformInit()"},
        P * H + 2 * 20 * H + 20 + 3 * H,
        like=("prompt_tuning", PLAIN, {"ResidualBank.scale": 0.0}, CONFIG),
    ),
    "bbt": Case(
        {
            **{"PROMPT_LENGTH": P, "DIMENSION": 12, "CLASS_LABELS": "('a', 'b', 'c')"},
            "SubspaceBank.init": "@UniformInit()",
        },
        12,
        like=("prompt_tuning", PLAIN, {}, CONFIG),
    ),
    "bbtv2": Case(
        {**PLAIN, "DIMENSION": 12, "CLASS_LABELS": "('a', 'b', 'c')"},
        LE * 12,
        like=("prompt_tuning", PLAIN, {}, CONFIG),
    ),
    "ptec": Case(
        {**PLAIN, "CLASS_LABELS": "('a', 'b', 'c')"},
        P * H + 3 * H,
        like=("prompt_tuning", PLAIN, {}, CONFIG),
    ),
    "lora": Case(
        {"RANK": 3},
        # Query and value: of the encoder's attention, and of both of the decoder's.
        2 * (LE + 2 * LD) * 3 * (H + W),
        still=tuple(
            f"prompt/weights/{stack}/layers/{attention}/{kernel}/left"
            for stack, attention in (
                ("encoder", "attention"),
                ("decoder", "self_attention"),
                ("decoder", "encoder_decoder_attention"),
            )
            for kernel in ("query", "value")
        ),
        like=("prompt_design", {}, {}, CONFIG),
    ),
}
FOLDING = (
    "bbt",
    "residual_prompt",
    "prompt_tuning",
    "panda",
    "xprompt",
    "low_rank_prompt",
    "bottleneck_prompt",
    "multitask_prompt",
)
NOT_HERE = ("model_tuning", "pretraining", "prompt_design")  # nothing of their own
each = pytest.mark.parametrize("name", METHODS)
pytestmark = pytest.mark.xdist_group("contract")  # one worker: what is compiled is shared


@functools.cache
def _begun(name, settings, config):
    return begin(method_of(name, dict(settings)), config)


def begun(name, config=CONFIG, **more):
    return with_settings(name, {**METHODS[name].settings, **more}, config)


def with_settings(name, settings, config=CONFIG):
    return _begun(name, tuple(sorted(settings.items())), config)


def relative(a, b):
    a, b = (np.concatenate([np.ravel(tree[path]) for path in sorted(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_every_method_has_a_row():
    shipped = {path.stem for path in gin_folder().glob("methods/*.gin")}
    assert shipped == {*METHODS, *NOT_HERE}


@each
def test_what_trains_and_how_much(name):
    ours = begun(name)
    assert sum(leaf.size for leaf in ours.state.trainable.values()) == METHODS[name].count
    assert all(path.startswith("prompt/") for path in ours.state.leaves)
    assert all(leaf.dtype == np.float32 for leaf in ours.state.trainable.values())
    state = sum(leaf.size for leaf in jax.tree.leaves(ours.state.opt_state))
    *rows, wide = jax.tree.leaves(ours.state.trainable)[0].shape
    search = math.prod(rows) * 2 * wide**2  # of CMA-ES: a covariance and its eigenvectors
    each = search + 10 * METHODS[name].count if ours.kind == "search" else 2 * METHODS[name].count
    assert state <= each + 20  # moments of what trains, a few counters


@each
def test_the_gradient_reaches_what_it_should(name):
    ours = begun(name)
    _, grads = ours.gradients(ours.batch())
    assert grads.keys() == ours.state.trainable.keys()
    still = {path for path, grad in grads.items() if not np.any(grad)}
    assert still == {*METHODS[name].still}
    _, grads = stirred(ours).gradients(ours.batch())
    for path, grad in grads.items():
        assert np.count_nonzero(grad) > 0.8 * grad.size, path  # a relu may be dead


@each
def test_the_loss_falls_and_nothing_else_moves(name):
    ours = begun(name)
    before = jax.device_get({**ours.frozen, **ours.state.buffers})
    step, batch, seen = jit_train_step(ours.model, ours.optimizer, 1, ours.kind), ours.batch(), []
    state = jax.tree.map(jnp.copy, ours.state)  # a step reuses the memory of what it is given
    for _ in range(40):
        state, numbers = step(state, ours.frozen, batch)
        seen.append(float(numbers["loss"]))
    assert seen[-1] < seen[0] - 0.1 and np.isfinite(seen).all()
    assert step._cache_size() == 1
    for path, leaf in {**ours.frozen, **state.buffers}.items():
        np.testing.assert_array_equal(leaf, before[path])


@each
def test_packing_and_other_rows_change_nothing(name):
    ours = stirred(begun(name))
    packed, unpacked = ours.batch(packed=True), ours.batch()
    assert len(packed["encoder_input_tokens"]) < len(unpacked["encoder_input_tokens"])
    loss, grads = ours.gradients(packed)
    expected, theirs = ours.gradients(unpacked)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert relative(grads, theirs) < 1e-4


@each
def test_padding_changes_nothing(name):
    ours = stirred(begun(name))
    tight, wide = ours.batch(capacity=(INPUTS + ours.method.slots, 6)), ours.batch()
    found, expected = ours.logits(wide)[:, :6], ours.logits(tight)
    real = tight["decoder_segment_ids"] > 0
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-4, atol=1e-4)
    # What stands in padding is never read.
    noisy = {**wide, "encoder_input_tokens": wide["encoder_input_tokens"].copy()}
    noisy["encoder_input_tokens"][wide["encoder_segment_ids"] == 0] = 7
    np.testing.assert_array_equal(ours.logits(noisy)[:, :6][real], found[real])


# One of each way into the layers every day; the others enter before them.
INSIDE = ("prompt_tuning", "dept", "deep_prompts", "prefix_tuning", "iapt", "lora", "bbtv2")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in INSIDE)) for n in METHODS]
)
def test_rematerialisation_changes_nothing(name):
    ours = stirred(begun(name))
    config = dataclasses.replace(CONFIG, remat="full")
    theirs = dataclasses.replace(stirred(begun(name, config)), state=ours.state)
    loss, grads = ours.gradients(ours.batch())
    expected, expected_grads = theirs.gradients(ours.batch())
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert relative(grads, expected_grads) < 1e-5


# Every day those whose vectors the decoder's own attention sees, and the most that are generated.
STEPPED = ("prompt_tuning", "prefix_tuning", "iapt", "lora")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in STEPPED)) for n in METHODS]
)
def test_decoding_step_by_step_gives_the_states_of_training(name):
    ours = stirred(begun(name))
    model, batch, steps = ours.model, ours.batch(6, capacity=(INPUTS + ours.method.slots, 4)), 4

    @jax.jit
    def by_steps(params, batch):
        network, (tap, own) = (
            model.network.bind(model.variables(params)),
            model.entry(params, batch),
        )
        segments = own["encoder_segment_ids"]
        encoded = network.encode(own["encoder_input_tokens"], segments, tap=tap)
        cache, found = network.start_cache(encoded, segments, steps), []
        for at in range(steps):
            states, cache = network.decode_step(cache, own["decoder_input_tokens"][:, at], tap=tap)
            found.append(states)
        return jnp.stack(found, 1)

    expected = jax.jit(model.outputs)(ours.params, batch)["main"]["states"]
    real = batch["decoder_segment_ids"] > 0
    found = by_steps(ours.params, {name: jnp.asarray(array) for name, array in batch.items()})
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in METHODS.items() if case.like])
def test_it_is_another_method_where_its_sheet_says(name):
    other, settings, own, config = METHODS[name].like
    ours, theirs = begun(name, config, **own), with_settings(other, settings, config)
    batch = ours.batch()
    found, expected = ours.logits(batch), theirs.logits(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    moved = stirred(ours).logits(batch)
    assert float(np.abs(moved - expected).max()) > 1e-2  # and elsewhere it is not


@pytest.mark.parametrize("name", FOLDING)
def test_what_folds_is_a_plain_prompt(name):
    ours, plain = stirred(begun(name)), begun("prompt_tuning")
    assert ours.method.folds
    vectors = ours.method.vectors(ours.state.leaves)["encoder"]
    params = {**ours.frozen, "prompt/encoder": vectors}
    batch = ours.batch()
    np.testing.assert_array_equal(plain.logits(batch, params), ours.logits(batch))


def test_the_others_do_not_fold():
    assert {name for name in METHODS if begun(name).method.folds} == {*FOLDING}


def test_the_rank_is_what_was_asked_for():
    for name in ("low_rank_prompt", "bottleneck_prompt"):
        ours = stirred(begun(name))
        vectors = np.asarray(ours.method.vectors(ours.state.leaves)["encoder"])
        assert np.linalg.matrix_rank(vectors, tol=1e-4) == 3
    assert math.isclose(begun("low_rank_prompt").method.bank.left, 0.5)


@pytest.mark.slow
@each
def test_eight_devices_change_nothing(name):
    ours = stirred(begun(name))
    shardings = Shardings(Parallel(data=4, model=2).mesh(), over_data=True)
    model = assemble(CONFIG, ours.method, shardings.fetch_layer)
    frozen = {k: jax.device_put(v, shardings.frozen(k, v.shape)) for k, v in ours.frozen.items()}
    batch = ours.batch()
    whole = jax.device_put((ours.state.trainable, ours.state.buffers), shardings.replicated)

    def gradients(own, frozen, batch):
        return loss_and_grads(model, own[0], {**frozen, **own[1]}, batch, None)[:2]

    loss, grads = jax.jit(gradients)(whole, frozen, shardings.put_batch(batch))
    expected, theirs = ours.gradients(batch)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
    assert relative(grads, theirs) < 1e-4


def test_every_method_has_a_card():
    for path in gin_folder().glob("methods/*.gin"):
        if path.stem not in ("prompt_tuning", *NOT_HERE):
            (card,) = re.findall(r"docs/methods/\w+\.md", path.read_text())
            assert f"`{path.stem}`" in (ROOT / card).read_text().splitlines()[0]
