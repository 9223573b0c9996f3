"""`prompt-jax convert`: backbones (T5X, Hugging Face, ours) and prompts, from each into each."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from etils import epath

from prompt_jax import merge
from prompt_jax.ckpt import fingerprint, folder, load, prompt_file, prompts, t5x, tree
from prompt_jax.ckpt.paths import resolve_path, target_path
from prompt_jax.ckpt.source import Source
from prompt_jax.data.vocabulary import check_fits, load_vocabulary
from prompt_jax.errors import RunFailed, UserError
from prompt_jax.models.t5.network import T5

_PROMPTS = (".npy", ".safetensors")
_KINDS = (
    "a backbone goes to DIR (a Hugging Face folder), t5x:DIR or FILE.gin (its sizes), a run "
    "of LoRA to DIR; a prompt to FILE.npy, FILE.safetensors, peft:DIR or t5x:DIR"
)


def convert_command(args) -> None:
    """`prompt-jax convert`.

    Raises:
        UserError: nothing to convert there, or a target that it cannot become.
    """
    if not args.source or not args.to:
        raise UserError(f"give --from and --to: {_KINDS}")
    named = any(prompts.is_prompt(path) for path in args.source)
    if len(args.source) == 1 and _is_folder(args.to) and merge.merges(args.source[0]):
        reports = [merge.merge(args.source[0], args.to)]
    elif named or args.to.startswith("peft:") or args.to.endswith(_PROMPTS):
        found = [prompts.read(path) for path in args.source]
        targets = [_target(prompt, args) for prompt in found]
        if len(set(targets)) < len(targets):
            raise UserError(f"--to: two prompts would be written to one place: {sorted(targets)}")
        reports = [
            convert_prompt(prompt, target, args)
            for prompt, target in zip(found, targets, strict=True)
        ]
    elif len(args.source) > 1:
        raise UserError("--from: one backbone at a time")
    else:
        reports = [convert_backbone(args.source[0], args.to, args.vocabulary, args.check)]
    for report in reports:
        print("  ".join(f"{key} {value}" for key, value in report.items() if value is not None))
    if args.json:
        prompt_file.write_bytes(epath.Path(args.json), json.dumps(reports, indent=1).encode())


def _is_folder(to: str) -> bool:
    return ":" not in to and not to.endswith((*_PROMPTS, ".gin"))


# --- backbones ---


def convert_backbone(path: str, to: str, vocabulary: str | None, check: bool) -> dict[str, Any]:
    """Converts a whole backbone, one tensor in memory at a time; the bits stay.

    Args:
        path: see `load.open_source`.
        to: a folder, `t5x:DIR`, or a `.gin` file for its sizes.
        vocabulary: a sentencepiece model to put beside the weights; None: the source's.
        check: also compare the logits of source and result.

    Returns:
        What was written: fingerprint, parameters, largest difference of logits.

    Raises:
        UserError: the source is damaged, or the target is something else.
    """
    if to.startswith("peft:"):
        raise UserError(f"--to={to}: {_KINDS}")
    source = load.open_source(path)
    load.check(source, source.config)
    if to.startswith("t5x:"):
        t5x.check_config(source.config)
    if vocabulary is None and source.vocabulary:
        vocabulary = str(source.vocabulary)
    if vocabulary is not None:
        loaded = load_vocabulary(str(resolve_path(vocabulary)))
        check_fits(loaded, source.config.vocab_size)
        vocabulary = getattr(loaded, "path", None)  # bytes have no file
    target = target_path(to)
    places = [os.path.realpath(place) for place in (source.place, target)]
    if os.path.commonpath(places) in places:
        raise UserError(
            f"--to={to}: the target may not be, hold or lie in the source {source.place}"
        )
    report = {"from": source.place, "to": str(target), "parameters": _parameters(source)}
    if to.endswith(".gin"):
        text = size_file(source, path, vocabulary)
        prompt_file.write_bytes(target, text.encode())
        return report
    names = [name for leaf in tree.leaves(source.config) for name in leaf.names]
    tensors = {name: source.tensors[name] for name in names}

    def fill(fresh: epath.Path) -> None:
        if to.startswith("t5x:"):
            digests = t5x.write(fresh, tensors)
        else:
            config = dataclasses.replace(source.config, param_dtype=_dtype(source))
            digests = folder.write(fresh, tensors, config, vocabulary)
        load.check_digests(source, digests)
        report["fingerprint"] = fingerprint.combine(digests)

    written = (lambda old: t5x.is_ours(old, tensors)) if to.startswith("t5x:") else folder.is_ours
    folder.replace(to, fill, written)
    if check:
        report["largest_logit_difference"] = difference = logit_difference(path, to)
        if not difference == 0:  # NaN too
            raise RunFailed(f"--check: the largest difference of logits is {difference}: {target}")
    return report


def logit_difference(one: str, other: str) -> float:
    """The largest difference between the logits of two stored backbones.

    Args:
        one: read by its own reader, as is `other`.
        other: the second.

    Returns:
        max |logits_one - logits_other| over 2 rows of 32 random inputs and 8 targets.
    """
    rng = np.random.default_rng(0)
    config = load.open_source(one).config
    batch = {
        "encoder_input_tokens": rng.integers(2, config.vocab_size, (2, 32), np.int32),
        "decoder_input_tokens": rng.integers(2, config.vocab_size, (2, 8), np.int32),
    }
    for stack in ("encoder", "decoder"):
        batch[f"{stack}_segment_ids"] = np.ones_like(batch[f"{stack}_input_tokens"])
    logits = []
    for path in (one, other):  # one after the other: only one backbone is in memory
        source = load.open_source(path)
        stored = dataclasses.replace(source.config, param_dtype=_dtype(source))
        params = load.load_backbone(path, stored).params
        network = T5(stored)
        apply = jax.jit(lambda p, network=network: network.apply({"params": p}, batch)["logits"])
        logits.append(np.asarray(apply(params)))
    return float(np.abs(logits[0] - logits[1]).max())


def size_file(source: Source, path: str, vocabulary: str | None) -> str:
    """The gin file of a backbone's sizes, for `--gin_file`."""
    lines = [
        f"# {pathlib.PurePath(source.place).name}: {_parameters(source):,} parameters.",
        f"# Checkpoint: {path}",
    ]
    unsaid = ("dropout_rate", "param_dtype", "dtype", "attention", "remat")  # of a run alone
    for field in dataclasses.fields(source.config):
        if field.name not in unsaid:
            lines.append(f"T5Config.{field.name} = {getattr(source.config, field.name)!r}")
    lines.append(f"INITIAL_CHECKPOINT_PATH = {path!r}")
    beside = source.vocabulary and vocabulary == str(source.vocabulary)
    lines += [f"Backbone.vocabulary = {vocabulary!r}"] if vocabulary and not beside else []
    return "\n".join(lines) + "\n"


def _parameters(source: Source) -> int:
    return sum(int(np.prod(t.shape, dtype=np.int64)) for t in source.tensors.values())


def _dtype(source: Source) -> str:
    """The storage dtype that holds every number of the source."""
    dtypes = {tensor.dtype.name for tensor in source.tensors.values()}
    return "bfloat16" if dtypes == {"bfloat16"} else "float32"


# --- prompts ---


def convert_prompt(prompt: prompts.Prompt, to: str, args) -> dict[str, Any]:
    """Converts a prompt; its float32 bits stay.

    Args:
        prompt: see `prompts.read`.
        to: `.npy`, `.safetensors` (ours), `peft:DIR`, or `t5x:DIR`.
        args: `backbone` (whose prompt it is; ours needs one), `vocabulary`, `base_model` (named
            in a PEFT adapter), `force`.

    Returns:
        What was written.

    Raises:
        UserError: another backbone, vocabulary or width; a target that a prompt cannot become.
    """
    report = {"from": prompt.path, "to": str(target_path(to)), "shape": list(prompt.array.shape)}
    belongs = _fingerprints(prompt, args)
    if args.backbone and prompt.file and args.force:
        there = (prompt.file.backbone, prompt.file.vocabulary)
        report["forced"] = [there, belongs] if there != belongs else None
    if to.startswith("peft:"):
        prompts.write_peft(to, prompt, args.base_model)
    elif to.startswith("t5x:"):
        prompts.write_t5x(to, prompt)
    elif to.endswith(".npy"):
        prompts.write_npy(to, prompt)
    elif to.endswith(".safetensors"):
        if belongs is None:
            raise UserError(
                f"--to={to}: our prompt file names the backbone it belongs to; "
                "give it, e.g. --backbone=hf:google/t5-base-lm-adapt"
            )
        prompts.write_ours(to, prompt, *belongs)
    else:
        raise UserError(f"--to={to}: {_KINDS}")
    return report


def _fingerprints(prompt: prompts.Prompt, args) -> tuple[str, str] | None:
    """Of the backbone and vocabulary that a prompt belongs to, checked against `--backbone`."""
    if not args.backbone:
        return (prompt.file.backbone, prompt.file.vocabulary) if prompt.file else None
    source = load.open_source(args.backbone)
    width = prompt.array.shape[1]
    if width != source.config.emb_dim:
        raise UserError(
            f"prompt {prompt.path} has width {width}, --backbone {source.place} has "
            f"{source.config.emb_dim}"
        )
    vocabulary = args.vocabulary or source.vocabulary
    if vocabulary is None:
        raise UserError(f"--backbone {source.place} has no vocabulary beside it; give --vocabulary")
    loaded = load_vocabulary(str(resolve_path(vocabulary)))
    check_fits(loaded, source.config.vocab_size)
    belongs = (load.read_fingerprint(source), loaded.fingerprint)
    if prompt.file and not args.force:
        prompt_file.check(prompt.path, prompt.file, *belongs)
    return belongs


def _target(prompt: prompts.Prompt, args) -> str:
    """`--to` of one prompt: `{name}` is its file's name, or its run's."""
    if len(args.source) > 1 and "{name}" not in args.to:
        raise UserError("--to: several --from need {name} in it, e.g. --to=out/{name}.npy")
    place = pathlib.PurePath(os.path.realpath(prompt.path))
    name = place.stem if place.suffix in _PROMPTS else place.name
    name = place.parent.name if name in ("prompt", "prompt_last", "prompt_init") else name
    return args.to.replace("{name}", name)
