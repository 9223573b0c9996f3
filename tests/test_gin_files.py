"""Every shipped gin file: model x method x run resolves, and its shapes fit together."""

import dataclasses
import importlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.config import EXAMPLES, REGISTRY, gin_folder, resolve
from prompt_jax.errors import UserError

MODELS = sorted(path.stem for path in gin_folder().glob("models/*.gin"))
# Every run file with the methods it makes sense with.
PAIRS = [
    ("prompt_tune", "prompt_tuning"),
    ("model_tune", "model_tuning"),
    ("prompt_tune", "prompt_design"),
    ("prompt_tune", "low_rank_prompt"),
    ("prompt_tune", "bottleneck_prompt"),
    ("prompt_tune", "multitask_prompt"),
    ("prompt_tune", "panda"),
    ("prompt_tune", "spt"),
    ("prompt_tune", "xprompt"),
    ("prompt_tune", "dept"),
    ("prompt_tune", "deep_prompts"),
    ("prompt_tune", "prefix_tuning"),
    ("prompt_tune", "iapt"),
    ("prompt_tune", "lora"),
    ("prompt_tune", "residual_prompt"),
    ("prompt_tune", "ptec"),
    ("prompt_tune", "bbt"),
    ("prompt_tune", "bbtv2"),
    ("demo", "prompt_tuning"),
    ("pretrain", "pretraining"),
    ("lm_adapt", "pretraining"),
    ("instruct", "pretraining"),
]
SECTION_6 = (
    "MIXTURE_OR_TASK_NAME MIXTURE_OR_TASK_MODULE TASK_FEATURE_LENGTHS TRAIN_STEPS BATCH_SIZE "
    "EVAL_PERIOD EVAL_STEPS CHECKPOINT_PERIOD MODEL_DIR INITIAL_CHECKPOINT_PATH DROPOUT_RATE "
    "Z_LOSS LABEL_SMOOTHING NUM_MICROBATCHES RANDOM_SEED PACKED_LENGTHS"
).split()


def shipped(model, method, run, *more):
    """The resolved config, required macros given (an embedded model brings its checkpoint)."""
    files = [f"models/{model}.gin", f"methods/{method}.gin", f"runs/{run}.gin"]
    given = ["MIXTURE_OR_TASK_NAME='sst2'", "MODEL_DIR='out/x'"]
    if method == "multitask_prompt":
        given.append("TASKS=('sst2', 'mrpc')")
    if method in ("ptec", "bbt", "bbtv2"):
        given.append("CLASS_LABELS=('no', 'yes')")
    if method == "panda":
        given.append("SOURCE_TASK='mrpc'")
    if not model.startswith("micro"):
        given.append("INITIAL_CHECKPOINT_PATH='a/folder'")
    return resolve(files, [*given, *more])


def test_every_file_is_covered():
    runs, methods = ({p.stem for p in gin_folder().glob(f"{k}/*.gin")} for k in ("runs", "methods"))
    assert runs == {run for run, _ in PAIRS}
    assert methods == {method for _, method in PAIRS}
    assert {"micro_xs", "micro_s", "micro_m", "t5_1_1_small", "t5_1_1_xxl"} <= set(MODELS)


# All model files bind the same names, those of the embedded family its checkpoint too.
OF_EACH_KIND = ["micro_xs", "micro_s", "t5_1_1_small", "t5_1_1_xxl"]


@pytest.mark.parametrize(("run", "method"), PAIRS)
def test_resolves(run, method):
    hashes, runs = set(), set()
    models = MODELS if method == "prompt_tuning" else OF_EACH_KIND
    for model in models:
        resolved = shipped(model, method, run)
        assert resolved.run.method.name == method
        of_labels = method in ("ptec", "bbt", "bbtv2")  # no text is learned
        unread = {"Z_LOSS", "LABEL_SMOOTHING"} if of_labels else set()
        assert set(SECTION_6) - unread <= set(resolved.values)
        hashes.add(resolved.hash)
        runs.add(repr(resolved.run))  # some published families have the same sizes
    assert len(hashes) == len(runs) >= min(21, len(models))


@pytest.mark.parametrize(("run", "method"), PAIRS)
def test_config_gin_round_trip(run, method, tmp_path):
    first = shipped("micro_s", method, run)
    (tmp_path / "config.gin").write_text(first.text)
    again = resolve([str(tmp_path / "config.gin")])
    assert again.run == first.run and again.hash == first.hash and again.text == first.text


def test_order_of_files_is_free():
    files = ["models/micro_s.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin"]
    given = ["MIXTURE_OR_TASK_NAME='sst2'", "MODEL_DIR='out/x'"]
    forward, backward = resolve(files, given), resolve(files[::-1], given)
    assert forward.run == backward.run and forward.hash == backward.hash
    assert forward.origins == backward.origins


@pytest.mark.parametrize(
    ("init", "flag", "field"),
    [
        ("ClassLabels", "CLASS_LABELS=('good', 'bad')", ("labels", ("good", "bad"))),
        ("FileInit", "PROMPT_FILE='p.npy'", ("path", "p.npy")),
        ("TextInit", "TextInit.text='a word'", ("text", "a word")),
        ("UniformInit", "UniformInit.scale=0.1", ("scale", 0.1)),
    ],
)
def test_inits_by_flag(init, flag, field):
    choose = f"PromptBank.init=@{init}()"
    chosen = shipped("micro_s", "prompt_tuning", "prompt_tune", choose, flag).run.method.bank.init
    assert type(chosen).__name__ == init and getattr(chosen, field[0]) == field[1]
    with pytest.raises(UserError, match=rf'--gin.PromptBank.init="@{init}\(\)"'):
        shipped("micro_s", "prompt_tuning", "prompt_tune", flag)


def test_a_published_size_asks_for_its_checkpoint():
    files = ["models/t5_1_1_small.gin", "methods/prompt_tuning.gin", "runs/prompt_tune.gin"]
    with pytest.raises(UserError) as caught:
        resolve(files)
    for name in ("INITIAL_CHECKPOINT_PATH", "MIXTURE_OR_TASK_NAME", "MODEL_DIR"):
        assert f"{name} is required and not set; e.g. --gin.{name}=" in str(caught.value)
        assert name in EXAMPLES


@pytest.mark.parametrize("name", REGISTRY)
def test_registered_classes_are_frozen_and_typed(name):
    module, _, attribute = REGISTRY[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    assert set(typing.get_type_hints(cls)) >= {field.name for field in dataclasses.fields(cls)}


SMALL = ("micro_xs", "t5_1_0_small", "t5_1_1_small", "mt5_small", "byt5_small", "umt5_small")


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[pytest.mark.slow] * (m not in SMALL)) for m in MODELS]
)
def test_shapes_fit(model):
    from prompt_jax.assemble import assemble
    from prompt_jax.parts.init import Vocabulary

    run = shipped(model, "prompt_tuning", "prompt_tune", "PROMPT_LENGTH=5").run
    config = run.backbone.config
    assembled = assemble(config, run.method)
    rows = np.zeros((config.vocab_size, 1), np.float32)
    vocabulary = Vocabulary(
        config.emb_dim,
        lambda ids: np.broadcast_to(rows[np.zeros(len(ids), int)], (len(ids), config.emb_dim)),
        lambda text: [3],
        config.vocab_size,
    )
    prompt = assembled.init_prompt(jax.random.key(0), vocabulary)
    backbone = jax.eval_shape(assembled.init_backbone, jax.random.key(0))
    frozen, trainable, _ = run.method.trainable.split({**backbone, **prompt})
    assert set(frozen) == set(backbone) and set(trainable) == {"prompt/encoder"}
    assert trainable["prompt/encoder"].shape == (5, config.emb_dim)
    integers = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    batch = dict.fromkeys(
        (
            "encoder_input_tokens",
            "encoder_segment_ids",
            "decoder_input_tokens",
            "decoder_target_tokens",
            "decoder_segment_ids",
        ),
        integers,
    )
    out = jax.eval_shape(assembled.outputs, {**frozen, **trainable}, batch)["main"]
    assert out["log_z"].shape == out["target_logit"].shape == (2, 8)
    assert out["encoded"].shape == (2, 8, config.emb_dim)
