"""Prompts in four forms, each into each to the bit; what is refused."""

import json
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from prompt_jax.ckpt import prompt_file, prompts
from prompt_jax.errors import UserError

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
PEFT = FIXTURES / "peft" / "peft_prompt10_on_t5v11_tiny"
PEFT_ONE = FIXTURES / "peft" / "peft_prompt10_sub1_on_t5v11_tiny"


@pytest.fixture
def prompt():
    array = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32) * 1000
    return prompts.Prompt(array, "memory")


WRITERS = {
    "npy": lambda folder, prompt: prompts.write_npy(f"{folder}/p.npy", prompt),
    "ours": lambda folder, prompt: prompts.write_ours(f"{folder}/p.safetensors", prompt, "b", "v"),
    "peft": lambda folder, prompt: prompts.write_peft(f"peft:{folder}/p_peft", prompt, "t5"),
    "t5x": lambda folder, prompt: prompts.write_t5x(f"t5x:{folder}/p_t5x", prompt),
}
READ = {"npy": "p.npy", "ours": "p.safetensors", "peft": "p_peft", "t5x": "p_t5x"}


@pytest.mark.parametrize("one", WRITERS)
@pytest.mark.parametrize("other", WRITERS)
def test_each_form_goes_into_each_to_the_bit(tmp_path, prompt, one, other):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    WRITERS[one](tmp_path / "a", prompt)
    WRITERS[other](tmp_path / "b", prompts.read(tmp_path / "a" / READ[one]))
    again = prompts.read(tmp_path / "b" / READ[other])
    assert again.array.dtype == np.float32
    np.testing.assert_array_equal(again.array, prompt.array)


def test_peft_default_has_an_unused_half():
    oracle = np.load(FIXTURES / "peft_prompt10_on_t5v11_tiny.npz")
    for folder in (PEFT, PEFT_ONE):
        np.testing.assert_array_equal(prompts.read(folder).array, oracle["prompt"])
    stored = load_file(PEFT / "adapter_model.safetensors")["prompt_embeddings"]
    assert stored.shape == (20, 64) and not np.array_equal(stored[:10], stored[10:])


def test_our_adapter_says_what_peft_wrote(tmp_path):
    """The fields of the adapter that PEFT wrote for an encoder's prompt, and its tensor."""
    prompts.write_peft(tmp_path / "mine", prompts.read(PEFT), "t5v11_tiny")
    mine, theirs = (json.loads((f / "adapter_config.json").read_text()) for f in (
        tmp_path / "mine", PEFT_ONE))  # fmt: skip
    assert mine["num_transformer_submodules"] == 1
    # What PEFT fills in from the model, and its own version, are left to it.
    free = {"num_attention_heads", "num_layers", "peft_version", "auto_mapping"}
    free |= {"modules_to_save", "tokenizer_kwargs"}
    assert mine == {name: value for name, value in theirs.items() if name not in free}
    files = [f / "adapter_model.safetensors" for f in (tmp_path / "mine", PEFT_ONE)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_runs_are_prompts_too(tmp_path, prompt):
    prompts.write_ours(str(tmp_path / "prompt.safetensors"), prompt, "b", "v")
    found = prompts.read(tmp_path)
    assert found.path == str(tmp_path / "prompt.safetensors")
    assert (found.file.backbone, found.file.vocabulary) == ("b", "v")


# --- what is refused ---


def test_one_flipped_byte_is_refused(tmp_path, prompt):
    path = tmp_path / "p.safetensors"
    prompts.write_ours(str(path), prompt, "b" * 16, "v" * 64)
    whole = path.read_bytes()
    places = [*range(0, 700, 3), *np.random.default_rng(0).integers(700, len(whole), 100)]
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match="p.safetensors") as error:
            prompts.read(path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    prompts.read(path)


def test_pickles_are_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "p.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="p.npy: holds pickled objects, which are never read"):
        prompts.read(tmp_path / "p.npy")
    shutil.copytree(PEFT, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="adapter_model.bin: is a pickle.*safe_serialization"):
        prompts.read(tmp_path / "adapter")
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="no .npy file"):
        prompts.read(tmp_path / "p.npy")
    assert not (tmp_path / "sprung").exists()


def test_a_header_that_claims_too_much_is_refused_before_it_is_allocated(tmp_path, prompt):
    path = tmp_path / "p.npy"
    prompts.write_npy(str(path), prompt)
    whole = path.read_bytes()
    claims = whole.replace(b"(5, 64)", b"(99999999999999, 64)")[: len(whole)]
    for content in (claims, whole[:-1], whole + b"\0", whole[:20], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="p.npy: .*damaged"):
            prompts.read(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3,), np.float32), r"shape \[3\], expected \[P, H\]"),
        (np.zeros((0, 4), np.float32), r"shape \[0, 4\]"),
        (np.zeros((2, 4), np.int32), "holds int32"),
        (np.full((2, 4), np.nan, np.float32), "not finite"),
        (np.full((2, 4), 1e300), "not finite in float32"),
    ],
)
def test_arrays_that_are_no_prompt(tmp_path, array, message):
    np.save(tmp_path / "p.npy", array)
    with np.errstate(over="ignore"), pytest.raises(UserError, match=message):
        prompts.read(tmp_path / "p.npy")


def test_what_a_cast_loses_is_said(tmp_path, caplog):
    np.save(tmp_path / "p.npy", np.full((2, 4), 0.1))
    with caplog.at_level("INFO", logger="prompt_jax"):
        array = prompts.read(tmp_path / "p.npy").array
    assert "float64 to float32, largest difference 1.5e-09" in caplog.text
    np.testing.assert_array_equal(array, np.full((2, 4), np.float32(0.1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type 'LORA'"),
        ({"task_type": "CAUSAL_LM"}, "task_type 'CAUSAL_LM'"),
        ({"num_virtual_tokens": 11}, r"11 x 2, 64"),
        ({"token_dim": 32}, r"10 x 2, 32"),
    ],
)
def test_adapters_that_are_no_prompt(tmp_path, change, message):
    shutil.copytree(PEFT, tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=message):
        prompts.read(tmp_path / "a")


def test_an_adapter_with_other_tensors_is_refused(tmp_path):
    shutil.copytree(PEFT, tmp_path / "a")
    save_file({"other": np.zeros((20, 64), np.float32)}, tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(UserError, match="'other'"):
        prompts.read(tmp_path / "a")
    (tmp_path / "a/adapter_model.safetensors").write_bytes(b"\1" * 30)
    with pytest.raises(UserError, match="is no safetensors file"):
        prompts.read(tmp_path / "a")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no .npy or .safetensors"):
        prompts.read(tmp_path)
    for name in ("p.npy", "p.safetensors"):
        with pytest.raises(UserError, match="no such file"):
            prompts.read(tmp_path / name)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="format None"):
        prompts.read(tmp_path / "foreign.safetensors")


# --- the released prompts of google-research/prompt-tuning ---

REFERENCE = os.environ.get("PROMPT_JAX_REFERENCE_PROMPTS", "")
# Least, median and largest norm of a row. Rows of the released prompts are tens of times as long as
# rows of a fresh prompt: nothing may rescale them.
NORMS = {
    "sst2": (343.611, 1351.753, 2177.151),
    "mrpc": (316.183, 843.595, 1472.991),
    "rte": (234.925, 874.369, 2003.635),
}


@pytest.mark.parametrize("name", NORMS)
def test_released_prompts_load_and_convert_as_they_are(tmp_path, name):
    file = epath.Path(REFERENCE) / f"{name}.npy"
    if not REFERENCE or not file.exists():
        pytest.skip("PROMPT_JAX_REFERENCE_PROMPTS names no folder with sst2.npy, mrpc.npy, rte.npy")
    found = prompts.read(file)
    assert found.array.shape == (100, 768)
    norms = np.linalg.norm(found.array, axis=1)
    np.testing.assert_allclose((norms.min(), np.median(norms), norms.max()), NORMS[name], rtol=1e-5)
    for form, write in WRITERS.items():
        write(tmp_path, found)
        again = prompts.read(tmp_path / READ[form]).array
        np.testing.assert_array_equal(again, found.array)


def test_format_of_an_unknown_version(tmp_path, prompt, monkeypatch):
    monkeypatch.setattr(prompt_file, "FORMAT", "9")
    prompts.write_ours(str(tmp_path / "p.safetensors"), prompt, "b", "v")
    monkeypatch.undo()
    with pytest.raises(UserError, match="format '9', this version reads '1'"):
        prompts.read(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": None}, "its header is damaged"),
        ({"length": "four"}, "its header is damaged"),
        ({"length": "4"}, r"says length 4, holds \[5, 64\]"),
    ],
)
def test_headers_that_nobody_of_us_wrote(tmp_path, prompt, change, message):
    """The digest is right: the file is what its writer meant."""
    path = tmp_path / "p.safetensors"
    prompts.write_ours(str(path), prompt, "b", "v")
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    metadata = {k: v for k, v in (metadata | change).items() if v is not None and k != "digest"}
    leaves = load_file(path)
    save_file(leaves, path, metadata | {"digest": prompt_file._digest(metadata, leaves)})
    with pytest.raises(UserError, match=message):
        prompts.read(path)


def test_a_prompt_of_another_vocabulary_is_refused(tmp_path, prompt):
    prompts.write_ours(str(tmp_path / "p.safetensors"), prompt, "b", "v")
    file = prompts.read(tmp_path / "p.safetensors").file
    prompt_file.check("p", file, "b", "v")
    with pytest.raises(UserError, match="on the vocabulary v, here is w; --force"):
        prompt_file.check("p", file, "b", "w")
