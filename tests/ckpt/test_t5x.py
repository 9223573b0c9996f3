"""T5X checkpoints: every form of storage, scanned layers, damage, and what we write."""

import json
import pathlib
import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import traverse_util

from prompt_jax.ckpt import fingerprint, folder, load, t5x, t5x_file, zarr
from prompt_jax.ckpt.source import Tensor
from prompt_jax.errors import UserError
from prompt_jax.testing.tiny import VARIANTS, tiny_config, tiny_params

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "t5x"


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def write(path, arrays):
    """A T5X checkpoint of NumPy arrays, whatever their names."""
    tensors = {
        name: Tensor(array.shape, array.dtype, lambda index, array=array: array[index])
        for name, array in arrays.items()
    }
    return put(path, tensors)


def put(path, tensors):
    path.mkdir()
    t5x.write(epath.Path(path), tensors)
    return path


@pytest.fixture
def copy(tmp_path):
    """A checkpoint of real T5X that a test may damage."""
    shutil.copytree(FIXTURES / "mixed", tmp_path / "checkpoint_1000")
    return tmp_path / "checkpoint_1000"


def scanned(params, axis):
    """T5X's scanned layout of a tree: layers along `axis`, biases in `relative_posemb`."""
    found = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        name = "/".join(path)
        array = np.asarray(leaf)
        if "layers" in path:
            name = name.replace("/relpos_bias/", "/relative_posemb/")
            array = np.moveaxis(array, 0, axis)
        found[name] = array
    return found


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scanned_layers_are_unstacked(tmp_path, variant, axis):
    config = tiny_config(variant, num_encoder_layers=3, dropout_rate=0.1)
    params = tiny_params(config)
    path = write(tmp_path / "scanned", scanned(params, axis))
    assert load.open_source(path).config == config
    loaded = load.load_backbone(path, config)
    same(loaded.params, params)
    assert loaded.fingerprint == fingerprint.of_tree(params)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_we_write_is_read_to_the_bit(tmp_path, variant, dtype):
    config = tiny_config(variant, dropout_rate=0.1, param_dtype=dtype)
    params = tiny_params(config)
    put(tmp_path / "out", folder.of_tree(params, config))
    same(load.load_backbone(tmp_path / "out", config).params, params)


def test_what_we_write_is_laid_out_as_t5x_does(tmp_path):
    """The same keys, placeholders and zarr fields as the fixture that T5X wrote."""
    params = load.load_backbone(FIXTURES / "zarr", tiny_config()).params
    put(tmp_path / "out", folder.of_tree(params, tiny_config()))
    trees = []
    for path in (tmp_path / "out", FIXTURES / "zarr"):
        packed = flax.serialization.msgpack_restore((path / "checkpoint").read_bytes())
        assert packed["version"] == 3
        trees.append(packed["optimizer"]["target"])
    assert trees[0] == trees[1]
    for path in (FIXTURES / "zarr").glob("target.*"):
        fields = json.loads((path / ".zarray").read_text())
        ours = json.loads((tmp_path / "out" / path.name / ".zarray").read_text())
        assert ours == fields
        assert {p.name for p in path.iterdir()} == {
            p.name for p in (tmp_path / "out" / path.name).iterdir()
        }


def test_zeros_are_numbers_too(tmp_path):
    """A chunk of zeros is written, so that a missing chunk can be told from it."""
    params = jax.tree.map(jnp.zeros_like, tiny_params(tiny_config()))
    put(tmp_path / "out", folder.of_tree(params, tiny_config()))
    same(load.load_backbone(tmp_path / "out", tiny_config()).params, params)


def test_large_arrays_are_chunked_by_rows():
    assert zarr._chunks((32128, 4096), 4) == [1024, 4096]
    assert zarr._chunks((10, 3), 4) == [10, 3]
    assert zarr._chunks((2, 1 << 28), 4) == [1, 1 << 28]


# --- damage ---

QUERY = "target.encoder.layers_1.attention.query.kernel"


def test_a_flipped_byte_in_a_chunk_is_refused(copy):
    chunk = copy / QUERY / "0.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(UserError, match=rf"{QUERY}.*is damaged") as error:
        load.load_backbone(copy)
    assert "\n" not in str(error.value)


def test_a_missing_chunk_is_not_zeros(copy):
    (copy / QUERY / "1.0").unlink()
    with pytest.raises(UserError, match=rf"{QUERY}.*is damaged"):
        load.load_backbone(copy)


def test_a_missing_array_is_named(copy):
    shutil.rmtree(copy / QUERY)
    with pytest.raises(UserError, match=rf"{QUERY}/.zarray: no such file"):
        load.load_backbone(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [64, 4096]}, "is not the header that T5X wrote"),
        ({"dtype": ">f4"}, "is not the header that T5X wrote"),
        ({"order": "F"}, "is not the header that T5X wrote"),
        ({"chunks": [1 << 40, 1 << 20]}, "is not the header|cannot be opened"),
        ({"dtype": "<i4"}, "is not the header that T5X wrote"),
        ({"shape": "wide"}, "cannot be opened"),
    ],
)
def test_another_header_is_refused(copy, change, message):
    header = copy / QUERY / ".zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load.load_backbone(copy)


def repack(path, change):
    packed = flax.serialization.msgpack_restore((path / "checkpoint").read_bytes())
    change(packed, packed["optimizer"]["target"])
    (path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(packed))


def escape(packed, target):
    target["token_embedder"]["embedding"]["kvstore"]["path"] = "../elsewhere"


def absolute(packed, target):
    target["token_embedder"]["embedding"]["kvstore"]["path"] = "/etc/elsewhere"


def another(packed, target):
    path = "target.encoder.layers_0.attention.key.kernel"
    target["encoder"]["layers_1"]["attention"]["key"]["kernel"]["kvstore"]["path"] = path


def other_driver(packed, target):
    target["token_embedder"]["embedding"]["driver"] = "n5"


def rename(packed, target):
    target["encoder"]["norm"] = target["encoder"].pop("encoder_norm")


def old(packed, target):
    packed["version"] = 2


def whole_numbers(packed, target):
    target["encoder"]["encoder_norm"]["scale"] = np.ones(64, np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (escape, "'../elsewhere' leaves the folder"),
        (absolute, "'/etc/elsewhere' leaves the folder"),
        (other_driver, "embedding: driver 'n5', not 'zarr'"),
        (another, "is another array's"),
        (rename, r"- encoder/encoder_norm/scale \[64\]; \+ encoder/norm/scale \[64\]"),
        (old, "no T5X checkpoint of version 3"),
        (whole_numbers, "encoder_norm/scale is int32"),
    ],
)
def test_another_msgpack_is_refused(copy, change, message):
    repack(copy, change)
    with pytest.raises(UserError, match=message):
        load.load_backbone(copy)


@pytest.mark.parametrize("limit", [1 << 30, 1000])
def test_inline_arrays_are_found_without_being_held(tmp_path, monkeypatch, limit):
    """Against Flax's own reader; above the limit Flax writes an array in pieces."""
    whole = flax.serialization.msgpack_restore((FIXTURES / "msgpack" / "checkpoint").read_bytes())
    whole["optimizer"]["target"]["encoder"]["bf16"] = (
        np.arange(24).reshape(2, 3, 4).astype(jnp.bfloat16)
    )
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", limit)
    (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(whole))
    found = t5x_file.open_target(epath.Path(tmp_path))
    expected = traverse_util.flatten_dict(whole["optimizer"]["target"], sep="/")
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)
        np.testing.assert_array_equal(tensor.whole(), expected[name])
        part = tuple(slice(size // 2, size) for size in tensor.shape)
        np.testing.assert_array_equal(tensor.read(part), expected[name][part])


def test_no_damaged_byte_ends_in_a_traceback(tmp_path):
    """Headers lie among the numbers: what is hit is refused, or was a number."""
    whole = (FIXTURES / "mixed" / "checkpoint").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for at in rng.integers(len(whole), size=30):
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        (tmp_path / "checkpoint").write_bytes(bytes(damaged))
        try:
            t5x_file.open_target(epath.Path(tmp_path))
        except UserError:
            refused += 1
    assert 0 < refused < 30


@pytest.mark.parametrize("form", ["mixed", "msgpack"])
def test_a_damaged_msgpack_is_refused(tmp_path, form):
    whole = (FIXTURES / form / "checkpoint").read_bytes()
    shutil.copytree(FIXTURES / form, tmp_path / "c")
    for content in (whole[:-100], whole[: len(whole) // 2], b"", b"\xff" * 100, b"PK\x03\x04zip"):
        (tmp_path / "c" / "checkpoint").write_bytes(content)
        with pytest.raises(UserError, match="damaged, or no T5X|is no T5X checkpoint") as error:
            load.open_source(tmp_path / "c")
        assert "\n" not in str(error.value)


def test_a_prompt_beside_the_backbone_is_left_out(tmp_path):
    """Checkpoints of google-research/prompt-tuning hold both; each is read by itself."""
    config = tiny_config(dropout_rate=0.1)
    params, prompt = tiny_params(config), np.ones((5, 64), np.float32)
    arrays = {name: t.whole() for name, t in folder.of_tree(params, config).items()}
    path = write(tmp_path / "both", {**arrays, t5x.PROMPT: prompt})
    same(load.load_backbone(path, config).params, params)
    np.testing.assert_array_equal(t5x.read_prompt(epath.Path(path)), prompt)
    np.testing.assert_array_equal(
        t5x.read_prompt(epath.Path(path) / "target.encoder.prompt.prompt.prompt"), prompt
    )
    with pytest.raises(UserError, match="holds no target/encoder/prompt"):
        t5x.read_prompt(epath.Path(FIXTURES) / "zarr")


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no file `checkpoint`"):
        load.open_source(f"t5x:{tmp_path}")
