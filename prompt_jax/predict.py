"""Using a finished run: metrics on any task, answers for any text, several prompts at once."""

import csv
import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from prompt_jax import checks, evaluate
from prompt_jax.assemble import Model, assemble
from prompt_jax.backbone import open_backbone
from prompt_jax.ckpt import prompt_file
from prompt_jax.ckpt import prompts as stored_prompts
from prompt_jax.ckpt.prompt_file import write_bytes
from prompt_jax.config import resolve
from prompt_jax.data import cache, layout
from prompt_jax.errors import UserError, nearest
from prompt_jax.evaluate import Decoding, TrieDecoding
from prompt_jax.ledger import Clock
from prompt_jax.parallel.mesh import Shardings
from prompt_jax.requests import Request

log = logging.getLogger("prompt_jax")
BANK = prompt_file.ENCODER
GREEDY = Decoding()
MOST_LABELS = 50  # more different answers than this are no classification


@dataclasses.dataclass
class Predictor:
    """A backbone in memory with one or several prompts; rows of a batch may use any of them.

    Attributes:
        context: backbone, model and shardings.
        params: joined leaves; the prompts of all files lie one after the other in the bank.
        slots: prompt name -> its slot ids.
        forced: prompts of another backbone that were used all the same -> why they were refused.
    """

    context: evaluate.Context
    params: dict[str, Any]
    slots: dict[str, np.ndarray]
    forced: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_run(
        cls,
        run_dir: str,
        prompts: Sequence[str] = (),
        bindings: Sequence[str] = (),
        force: bool = False,
    ) -> "Predictor":
        """Opens a finished run.

        Args:
            run_dir: its MODEL_DIR.
            prompts: prompts of any form to use instead of the run's own.
            bindings: "NAME=VALUE" on top of the run's config.
            force: also prompts whose file names another backbone or vocabulary.

        Raises:
            UserError: no finished run there, or a prompt of another backbone.
        """
        folder = epath.Path(run_dir)
        config = folder / "config.gin"
        if not config.exists():
            raise UserError(f"--model_dir {run_dir}: no run there (no config.gin)")
        run = resolve([str(config)], bindings).run
        checks.check(run)
        tasks, run = run.method.tasks, dataclasses.replace(run, method=run.method.served)
        shardings = Shardings(run.parallel.mesh(), run.parallel.shard_frozen_over_data)
        model = assemble(run.backbone.config, run.method, shardings.fetch_layer)
        backbone = run.backbone
        tuned = folder / "backbone"
        if not run.method.bank and (run.train_steps or tuned.exists()):
            if not tuned.exists():
                raise UserError(f"--model_dir {run_dir}: the run wrote no backbone folder yet")
            backbone = dataclasses.replace(backbone, checkpoint=str(tuned), random_weights=False)
        opened = open_backbone(backbone, model, shardings)
        context = evaluate.Context(run, model, opened, shardings, opened.params)
        if not run.method.bank:
            return cls(context, opened.params, {"": layout.slot_ids(0)})
        files = list(prompts) or [str(folder / "prompt.safetensors")]
        if not run.method.plain:
            leaves, name = _leaves(files, model, opened, force)
            size, first = run.method.slots, run.method.first_slot
            slots = {task: layout.slot_ids(size, first(task)) for task in tasks}
            slots = slots or {name: layout.slot_ids(size)}
            return cls(context, {**opened.params, **leaves}, slots)
        named = {epath.Path(file).stem if len(files) == 1 else file: file for file in files}
        if tasks and not prompts:
            named = {task: str(folder / stored_prompts.task_array(task)) for task in tasks}
            if not force:
                whole, theirs = files[0], (opened.fingerprint, opened.vocabulary.fingerprint)
                prompt_file.check(whole, prompt_file.load(whole), *theirs)
        bank, slots, forced = _bank(named, opened, force)
        return cls(context, {**opened.params, BANK: bank}, slots, forced)

    def predict(
        self,
        texts: Sequence[str],
        prompt: str | None = None,
        decoding: Decoding = GREEDY,
        batch_size: int = 128,
    ) -> list[dict[str, Any]]:
        """Answers texts.

        Args:
            texts: inputs, as the task casts them, without the prompt.
            prompt: which prompt answers; None: each of them, in shared batches.
            decoding: how answers are read.
            batch_size: rows of a batch.

        Returns:
            Rows {"id", "inputs", "prediction", "score", "prompt"}; all prompts' rows of a text
            stand together.

        Raises:
            UserError: no prompt of that name.
        """
        if prompt is not None and prompt not in self.slots:
            raise UserError(f"no prompt {prompt!r}: {nearest(prompt, self.slots)}")
        names = list(self.slots) if prompt is None else [prompt]
        asked = [(i, text, name) for i, text in enumerate(texts) for name in names]
        requests = [self.request(text, name) for _, text, name in asked]
        found = evaluate.answers(self.context, self.params, requests, decoding, batch_size)
        return [
            {"id": i, "inputs": text, "prediction": a.text, "score": a.score, "prompt": name}
            for (i, text, name), a in zip(asked, found, strict=True)
        ]

    def request(self, text: str, prompt: str) -> Request:
        """One text, tokenised and truncated as in training."""
        ids = [*self.context.opened.vocabulary.encode(text), layout.EOS]
        length = self.context.run.data.task_feature_lengths["inputs"]
        tokens = layout.truncate(np.array(ids, np.int32), length)
        return Request(tokens, self.slots[prompt])

    def metrics(
        self, task: str, split: str, decoding: Decoding, batch_size: int
    ) -> dict[str, dict[str, float]]:
        """prompt name -> metrics of a task's split.

        Raises:
            UserError: unknown task or split.
        """
        run = self.context.run
        data = dataclasses.replace(run.data, mixture_or_task_name=task)
        found = {}
        for name, slots in self.slots.items():
            params = dict(self.params)
            if BANK in params:
                first = int(slots[0]) - int(layout.slot_ids(1)[0])
                params[BANK] = params[BANK][first : first + len(slots)]
            method = run.method
            if method.folds:
                bank = dataclasses.replace(method.bank, length=len(slots))
                method = dataclasses.replace(method, bank=bank)
            context = dataclasses.replace(
                self.context,
                run=dataclasses.replace(run, data=data, eval_steps=0),
                model=dataclasses.replace(self.context.model, method=method),
                made={},
            )
            evaluator = evaluate.TaskMetrics(decoding, batch_size)
            found[name] = evaluator(context, params, split)
        return found


def _leaves(
    files: Sequence[str], model: Model, opened, force: bool
) -> tuple[dict[str, jax.Array], str]:
    """The leaves of a method that does not fold into input vectors, and the file's name."""
    if len(files) > 1:
        raise UserError(
            f"{len(files)} prompts of {model.method.name}: rows of a batch may use different ones "
            "only where they are input vectors; ask for one at a time"
        )
    (file,) = files
    there = prompt_file.load(file)
    expected = {path: leaf.shape for path, leaf in model.prompt_shapes().items()}
    found = {path: leaf.shape for path, leaf in there.own.items()}
    if found != expected:
        raise UserError(f"prompt {file}: holds {found}, {model.method.name} here needs {expected}")
    if not force:
        prompt_file.check(file, there, opened.fingerprint, opened.vocabulary.fingerprint)
    return jax.tree.map(jnp.asarray, there.own), epath.Path(file).stem


def _bank(
    files: dict[str, str], opened, force: bool
) -> tuple[jax.Array, dict[str, np.ndarray], dict[str, str]]:
    """The prompts of named files one after the other, each one's slots, and what was forced."""
    arrays, slots, forced, start = [], {}, {}, 0
    width = opened.params["backbone/token_embedder/embedding"].shape[1]
    for name, file in files.items():
        prompt = stored_prompts.read(file)
        if prompt.array.shape[1] != width:
            raise UserError(
                f"prompt {file} has width {prompt.array.shape[1]}, the backbone {opened.path} "
                f"{width}"
            )
        try:
            if prompt.file:
                theirs = opened.fingerprint, opened.vocabulary.fingerprint
                prompt_file.check(file, prompt.file, *theirs)
        except UserError as refusal:
            if not force:
                raise
            forced[name] = str(refusal)
            log.warning("--force: %s", refusal)
        slots[name] = layout.slot_ids(len(prompt.array), start)
        arrays.append(prompt.array)
        start += len(prompt.array)
    return jnp.asarray(np.concatenate(arrays)), slots, forced


def decoding_of(args, labels: tuple[str, ...]) -> Decoding:
    """The decoding that the command line asks for; `labels` are the task's own answers."""
    trie = args.decode == "trie"
    return (functools.partial(TrieDecoding, separator=args.separator) if trie else Decoding)(
        mode=args.decode or "greedy",
        max_length=args.max_decode_length or 0,
        beam_size=args.beam_size,
        length_penalty=args.length_penalty,
        length_penalty_form=args.length_penalty_form,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        labels=tuple(args.label) or labels,
    )


class Asked:
    """The predictor, task, split and decoding that a command line asks for."""

    def __init__(self, args):
        """Opens what the flags name.

        Raises:
            UserError: no `--model_dir`, an unknown task or split.
        """
        if not args.model_dir:
            raise UserError("--model_dir is unset, e.g. --model_dir=out/demo")
        self.predictor = Predictor.from_run(args.model_dir, args.prompt, args.gin, args.force)
        data = self.predictor.context.run.data
        self.task = args.mixture_or_task or data.mixture_or_task_name
        self.tasks, _ = cache.get_tasks(self.task, data.mixture_or_task_module)
        splits = next(iter(self.tasks.values())).splits
        self.split = args.split or ("test" if "test" in splits else "validation")
        self.batch_size = args.batch_size or 128
        needs_labels = args.decode in ("rank", "trie") and not args.label
        self._mode, self._separator = args.decode, args.separator
        self.decoding = decoding_of(args, self.labels() if needs_labels else ())

    def _split(self, answer: str) -> list[str]:
        several = self._mode == "trie" and self._separator
        return answer.split(self._separator) if several else [answer]

    def examples(self, split: str) -> list[dict[str, Any]]:
        """The split's examples, of all tasks of a mixture."""
        data = self.predictor.context.run.data
        vocabulary = self.predictor.context.opened.vocabulary
        found = []
        for name in self.tasks:
            tokens = cache.build(
                name,
                split,
                vocabulary,
                data.cache_dir,
                module=data.mixture_or_task_module,
                lengths=data.task_feature_lengths,
            )
            found += [tokens.example(i) for i in range(len(tokens))]
        return found

    def labels(self) -> tuple[str, ...]:
        """The labels that occur in the split's answers, for those that choose from them.

        Raises:
            UserError: more than MOST_LABELS of them: this is no classification task.
        """
        answers = (example["targets_pretokenized"] for example in self.examples(self.split))
        found = sorted({label for each in answers for label in self._split(each)})
        if len(found) > MOST_LABELS:
            raise UserError(
                f"--decode={self._mode}: {self.task} has {len(found)} different answers; "
                "name those to choose from with --label=TEXT"
            )
        return tuple(found)


def eval_command(args) -> None:
    """`prompt-jax eval`: a table of metrics, one row per prompt."""
    clock, asked = Clock(), Asked(args)
    found = asked.predictor.metrics(asked.task, asked.split, asked.decoding, asked.batch_size)
    for name, metrics in found.items():
        shown = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        print(f"{asked.task} {asked.split}  {name}  {shown}")
    if args.json:
        report = {
            "task": asked.task,
            "split": asked.split,
            "prompts": found,
            "forced": asked.predictor.forced,
            "seconds": clock.all()["total"],
        }
        write_bytes(epath.Path(args.json), json.dumps(report, indent=1).encode())


def predict_command(args) -> None:
    """`prompt-jax predict`: JSON lines, one per text and prompt."""
    texts = read_texts(args.input) if args.input else None
    asked = Asked(args)
    if texts is None:
        texts = [example["inputs_pretokenized"] for example in asked.examples(asked.split)]
    rows = asked.predictor.predict(texts, None, asked.decoding, asked.batch_size)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if args.output:
        write_bytes(epath.Path(args.output), lines.encode())
        print(f"wrote {len(rows)} rows to {args.output}", file=sys.stderr)
    else:
        sys.stdout.write(lines)
    if args.json:
        text = json.dumps(rows, ensure_ascii=False, indent=1)
        write_bytes(epath.Path(args.json), text.encode())


def read_texts(path: str) -> list[str]:
    """The inputs of a TSV (column `inputs`, `text`, `sentence`, or the first) or JSONL file.

    Raises:
        UserError: no such file, another ending, a row without inputs.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise UserError(f"--input {path}: no such file")
    lines = file.read_text().splitlines()
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in lines if line.strip()]
    elif file.suffix == ".tsv":
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    else:
        raise UserError(f"--input {path}: a .tsv with a header line or a .jsonl file is read")
    texts = []
    for number, row in enumerate(rows, 1):
        names = [name for name in ("inputs", "text", "sentence", *row) if name in row]
        if not names or not isinstance(row[names[0]], str):
            raise UserError(f"--input {path}: row {number} has no text column `inputs`")
        texts.append(row[names[0]])
    return texts
