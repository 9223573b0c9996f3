"""What we write, opened by transformers and PEFT themselves: `pytest -m live_parity`.

Needs the extra `parity` (torch, transformers, peft). The everyday suite compares with numbers that
were recorded from them.
"""

import pathlib

import jax
import numpy as np
import pytest

from prompt_jax.ckpt import folder, load, prompts
from prompt_jax.models.t5.network import T5, identity_tap
from prompt_jax.slots import SLOT0
from prompt_jax.testing.tiny import tiny_batch, tiny_config, tiny_params

pytestmark = pytest.mark.live_parity
FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
P = 5


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the extra `parity` is not installed")


def ours(config, params, batch, prompt=None):
    """Logits, with a prompt before the encoder's input or without."""
    batch = dict(batch)
    tap = identity_tap
    if prompt is not None:
        rows = len(batch["encoder_input_tokens"])
        slots = np.tile(SLOT0 + np.arange(len(prompt), dtype=np.int32), (rows, 1))
        for name, left in (("tokens", slots), ("ids", np.ones_like(slots))):
            key = "encoder_input_tokens" if name == "tokens" else "encoder_segment_ids"
            batch[key] = np.concatenate([left, batch[key]], 1)

        def tap(site, x, context):
            if site != "embed" or context.stack != "encoder":
                return identity_tap(site, x, context)
            slot = context.tokens - SLOT0
            vectors = jax.numpy.asarray(prompt)[jax.numpy.maximum(slot, 0)]
            return jax.numpy.where((slot >= 0)[..., None], vectors, x)

    return np.asarray(T5(config).apply({"params": params}, batch, tap=tap)["logits"])


def theirs(torch, model, batch):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(batch["encoder_input_tokens"]).long(),
            attention_mask=torch.tensor(batch["encoder_segment_ids"]).long(),
            decoder_input_ids=torch.tensor(batch["decoder_input_tokens"]).long(),
        ).logits.numpy()


@pytest.mark.parametrize("variant", ["t5_1_1", "t5_1_0", "umt5"])
def test_transformers_opens_our_folder(torch, tmp_path, variant):
    transformers = pytest.importorskip("transformers")
    major = int(transformers.__version__.split(".")[0])
    # transformers 5 scales umT5 whatever its config says (T5Config.scale_logits).
    config = tiny_config(
        variant, scale_logits=variant == "t5_1_0" or (variant, major) == ("umt5", 5)
    )
    params = tiny_params(config)
    folder.save(tmp_path / "t5", params, config, None)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5").eval()
    batch = tiny_batch(config)
    found, expected = ours(config, params, batch), theirs(torch, model, batch)
    real = batch["decoder_segment_ids"] > 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)


@pytest.mark.parametrize("name", ["t5v11_tiny", "t5v10_tiny", "mt5_tiny"])
def test_a_converted_folder_is_the_same_model(torch, tmp_path, name):
    """HF -> T5X -> HF, opened again by transformers."""
    transformers = pytest.importorskip("transformers")
    from prompt_jax.convert import convert_backbone

    convert_backbone(str(FIXTURES / name), f"t5x:{tmp_path}/t5x", None, check=False)
    convert_backbone(f"t5x:{tmp_path}/t5x", f"{tmp_path}/hf", None, check=False)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    oracle = np.load(FIXTURES / f"{name}.npz")
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(oracle["input_ids"]),
            attention_mask=torch.tensor(oracle["attention_mask"]),
            decoder_input_ids=torch.tensor(oracle["decoder_input_ids"]),
        ).logits.numpy()
    np.testing.assert_allclose(logits, oracle["logits"], atol=1e-5)


def test_peft_opens_our_adapter(torch, tmp_path):
    """Logits within 1e-4 and the same greedy answers."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    loaded = load.load_backbone(FIXTURES / "t5v11_tiny")
    config = load.open_source(FIXTURES / "t5v11_tiny").config
    folder.save(tmp_path / "t5", loaded.params, config, None)
    array = np.random.default_rng(0).normal(size=(P, config.emb_dim)).astype(np.float32)
    prompts.write_peft(tmp_path / "adapter", prompts.Prompt(array, "memory"), str(tmp_path / "t5"))
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    batch = tiny_batch(config)
    found, expected = ours(config, loaded.params, batch, array), theirs(torch, model, batch)
    real = batch["decoder_segment_ids"] > 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)
    plain = ours(config, loaded.params, batch)
    assert np.abs(plain - found)[real].max() > 0.1  # the prompt does something

    inputs = torch.tensor(batch["encoder_input_tokens"]).long()
    mask = torch.tensor(batch["encoder_segment_ids"]).long()
    answer = model.generate(
        input_ids=inputs, attention_mask=mask, max_new_tokens=6, do_sample=False, num_beams=1
    ).numpy()
    tokens = np.zeros((len(inputs), 1), np.int32)
    done = np.zeros(len(inputs), bool)
    for _ in range(answer.shape[1] - 1):
        step = {**batch, "decoder_input_tokens": tokens}
        step["decoder_segment_ids"] = np.ones_like(tokens)
        best = ours(config, loaded.params, step, array)[:, -1].argmax(-1)
        best = np.where(done, 0, best).astype(np.int32)
        done |= best == 1
        tokens = np.concatenate([tokens, best[:, None]], 1)
    np.testing.assert_array_equal(tokens, answer)
