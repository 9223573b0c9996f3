"""Backbone folders: strict reading, atomic writing, fingerprints."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from prompt_jax.ckpt import load
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
    load.save_backbone(tmp_path / "out", params, config, vocabulary)
    assert load.read_config(tmp_path / "out") == dataclasses.replace(config, param_dtype="float32")
    again = load.load_backbone(tmp_path / "out", config)
    same(params, again)
    assert (tmp_path / "out" / "spiece.model").read_bytes() == b"pieces"
    assert load.fingerprint(again) == load.fingerprint(params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "vocabulary"]


def test_shards_hold_the_same_as_one_file(tmp_path):
    config = tiny_config()
    params = tiny_params(config)
    load.save_backbone(tmp_path / "out", params, config, None, shard_bytes=100_000)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 5 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert set(index["weight_map"].values()) == set(files)
    same(params, load.load_backbone(tmp_path / "out", config))


def test_our_file_is_transformers_file_byte_for_byte_in_values(tmp_path):
    config = load.read_config(TINY)
    load.save_backbone(tmp_path / "out", load.load_backbone(TINY, config), config, None)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_file(TINY / "model.safetensors")
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_stored_dtype_is_independent_of_the_files(tmp_path):
    config = load.read_config(TINY)
    low = load.load_backbone(TINY, dataclasses.replace(config, param_dtype="bfloat16"))
    exact = load.load_backbone(TINY, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype("bfloat16")}
    same(low, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact))


def test_place_gets_each_leaf_once_and_its_result_is_kept():
    config = load.read_config(TINY)
    mesh = jax.make_mesh((8,), ("model",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    seen = []

    def place(path, array):
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
        seen.append(path)
        return jax.device_put(
            array, sharding if array.ndim == 2 else NamedSharding(mesh, PartitionSpec())
        )

    params = load.load_backbone(TINY, config, place=place)
    same(params, load.load_backbone(TINY, config))
    assert params["token_embedder"]["embedding"].sharding == sharding
    assert len(seen) == len(set(seen)) == len(jax.tree.leaves(params))


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
        load.load_backbone(folder, tiny_config(), place=lambda path, _: placed.append(path))
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
    same(load.load_backbone(folder, tiny_config()), load.load_backbone(TINY, tiny_config()))


def test_a_stored_copy_of_the_table_is_a_tied_head(tmp_path):
    def tie(tensors):
        tensors["lm_head.weight"] = tensors["shared.weight"].copy()

    folder = altered(tmp_path, tie)
    assert load.read_config(folder).tied_head
    config = load.read_config(folder)
    assert "logits_dense" not in load.load_backbone(folder, config)["decoder"]
    assert not load.read_config(TINY).tied_head


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
        load.read_config(tmp_path / "nowhere")


def test_a_missing_shard_is_named(tmp_path):
    config = tiny_config()
    load.save_backbone(tmp_path / "out", tiny_params(config), config, None, shard_bytes=100_000)
    next((tmp_path / "out").glob("model-00002-*")).unlink()
    with pytest.raises(UserError, match="model-00002.*not in the folder"):
        load.load_backbone(tmp_path / "out", config)


def test_saving_replaces_a_backbone_and_nothing_else(tmp_path):
    config = tiny_config()
    for seed in (0, 1):
        load.save_backbone(tmp_path / "out", tiny_params(config, seed), config, None)
    same(load.load_backbone(tmp_path / "out", config), tiny_params(config, 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match="no backbone folder"):
        load.save_backbone(tmp_path / "mine", tiny_params(config), config, None)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_failed_save_leaves_the_old_backbone(tmp_path, monkeypatch):
    config = tiny_config()
    load.save_backbone(tmp_path / "out", tiny_params(config), config, None)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(load, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        load.save_backbone(tmp_path / "out", tiny_params(config, 1), config, None)
    same(load.load_backbone(tmp_path / "out", config), tiny_params(config))


def test_saving_another_tree_is_refused(tmp_path):
    params = tiny_params(tiny_config("t5_1_0"))
    with pytest.raises(UserError, match="decoder/logits_dense/kernel"):
        load.save_backbone(tmp_path / "out", params, tiny_config(), None)


def test_paths_of_packaged_assets(tmp_path):
    assert str(load.resolve_path(tmp_path)) == str(tmp_path)
    assert str(load.resolve_path("gs://bucket/model")) == "gs://bucket/model"
    for bad in ("prompt_jax:nothing_like_it", "prompt_jax:../ckpt"):
        with pytest.raises(UserError, match="no such packaged asset"):
            load.resolve_path(bad)


# ----------------------------------------------------------------------------- fingerprint


def mix(x):
    """The hash in Python's unbounded integers."""
    mask = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)


def test_sums_are_those_of_whole_numbers():
    leaf = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    for stacked in (True, False):
        expected = []
        for row in leaf if stacked else leaf[None]:
            totals = [0, 0]
            for index, bits in enumerate(row.reshape(-1).view(np.uint32).tolist()):
                hashed = mix(bits ^ mix((index + 0x9E3779B9) & 0xFFFFFFFF))
                totals[0] += hashed
                totals[1] += mix((hashed + 1) & 0xFFFFFFFF)
            expected.append([total & 0xFFFFFFFF for total in totals])
        np.testing.assert_array_equal(load._sums(jnp.asarray(leaf), stacked), expected)


def changed_at(params, path, change):
    flat = traverse_util.flatten_dict(params)
    flat[path] = jnp.asarray(change(np.array(flat[path])))
    return traverse_util.unflatten_dict(flat)


def test_fingerprint_sees_every_element_and_its_place():
    params = tiny_params(tiny_config())
    seen = {load.fingerprint(params)}
    rng = np.random.default_rng(0)
    paths = list(traverse_util.flatten_dict(params))
    for path in paths:

        def nudge(array):
            at = tuple(rng.integers(0, size) for size in array.shape)
            array[at] = np.nextafter(array[at], np.float32(9))
            return array

        def swap(array):
            row = array[-1] if array.ndim > 1 else array
            row.reshape(-1)[:2] = row.reshape(-1)[1::-1][:2]
            return array

        def flip_layers(array):
            return array[::-1]

        for change in (nudge, swap, flip_layers):
            seen.add(load.fingerprint(changed_at(params, path, change)))
    assert len(seen) == 1 + 3 * len(paths)


def test_fingerprint_knows_names():
    params = tiny_params(tiny_config())
    layers = params["encoder"]["layers"]["attention"]
    swapped = changed_at(
        params,
        ("encoder", "layers", "attention", "key", "kernel"),
        lambda _: layers["value"]["kernel"],
    )
    swapped = changed_at(
        swapped,
        ("encoder", "layers", "attention", "value", "kernel"),
        lambda _: layers["key"]["kernel"],
    )
    assert load.fingerprint(swapped) != load.fingerprint(params)


def test_fingerprint_is_free_of_storage():
    low = tiny_params(tiny_config(param_dtype="bfloat16"))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    arrays = jax.tree.map(np.asarray, wide)
    assert load.fingerprint(low) == load.fingerprint(wide) == load.fingerprint(arrays)
    assert load.fingerprint(low) != load.fingerprint(tiny_params(tiny_config()))


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
def test_fingerprint_is_free_of_the_mesh(shape):
    mesh = jax.make_mesh(shape, ("data", "model"))
    params = tiny_params(tiny_config())

    def put(x):
        spec = [None] * x.ndim
        if x.ndim > 1:
            spec[-1], spec[-2] = "model", "data"
        sizes = dict(zip(("data", "model"), shape, strict=True))
        fits = [s if s and n % sizes[s] == 0 else None for s, n in zip(spec, x.shape, strict=True)]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*fits)))

    assert load.fingerprint(jax.tree.map(put, params)) == load.fingerprint(params)


def test_fingerprint_of_the_fixture_is_what_it_was():
    """Records name backbones by it: it may never change."""
    params = load.load_backbone(TINY, load.read_config(TINY))
    assert load.fingerprint(params) == "d13a832c573b13b6"
