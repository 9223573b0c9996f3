"""Every size file against published numbers and the real parameter tree."""

import ast
import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest

from prompt_jax.ckpt import tree
from prompt_jax.models.t5.config import T5Config
from prompt_jax.models.t5.network import T5
from prompt_jax.testing.tiny import tiny_batch, tiny_config

FILES = sorted((pathlib.Path(__file__).parents[2] / "gin" / "models").glob("*.gin"))
V11 = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}
# Without a prompt; T5 1.0: 60M, 220M, 770M (here less one head), 3B, 11B in Raffel et al. 2020;
# mT5 and ByT5 of one size have about the same number (Xue et al. 2022, table 1).
PUBLISHED = (
    {f"t5_1_1_{size}": count for size, count in V11.items()}
    | {f"flan_t5_{size}": count for size, count in V11.items()}
    | {"t5_1_0_small": 60_506_624, "t5_1_0_base": 222_903_552, "t5_1_0_large": 737_668_096}
    | {"t5_1_0_3b": 2_851_598_336, "t5_1_0_11b": 11_307_321_344}
)
ROUNDED = {
    "mt5_small": 300e6,
    "mt5_base": 582e6,
    "mt5_large": 1.23e9,
    "mt5_xl": 3.74e9,
    "mt5_xxl": 12.9e9,
    "byt5_small": 300e6,
    "byt5_base": 582e6,
    "byt5_large": 1.23e9,
    "byt5_xl": 3.74e9,
    "byt5_xxl": 12.9e9,
    "umt5_small": 307e6,
    "umt5_base": 592e6,
    "umt5_xl": 3.77e9,
    "umt5_xxl": 13.0e9,
}


def bindings(file):
    found = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split(" = ")
            found[name] = ast.literal_eval(value)
    return found


def config_of(file):
    named = bindings(file)
    prefix = "T5Config."
    return T5Config(**{k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)})


def count(config):
    batch = tiny_batch(tiny_config())
    shapes = jax.eval_shape(lambda key: T5(config).init(key, batch)["params"], jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def test_only_released_sizes_are_there():
    micro = {"micro_xs", "micro_s", "micro_m"}
    assert {file.stem for file in FILES} == set(PUBLISHED) | set(ROUNDED) | micro


def listed(config):
    return sum(int(np.prod(leaf.full_shape)) for leaf in tree.leaves(config))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_parameter_count(file):
    found = listed(config_of(file))
    if file.stem in PUBLISHED:
        assert found == PUBLISHED[file.stem]
    if file.stem in ROUNDED:
        assert abs(found / ROUNDED[file.stem] - 1) < 0.005


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem, marks=[pytest.mark.slow] * ("_small" not in file.stem))
        for file in FILES
    ],
)
def test_the_list_of_parameters_is_the_networks(file):
    config = config_of(file)
    assert count(config) == listed(config)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_header_names_model_parameters_and_checkpoint(file):
    first, second = file.read_text().splitlines()[:2]
    stated = int(re.search(r"([\d,]+) parameters\.", first)[1].replace(",", ""))
    config = config_of(file)
    assert stated == listed(config)
    assert second.startswith("# Checkpoint: ")


def test_families_differ_as_published():
    for file in FILES:
        config, family = config_of(file), file.stem.rsplit("_", 1)[0]
        old = family == "t5_1_0"
        assert (config.activation == "relu", config.tied_head, config.scale_logits) == (old,) * 3
        assert config.per_layer_position_bias == (family == "umt5")
        width = config.num_heads * config.head_dim
        assert width % 32 == 0 and dataclasses.asdict(config)["vocab_size"] % 128 == 0


def test_micro_sizes_name_their_packaged_checkpoint():
    for file in FILES:
        path = bindings(file).get("INITIAL_CHECKPOINT_PATH")
        assert path == (f"prompt_jax:{file.stem}" if file.stem.startswith("micro_") else None)
