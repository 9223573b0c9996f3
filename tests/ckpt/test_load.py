"""Backbone folders: strict reading, atomic writing, fingerprints."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from prompt_jax.ckpt import fingerprint, hf, load
from prompt_jax.ckpt import folder as folders
from prompt_jax.errors import UserError
from prompt_jax.testing.tiny import VARIANTS, tiny_config, tiny_params

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
TINY = FIXTURES / "t5v11_tiny"


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def altered(tmp_path, change):
    """A copy of the fixture with its tensors changed."""
    folder = tmp_path / "altered"
    shutil.copytree(TINY, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, variant, dtype):
    config = tiny_config(variant, param_dtype=dtype)
    params = tiny_params(config)
    vocabulary = tmp_path / "vocabulary"
    vocabulary.write_bytes(b"pieces")
    folders.save(tmp_path / "out", params, config, vocabulary)
    assert load.open_source(tmp_path / "out").config == dataclasses.replace(
        config, param_dtype="float32"
    )
    again = load.load_backbone(tmp_path / "out", config).params
    same(params, again)
    assert (tmp_path / "out" / "spiece.model").read_bytes() == b"pieces"
    assert fingerprint.of_tree(again) == fingerprint.of_tree(params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "vocabulary"]


def test_shards_hold_the_same_as_one_file(tmp_path):
    config = tiny_config()
    params = tiny_params(config)
    folders.save(tmp_path / "out", params, config, None, shard_bytes=100_000)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 5 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert set(index["weight_map"].values()) == set(files)
    same(params, load.load_backbone(tmp_path / "out", config).params)


def test_our_file_is_transformers_file_byte_for_byte_in_values(tmp_path):
    config = load.open_source(TINY).config
    folders.save(tmp_path / "out", load.load_backbone(TINY, config).params, config, None)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_file(TINY / "model.safetensors")
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_stored_dtype_is_independent_of_the_files(tmp_path):
    config = load.open_source(TINY).config
    low = load.load_backbone(TINY, dataclasses.replace(config, param_dtype="bfloat16")).params
    exact = load.load_backbone(TINY, config).params
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype("bfloat16")}
    same(low, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact))


@pytest.mark.parametrize("spec", [(None, "model"), ("model", None), (None, None)])
def test_each_device_reads_its_own_part(monkeypatch, spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    config = load.open_source(TINY).config
    read = []
    real = hf._Files.read

    def counted(files, name, index):
        array = real(files, name, index)
        read.append((name, array.size))
        return array

    monkeypatch.setattr(hf._Files, "read", counted)

    def sharding(path, shape):
        parts = spec if path[-1] == "kernel" else (None, None)
        return NamedSharding(mesh, PartitionSpec(*(None,) * (len(shape) - 2), *parts))

    loaded = load.load_backbone(TINY, config, sharding=lambda *a: _fits(sharding(*a), a[1]))
    parts = [size for name, size in read if name.endswith("SelfAttention.q.weight")]
    whole, layers = 64 * 64, 4
    assert parts == ([whole // 2] * 2 if "model" in spec else [whole]) * layers
    same(loaded.params, load.load_backbone(TINY, config).params)
    assert loaded.fingerprint == fingerprint.of_tree(loaded.params)
    query = loaded.params["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert query.sharding.spec == PartitionSpec(None, *spec)


def _fits(sharding, shape):
    """Replicated, where the rule's two dimensions are more than the leaf has."""
    return sharding if len(shape) > 1 else NamedSharding(sharding.mesh, PartitionSpec())


def missing(tensors):
    del tensors["decoder.final_layer_norm.weight"]


def extra(tensors):
    tensors["surplus.weight"] = np.zeros((2, 3), np.float32)


def reshaped(tensors):
    name = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def integers(tensors):
    tensors["shared.weight"] = np.zeros((512, 64), np.int8)


def unequal_copy(tensors):
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"- decoder\.final_layer_norm\.weight \[64\]"),
        (extra, r"\+ surplus\.weight \[2, 3\]"),
        (reshaped, r"~ encoder.*wi_0\.weight \[64, 128\], expected \[128, 64\]"),
        (integers, r"~ shared\.weight is I8"),
        (unequal_copy, r"\+ encoder\.embed_tokens\.weight"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path, change, message):
    folder = altered(tmp_path, change)
    placed = []
    with pytest.raises(UserError, match=message) as error:
        load.load_backbone(folder, tiny_config(), sharding=lambda *a: placed.append(a))
    assert not placed and "\n" not in str(error.value) and str(folder) in str(error.value)


def test_all_complaints_come_at_once(tmp_path):
    folder = altered(
        tmp_path, lambda tensors: (missing(tensors), extra(tensors), reshaped(tensors))
    )
    with pytest.raises(UserError, match=r"~ .*; - .*; \+ ") as error:
        load.load_backbone(folder, tiny_config())
    wide = tiny_config(emb_dim=32)
    with pytest.raises(UserError, match="and 38 more"):
        load.load_backbone(TINY, wide)
    assert "more" not in str(error.value)


def test_equal_copies_of_the_embeddings_and_an_unused_bias_are_fine(tmp_path):
    def change(tensors):
        for stack in ("encoder", "decoder"):
            tensors[f"{stack}.embed_tokens.weight"] = tensors["shared.weight"].copy()
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[name] = np.ones((32, 4), np.float32)

    folder = altered(tmp_path, change)
    same(
        load.load_backbone(folder, tiny_config()).params,
        load.load_backbone(TINY, tiny_config()).params,
    )


def test_a_stored_copy_of_the_table_is_a_tied_head(tmp_path):
    def tie(tensors):
        tensors["lm_head.weight"] = tensors["shared.weight"].copy()

    folder = altered(tmp_path, tie)
    assert load.open_source(folder).config.tied_head
    config = load.open_source(folder).config
    assert "logits_dense" not in load.load_backbone(folder, config).params["decoder"]
    assert not load.open_source(TINY).config.tied_head


@pytest.mark.parametrize("escape", ["../t5v11_tiny/model.safetensors", "/etc/passwd", "a/b", ".."])
def test_index_cannot_leave_the_folder(tmp_path, escape):
    shutil.copy(TINY / "config.json", tmp_path / "config.json")
    index = {"weight_map": {"shared.weight": escape}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="leaves the folder"):
        load.load_backbone(tmp_path, tiny_config())


def test_damaged_files_are_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "t5")
    file = tmp_path / "t5" / "model.safetensors"
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    huge = whole[8 : 8 + header].replace(b'"shape":[512,64]', b'"shape":[512,99999999]')
    for content in (
        whole[:-100],
        b"",
        (2**40).to_bytes(8, "little") + whole[8:],
        len(huge).to_bytes(8, "little") + huge + whole[8 + header :],
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is no safetensors file"):
            load.load_backbone(tmp_path / "t5", tiny_config())
    file.unlink()
    with pytest.raises(UserError, match="holds neither"):
        load.load_backbone(tmp_path / "t5", tiny_config())
    with pytest.raises(UserError, match="no such file"):
        load.open_source(tmp_path / "nowhere")


def test_a_missing_shard_is_named(tmp_path):
    config = tiny_config()
    folders.save(tmp_path / "out", tiny_params(config), config, None, shard_bytes=100_000)
    next((tmp_path / "out").glob("model-00002-*")).unlink()
    with pytest.raises(UserError, match="model-00002.*is missing"):
        load.load_backbone(tmp_path / "out", config)


def test_saving_replaces_a_backbone_and_nothing_else(tmp_path):
    config = tiny_config()
    for seed in (0, 1):
        folders.save(tmp_path / "out", tiny_params(config, seed), config, None)
    same(load.load_backbone(tmp_path / "out", config).params, tiny_params(config, 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match="exists and holds other files"):
        folders.save(tmp_path / "mine", tiny_params(config), config, None)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_failed_save_leaves_the_old_backbone(tmp_path, monkeypatch):
    config = tiny_config()
    folders.save(tmp_path / "out", tiny_params(config), config, None)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(folders, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        folders.save(tmp_path / "out", tiny_params(config, 1), config, None)
    same(load.load_backbone(tmp_path / "out", config).params, tiny_params(config))


def test_saving_another_tree_is_refused(tmp_path):
    params = tiny_params(tiny_config("t5_1_0"))
    with pytest.raises(UserError, match="decoder/logits_dense/kernel"):
        folders.save(tmp_path / "out", params, tiny_config(), None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("scale_logits", True), ("norm_epsilon", 1e-5), ("position_max_distance", 64)],
)
def test_what_no_shape_shows_must_agree_too(field, value):
    message = rf"config\.json: says {field} = .*T5Config\.{field} = {value}"
    with pytest.raises(UserError, match=message):
        load.load_backbone(TINY, tiny_config(**{field: value}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    def change(tensors):
        tensors["encoder.block.1.layer.0.SelfAttention.q.weight"][3, 5] = value

    with pytest.raises(UserError, match=r"block\.1\.layer\.0\.SelfAttention\.q\.weight holds NaN"):
        load.load_backbone(altered(tmp_path, change))


@pytest.fixture
def shards(tmp_path):
    """A foreign folder of several files: their index alone says what lies where."""
    folders.save(
        tmp_path / "t5", tiny_params(tiny_config()), tiny_config(), None, shard_bytes=300_000
    )
    (tmp_path / "t5" / folders.RECORD).unlink()
    return tmp_path / "t5"


def test_an_index_must_be_what_the_files_hold(shards):
    index = shards / hf.INDEX
    fields = json.loads(index.read_text())
    one, other = sorted(set(fields["weight_map"].values()))[:2]
    moved = next(name for name, file in fields["weight_map"].items() if file == one)
    index.write_text(json.dumps({"weight_map": {**fields["weight_map"], moved: other}}))
    with pytest.raises(UserError, match=f"{hf.INDEX}: is not what the files hold: {moved}"):
        load.load_backbone(shards)


def test_a_tensor_in_two_files_is_refused(shards):
    first, second = sorted(shards.glob("model-*.safetensors"))[:2]
    tensors = load_file(second) | dict([next(iter(load_file(first).items()))])
    save_file(tensors, second)
    with pytest.raises(UserError, match=f"is in {first.name} too"):
        load.load_backbone(shards)


def test_one_file_beside_an_index_is_refused(shards):
    shutil.copy(next(shards.glob("model-*.safetensors")), shards / hf.WEIGHTS)
    with pytest.raises(UserError, match=f"holds both {hf.WEIGHTS} and {hf.INDEX}"):
        load.load_backbone(shards)


def test_a_missing_head_is_not_a_tied_one(tmp_path):
    """Where config.json says that the head is not tied."""
    folder = altered(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    fields = json.loads((folder / hf.CONFIG).read_text())
    (folder / hf.CONFIG).write_text(json.dumps(fields | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"- lm_head\.weight"):
        load.load_backbone(folder)
