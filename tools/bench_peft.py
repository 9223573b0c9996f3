"""Time of a training step against PEFT on PyTorch: the same shapes, weights, batch and cores.

    .venv/bin/python tools/bench_peft.py --peft_python PATH [--json FILE]

PATH is the Python of a venv with torch, transformers and peft (the extra `parity`; keep it apart
from the project's own). Both sides stay alive in processes of their own and take turns, block by
block, so that what else the machine does falls on both. The model has random weights, made by
transformers and read by us from its files; before any clock runs, both must find the same loss
and the same gradient norm of the prompt: they do the same work.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

# T5 1.1 Small: 76,961,152 parameters.
SMALL = {
    "vocab_size": 32128,
    "d_model": 512,
    "num_heads": 6,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
}
TINY = {**SMALL, "vocab_size": 256, "d_model": 32, "d_ff": 64, "num_layers": 2}
TINY["num_decoder_layers"] = 2
TOLERANCE = 1e-3  # relative, float32 over 16 layers
QUIET = 1.2  # slowest block over fastest, at most, on a machine that does nothing else


def batch_arrays(args, vocab_size: int) -> tuple:
    """Inputs [B, T] and targets [B, U], every position real, the same on both sides."""
    import numpy as np

    rng = np.random.default_rng(0)
    inputs = rng.integers(2, vocab_size, (args.batch, args.inputs))
    targets = rng.integers(2, vocab_size, (args.batch, args.targets))
    return inputs, targets


def peft_side(args, folder: pathlib.Path):
    """PEFT's prompt tuning; writes the weights and the prompt that the other side reads.

    Returns:
        `step() -> loss`, and what there is to say about this side.
    """
    import numpy as np
    import peft
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # `tie_word_embeddings=False` keeps transformers 5 from scaling the decoder's states, but it
    # ties the head all the same: it gets weights of its own by hand.
    config = transformers.T5Config(
        **(TINY if args.tiny else SMALL),
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    base = transformers.T5ForConditionalGeneration(config)
    head = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
    base.lm_head.weight = torch.nn.Parameter(head)
    assert base.lm_head.weight is not base.shared.weight
    base.config.use_cache = False
    # Tensors that share their memory (the table, three times) are written once.
    own = {t.data_ptr(): name for name, t in reversed(base.state_dict().items())}
    tensors = {name: base.state_dict()[name].clone() for name in own.values()}
    save_file(tensors, folder / "model.safetensors")
    fields = {**config.to_dict(), "tie_word_embeddings": False, "scale_decoder_outputs": False}
    (folder / "config.json").write_text(json.dumps(fields, default=str))

    # By default PEFT makes and trains a second prompt, for the decoder, that T5 never uses.
    tuning = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=args.prompt, num_transformer_submodules=1
    )
    model = peft.get_peft_model(base, tuning).train()
    (prompt,) = [p for p in model.parameters() if p.requires_grad]
    assert prompt.shape == (args.prompt, config.d_model)
    with torch.no_grad():
        prompt.uniform_(-0.5, 0.5)
    np.save(folder / "prompt.npy", prompt.detach().numpy())

    inputs, targets = (torch.from_numpy(x) for x in batch_arrays(args, config.vocab_size))
    mask = torch.ones_like(inputs)
    optimizer = transformers.optimization.Adafactor(
        [prompt], lr=0.3, scale_parameter=False, relative_step=False, weight_decay=1e-5
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=inputs, attention_mask=mask, labels=targets).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    loss = model(input_ids=inputs, attention_mask=mask, labels=targets).loss
    loss.backward()
    about = {
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
        "parameters": sum(t.numel() for t in tensors.values()),
        "trainable": prompt.numel(),
        "loss": loss.item(),
        "grad_norm": prompt.grad.norm().item(),
    }
    return step, about


def our_side(args, folder: pathlib.Path):
    """The project's own training step, from the other side's weights.

    Returns:
        `step() -> loss`, and what there is to say about this side.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    import prompt_jax
    from prompt_jax import step as steps
    from prompt_jax.assemble import Method, assemble, flatten
    from prompt_jax.ckpt.load import load_backbone, open_source
    from prompt_jax.losses import CrossEntropy
    from prompt_jax.parts.bank import PromptBank
    from prompt_jax.parts.inject import EncoderSlots
    from prompt_jax.slots import SLOT0

    method = Method(
        name="prompt_tuning",
        bank=PromptBank(args.prompt),
        inject=EncoderSlots(),
        losses=(CrossEntropy(z_loss=0.0),),
    )
    config = open_source(folder).config
    model = assemble(config, method)
    params = flatten({"backbone": load_backbone(folder, config).params})
    frozen, trainable = method.trainable.split(
        {**params, "prompt/encoder": jnp.asarray(np.load(folder / "prompt.npy"))}
    )
    optimizer = method.trainable.build(trainable)
    state = steps.init_state(trainable, optimizer, seed=0)

    inputs, targets = batch_arrays(args, config.vocab_size)
    slots = np.broadcast_to(SLOT0 + np.arange(args.prompt), (args.batch, args.prompt))
    tokens = np.concatenate([slots, inputs], axis=1).astype(np.int32)
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1].astype(np.int32)
    batch = {
        "encoder_input_tokens": tokens,
        "encoder_segment_ids": np.ones_like(tokens),
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets.astype(np.int32),
        "decoder_segment_ids": np.ones_like(shifted),
        "decoder_loss_weights": np.ones(shifted.shape, np.float32),
    }
    train_step = steps.jit_train_step(model, optimizer, 1)

    def step() -> float:
        nonlocal state, last
        state, last = train_step(state, frozen, batch)
        return float(last["loss"])

    last = {}
    loss = step()
    about = {
        "versions": {"prompt_jax": prompt_jax.__version__, "jax": jax.__version__},
        "parameters": sum(leaf.size for leaf in frozen.values()),
        "trainable": sum(leaf.size for leaf in trainable.values()),
        "loss": loss,
        "grad_norm": float(last["grad_norm"]),
    }
    return step, about


def work(args) -> None:
    """A side's process: builds, says so, then does as many steps as each line of stdin asks."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    step, about = SIDES[args.side](args, pathlib.Path(args.folder))
    replies.write(json.dumps(about) + "\n")
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        replies.write(json.dumps(seconds) + "\n")


SIDES = {"ours": our_side, "peft": peft_side}


class Side:
    """A worker process that waits for its turn."""

    def __init__(self, name: str, python: str, args, folder: str):
        flags = [f"--{k}={getattr(args, k)}" for k in ("batch", "inputs", "targets", "prompt")]
        flags += [f"--threads={args.threads}", f"--side={name}", f"--folder={folder}"]
        threads = {"OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, os.path.abspath(__file__), *flags, *(["--tiny"] if args.tiny else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads},
        )
        self.name = name
        self.about = self._reply()

    def _reply(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench_peft: the {self.name} side ended: exit {self.process.wait()}")
        return json.loads(line)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of `count` steps."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait(timeout=60)


def compare(args) -> dict:
    """Both sides in turn; what was measured, as a record."""
    with tempfile.TemporaryDirectory() as folder:
        # PEFT first: it writes the weights.
        peft = Side("peft", args.peft_python, args, folder)
        ours = Side("ours", sys.executable, args, folder)
    for key in ("parameters", "trainable", "loss", "grad_norm"):
        if not math.isclose(ours.about[key], peft.about[key], rel_tol=TOLERANCE):
            sys.exit(f"bench_peft: not the same work: {key} {ours.about[key]} != {peft.about[key]}")
    blocks = {"ours": [], "peft": []}
    for block in range(args.blocks + 1):
        # Each goes first in every second block.
        for side in (ours, peft) if block % 2 else (peft, ours):
            seconds = side.steps(args.steps)
            time.sleep(0.3)  # OpenMP's threads spin for a while after their last product
            if block:  # the first warms up
                blocks[side.name].append(statistics.median(seconds))
                print(f"block {block} {side.name}: {blocks[side.name][-1]:.3f} s", flush=True)
    ours.close()
    peft.close()
    ratios = [a / b for a, b in zip(blocks["ours"], blocks["peft"], strict=True)]
    shapes = ("batch", "inputs", "targets", "prompt", "threads", "steps", "tiny")
    return {
        "shapes": {key: getattr(args, key) for key in shapes},
        "seconds": blocks,
        "median_seconds": {name: statistics.median(times) for name, times in blocks.items()},
        "ratio": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            # Other work on the machine only ever adds time: the least disturbed blocks.
            "of_fastest": min(blocks["ours"]) / min(blocks["peft"]),
        },
        "about": {"ours": ours.about, "peft": peft.about},
        "load_average": os.getloadavg(),
    }


def show(record: dict) -> None:
    """Prints a record as a short table."""
    print(f"\n{'':12}{'median':>9}{'min':>9}{'max':>9}   seconds a step")
    for name, label in (("ours", "prompt_jax"), ("peft", "PEFT")):
        times, middle = record["seconds"][name], record["median_seconds"][name]
        versions = ", ".join(f"{k} {v}" for k, v in record["about"][name]["versions"].items())
        print(f"{label:12}{middle:9.3f}{min(times):9.3f}{max(times):9.3f}   {versions}")
    ratio = record["ratio"]
    print(
        f"{'ratio':12}{ratio['median']:9.3f}{ratio['min']:9.3f}{ratio['max']:9.3f}   "
        f"block by block; fastest blocks {ratio['of_fastest']:.3f}"
    )
    if any(max(times) > QUIET * min(times) for times in record["seconds"].values()):
        # OpenMP's spinning threads suffer most from company: the median would flatter us.
        print("the machine was busy: judge by the fastest blocks alone, or measure again")
    ours = record["about"]["ours"]
    print(
        f"{ours['parameters']:,} parameters, {ours['trainable']:,} trained; the same loss "
        f"({ours['loss']:.4f}) and gradient norm ({ours['grad_norm']:.4f}) on both sides"
    )


def main() -> None:
    """Reads the flags; measures, or is one side's process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peft_python", help="Python with torch, transformers and peft")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=7, help="timed blocks of each side")
    parser.add_argument("--steps", type=int, default=3, help="steps in a block")
    parser.add_argument("--json", help="also write the record here")
    parser.add_argument("--tiny", action="store_true", help="a tiny T5: a test of this tool")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return work(args)
    if not args.peft_python:
        parser.error("--peft_python PATH is needed: a venv with torch, transformers and peft")
    record = compare(args)
    show(record)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
