"""Host memory on a backbone of 1.2 GB: at most twice the largest tensor and 1 GB."""

import json
import subprocess
import sys

import msgpack
import numpy as np
import pytest

from prompt_jax.ckpt import hf, hf_config, tree
from prompt_jax.models.t5.config import T5Config

CONFIG = T5Config(
    vocab_size=32128,
    emb_dim=1024,
    num_heads=16,
    head_dim=64,
    mlp_dim=2816,
    num_encoder_layers=8,
    num_decoder_layers=8,
)
LARGEST = 4 * 32128 * 1024
BOUND = 2 * LARGEST + 2**30


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A Hugging Face folder of the right shapes; zeros that take no room on the disk."""
    folder = tmp_path_factory.mktemp("sparse")
    (folder / "config.json").write_text(json.dumps(hf_config.to_hf(CONFIG)))
    header, at = {}, 0
    for leaf in tree.leaves(CONFIG):
        for name in leaf.names:
            theirs, shape = hf.own(name, leaf.shape)
            size = 4 * int(np.prod(shape))
            header[theirs] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    assert at > 1.2e9
    return folder


@pytest.fixture(scope="module")
def sparse_inline(tmp_path_factory):
    """A T5X checkpoint with scanned layers and every array inside the msgpack file."""
    folder, tree_of = tmp_path_factory.mktemp("inline"), {}
    for leaf in tree.leaves(CONFIG):
        shape = list(leaf.shape)
        if leaf.layers:
            shape.insert(1, leaf.layers)
        path = [
            p.replace("relpos_bias", "relative_posemb") if leaf.layers else p for p in leaf.path
        ]
        node = tree_of
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = shape
    pack = msgpack.Packer()

    def put(file, node):
        if isinstance(node, dict):
            file.write(pack.pack_map_header(len(node)))
            for key, child in node.items():
                file.write(pack.pack(key))
                put(file, child)
        elif isinstance(node, list):
            size = 4 * int(np.prod(node))
            head = (
                b"\x93" + pack.pack(node) + pack.pack("float32") + b"\xc6" + size.to_bytes(4, "big")
            )
            file.write(b"\xc9" + (len(head) + size).to_bytes(4, "big") + b"\x01" + head)
            file.seek(size, 1)
            file.truncate()
        else:
            file.write(pack.pack(node))

    with open(folder / "checkpoint", "wb") as file:
        put(file, {"optimizer": {"target": tree_of}, "version": 3})
    assert (folder / "checkpoint").stat().st_size > 1.2e9
    return folder


def peak(code):
    """The most bytes that a process held while it ran `code`."""
    report = "\nimport resource\nprint('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    out = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return 1024 * int(out.stdout.split("PEAK")[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_conversion_holds_one_tensor_at_a_time(sparse, tmp_path):
    steps = [f"hf:{sparse}", f"t5x:{tmp_path}/t5x", f"hf:{tmp_path}/hf"]
    for source, target in zip(steps, steps[1:], strict=False):
        command = f"['convert', '--from={source}', '--to={target}']"
        held = peak(f"from prompt_jax.__main__ import main\nassert main({command}) == 0")
        assert held <= BOUND, f"{source} -> {target}: {held / 2**20:.0f} MB"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inline_arrays_of_scanned_layers_are_read_one_at_a_time(sparse_inline, tmp_path):
    command = f"['convert', '--from={sparse_inline}', '--to={tmp_path}/hf']"
    held = peak(f"from prompt_jax.__main__ import main\nassert main({command}) == 0")
    assert held <= BOUND, f"{held / 2**20:.0f} MB"


@pytest.mark.slow
def test_loading_holds_the_weights_and_one_tensor(sparse):
    """In the storage dtype; the file's is twice as wide."""
    held = peak(f"""
import dataclasses
from prompt_jax.ckpt import load
config = dataclasses.replace(load.open_source({str(sparse)!r}).config, param_dtype="bfloat16")
print(load.load_backbone({str(sparse)!r}, config).fingerprint)
""")
    weights = sum(2 * int(np.prod(leaf.full_shape)) for leaf in tree.leaves(CONFIG))
    assert held - weights <= BOUND, f"{held / 2**20:.0f} MB for {weights / 2**20:.0f} MB"
