"""Our side of `bench_peft.py`: `prompt_jax.workbench`, block by block as it is asked.

Started by bench_peft.py; `--make` writes the backbone of random weights that both sides read.
"""

import argparse
import pathlib

import bench_worker
import jax
import numpy as np

import prompt_jax
from prompt_jax import bench, ledger, workbench
from prompt_jax.assemble import unflatten
from prompt_jax.ckpt import folder as backbone_folder

WINDOW = 50  # batches among which transformers' group_by_length sorts


class Ours:
    """What the driver asks; a case is named when it is opened."""

    def __init__(self, args: argparse.Namespace):
        self.folder = pathlib.Path(args.folder)
        path = [f"INITIAL_CHECKPOINT_PATH='{self.folder / 'backbone'}'"]
        path += ["Backbone.random_weights=False"]
        self.bench = workbench.Bench.open(args.model, [*args.gin, *path])
        self.cases = {}

    def about(self) -> dict:
        """Versions, sizes and the device."""
        return {
            "versions": {"prompt_jax": prompt_jax.__version__, **ledger.versions()},
            "parameters": self.bench.opened.parameters,
            "device": jax.devices()[0].device_kind,
        }

    def open(self, case: dict) -> dict:
        """Makes a case of training steps and writes its batches for the other side."""
        count, prompt = case["steps"], case["prompt"]
        if case["kind"] == "unpadded":
            shape = workbench.Shape(case["batch"], case["inputs"], prompt, case["targets"])
            steps = workbench.unpadded(self.bench, shape)
        else:
            steps = workbench.sst2(self.bench, prompt, case["batch"], case["row"])
        width = self.bench.config.emb_dim
        steps.set_prompt(np.random.default_rng(0).uniform(-0.5, 0.5, (prompt, width)))
        write_batches(self.folder / f"{case['name']}.npz", steps, count)
        if case["kind"] == "sst2":
            write_batches(self.folder / f"{case['name']}-window.npz", steps, WINDOW)
        self.cases[case["name"]] = steps
        return {
            **steps.first(),
            "trainable": sum(leaf.size for leaf in steps.state.trainable.values()),
            "peak_flops": bench.peak_flops(jax.devices()[0].device_kind),
            **steps.work(count),
        }

    def steps(self, name: str, count: int) -> dict:
        """A block of training steps."""
        return {"seconds": self.cases[name].block(count)}

    def open_mixed(self, name: str, prompts: int, requests: int) -> dict:
        """Makes a batch of requests with several prompts."""
        mixed = self.cases[name] = workbench.Mixed(self.bench, prompts, requests)
        flat = np.concatenate(mixed.inputs)
        np.savez(self.folder / "mixed.npz", inputs=flat, lengths=[len(i) for i in mixed.inputs])
        return {"targets": workbench.SST2_LIMITS["targets"], "prompt": workbench.MIXED_PROMPT}

    def mixed(self, name: str) -> dict:
        """A batch answered."""
        return {"seconds": self.cases[name].block()}

    def memory(self) -> dict:
        """The most that was held so far."""
        return workbench.memory(self.bench)

    def save(self, name: str, repeat: int) -> dict:
        """Checkpoints of a case's state."""
        return workbench.checkpoint(self.cases[name], repeat)

    def close(self, name: str) -> dict:
        """Forgets a case, if its opening came so far."""
        self.cases.pop(name, None)
        return {}


def write_batches(file: pathlib.Path, steps: workbench.Steps, count: int) -> None:
    """The examples of the first batches, flat, for a side that knows no loader."""
    order = [steps.loader.batch(step)[1].index.tolist() for step in range(count)]
    inputs = [steps.source.inputs(i) for batch in order for i in batch]
    targets = [steps.source.targets(i) for batch in order for i in batch]
    np.savez(
        file,
        inputs=np.concatenate(inputs),
        targets=np.concatenate(targets),
        lengths=np.array([[len(i), len(t)] for i, t in zip(inputs, targets, strict=True)]),
        batch=len(order[0]),
    )


def make(args: argparse.Namespace) -> None:
    """Writes random weights as a backbone folder, which is one of Hugging Face's."""
    opened = workbench.Bench.open(args.model, args.gin)
    folder = pathlib.Path(args.folder)
    vocabulary = workbench.vocabulary_file(str(folder), opened.config.vocab_size)
    backbone_folder.save(
        folder / "backbone",
        unflatten(opened.opened.params)["backbone"],
        opened.config,
        None if vocabulary == "byte" else vocabulary,
    )


def full(error: Exception) -> bool:
    """Whether XLA ran out of a device's memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def main() -> None:
    """Reads the flags; makes weights, or answers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--make", action="store_true")
    args = parser.parse_args()
    if args.make:
        return make(args)
    reply = bench_worker.answer()
    bench_worker.serve(Ours(args), reply, full)


if __name__ == "__main__":
    main()
