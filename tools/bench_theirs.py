"""PEFT's side of `bench_peft.py`: prompt tuning on PyTorch, the same weights and examples.

Started by bench_peft.py with the Python of a venv that has torch, transformers and peft. Favours
PEFT where there is a choice: its batches are tensors on the device before the clock starts, no
loss is fetched in a block, and no Trainer stands around the step.
"""

import argparse
import pathlib
import tempfile
import time

import bench_worker
import numpy as np

RATE, DECAY = 0.3, 1e-5  # as our Adafactor


class Theirs:
    """What the driver asks; a case is named when it is opened."""

    def __init__(self, args: argparse.Namespace):
        import peft  # noqa: F401 - as the other side's: measured before the weights are read
        import torch
        import transformers

        self.before = bench_worker.rss_mb()
        self.torch, self.folder = torch, pathlib.Path(args.folder)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(args.threads)
        else:
            torch.cuda.set_per_process_memory_fraction(args.memory)
        self.base = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            self.folder / "backbone",
            dtype=getattr(torch, args.dtype),
            dropout_rate=args.dropout,
        ).to(self.device)
        self.cases = {}

    def about(self) -> dict:
        """Versions, sizes, and how attention is computed."""
        import peft
        import transformers

        libraries = (self.torch, transformers, peft)
        return {
            "versions": {each.__name__: each.__version__ for each in libraries},
            "parameters": sum(p.numel() for p in self.base.parameters()),
            "attention": self.base.config._attn_implementation,
        }

    def _with_prompt(self, length: int):
        """A new PEFT model around the one backbone, and its prompt, which is ours."""
        import peft

        # By default PEFT makes and trains a second prompt, for the decoder, that T5 never uses.
        tuning = peft.PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM", num_virtual_tokens=length, num_transformer_submodules=1
        )
        model = peft.get_peft_model(self.base, tuning).to(self.device)
        (prompt,) = [p for p in model.parameters() if p.requires_grad]
        start = np.random.default_rng(0).uniform(-0.5, 0.5, tuple(prompt.shape))
        with self.torch.no_grad():
            prompt.copy_(self.torch.from_numpy(start))
        return model, prompt

    def open(self, case: dict, grouped: bool = False, check: bool = True) -> dict:
        """Makes a case of training steps from the batches that the other side wrote."""
        import transformers

        model, prompt = self._with_prompt(case["prompt"])
        model.config.use_cache = False
        optimizer = transformers.optimization.Adafactor(
            [prompt], lr=RATE, scale_parameter=False, relative_step=False, weight_decay=DECAY
        )
        file = self.folder / f"{case['name']}{'-window' if grouped else ''}.npz"
        batches = read_batches(file, case["steps"] if grouped else 0)
        padded = [self._pad(batch) for batch in batches]
        name = f"{case['name']}-grouped" if grouped else case["name"]
        self.cases[name] = (model, optimizer, padded)
        found = self._first(model, prompt, padded[0]) if check else {}
        return {
            **found,
            "trainable": prompt.numel(),
            "examples": sum(len(batch) for batch in batches),
            "positions": sum(len(i) + case["prompt"] for batch in batches for i, _ in batch),
            "computed": sum(
                len(p["input_ids"]) * (p["input_ids"].shape[1] + case["prompt"]) for p in padded
            ),
        }

    def _pad(self, batch: list) -> dict:
        """A batch as transformers' collator makes it: padded to its longest example."""
        torch = self.torch
        rows = {"input_ids": [], "attention_mask": [], "labels": []}
        for inputs, targets in batch:
            rows["input_ids"].append(torch.from_numpy(inputs).long())
            rows["attention_mask"].append(torch.ones(len(inputs), dtype=torch.long))
            rows["labels"].append(torch.from_numpy(targets).long())
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            name: pad(parts, batch_first=True, padding_value=-100 * (name == "labels")).to(
                self.device
            )
            for name, parts in rows.items()
        }

    def _first(self, model, prompt, batch: dict) -> dict[str, float]:
        """Loss and gradient norm of a batch without dropout; nothing moves."""
        model.eval()
        loss = model(**batch).loss
        loss.backward()
        found = {"loss": loss.item(), "grad_norm": prompt.grad.norm().item()}
        model.zero_grad(set_to_none=True)
        model.train()
        return found

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def steps(self, name: str, count: int) -> dict:
        """A block of training steps."""
        model, optimizer, batches = self.cases[name]
        began = time.perf_counter()
        for batch in batches[:count]:
            optimizer.zero_grad(set_to_none=True)
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
        self._wait()
        seconds = time.perf_counter() - began
        assert len(batches) >= count and loss.isfinite()
        return {"seconds": seconds}

    def open_mixed(self, name: str, prompt: int, targets: int) -> dict:
        """Requests for one prompt: PEFT has no batch of several for prompt tuning."""
        model, _ = self._with_prompt(prompt)
        stored = np.load(self.folder / "mixed.npz")
        inputs = np.split(stored["inputs"], np.cumsum(stored["lengths"])[:-1])
        batch = self._pad([(each, each[:1]) for each in inputs])
        del batch["labels"]
        lengths = {"max_new_tokens": targets, "min_new_tokens": targets}
        options = {**lengths, "do_sample": False, "num_beams": 1, "use_cache": True}
        self.cases[name] = (model.eval(), batch, options)
        return {}

    def mixed(self, name: str) -> dict:
        """A batch answered greedily."""
        model, batch, options = self.cases[name]
        began = time.perf_counter()
        with self.torch.inference_mode():
            model.generate(**batch, **options)
        self._wait()
        return {"seconds": time.perf_counter() - began}

    def memory(self) -> dict:
        """The most that was held so far, loading included, in MB."""
        found = {"before_model_mb": self.before, "peak_mb": bench_worker.rss_mb("VmHWM")}
        if self.device == "cuda":
            found["device_peak_mb"] = self.torch.cuda.max_memory_allocated() / 2**20
        return {key: round(value, 1) for key, value in found.items()}

    def save(self, name: str, repeat: int) -> dict:
        """The adapter, and the optimizer's state beside it, as a Trainer's checkpoint has both."""
        model, optimizer, _ = self.cases[name]
        with tempfile.TemporaryDirectory() as top:
            seconds = []
            for number in range(repeat + 1):
                folder, began = pathlib.Path(top) / str(number), time.perf_counter()
                model.save_pretrained(folder)
                self.torch.save(optimizer.state_dict(), folder / "optimizer.pt")
                seconds.append(time.perf_counter() - began)
            files = [path for path in folder.rglob("*") if path.is_file()]
            adapter = sum(path.stat().st_size for path in files if path.name != "optimizer.pt")
            total = sum(path.stat().st_size for path in files)
        return {"bytes": total, "adapter_bytes": adapter, "seconds": seconds[1:]}

    def close(self, name: str) -> dict:
        """Forgets a case, if its opening came so far."""
        self.cases.pop(name, None)
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
        return {}


def read_batches(file: pathlib.Path, grouped: int) -> list[list[tuple]]:
    """The batches of a file, as lists of (inputs, targets).

    Args:
        file: written by the other side.
        grouped: 0: in the file's order; else so many batches of its examples sorted by length,
            taken evenly: what transformers' group_by_length makes of a window this large.
    """
    stored = np.load(file)
    ends = np.cumsum(stored["lengths"], axis=0)[:-1]
    inputs, targets = (np.split(stored[n], ends[:, i]) for i, n in enumerate(("inputs", "targets")))
    examples, size = list(zip(inputs, targets, strict=True)), int(stored["batch"])
    if grouped:
        examples.sort(key=lambda example: -len(example[0]))
    batches = [examples[at : at + size] for at in range(0, len(examples), size)]
    if not grouped:
        return batches
    middles = (np.arange(grouped) + 0.5) * len(batches) / grouped
    return [batches[int(at)] for at in middles]


def full(error: Exception) -> bool:
    """Whether torch ran out of the device's memory."""
    return type(error).__name__ == "OutOfMemoryError"


def main() -> None:
    """Reads the flags; answers, or does one step and ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--memory", type=float, default=0.45, help="of a GPU's, at most")
    parser.add_argument("--first_step", default="", help="prompt length of the case `unpadded`")
    args = parser.parse_args()
    reply = bench_worker.answer()
    side = Theirs(args)
    if args.first_step:
        side.open({"name": "unpadded", "prompt": int(args.first_step), "steps": 1}, check=False)
        side.steps("unpadded", 1)
        return reply({"step": 1})
    bench_worker.serve(side, reply, full)


if __name__ == "__main__":
    main()
